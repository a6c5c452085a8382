"""Intent: what the app asked for, as one value. A verb extends it and does nothing else.

The verbs of one request have the effect that they would have had in separate requests, one after the other. The browser only
receives the final result.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec
from msgspec.structs import replace

from asgi_sessions._core.record import Record
from asgi_sessions._core.token import ID_CHARS, KEY_SUFFIX_CHARS, OWNER_CHARS, shard_of


class Asked(enum.Enum):
    """What is to become of the session that the request began with."""

    __hash__ = object.__hash__  # by identity, in C: an Enum's own is Python, and the commit table is looked up by it

    NOTHING = "–"
    TOUCH = "touch due"
    RENEWAL = "renewal due"
    REGENERATE = "regenerate"
    LOG_IN = "log in"
    DESTROY = "destroy"


class Leaving(msgspec.Struct, frozen=True, gc=False):
    """A stored session that a verb of this request is to end."""

    record: Record
    user_id: str | None
    payload: bytes | None
    """What was loaded from it, if the data moves on to the new session."""
    actor_id: str | None = None
    """The user who acted as ``user_id`` in it."""


class Intent(msgspec.Struct, frozen=True, gc=False):
    """All that the verbs of a request ask for."""

    asked: Asked = Asked.NOTHING
    leaving: Leaving | None = None
    others: tuple[str, ...] = ()
    """The users whose other sessions are to end."""
    missing: str | None = None
    """The key of a session that is to end and was not found: see ``Traits.confirms_ends``."""
    displaced: tuple[Leaving, ...] = ()
    """Other sessions to end: a bound one (see :func:`displaced_by`), or an impersonated one that its actor has left."""

    def regenerate(self) -> Intent:
        """A stronger verb makes a new token by itself."""
        return replace(self, asked=Asked.REGENERATE) if self.asked is Asked.NOTHING else self

    def log_in(self, stored: Leaving | None, *, keep_data: bool, displaced: Leaving | None = None) -> Intent:
        """A log-in after ``destroy()`` is still a log-out of the session before."""
        asked = Asked.DESTROY if self.asked is Asked.DESTROY else Asked.LOG_IN
        leaving = self._leave(stored, keep_data=keep_data)
        return replace(self, asked=asked, leaving=leaving, displaced=self.also(displaced).displaced)

    def destroy(
        self,
        stored: Leaving | None,
        *,
        is_unknown: bool,
        missing: str | None = None,
        displaced: Leaving | None = None,
    ) -> Intent:
        """``is_unknown``: the store could not be asked, so there may be a session to end."""
        leaving, also = self._leave(stored, keep_data=False), self.also(displaced).displaced
        if leaving is not None or is_unknown or missing is not None:
            return Intent(Asked.DESTROY, leaving, self.others, missing if leaving is None else None, also)
        return self.settled()

    def end_others(self, user_id: str) -> Intent:
        """Comes with a new token for the session at hand."""
        others = self.others if user_id in self.others else (*self.others, user_id)
        return replace(self.regenerate(), others=others)

    def also(self, displaced: Leaving | None) -> Intent:
        """This session ends, too."""
        return self if displaced is None else replace(self, displaced=(*self.displaced, displaced))

    def _leave(self, stored: Leaving | None, *, keep_data: bool) -> Leaving | None:
        """The first session of a request counts: what comes later in it was never stored."""
        leaving = self.leaving or stored
        return leaving if leaving is None or keep_data else replace(leaving, payload=None)

    # ── What a commit has carried out is taken out of it ──

    def settled(self) -> Intent:
        """The session at hand is as it was asked for."""
        if not (self.others or self.displaced):
            return NO_INTENT
        return Intent(others=self.others, displaced=self.displaced)

    def without_displaced(self, ended: Leaving) -> Intent:
        """This session has ended."""
        found = replace(self, displaced=tuple(each for each in self.displaced if each is not ended))
        return NO_INTENT if found == NO_INTENT else found

    def without_other(self, user_id: str) -> Intent:
        """The other sessions of this user have ended."""
        others = tuple(each for each in self.others if each != user_id)
        found = replace(self, others=others)
        return NO_INTENT if found == NO_INTENT else found

    def moved(self, old: Record, new: Record) -> Intent:
        """The session that is to end has been given another token meanwhile."""
        if self.leaving is None or self.leaving.record is not old:
            return self
        return replace(self, leaving=replace(self.leaving, record=new))


NO_INTENT: Final = Intent()
"""Of nearly every request: one object, so that ``is`` tells."""


# ── A bound session beside an anonymous one ──

# A request without the proof of its device has an empty session. If the app writes to that, the browser receives its token in
# place of the bound session's. The new record notes which session that was, so that a later log-in or log-out ends it.

_DISPLACING: Final = b"\x01"


def displacing(leaving: Leaving) -> bytes:
    """What an anonymous record notes of the bound session whose place it takes in the browser."""
    return _DISPLACING + f"{leaving.record.owner}{leaving.record.id}".encode("ascii")


def displaced_by(device: bytes) -> Leaving | None:
    """The bound session that :func:`displacing` noted. Its key is not known; the index of its user leads to it."""
    if device[:1] != _DISPLACING or len(device) != 1 + OWNER_CHARS + ID_CHARS:
        return None
    text = device[1:].decode("ascii", "replace")
    owner, id = text[:OWNER_CHARS], text[OWNER_CHARS:]
    key = shard_of(owner) + "." * KEY_SUFFIX_CHARS  # of no record
    return Leaving(Record(key, 1, 0.0, 0.0, id, owner, b""), None, None)
