"""What belongs to an event loop goes with it, even if nobody closes the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary


async def at_the_end(close: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    """Have ``close`` carried out when the running event loop ends, or earlier by the ``aclose()`` of what is returned.

    Loops close the asynchronous generators that are left over when they shut down (``shutdown_asyncgens``, which ``asyncio.run``
    and anyio call), so one that waits in its first step is a hook for that moment.
    """

    async def hook() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await close()

    waiting = hook()
    await anext(waiting)
    return waiting


def let_go(by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Any]) -> None:
    """Drop what belongs to event loops that have ended. A connection knows its loop, so the weak key alone never goes."""
    for key in by_loop.keyrefs():
        loop = key()
        if loop is not None and loop.is_closed():
            by_loop.pop(loop, None)


def retrieve(task: asyncio.Future[Any]) -> None:
    """Look at the outcome, so that asyncio does not complain when nobody is left to do so."""
    if not task.cancelled():
        task.exception()
