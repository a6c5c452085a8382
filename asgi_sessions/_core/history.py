"""History: one entry per event, in a capped list per user, and the rules for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from asgi_sessions._core.record import Record
from asgi_sessions._core.token import ID_CHARS

Reason = Literal[
    "logged_out",
    "revoked",
    "revoked_all",
    "idle",
    "absolute",
    "limit",
    "replaced",
    "emptied",
    "refresh_reused",
    "provider",
    "impersonation_ended",
]

Happening = Literal["logged_in", "stepped_up", "regenerated", "impersonated", "ended"]
"""The event of a history entry."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits of a user's sessions and history, for a store."""

    entries: int = 200
    """How many history entries a user has at most. 0: none is written."""
    keep: float = 90 * 86400.0
    """Seconds for which an entry is kept."""
    limit: int = 0
    """How many sessions a user may have. 0: any number."""
    refuses: bool = False
    """Whether a log-in beyond the limit is refused, instead of ending the session idle for longest."""


LOGGED_IN = "i"
NEW_DEVICE = "n"
"""A log-in with a device that has no other log-in in the history. A store writes it instead of LOGGED_IN."""
STEPPED_UP = "s"
REGENERATED = "g"
IMPERSONATED = "m"
"""Another user begins to act as this one."""
EXPIRED = "t"
"""An expiry found by a store, which does not know the timeout: idle or absolute."""
_ENDED: Final[Mapping[Reason, str]] = {
    "logged_out": "o",
    "revoked": "r",
    "revoked_all": "a",
    "idle": "d",
    "absolute": "x",
    "limit": "l",
    "replaced": "p",
    "emptied": "e",
    "refresh_reused": "u",
    "provider": "v",
    "impersonation_ended": "b",
}
_REASONS: Final[Mapping[str, Reason]] = {letter: reason for reason, letter in _ENDED.items()}

LIMIT_LETTER: Final = _ENDED["limit"]
ENDED_BY_CLOCK: Final = (EXPIRED, _ENDED["idle"], _ENDED["absolute"])

MINUTE = 60.0
"""Seconds. The history rounds times to the minute, which is enough to recognise an event."""

FINGERPRINT_CHARS = 11
NO_FINGERPRINT = "." * FINGERPRINT_CHARS
ENTRY_HEADER = 13 + 1 + ID_CHARS + FINGERPRINT_CHARS


class Note(msgspec.Struct, frozen=True, gc=False):
    """An entry for the history of a user, written in the same step as its change."""

    what: str
    """The event, as one letter."""
    now: float
    """The current time by the app's clock."""
    id: str
    """The id of the session."""
    rules: Rules
    fingerprints: tuple[str, ...] = ()
    """The device's fingerprints. An earlier log-in with one of them came from the same device. The first one is written."""
    facts: bytes = b""
    """Opaque: sealed if there are secrets."""
    at: float | None = None
    """The time of the event. ``None``: now."""
    replaces: Replaced | None = None
    """For a log-in: a session of the same user that ends in the same step, and does not count against the limit."""


class Replaced(msgspec.Struct, frozen=True, gc=False):
    """The session that a log-in replaces."""

    record: Record
    """Its last known record. Another request may have moved it since. Then the index has its new key."""
    note: Note
    """The note of its end."""


class Admission(msgspec.Struct, frozen=True, gc=False):
    """The answer of a store that has stored the session of a log-in."""

    new_device: bool = False
    first: bool = False
    """Whether the history has no other log-in at all."""
    ended: tuple[str, ...] = ()
    """The ids of the sessions ended because of the limit."""
    replaced: Record | None = None
    """The last record of the session ``note.replaces``. ``None``: it had ended before."""


def pack_entry(what: str, at: float, id: str, fingerprint: str = NO_FINGERPRINT, facts: bytes = b"") -> bytes:
    """Encode a history entry: milliseconds (13 digits, to the minute), one letter, id, fingerprint, facts."""
    time = min(max(int(at // MINUTE) * 60_000, 0), 10**13 - 1)
    return f"{time:013d}{what}{id}{fingerprint}".encode("ascii") + facts


def pack_note(note: Note) -> bytes:
    at = note.now if note.at is None else note.at
    return pack_entry(note.what, at, note.id, note.fingerprints[0] if note.fingerprints else NO_FINGERPRINT, note.facts)


class Entry(msgspec.Struct, frozen=True):
    """A decoded history entry."""

    at: float
    event: Happening
    reason: Reason | Literal["expired"] | None
    session_id: str
    new_device: bool
    facts: bytes


def unpack_entry(data: bytes) -> Entry | None:
    """Decode an entry of :func:`pack_entry`. Invalid bytes give ``None``."""
    try:
        header = data[:ENTRY_HEADER].decode("ascii")
        at = int(header[:13]) / 1000
    except (UnicodeDecodeError, ValueError):
        return None
    what, id = header[13:14], header[14 : 14 + ID_CHARS]
    event: Happening
    reason: Reason | Literal["expired"] | None = None
    if what in (LOGGED_IN, NEW_DEVICE):
        event = "logged_in"
    elif what == STEPPED_UP:
        event = "stepped_up"
    elif what == REGENERATED:
        event = "regenerated"
    elif what == IMPERSONATED:
        event = "impersonated"
    elif what == EXPIRED or what in _REASONS:
        event, reason = "ended", _REASONS.get(what, "expired")
    else:
        return None
    return Entry(at, event, reason, id, what == NEW_DEVICE, data[ENTRY_HEADER:])


def ended(reason: Reason) -> str:
    """The letter for the end of a session."""
    return _ENDED[reason]
