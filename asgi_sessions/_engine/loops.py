"""Event loops and tasks: one value per loop, and how a task is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, ValuesView
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

AGAIN: Final = 0.1
"""Seconds between two cancellations of a task."""


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The running event loop of asyncio, or ``None`` under trio or outside of a loop."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class PerLoop(Generic[T]):
    """One value per event loop. Several threads may use it.

    A value (a connection, a task, a lock) usually refers to its loop, so a weak key would keep both for ever. Values of closed
    loops are dropped when a new loop gets its value.

    Args:
        make: makes the value of the running loop.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[asyncio.AbstractEventLoop, T] = {}

    def here(self) -> T:
        """The value of the running loop, made at the first call.

        Raises:
            RuntimeError: asyncio runs no loop here.
        """
        loop = asyncio.get_running_loop()
        value = self._values.get(loop)
        if value is None:
            for other in tuple(self._values):
                if other.is_closed():
                    self._values.pop(other, None)
            value = self._values[loop] = self._make()
        return value

    def found(self) -> T | None:
        """The value of the running loop, or None."""
        loop = running_loop()
        return None if loop is None else self._values.get(loop)

    def taken(self) -> T | None:
        """Remove and return the value of the running loop, or return None."""
        loop = running_loop()
        return None if loop is None else self._values.pop(loop, None)

    def forget(self) -> None:
        """Drop all values. For a forked process, since they belong to its parent."""
        self._values = {}

    def values(self) -> ValuesView[T]:
        return self._values.values()

    def __len__(self) -> int:
        return len(self._values)


def cancel(task: asyncio.Future[Any]) -> None:
    """Cancel a task, and repeat that until the task is done.

    One cancellation can get lost. Python 3.11's ``asyncio.wait_for`` swallows it if its future is done in the same turn of the
    loop (CPython gh-86296), and drivers use ``wait_for``.
    """
    if not task.done():
        task.cancel()
        task.get_loop().call_later(AGAIN, cancel, task)


async def stop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks as often as it takes, and return when all of them are done."""
    for task in tasks:
        cancel(task)
    await done(*tasks)


async def done(*tasks: asyncio.Future[Any]) -> None:
    """Return when all tasks are done. If the caller is cancelled meanwhile, its CancelledError is raised after that."""
    cancelled: asyncio.CancelledError | None = None
    while running := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def heed_cancellation() -> None:
    """Raise CancelledError if this task was cancelled but continued. For our long-running tasks.

    ``asyncio.run`` cancels each remaining task once, and then waits for it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def retrieve(task: asyncio.Future[Any]) -> None:
    """Mark the outcome of a task as seen, so that asyncio logs no error if all callers have left."""
    if not task.cancelled():
        task.exception()


async def together(steps: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The outcomes of all steps, in their order.

    If one fails, its error is raised after all have ended, so that none continues in a store that the caller may close.
    """
    outcomes = await asyncio.gather(*steps, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


async def at_the_end(close: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    """Call ``close`` when the running event loop ends, or earlier by the ``aclose()`` of the returned generator.

    A loop closes its remaining asynchronous generators at shutdown (``shutdown_asyncgens``; ``asyncio.run`` and anyio call it). A
    generator in its first step is therefore a hook for that moment.
    """

    async def hook() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await close()

    waiting = hook()
    await anext(waiting)
    return waiting
