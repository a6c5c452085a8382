"""Intent: all verbs of a request, as one value. A verb only extends the intent.

Several verbs in one request have the same effect as in separate requests, one after the other. The browser only receives the
final result.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from asgi_sessions._core.record import Record
from asgi_sessions._core.token import ID_CHARS, KEY_SUFFIX_CHARS, OWNER_CHARS, shard_of


class Asked(enum.Enum):
    """The strongest verb of a request for the session of its token."""

    __hash__ = object.__hash__  # by identity, in C: that of Enum is in Python, and the commit table is keyed by it

    NOTHING = "–"
    TOUCH = "touch due"
    RENEWAL = "renewal due"
    REGENERATE = "regenerate"
    LOG_IN = "log in"
    DESTROY = "destroy"


class Leaving(msgspec.Struct, frozen=True, gc=False):
    """A stored session, to be ended by a verb of this request."""

    record: Record
    user_id: str | None
    payload: bytes | None
    """The payload at the load, if the data moves to the new session."""
    actor_id: str | None = None
    """The user who acted as ``user_id`` in it."""


class Intent(msgspec.Struct, frozen=True, gc=False):
    """The combined verbs of a request."""

    asked: Asked = Asked.NOTHING
    leaving: Leaving | None = None
    others: tuple[str, ...] = ()
    """Users with other sessions to end."""
    missing: str | None = None
    """The key of a session to end that was not found: see ``Traits.confirms_ends``."""
    displaced: tuple[Leaving, ...] = ()
    """Other sessions to end: a bound one (:func:`displaced_by`), an impersonated one after its actor left it, or a parked one."""

    is_switch: bool = False
    """Whether the new token is for another session of the browser (``accounts.py``)."""

    def regenerate(self) -> Intent:
        """Add ``regenerate()``. A stronger verb already makes a new token."""
        return replace(self, asked=Asked.REGENERATE) if self.asked is Asked.NOTHING else self

    def log_in(self, stored: Leaving | None, *, keep_data: bool, displaced: Iterable[Leaving] = ()) -> Intent:
        """Add ``log_in()``. After ``destroy()``, the session before is still logged out."""
        asked = Asked.DESTROY if self.asked is Asked.DESTROY else Asked.LOG_IN
        leaving = self._leave(stored, keep_data=keep_data)
        return replace(self, asked=asked, leaving=leaving, displaced=(*self.displaced, *displaced))

    def destroy(
        self, stored: Leaving | None, *, is_unknown: bool, missing: str | None = None, displaced: Iterable[Leaving] = ()
    ) -> Intent:
        """Add ``destroy()``. ``is_unknown``: the store failed at the load, so there may be a session to end."""
        leaving, also = self._leave(stored, keep_data=False), (*self.displaced, *displaced)
        if leaving is None and also:
            leaving, also = also[0], also[1:]
        if leaving is not None or is_unknown or missing is not None:
            return Intent(Asked.DESTROY, leaving, self.others, missing if leaving is None else None, also)
        return self.settled()

    def end_others(self, *users: str) -> Intent:
        """Add ``end_others()`` of these users, with a new token for the current session."""
        return replace(self.regenerate(), others=tuple(dict.fromkeys((*self.others, *users))))

    def also(self, displaced: Leaving) -> Intent:
        """Add another session to end."""
        return replace(self, displaced=(*self.displaced, displaced))

    def _leave(self, stored: Leaving | None, *, keep_data: bool) -> Leaving | None:
        """The session to end: the first of the request, since later ones were never stored."""
        leaving = self.leaving or stored
        return leaving if leaving is None or keep_data else replace(leaving, payload=None)

    # ── A commit removes the completed parts ──

    def settled(self) -> Intent:
        """Remove the verb for the current session."""
        if self.others or self.displaced:
            return Intent(others=self.others, displaced=self.displaced)
        return NO_INTENT

    def without_displaced(self, ended: Leaving) -> Intent:
        """Remove a displaced session that has ended."""
        found = replace(self, displaced=tuple(each for each in self.displaced if each is not ended))
        return NO_INTENT if found == NO_INTENT else found

    def without_other(self, user_id: str) -> Intent:
        """Remove a user after the end of their other sessions."""
        found = replace(self, others=tuple(each for each in self.others if each != user_id))
        return NO_INTENT if found == NO_INTENT else found

    def moved(self, old: Record, new: Record) -> Intent:
        """Update the session to end, after it received another token."""
        if self.leaving is None or self.leaving.record is not old:
            return self
        return replace(self, leaving=replace(self.leaving, record=new))


NO_INTENT: Final = Intent()
"""The intent of nearly every request. A single object, so that ``is`` works."""


# ── A bound session beside an anonymous one ──

# A request without proof of its device has an empty session. If the app writes to it, its token replaces that of the bound
# session in the browser. The new record names the bound session and those beside it, so that a later log-in or log-out ends them.

_DISPLACING: Final = b"\x01"


def displacing(leaving: Iterable[Leaving]) -> bytes:
    """Encode the sessions that an anonymous one replaces in the browser."""
    return _DISPLACING + "".join(place_of(each.record) for each in leaving).encode("ascii")


def displaced_by(device: bytes) -> tuple[Leaving, ...]:
    """Decode the sessions of :func:`displacing`."""
    places, size = device[1:].decode("ascii", "replace"), OWNER_CHARS + ID_CHARS
    if device[:1] != _DISPLACING or len(places) % size:
        return ()
    return tuple(leaving_at(places[at : at + size]) for at in range(0, len(places), size))


# ── A session of a user, by its place in the index ──


def place_of(record: Record) -> str:
    """The owner and the id of a user's session. They do not change with its token."""
    return f"{record.owner}{record.id}"


def owner_and_id(place: str) -> tuple[str, str]:
    return place[:OWNER_CHARS], place[OWNER_CHARS:]


def leaving_at(place: str) -> Leaving:
    """The session at a place, to be ended. Its key is unknown, but the index of its user has it."""
    owner, id = owner_and_id(place)
    key = shard_of(owner) + "." * KEY_SUFFIX_CHARS  # a key without a record
    return Leaving(Record(key, 1, 0.0, 0.0, id, owner, b""), None, None)
