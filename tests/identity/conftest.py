from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from asgi_sessions import Event, Sessions
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.identity.provider import Provider
from tests.serving import serving

SECRET = "kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    async with serving(provider.app, provider.port):
        yield provider


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def sessions(store: Store, clock: FakeClock, events: list[Event]) -> Sessions:
    return Sessions(store, secret_keys=[SECRET], clock=clock, on_event=events.append)
