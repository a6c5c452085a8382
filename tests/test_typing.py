"""The typing program runs; that the checkers find nothing in it is for `make lint`."""

from __future__ import annotations

import httpx

from asgi_sessions.testing import FakeClock


async def test_the_typing_program_does_what_it_says() -> None:
    from tests.typing import program

    app = program.app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://testserver") as client:
        response = await client.get("/")

    assert response.json() == {"count": 1, "list": [1], "a": 1, "b": 2}
    assert list(response.cookies) == ["__Host-Http-typing"]
    assert isinstance(program.clock, FakeClock)
