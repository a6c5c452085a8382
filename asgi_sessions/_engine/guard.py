"""Calls of the store: deadline, circuit breaker, check of the answer, and classification of errors.

Knows nothing of sessions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, ParamSpec, TypeVar

import anyio

from asgi_sessions._core.record import Record
from asgi_sessions._core.token import KEY_CHARS, SHARD_CHARS, shard_of
from asgi_sessions._core.types import Clock
from asgi_sessions._engine.breaker import FAILURES_TO_OPEN, Breaker, Breakers
from asgi_sessions._engine.clock import StoreClock
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
"""Seconds for a load, and for a whole commit. A request has one of each, and stays under a second."""

MOST_SPENT = 0.75
"""The largest share of a deadline that counts as spent after the store has answered, regardless of the time."""

TOUCH_SHARE = 0.6
"""The share of the deadline for a touch, so that the commit has time left for a response."""

NO_KEY = "A" * KEY_CHARS
"""A key without a record, since its hash would be all zeros. For probes of the store."""

HOLD = 0.01
"""Seconds between two checks of another caller's probe."""

_ANSWERS: Final = (RecordExists, RecordGone, RecordChanged, RecordDamaged, SessionLimitReached)
_NO_VERDICT: Final = (StoreRefused, EndUnconfirmed, SessionDataError)
"""Errors that do not predict the next call."""

_SHOWS = dict.fromkeys(("load", "index", "records", "history", "scan"), "read") | dict.fromkeys(
    ("delete", "end", "erase"), "end"
)
"""What the answer of a method shows, if it is not that the store takes writes. A full store still reads and ends."""

_NUMBER = (float, int)
P = ParamSpec("P")
T = TypeVar("T")


class Guard:
    """Calls the methods of one store."""

    def __init__(self, store: Store, *, deadline: float | None = None, clock: Clock = time.time) -> None:
        self.store = store
        self.deadline = DEADLINE if deadline is None else deadline
        self.deadlines = Deadlines(self.deadline)
        self.limit = self.deadlines.limit
        """A limit for the following block. Raises TimeoutError."""
        self.touch_deadlines = Deadlines(self.deadline * TOUCH_SHARE)
        # We keep a shorter deadline ourselves.
        self.keeps_time = trait(store, "keeps_its_own_deadline") is True and self.deadline >= DEADLINE
        at_once = trait(store, "asks_at_once") if self.keeps_time else 0
        self.at_once: int = at_once if isinstance(at_once, int) else 0
        self.confirms_ends = trait(store, "confirms_ends") is True
        self.breakers = Breakers()
        self.breaker = self.breakers.whole
        self.failures = FailureLog()
        self.server_of: Callable[[str], Hashable] | None = trait(store, "server_of")
        self._clock = clock
        self.knows_time = not isinstance(clock, StoreClock)

    @property
    def retry_after(self) -> int:
        """Seconds until another call may succeed."""
        return self.breakers.retry_after(time.monotonic())

    def spent_since(self, began: float) -> float:
        """The time since ``began``, for ``in_time()``. Some always remains: perhaps only the event loop was blocked."""
        return min(time.monotonic() - began, self.deadline * MOST_SPENT)

    @contextmanager
    def in_time(self, spent: float = 0.0) -> Iterator[None]:
        """A limit for the following block, of which ``spent`` seconds have passed. Raises StoreUnreachable."""
        try:
            with self.limit(spent):
                yield
        except TimeoutError as error:
            raise self.too_slow() from error

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
            self.answered(_SHOWS.get(getattr(method, "__name__", ""), "write"))
        return answer

    async def confirm_ends(self, name: str) -> bool:
        """Wait until the replicas have all ends in a shard: an earlier call may have heard nothing. ``False``: there are none."""
        if self.confirms_ends:
            await self.ask(self.store.delete, shard_of(name) + NO_KEY[SHARD_CHARS:])
        return self.confirms_ends

    async def _find_out(self, breaker: Breaker, name: str) -> None:
        """Probe the server of this name for all callers: an answer closes the breaker, no answer opens it.

        The caller's own call must not decide, since it may wait for a row lock of another transaction.
        """
        while not breaker.allows(time.monotonic()):
            if not breaker.is_unsure:
                raise StoreUnreachable(
                    f"the store is not called for a moment after {FAILURES_TO_OPEN} failures in a row, "
                    f"the last: {breaker.reason}"
                )
            await anyio.sleep(HOLD)
        if not breaker.is_open:
            return  # another caller's probe was answered
        began = time.monotonic()
        try:
            with self.in_time():
                await self.store.load(shard_of(name) + NO_KEY[SHARD_CHARS:])
        except _ANSWERS:
            pass
        except BaseException as error:
            self.blame(error, began, breaker, is_sure=True)
            raise
        breaker.succeeded()

    def blame(self, error: BaseException, began: float, breaker: Breaker, *, is_sure: bool = False) -> None:
        """Note an error of the store for the breaker.

        Args:
            is_sure: a long wait counts against the store. Otherwise this call may be the cause.
        Raises:
            StoreUnreachable: in place of an error that is not in the contract.
        """
        now = time.monotonic()
        if isinstance(error, _ANSWERS):
            breaker.succeeded()
        elif isinstance(error, _NO_VERDICT):
            breaker.abandoned()
        elif isinstance(error, Exception):
            failure, cause = error, error.__cause__
            if not isinstance(failure, StoreError):
                failure, cause = StoreUnreachable(f"the store failed: {reason_of(error)}"), error
            is_guess = failure.is_guess or isinstance(cause, TimeoutError)
            breaker.failed(now, reason_of(failure), is_sure=is_sure or not is_guess)
            if failure is not error:
                raise failure from error
        else:  # cancelled by our deadline, or by a client that disconnected
            stood = min(limits.stood_since(began) for limits in (self.deadlines, self.touch_deadlines))
            if now - began - stood > self.deadline / 2:
                breaker.failed(now, reason_of(self.too_slow()), is_sure=is_sure)
            else:
                breaker.abandoned()

    def too_slow(self, share: float = 1.0) -> StoreUnreachable:
        """The error for a call that took longer than the deadline, or than this share of it."""
        return StoreUnreachable(f"the store did not answer within {self.deadline * share:.2f} s")

    def answered(self, way: str) -> None:
        """Note that the store answered again, for reading or for writing."""
        if (outage := self.failures.answered(way, self._clock())) is not None:
            logger.warning("store.recovered: it answers again (%s) after=%.1fs failures=%d", way, *outage)


def checked(record: object, key: str | None = None) -> Record:
    """Check that this is a valid record and has the requested key, and return it.

    Raises:
        StoreUnreachable: it is another value.
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
    raise StoreUnreachable("the store answered with something other than the requested record")


def checked_ids(found: object) -> Sequence[str]:
    """Check the ids of ended sessions from a store, and return them.

    Raises:
        StoreUnreachable: it is another value.
    """
    if isinstance(found, list | tuple) and all(isinstance(id, str) for id in found):
        return found
    raise StoreUnreachable("the store answered with something other than ids")


def _name(about: Any) -> str:
    """The key or owner of a call: its first argument, or the key of that record."""
    return about.key if isinstance(about, Record) else about
