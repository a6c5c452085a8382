"""HttpExchange: an HTTP request."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable

from asgi_sessions._asgi.exchange import Exchange, is_failure
from asgi_sessions._asgi.responses import nothing
from asgi_sessions._core.cookie import is_not_shared
from asgi_sessions._core.types import Message
from asgi_sessions.errors import SessionWarning


class HttpExchange(Exchange):
    """An HTTP request and its response."""

    __slots__ = ()

    def send(self, message: Message) -> Awaitable[None]:
        if self._failure is not None:
            return nothing()
        session = self.session
        if session._started:
            if not self._told_caches and session._accessed:
                self._warn_of_late_read()
            if self._may_last and "more_body" in message and message["more_body"]:
                self._may_last = False
                self._watch_stream()
            if self.live is not None:
                if self.live.ended is not None or message.get("more_body") or message["type"] == "http.response.push":
                    return self.live.send(message)
                self.stop_watching()  # this is the last part
        elif message["type"] == "http.response.start":
            self._failed = is_failure(message.get("status"))
            if session._record is None and not session._accessed:
                # No session, and the app did not read it: most requests of most sites. The general rules give the same result,
                # but take a third of the cost of such a request.
                self._start = message
                session._started = True
            elif self._middleware._manager.is_settled(session, self._failed):
                message = self._with_headers(message)
            else:
                return self._commit_and_start(message)
        return self._send(message)

    def _warn_of_late_read(self) -> None:
        """The app read the session after the response had started, and before its body was complete."""
        session = self.session
        if session._written:
            return  # a saved change does not make the page depend on the cookie
        self._told_caches = True  # warn once
        if (session._record is not None or session._degraded) and self._scope.get("method") in ("GET", "HEAD"):
            warn_of_late_read(self._start, b"Cookie")

    def _watch_stream(self) -> None:
        """The body has several parts. Without a Content-Length it is a stream, such as Server-Sent Events."""
        if not any(name.lower() == b"content-length" for name, _ in self._start.get("headers") or ()):
            self._begin_watching()


def warn_of_late_read(start: Message, name: bytes) -> None:
    """Warn unless the start message forbids shared caches. ``name``: the request header on which the answer depends."""
    if not is_not_shared([*(start.get("headers") or ())], name):
        warnings.warn(
            f"the session was first read after the response had started, too late for 'Vary: {name.decode('ascii')}': a shared "
            "cache may give this page to others. Read the session earlier, call session.mark_accessed() before, or send "
            "'Cache-Control: private'.",
            SessionWarning,
            stacklevel=2,
        )
