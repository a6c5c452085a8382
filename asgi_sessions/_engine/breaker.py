"""A circuit breaker, so that not every request waits for a dead store."""

from __future__ import annotations

import random
import threading
from collections.abc import Hashable

FAILURES_TO_OPEN = 5
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0


class Breaker:
    """Counts failures in a row. Closed: all callers may call the store. Open: no caller may. Half open: one caller probes it.

    Times are seconds of a monotonic clock, given by the caller. Several threads may use it, each with its own event loop. It only
    takes a lock when the state may change.
    """

    __slots__ = ("_lock", "_pause", "_probing_since", "_retry_at", "failures", "is_unsure", "reason")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.failures = 0
        """The number of failures in a row."""
        self.is_unsure = False
        """Whether a failure in this row is a guess. Then the breaker is half open one failure earlier, and a probe decides."""
        self.reason = ""
        """The reason of the last failure, for the log."""
        self._pause = FIRST_PAUSE
        self._retry_at = 0.0
        self._probing_since: float | None = None

    @property
    def is_open(self) -> bool:
        return self.failures + self.is_unsure >= FAILURES_TO_OPEN

    def allows(self, now: float) -> bool:
        """Whether to call the store. With ``True`` from an open breaker, this caller is the probe."""
        if not self.is_open:
            return True
        with self._lock:
            if now < self._retry_at:
                return False
            # A probe that never reported must not keep the breaker open for ever.
            if self._probing_since is not None and now - self._probing_since < LONGEST_PAUSE:
                return False
            self._probing_since = now
            return True

    def succeeded(self) -> bool:
        """Note an answer. Returns whether it closed the breaker."""
        if not self.failures:
            return False
        with self._lock:
            was_open = self.is_open
            self.failures = 0
            self.is_unsure = False
            self._pause = FIRST_PAUSE
            self._probing_since = None
            return was_open

    def abandoned(self) -> None:
        """Note a call without a verdict about the store. If it was the probe, another caller may probe."""
        self._probing_since = None

    def failed(self, now: float, reason: str = "", *, is_sure: bool = True) -> bool:
        """Note a failure. Returns whether it opened the breaker.

        Args:
            is_sure: the store is unreachable. Otherwise it is a guess: a slow call may wait for a row or carry a large record.
        """
        with self._lock:
            self.reason = reason
            was_open = self.is_open
            if was_open:
                if self._probing_since is None or not is_sure:
                    return False  # in flight when the breaker opened
                self._pause = FIRST_PAUSE if self.is_unsure else min(self._pause * 2, LONGEST_PAUSE)
            self._probing_since = None
            self.failures += 1
            self.is_unsure = not is_sure or (self.is_unsure and not was_open)
            if not self.is_open:
                return False
            # Jitter, so that many processes do not probe a recovering server at once.
            pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
            self._retry_at = now if self.is_unsure else now + pause
            return not was_open

    def retry_after(self, now: float) -> int:
        """Whole seconds until the next probe, at least 1, for the Retry-After header."""
        return max(1, round(self._retry_at - now + 0.5)) if self.is_open else 1


class Breakers:
    """The breakers of one store: one for the whole, or one for each part that may fail by itself, such as a node."""

    __slots__ = ("_parts", "whole")

    def __init__(self) -> None:
        self.whole = Breaker()
        self._parts: dict[Hashable, Breaker] = {}

    def of(self, part: Hashable) -> Breaker:
        breaker = self._parts.get(part)
        return self._parts.setdefault(part, Breaker()) if breaker is None else breaker

    def open(self) -> int:
        """The number of open breakers."""
        return sum(breaker.is_open for breaker in (self.whole, *tuple(self._parts.values())))

    def retry_after(self, now: float) -> int:
        """As :meth:`Breaker.retry_after`: until all parts are probed."""
        return max(breaker.retry_after(now) for breaker in (self.whole, *tuple(self._parts.values())))
