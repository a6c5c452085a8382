"""Exchange: the common part of an HTTP request and a WebSocket."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from asgi_sessions._asgi.live import Live
from asgi_sessions._asgi.responses import answer, can_answer, end, unavailable
from asgi_sessions._core.cookie import CookieConfig, keep_out_of_caches, vary_on
from asgi_sessions._core.origin import is_plain_http
from asgi_sessions._core.session import Session
from asgi_sessions._core.types import Headers, Message, Scope, Send
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.watch import Watch
from asgi_sessions.errors import SessionError, SessionLimitReached, StoreError

if TYPE_CHECKING:
    from asgi_sessions.dbsc._binder import Binder

logger = logging.getLogger("asgi_sessions")

OnStoreFailure = Literal["unavailable", "raise", "anonymous"]

_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
"""The messages that carry headers."""


class Configured(Protocol):
    """The part of a middleware read by its exchanges."""

    _manager: Manager
    _watch: Watch | None
    _binder: Binder | None
    cookie: CookieConfig
    on_store_failure: OnStoreFailure
    no_store_when_logged_in: bool


class Exchange:
    """One request, and the answer to it."""

    __slots__ = (
        "_failed",
        "_failure",
        "_may_last",
        "_middleware",
        "_scope",
        "_send",
        "_start",
        "_told_caches",
        "live",
        "session",
    )

    session: Session
    _start: Message  # the start message of the answer

    def __init__(self, middleware: Configured, scope: Scope, send: Send) -> None:
        self._middleware = middleware
        self._scope = scope
        self._send = send
        self._failed = False  # did the app answer 5xx? Then its changes to the session do not count
        self._failure: SessionError | None = None  # we answered in place of the app: its messages are dropped
        self._may_last = True  # may the body turn out to be a stream?
        self._told_caches = False  # does the answer say ``Vary: Cookie``?
        self.live: Live | None = None  # of a socket, or of a stream

    def send(self, message: Message) -> Awaitable[None]:
        """The app calls this to send. It is no coroutine function: one more frame costs 0.2 µs per message."""
        raise NotImplementedError

    # ── The answer begins ──

    async def _commit_and_start(self, message: Message, *, cacheable: bool = True) -> None:
        """Commit before the answer leaves. If that fails, the client gets another answer, and the app gets an error.

        Raises:
            StoreError, SessionLimitReached: in the app's ``await send(…)``, so that the app knows of the failure.
        """
        try:
            await self._middleware._manager.commit(self.session, failed=self._failed)
        except (StoreError, SessionLimitReached) as failure:
            if await self._answer_for(failure) or not self._failed:
                raise
            self.session._cookie = self._middleware._manager.owed_cookie(self.session)  # for the app's own error page
        await self._send(self._with_headers(message, cacheable=cacheable))

    def _with_headers(self, message: Message, *, cacheable: bool = True) -> Message:
        """A copy of the start message with the headers of the session, or the message itself if there are none."""
        session = self.session
        self._start = message
        session._started = True
        due, session._cookie = session._cookie, False
        self._told_caches = reads = session._accessed and cacheable
        if due is False and not reads:
            return message
        # A degraded session is private, because the store's failure is temporary.
        private = reads and (session._degraded or (self._middleware.no_store_when_logged_in and session._is_of_a_user))
        try:
            headers: Headers = [*(message.get("headers") or ())]
            if reads:
                vary_on(headers)
            if private or (cacheable and due is not False):
                keep_out_of_caches(headers, no_store=private)
            if due is not False:
                headers += self._with_cookie(due)
        except (AttributeError, TypeError, ValueError):
            return message  # the app's headers are malformed: the server reports it
        return {**message, "headers": headers}

    def _with_cookie(self, due: Any = None) -> Headers:
        """The headers for a cookie in the form of ``session._cookie``. By default for the cookie of a failed request."""
        cookie, binder = self._middleware.cookie, self._middleware._binder
        if due is None:
            due = self._middleware._manager.owed_cookie(self.session)
        if due is True or due is False:
            return [cookie.delete()] if due else []
        if cookie.secure and cookie.name not in dropped and is_plain_http(self._scope):
            _warn_of_plain_http(cookie.name)
        offer = [] if binder is None else binder.offer(self._scope, self.session)
        return [cookie.set(due[0].value, due[1]), *offer]

    def add_to_cookie(self, headers: Headers) -> None:
        """Add headers that remove the cookie of another library. They leave with our cookie, or if the session is empty."""
        inner, wanted = self._send, self._middleware.cookie.wanted

        async def send(message: Message) -> None:
            if message["type"] in _STARTS:
                with suppress(
                    AttributeError, TypeError, ValueError
                ):  # the app's headers are malformed: the server reports it
                    there = [*(message.get("headers") or ())]
                    has_own = any(name == b"set-cookie" and value.startswith(wanted) for name, value in there)
                    if has_own or self._is_left_empty():
                        message = {**message, "headers": [*there, *headers]}
            await inner(message)

        if headers:
            self._send = send

    def _is_left_empty(self) -> bool:
        """Whether the session has ended or is empty. It is neither after a failed answer, nor without the store."""
        session = self.session
        is_empty = session._record is None and not dict.__len__(session) and not session._degraded
        return is_empty and not self._failed and self._failure is None

    # ── Answers in place of the app ──

    async def _answer_for(self, error: BaseException) -> bool:
        """Answer for a store failure or a reached limit of sessions. Returns ``False`` for other errors."""
        scope, send, manager = self._scope, self._send, self._middleware._manager
        if isinstance(error, SessionLimitReached):
            self.session._started, self._failure = True, error
            text = b"Too many sessions: log out somewhere else first"
            await answer(scope, send, 403, text, *self._with_cookie(), reason="too many sessions")
        elif isinstance(error, StoreError) and self._middleware.on_store_failure != "raise":
            self.session._started, self._failure = True, error
            await unavailable(scope, send, manager.guard.retry_after, *self._with_cookie())
        else:
            return False
        return True

    async def _answer_with_saved(self, status: int) -> bool:
        """Answer if a save() has made a token: an answer of the server would not carry its cookie. Returns whether it did."""
        is_due = isinstance(self.session._cookie, tuple) and can_answer(self._scope)
        if is_due:
            await answer(self._scope, self._send, status, b"", *self._with_cookie())
        return is_due

    # ── The app has returned ──

    def is_complete(self) -> bool:
        """Whether the answer has begun and the session has no changes since."""
        session = self.session
        if not session._started or self._failure is not None:
            return False
        if session._record is None and not session._accessed:
            return True
        return self._middleware._manager.is_settled(session, self._failed)

    async def finish(self) -> None:
        """Save the changes since the answer began."""
        if self._failure is not None:
            await self._middleware._manager.settle(self.session)
            return
        # The app failed if it returned without an answer. No cookie leaves.
        is_answered, self.session._started = self.session._started, True
        self._failed = self._failed or not is_answered
        await self._commit_late()
        if not is_answered:
            await self._answer_with_saved(500)

    async def crashed(self, error: BaseException) -> bool:
        """The app raised an error. Returns whether the client has its answer, so the error need not go on."""
        manager = self._middleware._manager
        if self._failure is not None:
            await manager.settle(self.session)
            return stems_from(error, self._failure)
        if self.live is not None and self.live.ended is not None:
            await self.live.closed()
            await self._commit_late()
            return stems_from(error, self.live.ended)
        # No cookie leaves with the server's error page, so no task may change the token any more.
        has_started, self.session._started = self.session._started, True
        with suppress(StoreError):
            await manager.commit(self.session, failed=True)
        if has_started:
            return False
        is_answered = await self._answer_for(error)  # for example out of the app's own session.save()
        if not is_answered:
            await self._answer_with_saved(500)
        return is_answered

    async def _commit_late(self) -> None:
        """Save changes after the answer has left. A failure cannot reach the client any more: it is logged."""
        try:
            await self._middleware._manager.commit(self.session, failed=self._failed, step="late commit")
        except StoreError:
            if self._middleware.on_store_failure == "raise":
                raise

    # ── Sockets and streams ──

    def _begin_watching(self) -> None:
        """Close this socket or stream when its session ends. One of a bound session is also closed after a time limit."""
        watch, binder, actor = self._middleware._watch, self._middleware._binder, self.session._actor
        record = self.session._record
        limit = None if binder is None else binder.closes_after(self.session)
        if record is None or (watch is None and limit is None):
            return
        live = Live(self._send, partial(end, self._scope, self._send, self._start))
        if watch is not None:
            for each in (record, None if actor is None else actor._record):
                if each is not None and (watcher := watch.add(self._middleware._manager, each, live.end)) is not None:
                    live.watchers.append(watcher)
        if limit is not None:
            live.end_after(limit)
        if live.is_watched:
            self.live = live

    def stop_watching(self) -> None:
        """Stop the watch: from now on the end of the session does not close this."""
        if self.live is not None and self.live.is_watched:
            self.live.leave()
            self.live = None


def is_failure(status: object) -> bool:
    return isinstance(status, int) and status >= 500


def stems_from(error: BaseException | None, origin: BaseException) -> bool:
    """Whether ``error`` is ``origin`` or was raised because of it. Frameworks wrap errors."""
    for _ in range(20):
        if error is None or error is origin:
            return error is origin
        if isinstance(error, BaseExceptionGroup):  # for example from several sending tasks
            return all(stems_from(each, origin) for each in error.exceptions)
        error = error.__cause__ or error.__context__
    return False


dropped: Final[set[str]] = set()
"""Names of cookies that browsers drop. The log has a warning for each."""


def _warn_of_plain_http(name: str) -> None:
    dropped.add(name)
    # A log line and no Python warning: a response is on its way, and tests turn warnings into errors.
    logger.warning(
        "the session cookie %s is Secure, but was sent over plain http to a host that is not loopback, and no header of a "
        "proxy says otherwise: browsers drop it. Serve https, have the proxy send X-Forwarded-Proto, or for development "
        "use CookieConfig.insecure_development().",
        name,
    )
