"""Every example, through the life of a session."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from asgi_sessions import CookieConfig
from tests.frameworks.client import Client

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["starlette_app", "fastapi_app", "litestar_app", "quart_app"]


def test_every_example_for_a_framework_is_played_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*_app.py")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
async def test_an_example_plays_the_life_of_a_session(name: str) -> None:
    app: Any = import_module(f"examples.{name}").app
    client = Client(app, cookie=CookieConfig.insecure_development().name)

    # A basket before the log-in.
    assert (await client.get("/account")).status_code == 401
    assert client.token is None
    assert (await client.post("/basket/apple")).json() == ["apple"]
    thief = client.another()

    # The log-in keeps it, under a new token.
    assert (await client.post("/login/alice")).status_code == 204
    assert client.token != thief.token
    account = (await client.get("/account")).json()
    assert (account["user"], account["basket"]) == ("alice", ["apple"])
    assert account.get("messages", ["Welcome, alice"]) == ["Welcome, alice"]
    assert (await thief.get("/account")).status_code == 401

    # A WebSocket changes it.
    async with client.websocket("/voice") as socket:
        assert socket.accepted
        assert json.loads((await socket.say("pear"))["text"]) == ["apple", "pear"]
        assert (await client.get("/account")).json()["basket"] == ["apple", "pear"]

    # The log-out ends it.
    thief = client.another()
    assert (await client.post("/logout")).status_code == 204
    assert client.token is None
    assert (await thief.get("/account")).status_code == 401
