"""What the modules for frameworks share: finding the session, and the tools of their test clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from asgi_sessions import ConfigurationError, Session, SessionMiddleware
from asgi_sessions._core.session import OURS

NOT_BOUND: Final = "This needs a session that is bound to its device"
"""The text of a 403."""


def session_in(scope: Mapping[str, Any], advice: str) -> Session:
    """The session of a request.

    Raises:
        ConfigurationError: it has none; ``advice`` says how the framework is given one.
    """
    session: Session | None = scope.get(OURS)
    if session is None:
        raise ConfigurationError(f"this request has no session: {advice}; does skip= leave its path out?")
    session.mark_accessed()  # code in C reads a dict without calling its methods
    return session


async def opened(middleware: SessionMiddleware, headers: list[tuple[bytes, bytes]]) -> Session:
    """The session that a request with these headers would have; for test clients that make none."""
    keys = middleware._manager.recognise(middleware.cookie.read(headers))
    return await middleware._manager.load(keys) if keys else middleware._manager.begin()


async def saved(middleware: SessionMiddleware, session: Session) -> str | None:
    """Save it as a response would; what Set-Cookie is to say, if anything."""
    await middleware._manager.commit(session)
    due, session._cookie = session._cookie, False
    if due is False:
        return None
    _, value = middleware.cookie.delete() if due is True else middleware.cookie.set(due[0].value, due[1])
    return value.decode("ascii")
