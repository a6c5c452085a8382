"""Mangum: an app on AWS Lambda, whose lifespan begins and ends with each event."""

from __future__ import annotations

import tests.apps

tests.apps.needs("mangum")

import asyncio
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from mangum import Mangum
from starlette.applications import Starlette
from starlette.middleware import Middleware

from asgi_sessions import RedisStore, SessionMiddleware
from tests.apps.site import ME, routes


@pytest.fixture
def loop() -> Iterator[None]:
    """The one event loop of a Lambda process."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


class Gateway:
    """API Gateway with payload format 2.0, and the browser before it."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self.cookies: dict[str, str] = {}

    def __call__(self, method: str, path: str) -> Any:
        event: dict[str, Any] = {
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": path,
            "rawQueryString": "",
            "cookies": [f"{name}={value}" for name, value in self.cookies.items()],
            "headers": {"host": "shop.example", "cookie": "; ".join(f"{n}={v}" for n, v in self.cookies.items())},
            "requestContext": {
                "domainName": "shop.example",
                "http": {
                    "method": method,
                    "path": path,
                    "protocol": "HTTP/1.1",
                    "sourceIp": "192.0.2.1",
                    "userAgent": "x",
                },
                "requestId": "1",
                "stage": "$default",
            },
            "isBase64Encoded": False,
        }
        if not self.cookies:
            del event["cookies"], event["headers"]["cookie"]
        answer = self.handler(event, None)
        for line in answer.get("cookies", []):
            name, _, value = line.partition(";")[0].partition("=")
            if "Max-Age=0" in line:
                self.cookies.pop(name)
            else:
                self.cookies[name] = value
        return answer


@pytest.mark.parametrize("lifespan", ["auto", "off"])
def test_mangum(valkey_url: str, loop: None, lifespan: str) -> None:
    store = RedisStore.from_url(valkey_url, prefix=f"apps-{secrets.token_hex(4)}")
    app = Starlette(routes=routes(), middleware=[Middleware(SessionMiddleware, store=store)])
    ask = Gateway(Mangum(app, lifespan=lifespan))

    assert ask("POST", "/login/alice")["statusCode"] == 200
    assert set(ask.cookies) == {"__Host-Http-session"}
    assert json.loads(ask("GET", "/me")["body"]) == ME
    assert "cookies" not in ask("GET", "/me") or not ask("GET", "/me")["cookies"]

    ask("POST", "/logout")
    assert ask.cookies == {}
    assert json.loads(ask("GET", "/me")["body"])["user"] is None
    asyncio.get_event_loop().run_until_complete(store.aclose())
