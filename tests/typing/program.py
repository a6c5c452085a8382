"""A program that uses the public API as an app would; pyright (strict) and mypy (strict) must find nothing in it.

It is also imported by the suite, so that it cannot say what is not true.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_type

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from asgi_sessions import (
    ConfigurationError,
    CookieConfig,
    Event,
    MemoryStore,
    RedisStore,
    Session,
    SessionDataError,
    SessionError,
    SessionMiddleware,
    Sessions,
    StoreError,
    Timeouts,
)
from asgi_sessions.accounts import Accounts
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock


@dataclass
class Visit:
    number: int


def on_event(event: Event) -> None:
    assert_type(event.name, str)
    assert_type(event.at, datetime)
    assert_type(event.session_id, str | None)


async def on_event_async(event: Event) -> None:
    on_event(event)


async def handler(request: Request) -> JSONResponse:
    session: Session = request.scope["session"]
    session["count"] = session.get("count", 0) + 1
    session.setdefault("list", []).append(1)
    session.update({"a": 1}, b=2)
    assert_type(session.id, str)
    assert_type(session.user_id, str | None)
    assert_type(session.is_new, bool)
    assert_type(session.created_at, datetime)
    assert_type(session.authenticated_at, datetime | None)
    assert_type(session.expires_at, datetime)
    assert_type(session.is_fresh(timedelta(minutes=5)), bool)
    assert_type(session.ends_at, datetime)
    assert_type(session.get_as("visit", Visit), Visit | None)
    assert_type(session.get_as("visit", Visit, Visit(1)), Visit)
    assert_type(session.get_as("ids", set[int], None), set[int] | None)
    assert_type(session.read_model(Visit, None), Visit | None)
    session.mark_passive()
    await session.touch()
    assert_type(session.copy(), dict[str, Any])
    try:
        session.log_in("alice", remember=True)
        session.regenerate()
        session.confirm()
        session.impersonate("bob", within=timedelta(minutes=5))
        assert_type(session.actor_id, str | None)
        session.stop_impersonating()
        assert_type(await accounts.parked(session), list[str])
        if session.is_degraded:  # the middleware below has a Sessions of its own, so this would be refused
            await accounts.park(session)
            assert_type(await accounts.switch(session, "bob"), bool)
        await session.save()
    except (SessionDataError, StoreError) as error:
        assert_type(error, SessionDataError | StoreError)
        session.destroy()
    return JSONResponse(session)


memory: Store = MemoryStore(max_records=10)
redis: Store = RedisStore.from_url("redis://localhost:6379/0", prefix="typing")
clock = FakeClock()
accounts = Accounts(Sessions(memory))

app = Starlette(
    routes=[Route("/", handler)],
    middleware=[
        Middleware(
            SessionMiddleware,
            store=memory,
            cookie=CookieConfig(name="__Host-Http-typing", samesite="strict"),
            timeouts=Timeouts(idle=timedelta(minutes=30), renew=timedelta(minutes=10)),
            secret_keys=["kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"],
            skip=lambda scope: scope["path"].startswith("/static"),
            on_store_failure="anonymous",
            on_event=on_event_async,
            clock=clock,
        )
    ],
)
wrapped = SessionMiddleware(app, redis, cookie=CookieConfig.insecure_development(), on_event=on_event)
added = Starlette()
added.add_middleware(SessionMiddleware, store=memory)

assert issubclass(ConfigurationError, SessionError)
