from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from asgi_sessions import RedisStore
from asgi_sessions.stores import Store


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def store(valkey_url: str) -> AsyncIterator[Store]:
    """A store with a server, so that values take the way of a deployment."""
    store = RedisStore.from_url(valkey_url, prefix=f"apps-{secrets.token_hex(4)}")
    yield store
    await store.aclose()
