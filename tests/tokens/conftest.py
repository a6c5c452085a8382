"""Tokens on every store, with a clock that stands still."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_sessions import Event, Sessions
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import SigningKey, Tokens

SECRET = "an excellent secret of at least 32 bytes"
KEY = SigningKey.generate("EdDSA")
URL = "https://api.example.org"


def some_tokens(store: Store, clock: FakeClock, **options: Any) -> Tokens:
    rules: dict[str, Any] = {"secret_keys": [SECRET], "clock": clock}
    rules |= {
        name: options.pop(name)
        for name in ("secret_keys", "devices", "on_event", "clock", "timeouts")
        if name in options
    }
    defaults: dict[str, Any] = {"keys": [KEY], "issuer": URL, "audience": URL}
    return Tokens(Sessions(store, **rules), **{**defaults, **options})


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def tokens(store: Store, clock: FakeClock, events: list[Event]) -> Tokens:
    return some_tokens(store, clock, on_event=events.append)
