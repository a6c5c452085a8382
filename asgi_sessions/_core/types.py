"""The few types that everything else speaks."""

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
"""Seconds since the epoch, as ``time.time`` gives them."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a session that somebody may want to count, log or mail.

    No event ever holds a token, a key, a cookie or session data.
    """

    name: str
    """What happened, in two words: ``session.logged_in``, ``cookie.duplicated``, ``store.failed`` …"""
    at: datetime
    """When, by the app's clock; aware, UTC."""
    session_id: str | None = None
    """The public id of the session, where there is one."""
    user_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


EventHook = Callable[[Event], Any]
"""A function or coroutine function that is given each event. What it raises is logged and changes nothing."""


def instant(seconds: float) -> datetime:
    """The aware UTC ``datetime`` of a reading of the clock."""
    return datetime.fromtimestamp(seconds, UTC)
