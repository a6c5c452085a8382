"""The idle, absolute and renewal timeouts of a session. Only this module compares times."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from asgi_sessions.errors import ConfigurationError

RENEWAL_GRACE = 30.0
"""Seconds for which the old token still works after a renewal, so that requests in flight succeed."""

_LONGEST = timedelta(days=3660)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long sessions live. Every field is a ``timedelta``. The defaults are those of NIST SP 800-63B-4, AAL2.

    The terms are those of OWASP's Session Management Cheat Sheet, section "Session Expiration".
    """

    idle: timedelta = timedelta(minutes=60)
    """A session ends after this time without activity."""
    absolute: timedelta = timedelta(hours=24)
    """A session ends this long after its log-in, regardless of activity. An anonymous session: after it began."""
    remember_idle: timedelta = timedelta(days=14)
    """``idle`` for sessions logged in with ``remember=True``."""
    remember_absolute: timedelta = timedelta(days=30)
    """``absolute`` for sessions logged in with ``remember=True``. Also the lifetime of their cookie."""
    renew: timedelta | None = None
    """Replace a token automatically at this age, at least 30 seconds. ``None``: never."""
    touch: timedelta = timedelta(minutes=1)
    """Activity is recorded at most this often, and at least twice per ``idle``.

    So a session may end up to this much early, but never late.
    """

    _idle: tuple[float, float] = field(init=False, repr=False, compare=False)
    _absolute: tuple[float, float] = field(init=False, repr=False, compare=False)
    _renew: float | None = field(init=False, repr=False, compare=False)
    _touch: tuple[float, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("idle", "absolute", "remember_idle", "remember_absolute"):
            _check(name, getattr(self, name), at_least=timedelta(milliseconds=1))
        _check("touch", self.touch, at_least=timedelta(0))
        if self.renew is not None:
            _check("renew", self.renew, at_least=timedelta(seconds=RENEWAL_GRACE))
        # Indexed by ``remembered``: False is 0, True is 1.
        idle = (self.idle.total_seconds(), self.remember_idle.total_seconds())
        absolute = (self.absolute.total_seconds(), self.remember_absolute.total_seconds())
        touch = self.touch.total_seconds()
        put = object.__setattr__  # the way a frozen dataclass fills what it derives
        put(self, "_idle", idle)
        put(self, "_absolute", absolute)
        put(self, "_renew", None if self.renew is None else self.renew.total_seconds())
        put(self, "_touch", (min(touch, idle[0] / 2), min(touch, idle[1] / 2)))

    # Named profiles. The figures are upper bounds of their sources. Shorter times are always allowed.

    @classmethod
    def owasp_high_value(cls) -> Timeouts:
        """OWASP Session Management Cheat Sheet: idle 2 to 5 minutes for high-value applications. Here 5.

        Absolute 4 hours, the lower end of OWASP's working-day range. ``remember=True`` changes nothing.
        """
        return cls._same(idle=timedelta(minutes=5), absolute=timedelta(hours=4))

    @classmethod
    def owasp_low_risk(cls) -> Timeouts:
        """OWASP Session Management Cheat Sheet: idle 15 to 30 minutes for low-risk applications. Here 30.

        Absolute 8 hours, the upper end of OWASP's working-day range. ``remember=True`` changes nothing.
        """
        return cls._same(idle=timedelta(minutes=30), absolute=timedelta(hours=8))

    @classmethod
    def nist_aal1(cls) -> Timeouts:
        """NIST SP 800-63B-4, section 2.1.3: overall at most 30 days. An inactivity limit is not required."""
        return cls._same(idle=timedelta(days=30), absolute=timedelta(days=30))

    @classmethod
    def nist_aal2(cls) -> Timeouts:
        """NIST SP 800-63B-4, section 2.2.3: overall at most 24 hours, inactivity at most 1 hour, also with ``remember``."""
        return cls._same(idle=timedelta(hours=1), absolute=timedelta(hours=24))

    @classmethod
    def nist_aal3(cls) -> Timeouts:
        """NIST SP 800-63B-4, section 2.3.3: overall at most 12 hours, inactivity at most 15 minutes, also with ``remember``."""
        return cls._same(idle=timedelta(minutes=15), absolute=timedelta(hours=12))

    @classmethod
    def _same(cls, *, idle: timedelta, absolute: timedelta) -> Timeouts:
        return cls(idle=idle, absolute=absolute, remember_idle=idle, remember_absolute=absolute)

    # Checks: pure, on seconds. Positional arguments, since every request calls three of them and names cost half of a call.

    def expires_at(self, created_at: float, seen_at: float, remembered: bool) -> float:
        """The time when a session ends without further activity."""
        return min(seen_at + self._idle[remembered], created_at + self._absolute[remembered])

    def ends_at(self, *, created_at: float, remembered: bool) -> float:
        """The time when a session ends at the latest."""
        return created_at + self._absolute[remembered]

    def over(
        self, created_at: float, seen_at: float, expires_at: float, remembered: bool, now: float
    ) -> Literal["idle", "absolute"] | None:
        """The timeout that has been reached, or ``None``.

        ``expires_at`` was set when the record was written. So raising a timeout does not revive an expired session, and
        lowering one takes effect at once.
        """
        if now >= created_at + self._absolute[remembered]:
            return "absolute"
        if now >= seen_at + self._idle[remembered] or now >= expires_at:
            return "idle"
        return None

    def touch_due(self, seen_at: float, remembered: bool, now: float) -> bool:
        """Whether this activity must be recorded."""
        return now - seen_at >= self._touch[remembered]

    def renewal_due(self, minted_at: float, now: float) -> bool:
        """Whether the token is old enough for an automatic renewal."""
        return self._renew is not None and now - minted_at >= self._renew

    @staticmethod
    def in_grace(*, renewed_at: float, now: float) -> bool:
        """Whether the old token still works after a renewal."""
        return now - renewed_at < RENEWAL_GRACE

    @staticmethod
    def fresh(*, authenticated_at: float | None, within: float, now: float) -> bool:
        """Whether the user proved their identity less than ``within`` seconds ago."""
        return authenticated_at is not None and now - authenticated_at < within


def duration(name: str, value: object) -> timedelta:
    """Return ``value`` if it is a ``timedelta``. A bare number is refused, since its unit is unknown."""
    if not isinstance(value, timedelta):
        raise ConfigurationError(f"{name}={value!r}: give a timedelta, for example timedelta(minutes=5)")
    return value


def _check(name: str, value: object, *, at_least: timedelta) -> None:
    if not at_least <= duration(name, value) <= _LONGEST:
        raise ConfigurationError(f"Timeouts({name}={value!r}): must lie between {at_least!r} and {_LONGEST!r}")
