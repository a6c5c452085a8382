"""The time by which sessions are judged: that of the store's server, where the clock of this one differs from it."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

from asgi_sessions._core.types import Clock

logger = logging.getLogger("asgi_sessions")

AGREES = 2.0
"""Seconds. Clocks that NTP sets differ by less, and so does an answer that took its time."""

FOLLOWED = 900.0
"""Seconds. A clock that differs by more is set so on purpose, as in tests, or by an error that the operator must repair."""


class StoreClock:
    """The app's clock. If it differs from the clock of the store's server, the time of the latter counts.

    All servers of an app ask the same store, so they judge by the same time. A store learns the time of its server with each
    connection (``Traits.server_time``). It counts if the difference lies between :data:`AGREES` and :data:`FOLLOWED` seconds. The
    monotonic clock of this server adds the time since, so setting the wall clock of this server changes nothing.
    """

    def __init__(self, clock: Clock, store: Any) -> None:
        self._clock = clock
        self._store = store
        self._heard: tuple[float, float] | None = None
        self._ahead: float | None = None
        """Of the monotonic clock, the server of the store; ``None``: the app's clock counts."""

    def __call__(self) -> float:
        if self._store.server_time is not self._heard:
            self._compare(self._store.server_time)
        return self._clock() if self._ahead is None else monotonic() + self._ahead

    def _compare(self, heard: tuple[float, float]) -> None:
        self._heard = heard
        ahead, before = heard[0] - heard[1], self._ahead
        difference = monotonic() + ahead - self._clock()
        self._ahead = ahead if AGREES < abs(difference) <= FOLLOWED else None
        if self._ahead is not None and before is None:
            logger.warning(
                "clock.differs: this server's clock is %.0f s %s that of the store's server. Sessions go by the latter. Set both "
                "by NTP.",
                abs(difference),
                "behind" if difference > 0 else "ahead of",
            )


def clock_for(clock: Clock, store: Any) -> Clock:
    """The clock by which the sessions of a store are judged.

    Args:
        clock: the app's. If its ``stands_still`` is true, as that of FakeClock, it counts in any case.
    """
    if getattr(clock, "stands_still", False) or not hasattr(store, "server_time"):
        return clock
    return StoreClock(clock, store)
