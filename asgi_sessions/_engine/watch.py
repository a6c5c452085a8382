"""Watch: notifies open sockets and streams when their session has ended. Knows no HTTP.

A store with ``listen()`` reports ends at once. Expiry is checked when it is due. While the store does not report, each watched
session is loaded every half minute. One task per event loop does this while any session is watched. A watched session costs an
entry in a dict.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from itertools import chain
from typing import Final

from asgi_sessions._core.record import Record
from asgi_sessions._core.token import shard_of
from asgi_sessions._engine.contract import Listening
from asgi_sessions._engine.loops import PerLoop, running_loop, stop
from asgi_sessions._engine.manager import Manager
from asgi_sessions.errors import StoreError

logger = logging.getLogger("asgi_sessions")

TICK: Final = 0.5
"""Seconds between two checks of the clock."""

RECHECK: Final = 30.0
"""Seconds between two loads from a store that does not report ends, or cannot at the moment."""

LINGER: Final = 10.0
"""Seconds for which it listens to the store after the last watcher has left."""

AT_ONCE: Final = 64
"""Concurrent loads."""


class _Watched:
    """A session with open sockets or streams of one app."""

    __slots__ = ("judge", "record", "watchers")

    def __init__(self, judge: Manager, record: Record) -> None:
        self.judge = judge
        self.record: Record = record
        self.watchers: set[Watcher] = set()


class Watcher:
    """One socket or stream."""

    __slots__ = ("_end", "_state", "_watched")

    def __init__(self, state: _LoopState, watched: _Watched, end: Callable[[], None]) -> None:
        self._state = state
        self._watched = watched
        self._end = end

    def notify(self) -> None:
        """End the socket or stream. A failure is logged, so that the others are notified too."""
        try:
            self._end()
        except Exception:
            logger.exception("ending a socket or stream failed")

    def leave(self) -> None:
        """Stop watching a socket or stream that has ended."""
        self._state.remove(self._watched, self)


class Watch:
    """All watched sessions of one store in this process. Listens to the store once in each event loop."""

    def __init__(self) -> None:
        self._states: PerLoop[_LoopState] = PerLoop(_LoopState)

    def add(self, judge: Manager, record: Record, end: Callable[[], None]) -> Watcher | None:
        """Call ``end()`` when ``judge`` finds that the session has ended. Outside of asyncio it is not watched: ``None``."""
        return None if running_loop() is None else self._states.here().add(judge, record, end)

    def open(self) -> int:
        """The number of watched sockets and streams. Any thread may call this."""
        of_sessions = [each for state in tuple(self._states.values()) for each in tuple(state._watched.values())]
        return sum(len(each.watchers) for of_session in of_sessions for each in tuple(of_session))

    async def aclose(self) -> None:
        """Stop listening in this event loop."""
        state = self._states.taken()
        if state is not None:
            await state.aclose()


class _LoopState:
    """The watched sessions of one event loop, and the watcher task."""

    def __init__(self) -> None:
        self._watched: dict[str, list[_Watched]] = {}
        """By session id. A list has one element for each app, mostly one."""
        self._unsure: set[_Watched] = set()
        self._listening: Listening | None = None
        self._closing: set[Listening] = set()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def add(self, judge: Manager, record: Record, end: Callable[[], None]) -> Watcher:
        """As :meth:`Watch.add`, in this event loop."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())
        if self._listening is None and (listen := getattr(judge.store, "listen", None)) is not None:
            self._listening = listen(self._on_end, self._on_gap)
        of_session = self._watched.setdefault(record.id, [])
        watched = next((each for each in of_session if each.judge is judge), None)
        if watched is None:
            watched = _Watched(judge, record)
            of_session.append(watched)
            if self._listening is not None:
                self._listening.add(shard_of(record.key))
        elif record.rev > watched.record.rev:
            watched.record = record  # regenerated since; its shard is the same, since its user is
        watcher = Watcher(self, watched, end)
        watched.watchers.add(watcher)
        # It may have ended since it was loaded, before the handshake.
        self._unsure.add(watched)
        self._wake.set()
        return watcher

    def remove(self, watched: _Watched, watcher: Watcher) -> None:
        """Stop watching one socket or stream, and its session if it was the last one."""
        watched.watchers.discard(watcher)
        if not watched.watchers and self._is_watched(watched):
            self._forget(watched)

    def _is_watched(self, watched: _Watched) -> bool:
        return watched in self._watched.get(watched.record.id, ())

    def _forget(self, watched: _Watched) -> None:
        of_session = self._watched[watched.record.id]
        of_session.remove(watched)
        if not of_session:
            del self._watched[watched.record.id]
        self._unsure.discard(watched)
        if self._listening is not None:
            self._listening.remove(shard_of(watched.record.key))

    def _on_end(self, id: str) -> None:
        """The session has ended."""
        for watched in tuple(self._watched.get(id, ())):
            self._ended(watched)

    def _ended(self, watched: _Watched) -> None:
        self._forget(watched)
        for watcher in tuple(watched.watchers):
            watcher.notify()

    def _all(self) -> Iterator[_Watched]:
        return chain.from_iterable(self._watched.values())

    def _on_gap(self, shard: str | None = None) -> None:
        """Ends in this shard, or in all, may have been missed. From now on they are received."""
        self._unsure.update(each for each in self._all() if shard is None or shard_of(each.record.key) == shard)
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        rechecked_at = busy_at = loop.time()
        while self._watched or loop.time() - busy_at < LINGER:
            try:
                async with asyncio.timeout(TICK):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self._watched:
                busy_at = loop.time()
            if self._listening is not None and self._listening.is_live:
                rechecked_at = loop.time()
            elif loop.time() - rechecked_at >= RECHECK:
                rechecked_at = loop.time()
                self._unsure.update(self._all())
            # A scan of all takes 50 µs for a thousand, and needs no sorted structure.
            self._unsure.update(each for each in self._all() if each.record.expires_at <= each.judge.clock())
            unanswered: list[_Watched] = []
            while self._unsure:
                some = [self._unsure.pop() for _ in range(min(len(self._unsure), AT_ONCE))]
                answered = await asyncio.gather(*map(self._check, some))
                unanswered += [each for each, is_answered in zip(some, answered, strict=True) if not is_answered]
            # An outage ends no session: these stay unsure and are checked again.
            self._unsure.update(filter(self._is_watched, unanswered))
        listening, self._listening = self._listening, None
        self._task = None
        if listening is not None:
            self._closing.add(listening)
            try:
                await listening.aclose()
            finally:
                self._closing.discard(listening)

    async def _check(self, watched: _Watched) -> bool:
        """Check a session. Returns whether the store answered."""
        if not self._is_watched(watched):
            return True
        try:
            record = await watched.judge.lives(watched.record)
        except StoreError:
            return False
        if self._is_watched(watched):
            if record is None:
                self._ended(watched)
            else:
                watched.record = record
        return True

    async def aclose(self) -> None:
        """Stop listening and watching. Each part is closed even if another one fails."""
        async with AsyncExitStack() as closing:
            for listening in (self._listening, *self._closing):
                if listening is not None:
                    closing.push_async_callback(listening.aclose)
            self._listening = None
            if self._task is not None:
                await stop(self._task)
