"""Adoption of sessions of another library: the types, and the conversion of the data. Pure."""

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
    """The logged-in user, or ``None``."""
    authenticated_at: float | None = None
    """The time of the log-in, in seconds since the epoch, or ``None`` if unknown."""
    remembered: bool = False
    """Whether the cookie outlives the browser."""
    until: float | None = None
    """The latest end of the session, if its store has one. Otherwise :attr:`OldCookie.until` counts."""


@dataclass(frozen=True, slots=True)
class OldCookie:
    """A cookie of another library with a valid format and signature."""

    identity: bytes = field(repr=False)
    """Equal for all requests of one session: the id of a stored session, or the whole value of a signed cookie."""
    until: float
    """The last time at which the cookie may have a session, in seconds since the epoch. Adoption is remembered until then."""
    content: bytes = field(default=b"", repr=False)
    """The data, if it is in the cookie."""


@runtime_checkable
class Reader(Protocol):
    """Reads the sessions of another library. One instance serves all requests."""

    name: str
    """The other library, for events and log lines."""
    is_stored: bool
    """Whether the cookie holds an id, and the data is in a store. Otherwise the cookie holds the data itself."""

    def values(self, headers: Headers) -> Sequence[bytes]:
        """The values in the request headers that may be its session cookie, a few at most. Never raises."""
        ...

    def recognise(self, value: bytes, now: float) -> OldCookie | None:
        """The cookie, if its format and signature are valid and it has not expired. Asks no store and never raises."""
        ...

    async def read(self, cookie: OldCookie, now: float) -> OldSession | None:
        """The session, or ``None`` if it has ended, has expired or is damaged. Has its own time limit.

        Raises:
            StoreError: the old store failed, or was too slow.
        """
        ...

    async def forget(self, cookie: OldCookie) -> None:
        """Delete the old session from its store, unless the app keeps old sessions for a rollback. Has its own time limit.

        Raises:
            StoreError: the old store failed, or was too slow. The session is adopted in spite of it.
        """
        ...

    def delete_cookie(self, headers: Headers) -> Headers:
        """The Set-Cookie headers that remove the old cookie from this client. None if the app keeps old sessions."""
        ...

    async def aclose(self) -> None:
        """Close the connections that the reader opened in this event loop."""
        ...


_CODEC: Final = MessagePackCodec()


def converted(data: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """Convert the data of an old session for a payload. Returns the data, and the keys that cannot be converted.

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
    except SessionDataError:  # too large as a whole
        return {}, [*kept, *dropped]
    return kept, dropped


def _name(key: object) -> str:
    if isinstance(key, bool) or not isinstance(key, str | int | float):
        raise ValueError("not a key of a payload")  # noqa: TRY004 - as for values
    return str(key)


def _plain(value: Any, depth: int) -> Any:
    """Convert a value to JSON types, ``bytes`` and aware ``datetime``."""
    if depth > MAX_DEPTH:
        raise ValueError
    if isinstance(value, enum.Enum):
        return _plain(value.value, depth + 1)
    if value is None or isinstance(value, bool | bytes):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)  # a subclass, such as markupsafe.Markup, becomes its base
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
    raise ValueError("not a type of a payload")
