"""Deadlines for all calls of the store.

``asyncio.timeout`` and anyio's scopes set a timer for each call, which costs more than the call (5 to 7 µs of the 12 that a read
may take). Here all deadlines of an event loop have the same length. So they end in the order in which they began, except for the
few with spent time, and one timer for the next one serves all: 1 µs.

An event loop that is blocked, because the machine is busy or a handler blocks, receives no reply, however fast the store was.
That time does not count. Otherwise all requests at that moment would get a 503, and the breaker would open without need.

A driver may swallow a cancellation (``loops.py``). So a limit that has ended cancels its task until the task leaves the block. A
swallowed cancellation by another caller is raised at the end of the block.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final

import anyio

from asgi_sessions._engine.loops import AGAIN, PerLoop, running_loop

TICK: Final = 0.05
"""Seconds between two checks of the clock while a limit is running. If a check comes late by as much again or more, the loop was
blocked."""


class Deadlines:
    """Makes limits of ``seconds``. ``with deadlines.limit(): …`` raises TimeoutError if the block takes longer."""

    __slots__ = ("_latest", "_seconds", "_sweepers")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._sweepers = PerLoop(lambda: _Sweeper(asyncio.get_running_loop(), seconds))
        self._latest: _Sweeper | None = None  # most processes have one loop

    def limit(self, spent: float = 0.0) -> AbstractContextManager[Any]:
        """A limit for the following block, of which ``spent`` seconds have passed. Under trio it is a timer."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return anyio.fail_after(self._seconds - spent)
        sweeper = self._latest
        if sweeper is None or sweeper.loop is not loop:
            sweeper = self._latest = self._sweepers.here()
        return Limit(sweeper, spent)

    def stood_since(self, then: float) -> float:
        """For how many seconds after ``then`` (monotonic clock) the event loop may have been blocked.

        The loop is only observed while a limit is running. All other time may have been blocked. Under trio it is 0.
        """
        if running_loop() is None:
            return 0.0
        sweeper = self._sweepers.found()
        return time.monotonic() - then if sweeper is None else sweeper.stood_since(then)


def limit_alone(seconds: float, *, again: float) -> Limit:
    """A limit with its own timer, which may be hastened. For asyncio.

    Args:
        again: seconds between two cancellations. More than the block needs to clean up after the first one.
    """
    return Limit(_Sweeper(asyncio.get_running_loop(), seconds), 0.0, again)


class _Sweeper:
    """Strikes the limits of one event loop when they end, by a clock that stops while the loop is blocked."""

    __slots__ = ("_due", "_since", "_stalls", "_stood", "_timer", "_until", "loop", "running", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self.seconds = seconds
        self.running: dict[Limit, None] = {}  # in the order of their ends
        self._timer: asyncio.TimerHandle | None = None
        self._since = self._until = 0.0  # the begin of the last observation, and its end if there is none now
        self._due = 0.0  # when the timer should go off
        self._stood = 0.0  # seconds that the loop was blocked in all
        self._stalls: deque[tuple[float, float]] = deque(maxlen=16)  # the latest ones: end and length

    def add(self, limit: Limit) -> None:
        now = self._look()  # first, so that the limit does not get earlier blocked time
        limit.ends_at = now - self._stood + self.seconds - limit.spent
        self.running[limit] = None
        if limit.spent:  # rare
            self.running = dict.fromkeys(sorted(self.running, key=lambda one: one.ends_at))
        if self._timer is None:
            self._since = now
            self._set(now)

    def stood_since(self, then: float) -> float:
        now = self._look()
        seen_from, seen_to = max(self._since, then), self._until if self._timer is None else now
        unseen = now - then - max(seen_to - seen_from, 0.0)
        return unseen + sum(min(length, until - seen_from) for until, length in self._stalls if until > seen_from)

    def _look(self) -> float:
        """The time. Notes if the loop was blocked."""
        now = time.monotonic()
        length = now - self._due
        if self._timer is not None and length > TICK:
            self._stood += length
            self._stalls.append((now, length))
            self._due = now
        return now

    def _set(self, now: float) -> None:
        wait = min(TICK, next(iter(self.running)).ends_at - (now - self._stood))
        self._due = now + wait
        self._timer = self.loop.call_later(wait, self._tick)

    def _tick(self) -> None:
        now = self._look()
        self._timer = None
        while self.running:
            limit = next(iter(self.running))
            if limit.ends_at > now - self._stood:
                self._set(now)
                return
            del self.running[limit]
            limit.strike()
        self._until = now


class Limit:
    """Like ``asyncio.timeout``, with the same rules on cancellation, but repeats the cancellation until the block ends."""

    __slots__ = ("_again", "_before", "_next", "_strikes", "_sweeper", "_task", "ends_at", "spent")

    ends_at: float
    """By the clock of the sweeper."""
    _next: asyncio.TimerHandle

    def __init__(self, sweeper: _Sweeper, spent: float, again: float = AGAIN) -> None:
        self._sweeper = sweeper
        self.spent = spent
        self._again = again
        self._strikes = 0

    def __enter__(self) -> None:
        loop = self._sweeper.loop
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a deadline needs a task")
        self._task = task
        self._before = task.cancelling()
        self._sweeper.add(self)

    def hasten(self, seconds: float) -> None:
        """End ``seconds`` earlier. Only for a limit from :func:`limit_alone`."""
        self.spent += seconds
        if self in self._sweeper.running:
            self.ends_at -= seconds

    def strike(self) -> None:
        self._strikes += 1
        self._task.cancel()
        self._next = self._sweeper.loop.call_later(self._again, self.strike)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._strikes:
            self._next.cancel()
            for _ in range(self._strikes):
                self._task.uncancel()
        else:
            del self._sweeper.running[self]
        if self._task.cancelling() <= self._before:
            if self._strikes and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise TimeoutError from error
        elif (kind is None or issubclass(kind, Exception)) and anyio.current_effective_deadline() > -math.inf:
            raise asyncio.CancelledError from error  # by another caller, and swallowed. anyio repeats its own.
