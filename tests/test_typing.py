"""The typing program runs; that the checkers find nothing in it is for `make lint`."""

from __future__ import annotations

import httpx
import pytest

from asgi_sessions.testing import FakeClock


async def test_the_typing_program_does_what_it_says() -> None:
    from tests.typing import program

    app = program.app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://testserver") as client:
        response = await client.get("/")

    assert response.json() == {"count": 1, "list": [1], "a": 1, "b": 2}
    assert list(response.cookies) == ["__Host-Http-typing"]
    assert isinstance(program.clock, FakeClock)


async def test_the_program_of_the_frameworks_does_what_it_says() -> None:
    pytest.importorskip("httpx2", reason="httpx2 is not installed")
    from tests.typing import frameworks

    answers = {}
    for name in ("starlette_app", "fastapi_app", "litestar_app", "quart_app"):
        transport = httpx.ASGITransport(getattr(frameworks, name))
        async with httpx.AsyncClient(transport=transport, base_url="https://testserver") as client:
            answers[name] = (await client.get("/")).status_code

    assert answers == {"starlette_app": 200, "fastapi_app": 200, "litestar_app": 401, "quart_app": 401}
