"""``require_fresh(level=…, methods=…)``: the same question, and RFC 9470's answer, in each framework."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from litestar import Litestar
from litestar import get as litestar_get
from quart import Quart

from asgi_sessions import ConfigurationError, MemoryStore, SessionMiddleware, Sessions
from asgi_sessions.frameworks import fastapi, litestar, quart
from asgi_sessions.testing import FakeClock
from tests.support import Browser, inner_app, log_in

WITHIN = timedelta(minutes=5)


def fastapi_app(sessions: Sessions, **asked: Any) -> Any:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, sessions)

    @app.get("/", dependencies=[Depends(fastapi.require_fresh(WITHIN, **asked))])
    def grave() -> str:
        return "done"

    return app


def litestar_app(sessions: Sessions, **asked: Any) -> Any:
    @litestar_get("/", guards=[litestar.require_fresh(WITHIN, **asked)], sync_to_thread=False)
    def grave() -> str:
        return "done"

    return Litestar([grave], plugins=[litestar.SessionPlugin(sessions)])


def quart_app(sessions: Sessions, **asked: Any) -> Any:
    app = Quart("tests")
    quart.init_app(app, sessions)

    @app.get("/")
    @quart.require_fresh(WITHIN, **asked)
    async def grave() -> str:
        return "done"

    return app


MAKES: dict[str, Callable[..., Any]] = {"FastAPI": fastapi_app, "Litestar": litestar_app, "Quart": quart_app}


@pytest.mark.parametrize("framework", MAKES)
@pytest.mark.parametrize(
    ("asked", "passes", "said"),
    [
        ({}, True, ""),
        ({"level": 1}, True, ""),
        ({"level": 2}, False, "acr_values"),
        ({"methods": ["pwd"]}, True, ""),
        ({"methods": ["otp"]}, False, "max_age"),
        ({"methods": ["pwd"], "level": 2}, False, "acr_values"),
    ],
    ids=str,
)
async def test_a_user_with_a_password_alone(
    memory: MemoryStore, clock: FakeClock, framework: str, asked: dict[str, Any], passes: bool, said: str
) -> None:
    sessions = Sessions(memory, clock=clock)
    browser = Browser(SessionMiddleware(inner_app, sessions))
    await browser.do(log_in("alice", methods=["pwd"]))
    app = MAKES[framework](sessions, **asked)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://testserver") as client:
        answer = await client.get("/", headers={"cookie": f"{browser.name}={browser.token}"})

    assert answer.status_code == (200 if passes else 401)
    challenge = answer.headers.get("www-authenticate", "")
    assert said in challenge
    if not passes:
        assert "insufficient_user_authentication" in challenge
        assert "max_age=300" in challenge.replace('"', "")


@pytest.mark.parametrize("ask", [fastapi.require_fresh, litestar.require_fresh, quart.require_fresh])
@pytest.mark.parametrize("wrong", [{"methods": "pwd"}, {"methods": ["A"]}, {"level": 10}, {"level": "2"}], ids=str)
def test_what_makes_no_sense_is_refused_at_once(ask: Callable[..., Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"require_fresh\(\)"):
        ask(WITHIN, **wrong)


@pytest.mark.parametrize("ask", [fastapi.require_fresh, litestar.require_fresh, quart.require_fresh])
def test_a_bare_number_is_no_duration(ask: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="timedelta"):
        ask(300)
