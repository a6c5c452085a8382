"""The three clocks of a session, and the only place that compares times."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from asgi_sessions.errors import ConfigurationError

RENEWAL_GRACE = 30.0
"""Seconds for which a renewed token's predecessor still leads to the session, so that requests in flight arrive."""

_LONGEST = timedelta(days=3660)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long sessions live. Every field is a ``timedelta``; the defaults are those of NIST SP 800-63B-4, AAL2.

    The terms are those of OWASP's Session Management Cheat Sheet, section "Session Expiration".
    """

    idle: timedelta = timedelta(minutes=60)
    """A session ends when nothing was heard from it for this long."""
    absolute: timedelta = timedelta(hours=24)
    """A session ends this long after its log-in (an anonymous one: after it began), whatever happens in it."""
    remember_idle: timedelta = timedelta(days=14)
    """``idle`` for sessions logged in with ``remember=True``."""
    remember_absolute: timedelta = timedelta(days=30)
    """``absolute`` for sessions logged in with ``remember=True``; also the life of their cookie."""
    renew: timedelta | None = None
    """Replace the token by itself when it is this old; at least 30 seconds; ``None``: never."""
    touch: timedelta = timedelta(minutes=1)
    """Activity is written down at most this often, and at least twice per ``idle``.

    A session may therefore end up to this much early, never late.
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

    # Named profiles. The figures are upper bounds of their sources; shorter is always allowed.

    @classmethod
    def owasp_high_value(cls) -> Timeouts:
        """OWASP Session Management Cheat Sheet: idle 2 to 5 minutes for high-value applications; here 5.

        Absolute 4 hours, the lower end of OWASP's working-day range. ``remember=True`` changes nothing.
        """
        return cls._same(idle=timedelta(minutes=5), absolute=timedelta(hours=4))

    @classmethod
    def owasp_low_risk(cls) -> Timeouts:
        """OWASP Session Management Cheat Sheet: idle 15 to 30 minutes for low-risk applications; here 30.

        Absolute 8 hours, the upper end of OWASP's working-day range. ``remember=True`` changes nothing.
        """
        return cls._same(idle=timedelta(minutes=30), absolute=timedelta(hours=8))

    @classmethod
    def nist_aal1(cls) -> Timeouts:
        """NIST SP 800-63B-4, section 2.1.3: overall at most 30 days; an inactivity limit is not required."""
        return cls._same(idle=timedelta(days=30), absolute=timedelta(days=30))

    @classmethod
    def nist_aal2(cls) -> Timeouts:
        """NIST SP 800-63B-4, section 2.2.3: overall at most 24 hours, inactivity at most 1 hour, for everybody."""
        return cls._same(idle=timedelta(hours=1), absolute=timedelta(hours=24))

    @classmethod
    def nist_aal3(cls) -> Timeouts:
        """NIST SP 800-63B-4, section 2.3.3: overall at most 12 hours, inactivity at most 15 minutes, for everybody."""
        return cls._same(idle=timedelta(minutes=15), absolute=timedelta(hours=12))

    @classmethod
    def _same(cls, *, idle: timedelta, absolute: timedelta) -> Timeouts:
        return cls(idle=idle, absolute=absolute, remember_idle=idle, remember_absolute=absolute)

    # Judgements: pure, on seconds. By position, since every request asks three of them and names cost half of a call.

    def expires_at(self, created_at: float, seen_at: float, remembered: bool) -> float:
        """When a session ends if nothing more is heard from it."""
        return min(seen_at + self._idle[remembered], created_at + self._absolute[remembered])

    def ends_at(self, *, created_at: float, remembered: bool) -> float:
        """When a session ends at the latest."""
        return created_at + self._absolute[remembered]

    def over(
        self, created_at: float, seen_at: float, expires_at: float, remembered: bool, now: float
    ) -> Literal["idle", "absolute"] | None:
        """Which limit has been reached, if any.

        ``expires_at`` is what was promised when the record was written: a limit that was raised since does not bring
        back what had already ended, one that was lowered ends at once.
        """
        if now >= created_at + self._absolute[remembered]:
            return "absolute"
        if now >= seen_at + self._idle[remembered] or now >= expires_at:
            return "idle"
        return None

    def touch_due(self, seen_at: float, remembered: bool, now: float) -> bool:
        """Whether this activity should be written down."""
        return now - seen_at >= self._touch[remembered]

    def renewal_due(self, minted_at: float, now: float) -> bool:
        """Whether the token is old enough to be replaced by itself."""
        return self._renew is not None and now - minted_at >= self._renew

    @staticmethod
    def in_grace(*, renewed_at: float, now: float) -> bool:
        """Whether a renewed token's predecessor is still honoured."""
        return now - renewed_at < RENEWAL_GRACE

    @staticmethod
    def fresh(*, authenticated_at: float | None, within: float, now: float) -> bool:
        """Whether the user proved who they are at most ``within`` seconds ago."""
        return authenticated_at is not None and now - authenticated_at < within


def duration(name: str, value: object) -> timedelta:
    """``value``, if it is a ``timedelta``; a bare number is refused, since nobody can tell its unit."""
    if not isinstance(value, timedelta):
        raise ConfigurationError(f"{name}={value!r}: give a timedelta, for example timedelta(minutes=5)")
    return value


def _check(name: str, value: object, *, at_least: timedelta) -> None:
    if not at_least <= duration(name, value) <= _LONGEST:
        raise ConfigurationError(f"Timeouts({name}={value!r}): must lie between {at_least!r} and {_LONGEST!r}")
