"""Adoption: sessions of another library, as far as they can be carried over. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, Protocol, runtime_checkable
from uuid import UUID

from asgi_sessions._core.payload import MAX_DEPTH, MessagePackCodec
from asgi_sessions._core.types import Headers
from asgi_sessions.errors import SessionDataError


@dataclass(frozen=True, slots=True)
class OldSession:
    """A session of another library."""

    data: Mapping[str, Any]
    user_id: str | None
    """The user who is logged in; ``None`` for an anonymous session."""
    authenticated_at: float | None = None
    """When the user logged in, in seconds since the epoch; ``None`` if the old session does not say."""
    remembered: bool = False
    """Whether its cookie outlives the browser."""
    until: float | None = None
    """When it ends at the latest, if its store says so; otherwise :attr:`OldCookie.until` counts."""


@dataclass(frozen=True, slots=True)
class OldCookie:
    """A cookie of another library whose form and signature are right."""

    identity: bytes
    """Equal for all requests of one session: the id of a stored session, or the whole value of a signed cookie."""
    until: float
    """Until when it may lead to a session of the old library, in seconds since the epoch. So long its adoption is remembered."""
    content: bytes = field(default=b"", repr=False)
    """The data, if the cookie carries it."""


@runtime_checkable
class Reader(Protocol):
    """Reads the sessions of another library. One instance serves all requests."""

    name: str
    """The other library, for events and log lines."""
    is_stored: bool
    """Whether the cookie holds an id, and the data is in a store. Otherwise the cookie holds the data itself."""

    def values(self, headers: Headers) -> Sequence[bytes]:
        """The values that may be its session cookie, among the headers of a request; a few at most. Never raises."""
        ...

    def recognise(self, value: bytes, now: float) -> OldCookie | None:
        """The cookie, if its form and signature are right and it has not expired. Asks no store and never raises."""
        ...

    async def read(self, cookie: OldCookie, now: float) -> OldSession | None:
        """The session; ``None`` if it has ended, has expired or is damaged. Keeps a time limit of its own.

        Raises:
            StoreError: the old store fails, or is too slow.
        """
        ...

    async def forget(self, cookie: OldCookie) -> None:
        """Delete the old session from its store, unless the app keeps old sessions for a rollback.

        Raises:
            StoreError: the old store fails.
        """
        ...

    def delete_cookie(self, headers: Headers) -> Headers:
        """The Set-Cookie headers that remove the old cookie from who sent these headers; none if the app keeps old sessions."""
        ...

    async def aclose(self) -> None:
        """Close the connections that the reader opened in this event loop."""
        ...


_CODEC: Final = MessagePackCodec()


def converted(data: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """The data of an old session as a payload can carry it, and the names of the keys that it cannot.

    ``docs/switching.md`` has the table of conversions.
    """
    kept: dict[str, Any] = {}
    dropped: list[str] = []
    for key, value in data.items():
        try:
            name = _name(key)
            if name in kept:
                raise ValueError("two keys are the same as text")
            plain = _plain(value, 0)
            _CODEC.encode({name: plain})
        except (SessionDataError, ValueError, RecursionError):
            dropped.append(str(key))
        else:
            kept[name] = plain
    try:
        _CODEC.encode(kept)
    except SessionDataError:  # together they are too much
        return {}, [*kept, *dropped]
    return kept, dropped


def _name(key: object) -> str:
    if isinstance(key, bool) or not isinstance(key, str | int | float):
        raise ValueError("no key of a payload")  # noqa: TRY004 - as for values
    return str(key)


def _plain(value: Any, depth: int) -> Any:
    """A value as JSON types, ``bytes`` and aware ``datetime``."""
    if depth > MAX_DEPTH:
        raise ValueError
    if isinstance(value, enum.Enum):
        return _plain(value.value, depth + 1)
    if value is None or isinstance(value, bool | bytes):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)  # a subclass, such as markupsafe.Markup, becomes what it is made of
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else value.isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID | Decimal):
        return str(value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        named = {_name(key): _plain(each, depth + 1) for key, each in value.items()}
        if len(named) != len(value):
            raise ValueError("two keys are the same as text")
        return named
    if isinstance(value, Sequence | AbstractSet):
        return [_plain(each, depth + 1) for each in value]
    raise ValueError("no type of a payload")
