"""HttpExchange: an HTTP request."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Iterator

from asgi_sessions._asgi.exchange import Exchange, is_failure
from asgi_sessions._asgi.responses import nothing, response
from asgi_sessions._core.cookie import is_not_shared
from asgi_sessions._core.types import Message
from asgi_sessions.errors import SessionWarning


class HttpExchange(Exchange):
    """An HTTP request."""

    __slots__ = ("_start",)

    def _closing_messages(self) -> Iterator[Message]:
        yield {"type": "http.response.body", "body": b"", "more_body": False}
        if self._start.get("trailers"):  # ASGI, HTTP Trailers extension: the server waits for them
            yield {"type": "http.response.trailers", "headers": [], "more_trailers": False}

    def send(self, message: Message) -> Awaitable[None]:
        if self._failure is not None:
            return nothing()
        if self._started:
            if not self._told_caches and self.session._accessed:
                self._warn_of_late_read()
            if self._is_stream is None and "more_body" in message and message["more_body"]:
                self._is_stream = self._is_watched()
            if self._is_stream:
                if self._ended is not None or message.get("more_body"):
                    return self._send_watched(message)
                self._is_stream = False
                self.stop_watching()  # this is the last part: nothing is left to close
        elif message["type"] == "http.response.start":
            self._start = message
            session = self.session
            if session._record is None and not session._accessed:
                # There was no session and the app did not ask for one: most requests of most sites. A third of what
                # such a request costs would go into finding out by the general rules that there is nothing to do.
                self._started = session._started = True
                self._failed = is_failure(message.get("status"))
            elif self._is_settled(message.get("status")):
                message = self._with_headers(message)
            else:
                return self._commit_and_start(message)
        return self._send(message)

    def _warn_of_late_read(self) -> None:
        """The app looked at the session after the answer had begun, and before its body was complete."""
        session = self.session
        if session._written:
            return  # to save something is no reason to vary
        self._told_caches = True  # once
        if session._record is not None and self._scope.get("method") in ("GET", "HEAD"):
            warn_of_late_read(self._start, b"Cookie")

    def _is_watched(self) -> bool:
        """More is to come after this part of the body, and nobody said how much: a stream, such as Server-Sent Events."""
        if self.session._record is None:
            return False
        for name, _ in self._start.get("headers") or ():
            if name.lower() == b"content-length":
                return False
        self._begin_watching()
        return self.watcher is not None

    async def _answer(
        self,
        status: int,
        text: bytes,
        retry_after: int | None = None,
        cookie: tuple[bytes, bytes] | None = None,
    ) -> None:
        start, body = response("http.response", status, text, retry_after, cookie)
        if self._scope.get("method") == "HEAD":  # the headers of a GET and no content: RFC 9110, section 9.3.2
            body["body"] = b""
        await self._send(start)
        await self._send(body)


def warn_of_late_read(start: Message, name: bytes) -> None:
    """Warn unless the message that began the answer keeps it out of shared caches. ``name``: the header it depends on."""
    if not is_not_shared([*(start.get("headers") or ())], name):
        warnings.warn(
            f"the session was first read after the response had started, too late for 'Vary: {name.decode('ascii')}': a shared "
            "cache may give this page to others. Read the session earlier, call session.mark_accessed() before, or send "
            "'Cache-Control: private'.",
            SessionWarning,
            stacklevel=2,
        )
