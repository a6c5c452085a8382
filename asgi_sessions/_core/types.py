"""The shared types: ASGI, clock and events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

Headers = list[tuple[bytes, bytes]]

Clock = Callable[[], float]
"""Returns seconds since the epoch, as ``time.time``."""


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a session or a failure, for counting, logging or mailing.

    No event ever contains a token, a key, a cookie or session data.
    """

    name: str
    """The name, in two words: ``session.logged_in``, ``cookie.duplicated``, ``store.failed`` …"""
    at: datetime
    """The time by the app's clock. Aware, in UTC."""
    session_id: str | None = None
    """The public id of the session, if there is one."""
    user_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


EventHook = Callable[[Event], Any]
"""A function or coroutine function that receives each event. Its errors are logged and have no other effect."""


def instant(seconds: float) -> datetime:
    """Return an aware ``datetime`` in UTC for seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC)
