"""Shared by the modules for frameworks: finds the session, and serves their test clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from asgi_sessions import ConfigurationError, Session, SessionDataError, SessionMiddleware
from asgi_sessions._core.proofs import level_in, methods_in
from asgi_sessions._core.session import OURS
from asgi_sessions._core.timeouts import duration

NOT_BOUND: Final = "This needs a session that is bound to its device"
"""The text of a 403."""
UNKNOWN: Final = "The store could not be asked who is logged in"
"""The text of a 503."""


def session_in(scope: Mapping[str, Any], advice: str) -> Session:
    """The session of a request.

    Raises:
        ConfigurationError: it has none. ``advice`` says how to set the framework up.
    """
    session: Session | None = scope.get(OURS)
    if session is None:
        raise ConfigurationError(f"this request has no session: {advice}; does skip= leave its path out?")
    session.mark_accessed()  # C code reads a dict without calling its methods
    return session


def outage(session: Session) -> int | None:
    """The ``Retry-After`` of a 503 if the store could not be asked for the session, so that a user may be logged in."""
    manager: Any = session._keeper
    return manager.guard.retry_after if session.is_degraded else None


@dataclass(frozen=True, slots=True)
class Freshness:
    """The required age and method of a user's last proof of identity."""

    within: timedelta
    methods: tuple[str, ...] = ()
    level: int = 0

    @classmethod
    def asked(cls, within: object, methods: object, level: object) -> Freshness:
        """Check the arguments of ``require_fresh()``.

        Raises:
            ConfigurationError: one is invalid.
        """
        try:
            names, least = methods_in("require_fresh()", methods), level_in("require_fresh()", level)
        except SessionDataError as error:
            raise ConfigurationError(str(error)) from None
        return cls(duration("require_fresh(within)", within), names, least or 0)

    def is_met(self, session: Session) -> bool:
        """Whether the user of this session has given such a proof."""
        return session.is_fresh(self.within, methods=self.methods, level=self.level)

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of the challenge (RFC 9470, section 3)."""
        level = {"acr_values": str(self.level)} if self.level else {}
        return {"error": "insufficient_user_authentication", **level, "max_age": f"{self.within.total_seconds():.0f}"}

    def challenge(self, scheme: str) -> str:
        """The value of ``WWW-Authenticate``."""
        return f"{scheme} " + ", ".join(f"{name}={value}" for name, value in self.parameters.items())


async def opened(middleware: SessionMiddleware, scope: Mapping[str, Any]) -> Session:
    """The session for a request with this scope. For test clients, which send no request."""
    manager = middleware._manager
    keys = manager.recognise(middleware.cookie.read(scope["headers"]), scope)
    if not (keys or manager.guard.knows_time):
        await manager.start(reports=False)
    return await manager.load(keys) if keys else manager.begin()


async def saved(middleware: SessionMiddleware, session: Session, scope: Mapping[str, Any]) -> str | None:
    """Save the session like a response to a request with this scope. Returns the value of Set-Cookie, or None."""
    session._origin = scope
    try:
        await middleware._manager.commit(session)
    finally:
        session._origin = None
    due, session._cookie = session._cookie, False
    if due is False:
        return None
    _, value = middleware.cookie.delete() if due is True else middleware.cookie.set(due[0].value, due[1])
    return value.decode("ascii")
