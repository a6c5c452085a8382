"""A deadline for everything the store is asked. Layer 1.

``asyncio.timeout`` and anyio's scopes set up a timer for every call, which costs more than the call (5 to 7 µs of the 12 that a
read may take). All deadlines of an event loop have the same length here, so they end in the order in which they began, and one
timer that looks at the oldest serves them all: 1 µs.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import anyio


class Deadlines:
    """Makes limits of ``seconds``: ``with deadlines.limit(): …`` raises TimeoutError if it took longer."""

    __slots__ = ("_loop", "_seconds", "_sweeper")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: _Sweeper | None = None

    def limit(self) -> AbstractContextManager[Any]:
        """A limit for the block that follows; under trio it is a timer after all."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return anyio.fail_after(self._seconds)
        sweeper = self._sweeper
        if sweeper is None or sweeper.loop is not loop:
            sweeper = self._sweeper = _Sweeper(loop, self._seconds)
        return _Limit(sweeper)


class _Sweeper:
    __slots__ = ("_timer", "loop", "running", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self.seconds = seconds
        self.running: dict[_Limit, None] = {}  # in the order of their ends
        self._timer: asyncio.TimerHandle | None = None

    def add(self, limit: _Limit) -> None:
        self.running[limit] = None
        if self._timer is None:
            self._timer = self.loop.call_at(limit.ends_at, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self.loop.time()
        for limit in list(self.running):
            if limit.ends_at > now:
                self._timer = self.loop.call_at(limit.ends_at, self._sweep)
                break
            limit.strike()


class _Limit:
    """Like ``asyncio.timeout``, whose rules on cancellation it follows."""

    __slots__ = ("_before", "_struck", "_sweeper", "_task", "ends_at")

    def __init__(self, sweeper: _Sweeper) -> None:
        self._sweeper = sweeper
        self._struck = False

    def __enter__(self) -> None:
        loop = self._sweeper.loop
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a deadline needs a task")
        self._task = task
        self._before = task.cancelling()
        self.ends_at = loop.time() + self._sweeper.seconds
        self._sweeper.add(self)

    def strike(self) -> None:
        del self._sweeper.running[self]
        self._struck = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._struck:
            del self._sweeper.running[self]
        elif self._task.uncancel() <= self._before and kind is not None and issubclass(kind, asyncio.CancelledError):
            # Otherwise somebody else has cancelled the task too, and that must go on.
            raise TimeoutError from error
