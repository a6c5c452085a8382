"""Upkeep: what a store needs while apps are up, once in each event loop, however many middlewares use the store. Layer 5.

It is swept, where that is needed. Its ends of sessions are listened to, for sockets and streams (``_watch.py``). When the last
app of an event loop has shut down, all of that stops and the store's connections are closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AsyncExitStack
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from asgi_sessions._errors import ConfigurationError
from asgi_sessions._loops import PerLoop, running_loop, stop
from asgi_sessions._manager import Manager
from asgi_sessions._store import Store, SweepingStore
from asgi_sessions._watch import Watch

logger = logging.getLogger("asgi_sessions")


class _Running:
    """What runs in one event loop."""

    def __init__(self) -> None:
        self.apps: Counter[Hashable] = Counter()
        self.sweeper: asyncio.Task[None] | None = None


class Upkeep:
    """Of one store, in this process. Holds no store: :func:`upkeep_of` knows it by that."""

    def __init__(self) -> None:
        self.watch = Watch()
        self._running = PerLoop(_Running)

    def begin(self, app: Hashable, manager: Manager) -> None:
        """An app is up; its manager's rules are those by which the store is swept, if no other app was up before.

        Args:
            app: tells apps that use the same store apart.
        """
        store = manager.store
        if running_loop() is None:
            if isinstance(store, SweepingStore):
                logger.warning("store.not_swept: this needs asyncio; call sweep() of the store now and then")
            return
        running = self._running.here()
        running.apps[app] += 1
        if running.sweeper is None and isinstance(store, SweepingStore):
            running.sweeper = asyncio.ensure_future(manager.sweep_for_ever(store))

    async def end(self, app: Hashable, manager: Manager) -> None:
        """An app has shut down, or has failed to start. If no other one is up in this event loop, close what there is.

        Each part is closed, though another part fails or the caller is cancelled. Failures are logged.
        """
        running = self._running.found()
        if running is not None:
            running.apps[app] -= 1
            running.apps = +running.apps  # without those that are not up any more
            if running.apps:
                return
            self._running.taken()
        async with AsyncExitStack() as steps:  # the last one pushed comes first
            steps.push_async_callback(_close, manager.store.aclose, manager)
            steps.push_async_callback(_close, self.watch.aclose, manager)
            if running is not None and running.sweeper is not None:
                steps.push_async_callback(stop, running.sweeper)


async def _close(part: Callable[[], Awaitable[None]], manager: Manager) -> None:
    try:
        await part()
    except Exception as error:
        await manager.failed("close", error)


def require_event_loop(store: Any) -> None:
    """Refuse a store that cannot work in the event loop that runs here.

    Raises:
        ConfigurationError: the store needs asyncio, and this is trio.
    """
    if getattr(store, "needs_asyncio", False) is True and running_loop() is None:
        raise ConfigurationError(
            f"{type(store).__name__} needs asyncio, and this server runs another event loop (trio): start the server with its "
            "asyncio worker, or use MemoryStore()"
        )


_upkeeps: WeakKeyDictionary[Store, ReferenceType[Upkeep]] = WeakKeyDictionary()


def upkeep_of(store: Store) -> Upkeep:
    """The same for all middlewares of a store, for as long as there is one."""
    try:
        known = _upkeeps.get(store)
        upkeep = None if known is None else known()
        if upkeep is None:
            upkeep = Upkeep()
            _upkeeps[store] = ref(upkeep)
    except TypeError:  # a store that cannot be hashed or weakly referenced
        return Upkeep()
    return upkeep
