"""Upkeep of a store while apps are running: once per ``Sessions`` and event loop.

A sweeper runs if the store needs one. A listener receives the ends of sessions, for sockets and streams (``watch.py``). When the
last app of an event loop has shut down, both stop and the store closes its connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import AsyncExitStack

from asgi_sessions._core.adoption import Reader
from asgi_sessions._engine.contract import SweepingStore, trait
from asgi_sessions._engine.loops import PerLoop, running_loop, stop
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.watch import Watch
from asgi_sessions.errors import ConfigurationError

logger = logging.getLogger("asgi_sessions")


class _Running:
    """The apps and the sweeper of one event loop."""

    def __init__(self) -> None:
        self.apps: Counter[Hashable] = Counter()
        self.sweeper: asyncio.Task[None] | None = None


class Upkeep:
    """The upkeep of one store in this process."""

    def __init__(self, manager: Manager, readers: Sequence[Reader] = ()) -> None:
        self.watch: Watch = Watch()
        self._readers = readers
        self.manager: Manager = manager
        self._running = PerLoop(_Running)

    def require_event_loop(self) -> None:
        """Check that the store and the readers can work in the running event loop.

        Raises:
            ConfigurationError: one of them needs asyncio, and this is trio.
        """
        for part, advice in ((self.manager.store, ", or use MemoryStore()"), *((each, "") for each in self._readers)):
            if trait(part, "needs_asyncio") is True and running_loop() is None:
                raise ConfigurationError(
                    f"{type(part).__name__} needs asyncio, but this server runs another event loop (trio): start the server "
                    f"with its asyncio worker{advice}"
                )

    def begin(self, app: Hashable) -> None:
        """Note that an app is running. The first app of an event loop starts the sweeper.

        Args:
            app: identifies the app among others on the same store.
        """
        store = self.manager.store
        if running_loop() is None:
            if isinstance(store, SweepingStore):
                logger.warning("store.not_swept: sweeping needs asyncio; call sweep() of the store now and then")
            return
        running = self._running.here()
        running.apps[app] += 1
        if running.sweeper is None and isinstance(store, SweepingStore):
            running.sweeper = asyncio.ensure_future(self.manager.sweep_for_ever(store))

    async def end(self, app: Hashable) -> None:
        """Note that an app has shut down, or has failed to start. The last app of an event loop closes everything.

        Each part is closed even if another part fails or the caller is cancelled. Failures are logged.
        """
        running = self._running.found()
        if running is not None:
            running.apps[app] -= 1
            running.apps = +running.apps  # without apps that have shut down
            if running.apps:
                return
            self._running.taken()
        async with AsyncExitStack() as steps:  # the last one pushed runs first
            for reader in self._readers:
                steps.push_async_callback(self._close, reader.aclose)
            steps.push_async_callback(self._close, self.manager.store.aclose)
            steps.push_async_callback(self._close, self.watch.aclose)
            if running is not None and running.sweeper is not None:
                steps.push_async_callback(stop, running.sweeper)
            steps.push_async_callback(self._close, self.manager.events.aclose)  # hooks may still use the store

    async def _close(self, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except Exception as error:
            await self.manager.failed("close", error)
