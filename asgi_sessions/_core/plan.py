"""Plan: the steps of one commit, as data. Pure.

A commit looks up its row in :data:`COMMIT_TABLE`. The planner (``planner.py``) turns the row into a :class:`Plan`: store calls in
their order, the new token, and the cookie. A plan records its progress. Each call can be repeated with the same record: a second
call has no further effect. So an interrupted commit can continue its plan.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.history import Note, Reason
from asgi_sessions._core.intent import Asked, Leaving
from asgi_sessions._core.record import Body, Record

# ── The commit table ──


class Was(enum.Enum):
    __hash__ = object.__hash__

    NONE = "none"
    FOUND = "found"


class Data(enum.Enum):
    __hash__ = object.__hash__

    EMPTY = "empty"
    """No data, and no user."""
    SOME = "not empty"
    SAME = "same bytes"
    CHANGED = "other bytes"
    EMPTIED = "emptied, anonymous"
    """All data was removed, and there is no user, so no record is needed."""


class Phase(enum.Enum):
    """The progress of the request, which limits its verbs."""

    __hash__ = object.__hash__

    OPEN = "open"
    WITHHELD = "cookie withheld"
    """Open, but the browser may have withheld a cookie: see ``CookieConfig.may_be_withheld``."""
    STARTED = "started"
    """The response has started: a cookie can no longer be sent."""
    FAILED = "failed"
    """The request crashed or was answered with 5xx: only a log-out and activity count."""
    DEGRADED = "degraded"
    """The store failed at the load, and the app has an empty stand-in."""
    ENDED = "ended elsewhere"
    """Another request ended the session during this one."""


class Step(enum.Enum):
    __hash__ = object.__hash__

    NOTHING = "nothing"
    CREATE = "create, fresh token"
    TOUCH = "touch: two times only, never the payload"
    UPDATE = "update if the revision still matches; else merge and retry"
    RENAME = "rename, only if the old one is still there"
    RENEW = "rename likewise; an alias stays for the grace"
    LOG_IN = "create in the user's shard, then delete the old"
    DELETE = "delete"
    DELETE_UNCHANGED = "delete if the revision still matches; else merge and retry"
    DELETE_CREATE = "create, then delete the old"
    DELETE_ONLY = "delete; session.not_saved for what was written after it"
    NOT_SAVED = "nothing; session.not_saved"
    REFUSE = "nothing; StoreError"


class Cookie(enum.Enum):
    NOTHING = "nothing"
    SET = "set"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Row:
    was: tuple[Was, ...]
    data: tuple[Data, ...]
    asked: tuple[Asked, ...]
    phase: tuple[Phase, ...]
    store: Step
    cookie: Cookie


_NONE, _FOUND, _EITHER = (Was.NONE,), (Was.FOUND,), (Was.NONE, Was.FOUND)
_EMPTY, _SOME, _FRESH = (Data.EMPTY,), (Data.SOME,), (Data.EMPTY, Data.SOME)
_SAME, _CHANGED, _EMPTIED, _KNOWN = (Data.SAME,), (Data.CHANGED,), (Data.EMPTIED,), (Data.SAME, Data.CHANGED)
_NOTHING, _TOUCH, _RENEWAL, _REGENERATE = (Asked.NOTHING,), (Asked.TOUCH,), (Asked.RENEWAL,), (Asked.REGENERATE,)
_LOG_IN, _DESTROY = (Asked.LOG_IN,), (Asked.DESTROY,)
_IDLE = (Asked.NOTHING, Asked.TOUCH)
_OPEN, _STARTED, _FAILED, _DEGRADED = (Phase.OPEN,), (Phase.STARTED,), (Phase.FAILED,), (Phase.DEGRADED,)
_UNTIL_END = (Phase.OPEN, Phase.STARTED)

COMMIT_TABLE: tuple[Row, ...] = (
    #   record was  data now   asked                     phase       store                  cookie
    Row(_NONE, _EMPTY, (*_NOTHING, *_REGENERATE), _UNTIL_END, Step.NOTHING, Cookie.NOTHING),
    Row(_NONE, _SOME, (*_NOTHING, *_REGENERATE), _OPEN, Step.CREATE, Cookie.SET),
    Row(_NONE, _SOME, (*_NOTHING, *_REGENERATE), (Phase.WITHHELD, *_STARTED), Step.NOT_SAVED, Cookie.NOTHING),
    Row(_FOUND, _SAME, _NOTHING, _UNTIL_END, Step.NOTHING, Cookie.NOTHING),
    Row(_FOUND, _SAME, _TOUCH, _UNTIL_END, Step.TOUCH, Cookie.NOTHING),
    Row(_FOUND, _CHANGED, _IDLE, _UNTIL_END, Step.UPDATE, Cookie.NOTHING),
    Row(_FOUND, _EMPTIED, (*_IDLE, *_REGENERATE), _UNTIL_END, Step.DELETE_UNCHANGED, Cookie.DELETE),
    Row(_FOUND, _EMPTIED, _RENEWAL, _OPEN, Step.DELETE_UNCHANGED, Cookie.DELETE),
    Row(_FOUND, _KNOWN, _REGENERATE, _OPEN, Step.RENAME, Cookie.SET),
    Row(_FOUND, _SAME, _REGENERATE, _STARTED, Step.NOTHING, Cookie.NOTHING),
    Row(_FOUND, _CHANGED, _REGENERATE, _STARTED, Step.UPDATE, Cookie.NOTHING),
    Row(_FOUND, _KNOWN, _RENEWAL, _OPEN, Step.RENEW, Cookie.SET),
    Row(_EITHER, _FRESH, _LOG_IN, _OPEN, Step.LOG_IN, Cookie.SET),
    Row(_EITHER, _FRESH, _LOG_IN, _STARTED, Step.NOT_SAVED, Cookie.NOTHING),
    Row(_FOUND, _EMPTY, _DESTROY, _UNTIL_END, Step.DELETE, Cookie.DELETE),
    Row(_FOUND, _SOME, _DESTROY, _OPEN, Step.DELETE_CREATE, Cookie.SET),
    Row(_FOUND, _SOME, _DESTROY, (Phase.WITHHELD, *_STARTED), Step.DELETE_ONLY, Cookie.NOTHING),
    # A failed request: its data is ignored.
    Row(_NONE, _EMPTY, _NOTHING, _FAILED, Step.NOTHING, Cookie.NOTHING),
    Row(_FOUND, _SAME, _NOTHING, _FAILED, Step.NOTHING, Cookie.NOTHING),
    Row(_FOUND, _SAME, _TOUCH, _FAILED, Step.TOUCH, Cookie.NOTHING),
    Row(_FOUND, _EMPTY, _DESTROY, _FAILED, Step.DELETE, Cookie.DELETE),
    # Without the store, no response may confirm a log-in or a log-out.
    Row(_NONE, _EMPTY, (*_NOTHING, *_REGENERATE), _DEGRADED, Step.NOTHING, Cookie.NOTHING),
    Row(_NONE, _SOME, (*_NOTHING, *_REGENERATE), _DEGRADED, Step.NOT_SAVED, Cookie.NOTHING),
    Row(_NONE, _FRESH, _LOG_IN, _DEGRADED, Step.REFUSE, Cookie.NOTHING),
    Row(_NONE, _EMPTY, _DESTROY, (*_FAILED, *_DEGRADED), Step.REFUSE, Cookie.NOTHING),
    Row(_NONE, _SOME, _DESTROY, _DEGRADED, Step.REFUSE, Cookie.NOTHING),
    # An ended session: its data is ignored.
    Row(_NONE, _EMPTY, _NOTHING, (Phase.ENDED,), Step.NOTHING, Cookie.NOTHING),
    Row(_FOUND, _SAME, _IDLE, (Phase.ENDED,), Step.NOTHING, Cookie.NOTHING),
)
"""A session found by its alias counts as *found*: every step then goes to the successor. If the record turns out to be gone,
the commit stores nothing and sends no cookie. That is logged at info."""

ROWS = {
    (was, data, asked, phase): row
    for row in COMMIT_TABLE
    for was in row.was
    for data in row.data
    for asked in row.asked
    for phase in row.phase
}


# ── The steps of a plan ──

# Structs, since a frozen dataclass takes a microsecond to create. They hold no reference cycles, so ``gc=False`` is safe.


class End(msgspec.Struct, frozen=True, gc=False):
    """End a session of this request, even if its record has moved."""

    leaving: Leaving
    reason: Reason


class Create(msgspec.Struct, frozen=True, gc=False):
    """Store a new record. With a note, it is a log-in."""

    record: Record
    body: Body
    note: Note | None
    end: End | None
    """Done in the same step, when a user logs in again in their own session."""


class Update(msgspec.Struct, frozen=True, gc=False):
    record: Record
    body: Body
    rev: int


class Rename(msgspec.Struct, frozen=True, gc=False):
    """Move the record to the key of a new token. ``alias`` stays under the old key."""

    old: Record
    record: Record
    body: Body
    alias: Record | None
    note: Note | None
    events: tuple[str, ...]


class Touch(msgspec.Struct, frozen=True, gc=False):
    record: Record


class DeleteUnchanged(msgspec.Struct, frozen=True, gc=False):
    record: Record


class Confirm(msgspec.Struct, frozen=True, gc=False):
    """Delete a record that was not found: the store answers when its replicas have the end, too."""

    key: str


class EndOthers(msgspec.Struct, frozen=True, gc=False):
    """End the sessions of a user, except for the session ``keep``."""

    user_id: str
    keep: str | None


class SaveActor(msgspec.Struct, frozen=True, gc=False):
    """Commit the session of the actor together with an impersonated one, because it changed or the actor is active."""

    failed: bool


Call = Create | Update | Rename | Touch | DeleteUnchanged | SaveActor | End | Confirm | EndOthers


class Plan(msgspec.Struct, gc=False):
    """The steps of one commit, and its progress."""

    row: Row
    phase: Phase
    calls: list[Call]
    epoch: int
    """The session's epoch when the plan was made. A verb of another task changes that of the session."""
    token: Hidden[str] | None = None
    done: int = 0
    """How many calls are known to have taken effect."""
    is_unsure: bool = False
    """Whether the next call may have taken effect, because its reply was lost."""
    max_age: int | None = None

    @property
    def cookie(self) -> tuple[Hidden[str], int | None] | bool:
        """The cookie for the browser after the first call took effect: its old token is invalid, or soon will be."""
        return (self.token, self.max_age) if self.token is not None and self.done else False

    @property
    def can_be_undone(self) -> bool:
        """Whether the browser's current token still works, as if the plan had never begun."""
        return self.done == 0 and bool(self.calls) and isinstance(self.calls[0], Create | Rename | Update | Touch)
