"""What comes later than one would think: a save after hours, an error that was answered already, a test's second request."""

from __future__ import annotations

from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from asgi_sessions import MemoryStore, SessionMiddleware, StoreError
from asgi_sessions.testing import FakeClock
from asgi_sessions.testing import log_in as make_logged_in
from tests.support import Browser, app_with, log_in
from tests.wrapped import Wrapped


async def test_a_client_made_logged_in_stays_so_when_the_app_changes_the_token(memory: MemoryStore) -> None:
    async def regenerate(request: Request) -> Response:
        request.scope["session"].regenerate()
        return PlainTextResponse("")

    async def who(request: Request) -> Response:
        return PlainTextResponse(str(request.scope["session"].user_id))

    app = Starlette(
        routes=[Route("/", who), Route("/regenerate", regenerate)],
        middleware=[Middleware(SessionMiddleware, store=memory)],
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://testserver") as client:
        await make_logged_in(client, memory, "alice")
        await client.get("/regenerate")

        assert (await client.get("/")).text == "alice"


async def test_a_late_save_does_not_revive_a_session_that_was_idle_for_too_long(
    memory: MemoryStore, clock: FakeClock
) -> None:
    """Promise 12, in a WebSocket or a stream that was open all the while."""
    browser = Browser(app_with(memory, clock=clock))
    await browser.do(log_in("alice"))

    async def an_hour_later(session: Any) -> None:
        clock.advance(3601)
        session["late"] = True
        await session.save()

    await browser.do(an_hour_later)

    assert (await browser.do(lambda session: session.user_id)).body == b"None"


async def test_an_answered_failure_is_not_reported_once_more_when_the_framework_wraps_it(memory: MemoryStore) -> None:
    """Starlette does, for an app that has a handler for StoreError: the 503 has left, and the server logs a crash."""
    store = Wrapped(memory)
    store.fail["create"] = StoreError("down")

    async def visit(request: Request) -> Response:
        request.session["visits"] = 1
        return PlainTextResponse("")

    async def sorry(request: Request, error: Exception) -> Response:
        return PlainTextResponse("sorry", 500)

    app = Starlette(
        routes=[Route("/", visit)],
        exception_handlers={StoreError: sorry},
        middleware=[Middleware(SessionMiddleware, store=store)],
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://testserver") as client:
        assert (await client.get("/")).status_code == 503
