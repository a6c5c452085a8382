"""A circuit breaker, so that a dead store is not asked by everyone."""

from __future__ import annotations

import random
import threading
from collections.abc import Hashable

FAILURES_TO_OPEN = 5
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0


class Breaker:
    """Closed: everybody may ask. Open: nobody. Half open: one may, and its answer decides.

    Counts failures in a row. Times are seconds of a monotonic clock, given by the caller. Several threads may use it, each with
    an event loop of its own; a lock is only taken where the state may change.
    """

    __slots__ = ("_lock", "_pause", "_probing_since", "_retry_at", "failures", "reason")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.failures = 0
        """In a row; while there are none, another good answer is no news."""
        self.reason = ""
        """Of the last failure, for the log."""
        self._pause = FIRST_PAUSE
        self._retry_at = 0.0
        self._probing_since: float | None = None

    @property
    def is_open(self) -> bool:
        return self.failures >= FAILURES_TO_OPEN

    def allows(self, now: float) -> bool:
        """Whether to ask the store. A ``True`` while open makes the caller the one that probes."""
        if self.failures < FAILURES_TO_OPEN:
            return True
        with self._lock:
            if now < self._retry_at:
                return False
            # A probe whose caller vanished without reporting must not keep the breaker open for good.
            if self._probing_since is not None and now - self._probing_since < LONGEST_PAUSE:
                return False
            self._probing_since = now
            return True

    def succeeded(self) -> bool:
        """Note an answer; whether it closed the breaker."""
        if not self.failures:
            return False
        with self._lock:
            was_open = self.is_open
            self.failures = 0
            self._pause = FIRST_PAUSE
            self._probing_since = None
            return was_open

    def abandoned(self) -> None:
        """Note that a caller was cancelled before there was an answer: if it was the probe, somebody else may try."""
        self._probing_since = None

    def failed(self, now: float, reason: str = "") -> bool:
        """Note a failure; whether it opened the breaker."""
        with self._lock:
            self.reason = reason
            if self.is_open:
                if self._probing_since is None:
                    return False  # one more of those that were under way when it opened
                self._pause = min(self._pause * 2, LONGEST_PAUSE)
            self._probing_since = None
            self.failures += 1
            if self.failures < FAILURES_TO_OPEN:
                return False
            # Jitter, so that many processes do not probe a recovering server in step.
            self._retry_at = now + self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
            return self.failures == FAILURES_TO_OPEN

    def retry_after(self, now: float) -> int:
        """Whole seconds until asking again is worth it, at least 1; for the Retry-After header."""
        return max(1, round(self._retry_at - now + 0.5)) if self.is_open else 1


class Breakers:
    """Those of one store: one for the whole, or one for each part of it that may fail by itself, such as a node of a cluster."""

    __slots__ = ("_parts", "whole")

    def __init__(self) -> None:
        self.whole = Breaker()
        self._parts: dict[Hashable, Breaker] = {}

    def of(self, part: Hashable) -> Breaker:
        breaker = self._parts.get(part)
        return self._parts.setdefault(part, Breaker()) if breaker is None else breaker

    def retry_after(self, now: float) -> int:
        """As :meth:`Breaker.retry_after`, when everything is asked again."""
        return max(breaker.retry_after(now) for breaker in (self.whole, *tuple(self._parts.values())))
