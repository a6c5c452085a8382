"""The example with pages and an API, played."""

from __future__ import annotations

from datetime import timedelta

import httpx
from fastapi import Depends, FastAPI

from asgi_sessions import MemoryStore
from asgi_sessions.frameworks.fastapi import require_fresh
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import BearerMiddleware
from examples.fastapi_tokens import app
from tests.tokens.conftest import some_tokens


async def test_cookies_and_tokens_on_the_same_sessions() -> None:
    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000")

    async with client() as browser, client() as phone:
        await browser.post("/log-in/alice")
        pair = (await phone.post("/api/log-in/alice")).json()
        headers = {"authorization": f"Bearer {pair['access_token']}"}
        assert (await phone.get("/api/me", headers=headers)).json() == {"user": "alice"}
        assert (await browser.get("/api/me")).json() == {"user": "alice"}
        assert (await phone.get("/api/me")).status_code == 401

        listed = (await browser.get("/devices")).json()
        assert sorted((each["kind"], each["this"]) for each in listed) == [("browser", True), ("token", False)]
        (id,) = [each["id"] for each in listed if not each["this"]]
        await browser.delete(f"/devices/{id}")

        answer = await phone.post("/token/refresh", json={"refresh_token": pair["refresh_token"]})
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


async def test_a_token_that_is_not_fresh_is_challenged_in_its_own_scheme(memory: MemoryStore, clock: FakeClock) -> None:
    """RFC 9470, section 3."""
    tokens = some_tokens(memory, clock)
    service = FastAPI()
    service.add_middleware(BearerMiddleware, tokens=tokens)

    @service.get("/", dependencies=[Depends(require_fresh(timedelta(minutes=5)))])
    async def grave() -> str:
        return "done"

    pair = await tokens.log_in("alice")
    headers = {"authorization": f"Bearer {pair.access_token}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://localhost") as client:
        assert (await client.get("/", headers=headers)).status_code == 200
        clock.advance(timedelta(minutes=6))
        answer = await client.get("/", headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer error=insufficient_user_authentication, max_age=300"
