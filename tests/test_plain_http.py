"""Browsers drop a Secure cookie that comes over plain http, without a word. So one word is said, in the log."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_sessions import CookieConfig, MemoryStore, SessionMiddleware
from asgi_sessions._asgi.exchange import dropped
from tests.support import Browser, Handler, Plan, app_with, destroy, log_in, put
from tests.threats.hostile import CONNECT, exchange, http_scope

Headers = list[tuple[bytes, bytes]]
PUBLIC = (b"host", b"shop.example")


@pytest.fixture(autouse=True)
def _untold() -> None:
    dropped.clear()


async def answer(
    headers: Headers, handler: Handler | None = None, cookie: CookieConfig | None = None, **more: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        (handler or put(a=1))(scope["session"])
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})

    scope = {name: value for name, value in {**http_scope(headers, scheme="http"), **more}.items() if value is not ...}
    middleware = SessionMiddleware(app, MemoryStore(), cookie=cookie or CookieConfig())
    await exchange(middleware, scope, [CONNECT] if "type" in more else [])


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "browsers drop it" in record.getMessage()]


DROPPED: dict[str, dict[str, Any]] = {
    "http": {},
    "http, a port": {"headers": [(b"host", b"shop.example:8000")]},
    "http, an address of the local network": {"headers": [(b"host", b"192.168.1.10:8000")]},
    "http, a name without dots": {"headers": [(b"host", b"intranet")]},
    "http, a name that begins like loopback": {"headers": [(b"host", b"localhost.example")]},
    "http, a name that begins like an address": {"headers": [(b"host", b"127.0.0.1.example")]},
    "http, an IPv6 address": {"headers": [(b"host", b"[2001:db8::1]:8000")]},
    "ws": {"type": "websocket", "scheme": "ws"},
    "a server that names no scheme": {"scheme": ...},
}

KEPT: dict[str, dict[str, Any]] = {
    "https": {"scheme": "https"},
    "wss": {"type": "websocket", "scheme": "wss"},
    "localhost": {"headers": [(b"host", b"localhost:8000")]},
    "LOCALHOST": {"headers": [(b"host", b"LOCALHOST")]},
    "localhost with a dot": {"headers": [(b"host", b"localhost.:8000")]},
    "a name under localhost": {"headers": [(b"host", b"shop.localhost:8000")]},
    "127.0.0.1": {"headers": [(b"host", b"127.0.0.1:8000")]},
    "all of 127.0.0.0/8": {"headers": [(b"host", b"127.8.9.1")]},
    "[::1]": {"headers": [(b"host", b"[::1]:8000")]},
    "no Host": {"headers": []},
    "a Host that is none": {"headers": [(b"host", b"a b")]},
    "Forwarded": {"headers": [PUBLIC, (b"forwarded", b"for=203.0.113.9")]},
    "X-Forwarded-Proto": {"headers": [PUBLIC, (b"x-forwarded-proto", b"https")]},
    "X-Forwarded-For": {"headers": [PUBLIC, (b"x-forwarded-for", b"203.0.113.9")]},
    "X-Real-IP": {"headers": [PUBLIC, (b"x-real-ip", b"203.0.113.9")]},
    "CloudFront": {"headers": [PUBLIC, (b"cloudfront-forwarded-proto", b"https")]},
    "Via": {"headers": [PUBLIC, (b"via", b"1.1 proxy")]},
    "a browser that trusts the URL": {"headers": [PUBLIC, (b"sec-fetch-site", b"none")]},
    "a cookie that is not Secure": {"cookie": CookieConfig.insecure_development()},
    "nothing to say": {"handler": lambda session: session.get("a")},
}


def options(case: dict[str, Any]) -> dict[str, Any]:
    return {"headers": [PUBLIC], **case}


@pytest.mark.parametrize("case", DROPPED)
async def test_a_cookie_that_browsers_drop_is_told_of(case: str, caplog: pytest.LogCaptureFixture) -> None:
    await answer(**options(DROPPED[case]))

    (said,) = warnings_in(caplog)
    assert "__Host-Http-session" in said
    assert "X-Forwarded-Proto" in said
    assert "insecure_development()" in said


@pytest.mark.parametrize("case", KEPT)
async def test_nothing_is_said_of_any_other(case: str, caplog: pytest.LogCaptureFixture) -> None:
    await answer(**options(KEPT[case]))

    assert warnings_in(caplog) == []


async def test_it_is_said_once_in_a_process(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        await answer([PUBLIC])
        await answer([PUBLIC], log_in("alice"))

    assert len(warnings_in(caplog)) == 1


async def test_a_deletion_is_no_cookie(caplog: pytest.LogCaptureFixture) -> None:
    alice = Browser(app_with(MemoryStore()))
    await alice.do(log_in("alice"))
    cookie = (b"cookie", f"{alice.name}={alice.token}".encode())

    await exchange(alice.app, http_scope([PUBLIC, cookie], scheme="http", plan=Plan(destroy)))

    assert warnings_in(caplog) == []
