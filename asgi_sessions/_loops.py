"""Event loops and tasks: one value per loop, and how a task is stopped. Layer 0."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, ValuesView
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

AGAIN: Final = 0.1
"""Seconds after which a task that was cancelled and goes on is cancelled again."""


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The running event loop of asyncio; ``None`` under trio, or outside of any loop."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class PerLoop(Generic[T]):
    """One value for each event loop that asks for it. Threads may ask at the same time.

    A value (a connection, a task, a lock) mostly holds its loop, so a weak key would keep both for ever. Values of closed loops
    are dropped when the next loop asks.

    Args:
        make: makes a value, in the loop that it is for.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[asyncio.AbstractEventLoop, T] = {}

    def here(self) -> T:
        """The value of the running loop; made now, if there is none.

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
        """The value of the running loop, if it has one."""
        loop = running_loop()
        return None if loop is None else self._values.get(loop)

    def taken(self) -> T | None:
        """The value of the running loop, if it has one; from now on it has none."""
        loop = running_loop()
        return None if loop is None else self._values.pop(loop, None)

    def forget(self) -> None:
        """Drop all values. For a forked process: they belong to its parent."""
        self._values = {}

    def values(self) -> ValuesView[T]:
        return self._values.values()

    def __len__(self) -> int:
        return len(self._values)


def cancel(task: asyncio.Future[Any]) -> None:
    """Cancel a task, and repeat that until the task is done.

    One cancellation can get lost: Python 3.11's ``asyncio.wait_for`` swallows it if what it waits for ends in the same turn of
    the loop (CPython gh-86296). Drivers use ``wait_for``.
    """
    if not task.done():
        task.cancel()
        task.get_loop().call_later(AGAIN, cancel, task)


async def stop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks as often as it takes, and return when all of them are done.

    If the caller is cancelled meanwhile, the CancelledError is raised when the tasks are done, and not before: otherwise they
    would go on with no one to wait for them.
    """
    for task in tasks:
        cancel(task)
    cancelled: asyncio.CancelledError | None = None
    while running := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def heed_cancellation() -> None:
    """Raise the CancelledError that was swallowed in this task, if there was one. For tasks of our own that run for long.

    ``asyncio.run`` cancels the tasks that are left once, and then waits for them.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def retrieve(task: asyncio.Future[Any]) -> None:
    """Look at the outcome, so that asyncio does not complain about an error that the task's callers never asked for."""
    if not task.cancelled():
        task.exception()


async def at_the_end(close: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    """Have ``close`` carried out when the running event loop ends, or earlier by the ``aclose()`` of what is returned.

    Loops close the asynchronous generators that are left over when they shut down (``shutdown_asyncgens``, which ``asyncio.run``
    and anyio call). A generator that waits in its first step is therefore a hook for that moment.
    """

    async def hook() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await close()

    waiting = hook()
    await anext(waiting)
    return waiting
