"""Telling of ends within this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from asgi_sessions._engine.loops import running_loop


class Listeners:
    """Those who want to know. From any thread."""

    def __init__(self, *, hears_all: bool) -> None:
        self._hears_all = hears_all
        self._all: set[_Listening] = set()

    def listen(self, heard: Callable[[str], None]) -> _Listening:
        for other in tuple(self._all):
            if other.is_over:
                self._all.discard(other)
        listening = _Listening(self._all, heard, self._hears_all)
        self._all.add(listening)
        return listening

    def tell(self, ids: Iterable[str]) -> None:
        if self._all:
            for id in ids:
                for listening in tuple(self._all):
                    listening.tell(id)


class _Listening:
    """Ends as they happen, told in the event loop that listens."""

    def __init__(self, listeners: set[_Listening], heard: Callable[[str], None], is_live: bool) -> None:
        self.is_live = is_live
        self._listeners = listeners
        self._heard = heard
        self._thread = threading.get_ident()
        self._loop = running_loop()

    @property
    def is_over(self) -> bool:
        """Whether its event loop was closed before it was."""
        return self._loop is not None and self._loop.is_closed()

    def tell(self, id: str) -> None:
        if threading.get_ident() == self._thread:
            self._heard(id)
        elif self._loop is not None and not self.is_over:
            self._loop.call_soon_threadsafe(self._heard, id)

    def add(self, place: str) -> None:
        """All places are told of."""

    def remove(self, place: str) -> None:
        """All places are told of."""

    async def aclose(self) -> None:
        self._listeners.discard(self)
