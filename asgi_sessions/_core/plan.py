"""Plan: what one commit does, as data. Pure.

A commit looks up its row in :data:`COMMIT_TABLE` and turns it into a :class:`Plan`: store calls in their order, the new token,
and what the browser is told. A plan notes how far it got. Each of its steps can be repeated with the same record: the second
time it has no further effect. So a plan that was interrupted is simply gone on with.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.history import Note, Reason
from asgi_sessions._core.record import Body, Record
from asgi_sessions._core.session import Asked

# ── The commit table ──


class Was(enum.Enum):
    __hash__ = object.__hash__

    NONE = "none"
    FOUND = "found"


class Data(enum.Enum):
    __hash__ = object.__hash__

    EMPTY = "empty"
    """Nothing there, and nobody logged in."""
    SOME = "not empty"
    SAME = "same bytes"
    CHANGED = "other bytes"
    EMPTIED = "emptied, anonymous"
    """Was not empty and now is, and nobody is logged in: no reason to keep a record."""


class Step(enum.Enum):
    __hash__ = object.__hash__

    NOTHING = "nothing"
    CREATE = "create, fresh token"
    TOUCH = "touch: two times only, never the payload"
    UPDATE = "update if the revision still matches; else merge and retry"
    RENAME = "rename, only if the old one is still there"
    RENEW = "rename likewise; an alias stays for the grace"
    LOG_IN = "create in the user's place, then delete the old"
    DELETE = "delete"
    DELETE_UNCHANGED = "delete if the revision still matches; else merge and retry"
    DELETE_CREATE = "create, then delete the old"


class Cookie(enum.Enum):
    NOTHING = "nothing"
    SET = "set"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Row:
    was: Was
    data: tuple[Data, ...]
    asked: tuple[Asked, ...]
    store: Step
    cookie: Cookie


_FRESH = (Data.EMPTY, Data.SOME)
_KNOWN = (Data.SAME, Data.CHANGED)
_QUIET = (Asked.NOTHING, Asked.TOUCH, Asked.RENEWAL)

COMMIT_TABLE: tuple[Row, ...] = (
    #   record was  data now               asked                       store                   cookie
    Row(Was.NONE, (Data.EMPTY,), (*_QUIET, Asked.REGENERATE), Step.NOTHING, Cookie.NOTHING),
    Row(Was.NONE, (Data.SOME,), (*_QUIET, Asked.REGENERATE), Step.CREATE, Cookie.SET),
    Row(Was.FOUND, (Data.SAME,), (Asked.NOTHING,), Step.NOTHING, Cookie.NOTHING),
    Row(Was.FOUND, (Data.SAME,), (Asked.TOUCH,), Step.TOUCH, Cookie.NOTHING),
    Row(Was.FOUND, (Data.CHANGED,), (Asked.NOTHING, Asked.TOUCH), Step.UPDATE, Cookie.NOTHING),
    Row(Was.FOUND, (Data.EMPTIED,), (*_QUIET, Asked.REGENERATE), Step.DELETE_UNCHANGED, Cookie.DELETE),
    Row(Was.FOUND, _KNOWN, (Asked.REGENERATE,), Step.RENAME, Cookie.SET),
    Row(Was.FOUND, _KNOWN, (Asked.RENEWAL,), Step.RENEW, Cookie.SET),
    Row(Was.NONE, _FRESH, (Asked.LOG_IN,), Step.LOG_IN, Cookie.SET),
    Row(Was.FOUND, _FRESH, (Asked.LOG_IN,), Step.LOG_IN, Cookie.SET),
    Row(Was.FOUND, (Data.EMPTY,), (Asked.DESTROY,), Step.DELETE, Cookie.DELETE),
    Row(Was.FOUND, (Data.SOME,), (Asked.DESTROY,), Step.DELETE_CREATE, Cookie.SET),
)
"""A session found by its alias is *found*: every step then goes to the successor. A row whose record turns out to be gone
ends with nothing stored and nothing said to the browser; that is logged at info."""

ROWS = {(row.was, data, asked): row for row in COMMIT_TABLE for data in row.data for asked in row.asked}


# ── The steps of a plan ──


@dataclass(frozen=True, slots=True)
class Create:
    """Keep a new record; with a note, it is a log-in."""

    record: Record
    body: Body
    note: Note | None


@dataclass(frozen=True, slots=True)
class Update:
    record: Record
    body: Body
    rev: int


@dataclass(frozen=True, slots=True)
class Rename:
    """Move the record to the key of a new token. ``alias`` stays under the old key."""

    old: Record
    record: Record
    body: Body
    alias: Record | None
    note: Note | None
    event: str


@dataclass(frozen=True, slots=True)
class Touch:
    record: Record


@dataclass(frozen=True, slots=True)
class DeleteUnchanged:
    record: Record


@dataclass(frozen=True, slots=True)
class End:
    """End the session that the request began with, wherever its record is now."""

    record: Record
    user_id: str | None
    reason: Reason
    loaded: bytes | None
    """The payload that was loaded from it, if its data moved on to the new session."""


@dataclass(frozen=True, slots=True)
class EndOthers:
    """End the sessions of a user, except for the session ``keep``."""

    user_id: str
    keep: str | None


Call = Create | Update | Rename | Touch | DeleteUnchanged | End | EndOthers


@dataclass(slots=True)
class Plan:
    """The steps of one commit, and how far it got."""

    row: Row
    calls: list[Call]
    epoch: int
    """Of the session when the plan was made. A verb of another task makes it another one."""
    token: Hidden[str] | None = None
    done: int = 0
    """How many calls are known to have taken effect."""
    is_unsure: bool = False
    """Whether the call after those may have taken effect: its reply was lost."""
    max_age: int | None = None

    @property
    def cookie(self) -> tuple[Hidden[str], int | None] | bool:
        """What the browser must be told once the first call has taken effect: the token that it has is dead, or about to be."""
        return (self.token, self.max_age) if self.token is not None and self.done else False

    @property
    def can_be_undone(self) -> bool:
        """Whether the browser can go on with the token that it has, as if the plan had never begun."""
        return self.done == 0 and bool(self.calls) and isinstance(self.calls[0], Create | Rename | Update | Touch)
