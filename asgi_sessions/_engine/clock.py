"""The clock for sessions: that of the store's server, if the clock of this server differs."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

from asgi_sessions._core.types import Clock

logger = logging.getLogger("asgi_sessions")

AGREES = 2.0
"""Seconds. Clocks set by NTP differ by less, and a slow reply explains less."""

FOLLOWED = 900.0
"""Seconds. A larger difference is on purpose, as in tests, or an error that the operator must repair."""


class StoreClock:
    """The app's clock, or that of the store's server if the two differ.

    All servers of an app use the same store, so they have the same time. A store gets the time of its server with each connection
    (``Traits.server_time``). It is used if the difference is between :data:`AGREES` and :data:`FOLLOWED` seconds. The monotonic
    clock of this server adds the time since, so setting the wall clock of this server changes nothing.
    """

    def __init__(self, clock: Clock, store: Any) -> None:
        self._clock = clock
        self._store = store
        self._compared: tuple[float, float] | None = None
        self._ahead: float | None = None
        """Seconds from the monotonic clock to the time of the store's server, or ``None`` to use the app's clock."""

    def __call__(self) -> float:
        if self._store.server_time is not self._compared:
            self._compare(self._store.server_time)
        return self._clock() if self._ahead is None else monotonic() + self._ahead

    def _compare(self, server_time: tuple[float, float]) -> None:
        self._compared = server_time
        ahead, before = server_time[0] - server_time[1], self._ahead
        difference = monotonic() + ahead - self._clock()
        self._ahead = ahead if AGREES < abs(difference) <= FOLLOWED else None
        if self._ahead is not None and before is None:
            logger.warning(
                "clock.differs: this server's clock is %.0f s %s that of the store's server. Sessions use the latter. Set both "
                "by NTP.",
                abs(difference),
                "behind" if difference > 0 else "ahead of",
            )


def clock_for(clock: Clock, store: Any) -> Clock:
    """The clock for the sessions of a store.

    Args:
        clock: the app's clock. If its ``stands_still`` is true, as for FakeClock, it is always used.
    """
    if getattr(clock, "stands_still", False) or not hasattr(store, "server_time"):
        return clock
    return StoreClock(clock, store)
