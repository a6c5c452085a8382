"""Starlette: the session of a request or WebSocket, with its type.

::

    async def visit(request: Request) -> Response:
        session = current_session(request)  # the same object as request.session, which Starlette types as a dict
        session.log_in("alice")
"""

from __future__ import annotations

from starlette.requests import HTTPConnection

from asgi_sessions import Session
from asgi_sessions.frameworks._session import session_in

__all__ = ["current_session"]


def current_session(connection: HTTPConnection) -> Session:
    """The session of a ``Request``, ``WebSocket`` or ``HTTPConnection``.

    Raises:
        ConfigurationError: there is none. The message says what is missing.
    """
    return session_in(connection.scope, "call app.add_middleware(SessionMiddleware, sessions)")
