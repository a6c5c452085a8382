"""One store call: its deadline, its circuit breaker, the check of its answer, and what its error says about the store.

Knows nothing of sessions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Final, ParamSpec, TypeVar

import anyio

from asgi_sessions._core.record import Record
from asgi_sessions._core.token import KEY_CHARS, SHARD_CHARS, shard_of
from asgi_sessions._core.types import Clock
from asgi_sessions._engine.breaker import FAILURES_TO_OPEN, Breaker, Breakers
from asgi_sessions._engine.contract import Store, trait
from asgi_sessions._engine.deadline import Deadlines
from asgi_sessions._engine.failures import FailureLog, reason_of
from asgi_sessions.errors import (
    EndUnconfirmed,
    RecordChanged,
    RecordDamaged,
    RecordExists,
    RecordGone,
    SessionDataError,
    SessionLimitReached,
    StoreError,
    StoreRefused,
    StoreUnreachable,
)

logger = logging.getLogger("asgi_sessions")

DEADLINE = 0.45
"""Seconds that a load, or a whole commit, may take: one request does one of each and stays under a second."""

TOUCH_SHARE = 0.6
"""Of the deadline: so much a touch may take at most. A commit with one has time left for an answer to the browser."""

NO_KEY = "A" * KEY_CHARS
"""Where no record lies: its hash would have to be all zeros. To find out whether the store can be asked."""

HOLD = 0.01
"""Seconds between two looks whether another caller has found out."""

_ANSWERS: Final = (RecordExists, RecordGone, RecordChanged, RecordDamaged, SessionLimitReached)
_SAY_NOTHING: Final = (StoreRefused, EndUnconfirmed, SessionDataError)
"""Errors that say nothing about the next call."""

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
        # A shorter deadline is ours to keep.
        self.keeps_time = trait(store, "keeps_its_own_deadline") is True and self.deadline >= DEADLINE
        at_once = trait(store, "asks_at_once") if self.keeps_time else 0
        self.at_once: int = at_once if isinstance(at_once, int) else 0
        self.breakers = Breakers()
        self.breaker = self.breakers.whole
        self.failures = FailureLog()
        self.server_of: Callable[[str], Hashable] | None = trait(store, "server_of")
        self._clock = clock

    @property
    def retry_after(self) -> int:
        """Seconds after which asking again is worth it."""
        return self.breakers.retry_after(time.monotonic())

    async def ask(self, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call one method of the store.

        Raises:
            StoreUnreachable: for every error that is not one of the contract's, and while the breaker is open.
        """
        began, breaker, server = time.monotonic(), self.breaker, None
        if self.server_of is not None:
            server = self.server_of(_name(args[0]))
            breaker = self.breakers.of(server)
        if breaker.failures and breaker.is_open:
            await self._find_out(breaker, _name(args[0]))
            began = time.monotonic()
        try:
            answer = await method(*args, **kwargs)
        except BaseException as error:
            if server is not None and isinstance(error, StoreError):
                error.host = str(server)
            self.blame(error, began, breaker)
            raise
        breaker.succeeded()
        if self.failures.is_open:
            self.answered("read" if getattr(method, "__name__", "") in _READING else "write")
        return answer

    async def _find_out(self, breaker: Breaker, name: str) -> None:
        """Probe the server of this name, for every caller: an answer closes the breaker, no answer opens it.

        The caller's own call must not decide: it may wait for a row that another transaction holds.
        """
        while not breaker.allows(time.monotonic()):
            if not breaker.is_doubted:
                raise StoreUnreachable(
                    f"the store is left alone for a moment after {FAILURES_TO_OPEN} failures in a row, "
                    f"the last: {breaker.reason}"
                )
            await anyio.sleep(HOLD)
        if not breaker.is_open:
            return  # another caller has found out
        began = time.monotonic()
        try:
            try:
                with self.limit():
                    await self.store.load(shard_of(name) + NO_KEY[SHARD_CHARS:])
            except TimeoutError as error:
                raise self.too_slow() from error
        except _ANSWERS:
            pass
        except BaseException as error:
            self.blame(error, began, breaker, is_sure=True)
            raise
        breaker.succeeded()

    def blame(self, error: BaseException, began: float, breaker: Breaker, *, is_sure: bool = False) -> None:
        """Note what an error of the store says about it.

        Args:
            is_sure: a long wait speaks against the store; otherwise it may be the fault of this call.
        Raises:
            StoreUnreachable: in the place of an error that is none of the contract's.
        """
        now = time.monotonic()
        if isinstance(error, _ANSWERS):
            breaker.succeeded()
        elif isinstance(error, _SAY_NOTHING):
            breaker.abandoned()
        elif isinstance(error, Exception):
            failure, cause = error, error.__cause__
            if not isinstance(failure, StoreError):
                failure, cause = StoreUnreachable(f"the store failed: {reason_of(error)}"), error
            is_guess = failure.is_guess or isinstance(cause, TimeoutError)
            breaker.failed(now, reason_of(failure), is_sure=is_sure or not is_guess)
            if failure is not error:
                raise failure from error
        elif now - began - self._stood_since(began) > self.deadline / 2:
            # Cancelled: by our deadline, or by a client that gave up.
            breaker.failed(now, reason_of(self.too_slow()), is_sure=is_sure)
        else:
            breaker.abandoned()

    def _stood_since(self, began: float) -> float:
        """For how long the loop may have stood still; whoever watched it knows better than who did not."""
        return min(limits.stood_since(began) for limits in (self.deadlines, self.touch_deadlines))

    def too_slow(self, share: float = 1.0) -> StoreUnreachable:
        """The error for a call that took longer than the deadline, or than this share of it."""
        return StoreUnreachable(f"the store did not answer within {self.deadline * share:.2f} s")

    def answered(self, way: str) -> None:
        """Note that the store answered again, for reading or for writing."""
        if (outage := self.failures.answered(way, self._clock())) is not None:
            logger.warning("store.recovered: it can be asked again (%s) after=%.1fs failures=%d", way, *outage)


_NUMBER = (float, int)


def checked(record: object, key: str | None = None) -> Record:
    """``record``, if it is one, has the fields of one and lies under the key that was asked for.

    Raises:
        StoreUnreachable: it is something else.
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
    raise StoreUnreachable("the store answered with something other than the record that was asked for")


def checked_ids(found: object) -> Sequence[str]:
    """The ids of sessions that a store says it has ended.

    Raises:
        StoreUnreachable: it says something else.
    """
    if isinstance(found, list | tuple) and all(isinstance(id, str) for id in found):
        return found
    raise StoreUnreachable("the store answered with something other than ids")


def _name(about: Any) -> str:
    """The key or the owner that a call is about: its first argument, or the key of that record."""
    return about.key if isinstance(about, Record) else about
