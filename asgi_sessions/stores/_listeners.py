"""Notifies the listeners in this process when sessions end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from asgi_sessions._engine.loops import running_loop


class Listeners:
    """The listeners of one store. Any thread may call any method.

    Args:
        is_live: whether this process is notified of every end.
    """

    def __init__(self, *, is_live: bool) -> None:
        self._is_live = is_live
        self._all: set[_Listening] = set()

    def listen(self, on_end: Callable[[str], None]) -> _Listening:
        for other in tuple(self._all):
            if other.is_over:
                self._all.discard(other)
        listening = _Listening(self._all, on_end, self._is_live)
        self._all.add(listening)
        return listening

    def notify(self, ids: Iterable[str]) -> None:
        if self._all:
            for id in ids:
                for listening in tuple(self._all):
                    listening.notify(id)


class _Listening:
    """Calls ``on_end`` in the event loop of the listener."""

    def __init__(self, listeners: set[_Listening], on_end: Callable[[str], None], is_live: bool) -> None:
        self.is_live = is_live
        self._listeners = listeners
        self._on_end = on_end
        self._thread = threading.get_ident()
        self._loop = running_loop()

    @property
    def is_over(self) -> bool:
        """Whether its event loop was closed first."""
        return self._loop is not None and self._loop.is_closed()

    def notify(self, id: str) -> None:
        if threading.get_ident() == self._thread:
            self._on_end(id)
        elif self._loop is not None and not self.is_over:
            self._loop.call_soon_threadsafe(self._on_end, id)

    def add(self, shard: str) -> None:
        """Do nothing: it listens to all shards."""

    def remove(self, shard: str) -> None:
        """Do nothing: it listens to all shards."""

    async def aclose(self) -> None:
        self._listeners.discard(self)
