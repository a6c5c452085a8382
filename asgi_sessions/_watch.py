"""Watch: tells those who serve a session for long, sockets and streams, that it has ended. Layer 3; knows no HTTP.

Where the store tells of ends, they are heard of at once. Ends by the clock are looked for when they are due. While the store
cannot tell, everything that is watched is asked for every half minute. One task per event loop does it, and only while
something is watched; what is watched costs an entry in a dict.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from asgi_sessions._errors import StoreError
from asgi_sessions._record import Record
from asgi_sessions._store import Listening
from asgi_sessions._token import place_of
from asgi_sessions._types import Clock

logger = logging.getLogger("asgi_sessions")

TICK: Final = 0.5
"""Seconds between two looks at the clock."""

RECHECK: Final = 30.0
"""Seconds between two looks into a store that does not tell of ends, or cannot at the moment."""

LINGER: Final = 10.0
"""Seconds for which the store is listened to after the last one who watched is gone."""

AT_ONCE: Final = 64
"""How many sessions are asked for at the same time."""

Lives = Callable[[Record], Awaitable[Record | None]]
"""The record of a session as it is now, wherever it is; ``None``: it has ended."""


class _Watched:
    """A session that somebody serves for long."""

    __slots__ = ("record", "watchers")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.watchers: set[Watcher] = set()


class Watcher:
    """One socket or stream."""

    __slots__ = ("_circle", "_end", "_id")

    def __init__(self, circle: _Circle, id: str, end: Callable[[], None]) -> None:
        self._circle = circle
        self._id = id
        self._end = end

    def tell(self) -> None:
        try:
            self._end()
        except Exception:
            logger.exception("ending a socket or stream failed")

    def leave(self) -> None:
        self._circle.remove(self._id, self)


class Watch:
    """Everything that is watched in this process.

    Args:
        store: may have ``listen``; see :class:`~asgi_sessions._store.TellingStore`.
        lives: asks for a session.
        clock: the app's.
    """

    def __init__(self, store: Any, lives: Lives, clock: Clock) -> None:
        self._listen = getattr(store, "listen", None)
        self._lives = lives
        self._clock = clock
        self._circles: WeakKeyDictionary[asyncio.AbstractEventLoop, _Circle] = WeakKeyDictionary()

    def add(self, record: Record, end: Callable[[], None]) -> Watcher | None:
        """Call ``end()`` when the session of this record ends; ``None`` outside asyncio, where nobody can be told."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return None
        circle = self._circles.get(loop)
        if circle is None:
            circle = self._circles[loop] = _Circle(self._listen, self._lives, self._clock)
        return circle.add(record, end)

    async def aclose(self) -> None:
        """Stop listening in this event loop."""
        circle = self._circles.pop(asyncio.get_running_loop(), None)
        if circle is not None:
            await circle.aclose()


class _Circle:
    """What is watched in one event loop."""

    def __init__(self, listen: Any, lives: Lives, clock: Clock) -> None:
        self._listen = listen
        self._lives = lives
        self._clock = clock
        self._watched: dict[str, _Watched] = {}
        self._unsure: set[str] = set()
        self._listening: Listening | None = None
        self._minder: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def add(self, record: Record, end: Callable[[], None]) -> Watcher:
        if self._minder is None or self._minder.done():
            self._minder = asyncio.ensure_future(self._mind())
        if self._listening is None and self._listen is not None:
            self._listening = self._listen(self._heard, self._doubt)
        watched = self._watched.get(record.id)
        if watched is None:
            watched = self._watched[record.id] = _Watched(record)
            if self._listening is not None:
                self._listening.add(place_of(record.key))
        elif record.rev > watched.record.rev:
            watched.record = record  # regenerated since: of the same user or nobody, and so in the same place
        watcher = Watcher(self, record.id, end)
        watched.watchers.add(watcher)
        # It may have ended since it was loaded, which was a whole handshake ago.
        self._unsure.add(record.id)
        self._wake.set()
        return watcher

    def remove(self, id: str, watcher: Watcher) -> None:
        watched = self._watched.get(id)
        if watched is not None:
            watched.watchers.discard(watcher)
            if not watched.watchers:
                self._forget(id, watched)

    def _forget(self, id: str, watched: _Watched) -> None:
        del self._watched[id]
        self._unsure.discard(id)
        if self._listening is not None:
            self._listening.remove(place_of(watched.record.key))

    def _heard(self, id: str) -> None:
        """The session has ended."""
        watched = self._watched.get(id)
        if watched is not None:
            self._forget(id, watched)
            for watcher in tuple(watched.watchers):
                watcher.tell()

    def _doubt(self, place: str | None = None) -> None:
        """Ends in this place, or in all, may have been missed; from now on they are heard of."""
        for id, watched in self._watched.items():
            if place is None or place_of(watched.record.key) == place:
                self._unsure.add(id)
        self._wake.set()

    async def _mind(self) -> None:
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
                self._unsure.update(self._watched)
            self._look_at_the_clock()
            unanswered: list[str] = []
            while self._unsure:
                some = [self._unsure.pop() for _ in range(min(len(self._unsure), AT_ONCE))]
                answered = await asyncio.gather(*map(self._check, some))
                unanswered += [id for id, is_answered in zip(some, answered, strict=True) if not is_answered]
            # An outage ends nobody's session: those stay in doubt, and are asked for again.
            self._unsure.update(self._watched.keys() & unanswered)
        listening, self._listening = self._listening, None
        self._minder = None
        if listening is not None:
            await listening.aclose()

    def _look_at_the_clock(self) -> None:
        # All of them: 50 µs for a thousand, and nothing to keep in step with who comes and goes.
        now = self._clock()
        self._unsure.update(id for id, watched in self._watched.items() if watched.record.expires_at <= now)

    async def _check(self, id: str) -> bool:
        """Whether the store could be asked."""
        watched = self._watched.get(id)
        if watched is None:
            return True
        try:
            record = await self._lives(watched.record)
        except StoreError:
            return False
        if self._watched.get(id) is watched:
            if record is None:
                self._heard(id)
            else:
                watched.record = record
        return True

    async def aclose(self) -> None:
        minder, self._minder = self._minder, None
        if minder is not None:
            minder.cancel()
            await asyncio.wait({minder})
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.aclose()
