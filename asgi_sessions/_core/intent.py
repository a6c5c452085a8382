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


class Intent(msgspec.Struct, frozen=True, gc=False):
    """All that the verbs of a request ask for."""

    asked: Asked = Asked.NOTHING
    leaving: Leaving | None = None
    others: tuple[str, ...] = ()
    """The users whose other sessions are to end."""
    missing: str | None = None
    """The key of a session that is to end and was not found: see ``Traits.confirms_ends``."""

    def regenerate(self) -> Intent:
        """A stronger verb makes a new token by itself."""
        return replace(self, asked=Asked.REGENERATE) if self.asked is Asked.NOTHING else self

    def log_in(self, stored: Leaving | None, *, keep_data: bool) -> Intent:
        """A log-in after ``destroy()`` is still a log-out of the session before."""
        asked = Asked.DESTROY if self.asked is Asked.DESTROY else Asked.LOG_IN
        return replace(self, asked=asked, leaving=self._leave(stored, keep_data=keep_data))

    def destroy(self, stored: Leaving | None, *, is_unknown: bool, missing: str | None = None) -> Intent:
        """``is_unknown``: the store could not be asked, so there may be a session to end."""
        leaving = self._leave(stored, keep_data=False)
        if leaving is not None or is_unknown or missing is not None:
            return Intent(Asked.DESTROY, leaving, self.others, missing if leaving is None else None)
        return self.settled()

    def end_others(self, user_id: str) -> Intent:
        """Comes with a new token for the session at hand."""
        others = self.others if user_id in self.others else (*self.others, user_id)
        return replace(self.regenerate(), others=others)

    def _leave(self, stored: Leaving | None, *, keep_data: bool) -> Leaving | None:
        """The first session of a request counts: what comes later in it was never stored."""
        leaving = self.leaving or stored
        return leaving if leaving is None or keep_data else replace(leaving, payload=None)

    # ── What a commit has carried out is taken out of it ──

    def settled(self) -> Intent:
        """The session at hand is as it was asked for."""
        return Intent(others=self.others) if self.others else NO_INTENT

    def without_other(self, user_id: str) -> Intent:
        """The other sessions of this user have ended."""
        others = tuple(each for each in self.others if each != user_id)
        return replace(self, others=others) if others or self.asked is not Asked.NOTHING else NO_INTENT

    def moved(self, old: Record, new: Record) -> Intent:
        """The session that is to end has been given another token meanwhile."""
        if self.leaving is None or self.leaving.record is not old:
            return self
        return replace(self, leaving=replace(self.leaving, record=new))


NO_INTENT: Final = Intent()
"""Of nearly every request: one object, so that ``is`` tells."""
