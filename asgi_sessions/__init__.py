"""Server-side sessions for ASGI: safe by default, fast, complete."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asgi_sessions._asgi.middleware import SessionMiddleware
from asgi_sessions._core.cookie import CookieConfig
from asgi_sessions._core.facts import Devices
from asgi_sessions._core.session import Session
from asgi_sessions._core.timeouts import Timeouts
from asgi_sessions._core.types import Event
from asgi_sessions.dbsc import DeviceBound
from asgi_sessions.errors import (
    ConfigurationError,
    ResponseStarted,
    SessionDataError,
    SessionError,
    SessionLimitReached,
    SessionWarning,
    StoreError,
)
from asgi_sessions.sessions import Sessions, UserSessions
from asgi_sessions.stores.memory import MemoryStore

if TYPE_CHECKING:
    from asgi_sessions.stores.redis import RedisStore
    from asgi_sessions.stores.sql import SQLStore

__version__ = "0.2.0"

__all__ = [
    "ConfigurationError",
    "CookieConfig",
    "DeviceBound",
    "Devices",
    "Event",
    "MemoryStore",
    "RedisStore",
    "ResponseStarted",
    "SQLStore",
    "Session",
    "SessionDataError",
    "SessionError",
    "SessionLimitReached",
    "SessionMiddleware",
    "SessionWarning",
    "Sessions",
    "StoreError",
    "Timeouts",
    "UserSessions",
]


_STORES = {"RedisStore": "asgi_sessions.stores.redis", "SQLStore": "asgi_sessions.stores.sql"}


def __getattr__(name: str) -> Any:
    """A store when it is first asked for. redis-py takes half a second to import; SQLAlchemy takes a third, and is an extra."""
    if name not in _STORES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    store = globals()[name] = getattr(import_module(_STORES[name]), name)
    return store
