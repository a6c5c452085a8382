"""One store call: its deadline, its circuit breaker, the check of its answer, and what its error says about the store.

Knows nothing of sessions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from asgi_sessions._core.record import Record
from asgi_sessions._core.types import Clock
from asgi_sessions._engine.breaker import FAILURES_TO_OPEN, Breaker, Breakers
from asgi_sessions._engine.contract import Store
from asgi_sessions._engine.deadline import Deadlines
from asgi_sessions._engine.failures import FailureLog, reason_of
from asgi_sessions.errors import (
    EndUnconfirmed,
    NotNow,
    RecordChanged,
    RecordDamaged,
    RecordExists,
    RecordGone,
    SessionDataError,
    SessionLimitReached,
    StoreError,
)

logger = logging.getLogger("asgi_sessions")

DEADLINE = 0.45
"""Seconds that a load, or a whole commit, may take: one request does one of each and stays under a second."""

TOUCH_SHARE = 0.6
"""Of the deadline: so much a touch may take at most. A commit with one has time left for an answer to the browser."""

_READING = frozenset({"load", "index", "records", "history"})
"""The methods of a store that only read. A store that refuses writes may answer them."""

P = ParamSpec("P")
T = TypeVar("T")


class Guard:
    """Calls the methods of one store."""

    def __init__(self, store: Store, *, deadline: float | None = None, clock: Clock = time.time) -> None:
        self.store = store
        self.deadline = DEADLINE if deadline is None else deadline
        self.deadlines = Deadlines(self.deadline)
        self.limit = self.deadlines.limit
        """For the block that follows; it raises TimeoutError."""
        self.touch_deadlines = Deadlines(self.deadline * TOUCH_SHARE)
        # Asked of the class: what wraps a store need not keep what the store promises.
        keeps_time = hasattr(type(store), "keeps_time") and store.keeps_time is True  # type: ignore[attr-defined]  # just asked
        self.keeps_time = keeps_time and self.deadline >= DEADLINE  # else it would take longer
        self.breakers = of_store(store, _breakers, Breakers)
        self.breaker = self.breakers.whole
        self.failures = of_store(store, _failures, FailureLog)
        self.part_of: Callable[[str], Hashable] | None = getattr(store, "part_of", None)
        self._clock = clock

    @property
    def retry_after(self) -> int:
        """Seconds after which asking again is worth it."""
        return self.breakers.retry_after(time.monotonic())

    async def ask(self, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call one method of the store.

        Raises:
            StoreError: for every error that is not one of the contract's, and while the breaker is open.
        """
        began = time.monotonic()
        breaker = self.breaker if self.part_of is None else self._breaker_for(args[0])
        if not breaker.allows(began):
            raise StoreError(
                f"the store is left alone for a moment after {FAILURES_TO_OPEN} failures in a row, the last: {breaker.reason}"
            )
        try:
            answer = await method(*args, **kwargs)
        except BaseException as error:
            if self.part_of is not None and isinstance(error, StoreError) and isinstance(name := _name(args[0]), str):
                error.host = str(self.part_of(name))
            self.blame(error, began, breaker)
            raise
        breaker.succeeded()
        if self.failures.is_open:
            self.answered("read" if getattr(method, "__name__", "") in _READING else "write")
        return answer

    def _breaker_for(self, about: object) -> Breaker:
        """The breaker of the part of the store that is asked: about a record, a key or an owner, which all begin with a place."""
        name = _name(about)
        if self.part_of is None or not isinstance(name, str):
            return self.breaker
        return self.breakers.of(self.part_of(name))

    def blame(self, error: BaseException, began: float, breaker: Breaker) -> None:
        """Note what an error of the store says about it.

        Raises:
            StoreError: in the place of an error that is none of the contract's.
        """
        if isinstance(error, RecordExists | RecordGone | RecordChanged | RecordDamaged | SessionLimitReached):
            breaker.succeeded()
        elif isinstance(error, EndUnconfirmed | NotNow):
            breaker.abandoned()
        elif isinstance(error, StoreError):
            _note_failure(error, breaker)
        elif isinstance(error, SessionDataError):
            pass
        elif isinstance(error, Exception):
            wrapped = StoreError(f"the store failed: {reason_of(error)}")
            _note_failure(wrapped, breaker)
            raise wrapped from error
        elif time.monotonic() - began - self._stood_since(began) > self.deadline / 2:
            # Cancelled: by our deadline, or by a client that gave up. Only a long wait speaks against the store.
            _note_failure(self.too_slow(), breaker)
        else:
            breaker.abandoned()

    def _stood_since(self, began: float) -> float:
        """For how long the loop may have stood still; whoever watched it knows better than who did not."""
        return min(limits.stood_since(began) for limits in (self.deadlines, self.touch_deadlines))

    def too_slow(self, share: float = 1.0) -> StoreError:
        """The error for a call that took longer than the deadline, or than this share of it."""
        return StoreError(f"the store did not answer within {self.deadline * share:.2f} s")

    def answered(self, way: str) -> None:
        """Note that the store answered again, for reading or for writing."""
        if (outage := self.failures.answered(way, self._clock())) is not None:
            logger.warning("store.recovered: it can be asked again (%s) after=%.1fs failures=%d", way, *outage)


_NUMBER = (float, int)


def checked(record: object, key: str | None = None) -> Record:
    """``record``, if it is one, has the fields of one and lies under the key that was asked for.

    Raises:
        StoreError: it is something else.
    """
    if (
        type(record) is Record
        and (record.key == key or key is None)
        and type(record.rev) is int
        and isinstance(record.seen_at, _NUMBER)
        and isinstance(record.expires_at, _NUMBER)
        and type(record.id) is str
        and type(record.body) is bytes
        and (record.owner is None or type(record.owner) is str)
    ):
        return record
    raise StoreError("the store answered with something other than the record that was asked for")


def checked_ids(found: object) -> Sequence[str]:
    """The ids of sessions that a store says it has ended.

    Raises:
        StoreError: it says something else.
    """
    if isinstance(found, list | tuple) and all(isinstance(id, str) for id in found):
        return found
    raise StoreError("the store answered with something other than ids")


def _name(about: object) -> object:
    """Of what a store is asked: a key or an owner, or the record's key."""
    return about.key if isinstance(about, Record) else about


def _note_failure(failure: StoreError, breaker: Breaker) -> None:
    breaker.failed(time.monotonic(), reason_of(failure))


_breakers: WeakKeyDictionary[Store, Breakers] = WeakKeyDictionary()
_failures: WeakKeyDictionary[Store, FailureLog] = WeakKeyDictionary()


def of_store(store: Store, table: WeakKeyDictionary[Store, T], make: Callable[[], T]) -> T:
    """The same for all who use a store: some frameworks build the middleware once per route."""
    try:
        return table.setdefault(store, make())
    except TypeError:  # a store that cannot be hashed or weakly referenced
        return make()
