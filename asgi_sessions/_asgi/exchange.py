"""Exchange: what an HTTP request and a WebSocket have in common."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Iterator
from typing import Final, Literal, Protocol

import anyio

from asgi_sessions._core.cookie import CookieConfig, keep_out_of_caches, vary_on
from asgi_sessions._core.origin import is_plain_http
from asgi_sessions._core.session import Asked, Session
from asgi_sessions._core.types import Headers, Message, Receive, Scope, Send
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.watch import Watch, Watcher
from asgi_sessions.errors import SessionError, SessionLimitReached, StoreError

logger = logging.getLogger("asgi_sessions")

OnStoreFailure = Literal["unavailable", "raise", "anonymous"]


class Configured(Protocol):
    """What an exchange needs to know of the middleware that made it."""

    manager: Manager
    watch: Watch | None
    cookie: CookieConfig
    on_store_failure: OnStoreFailure
    no_store_when_logged_in: bool


SEND_GRACE: Final = 5.0
"""Seconds that a message may still take when its socket or stream has ended. A client that stopped reading can block it
for ever: the server waits until its buffer drains.
"""


class SessionEnded(ConnectionResetError):
    """What an app hears that goes on sending to a socket or stream whose session has ended.

    An ``OSError``, since that is what servers raise when the other side is gone (ASGI, HTTP & WebSocket message format 2.4).
    """


class Exchange:
    """One request on its way: what an HTTP request and a WebSocket have in common."""

    __slots__ = (
        "_closing",
        "_ended",
        "_failed",
        "_failure",
        "_is_stream",
        "_middleware",
        "_scope",
        "_send",
        "_sending",
        "_started",
        "_told_caches",
        "session",
        "watcher",
    )

    session: Session
    _sending: set[anyio.CancelScope]  # one for each message to a watched socket or stream that is on its way
    _closing: asyncio.Future[None] | None
    _ended: SessionEnded | None  # the session of this socket or stream is over, and so is the exchange

    def __init__(self, middleware: Configured, scope: Scope, send: Send) -> None:
        self._middleware = middleware
        self._scope = scope
        self._send = send
        self._started = False  # has the answer, and with it the cookie, left?
        self._failed = False  # did the app answer 5xx? Then nothing it did to the session counts, then or later
        self._failure: SessionError | None = None  # we answered in the app's place; whatever it still sends is dropped
        self._is_stream: bool | None = None  # not known yet
        self._told_caches = False  # does the answer say that it depends on the cookie?
        self.watcher: Watcher | None = None  # of a socket or stream that is to close when its session ends

    def _begin_watching(self) -> None:
        """From here on this may take long: close it when the session ends."""
        watch, record = self._middleware.watch, self.session._record
        self._sending, self._ended, self._closing = set(), None, None
        if watch is not None and record is not None:
            self.watcher = watch.add(self._middleware.manager, record, self._session_ended)

    def stop_watching(self) -> None:
        """The end of the session closes nothing any more."""
        if self.watcher is not None:
            self.watcher.leave()
            self.watcher = None

    async def _send_watched(self, message: Message) -> None:
        self._raise_if_ended()
        with anyio.CancelScope() as sending:
            self._sending.add(sending)
            try:
                await self._send(message)
            finally:
                self._sending.discard(sending)
        self._raise_if_ended()

    def _raise_if_ended(self) -> None:
        if self._ended is not None:
            # It may have ended while a message was on its way, and two must not send at the same time.
            self._close_soon()
            raise self._ended

    def _session_ended(self) -> None:
        self._ended = SessionEnded("the session has ended, and its sockets and streams with it")
        if self._sending:
            asyncio.get_running_loop().call_later(SEND_GRACE, self._abandon)
        else:
            self._close_soon()

    def _abandon(self) -> None:
        """The client does not read: give up what is on its way. The server drops the connection when the app returns."""
        for sending in tuple(self._sending):
            sending.cancel()

    def _close_soon(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close_ended())

    async def closed(self) -> None:
        """If we are closing it: done. A server takes an app that returns before that for one that failed."""
        if self._closing is not None:
            await asyncio.wait({self._closing})

    async def _close_ended(self) -> None:
        """Tell the client, in the app's place."""
        with anyio.move_on_after(SEND_GRACE):
            try:
                for message in self._closing_messages():
                    await self._send(message)
            except Exception as error:
                logger.debug("the socket or stream of an ended session was closed already (%s)", type(error).__name__)

    def _closing_messages(self) -> Iterator[Message]:
        """The messages that end a socket or stream whose session has ended."""
        raise NotImplementedError

    def receiver(self, receive: Receive) -> Receive:
        """What the app receives by."""
        return receive

    def send(self, message: Message) -> Awaitable[None]:
        """What the app sends by. No coroutine where there is nothing to wait for but the server: 0.2 µs per message."""
        raise NotImplementedError

    async def unavailable(self) -> None:
        """Tell the client to come back later, in the app's place."""
        self._started = True
        manager = self._middleware.manager
        await self._answer(503, b"Service Unavailable", manager.guard.retry_after, self._owed_cookie())

    def _owed_cookie(self) -> tuple[bytes, bytes] | None:
        """The cookie that the browser must hear of although the request failed."""
        session: Session | None = getattr(self, "session", None)  # none yet, if it could not be loaded
        if session is None:
            return None
        cookie, plan = self._middleware.cookie, session._plan
        due, session._cookie = session._cookie, False
        if plan is not None and plan.cookie:
            due = plan.cookie
        elif session._asked is Asked.DESTROY:
            # The user who wanted to log out is told that it failed. The session may go on, but not in this browser.
            due = not self._middleware.manager.is_cookie_withheld(session)
        if isinstance(due, tuple):
            return cookie.set(
                due[0].value, due[1]
            )  # of what was committed: the token that the browser has is dead, or about to be
        return cookie.delete() if due else None

    async def _answer(
        self,
        status: int,
        text: bytes,
        retry_after: int | None = None,
        cookie: tuple[bytes, bytes] | None = None,
    ) -> None:
        """Answer in the app's place."""
        raise NotImplementedError

    async def _refuse(self) -> None:
        self._started = True
        await self._answer(403, b"Too many sessions: log out somewhere else first", None, self._owed_cookie())

    def is_complete(self) -> bool:
        """The app has returned. Whether all is done: the answer has begun, and nothing happened to the session since."""
        session = self.session
        if not self._started or self._failure is not None:
            return False
        if session._record is None and not session._accessed:
            return True
        return self._middleware.manager.is_settled(session, self._failed)

    async def finish(self) -> None:
        """The app has returned: save what it did to the session after the answer had begun."""
        if self._failure is not None:
            await self._settle()
            return
        # An app that has returned without an answer has failed, whatever it thinks; no cookie leaves.
        self._failed = self._failed or not self._started
        self.session._started = True
        await self._commit_late()

    async def crashed(self, error: BaseException) -> bool:
        """The app raised. Whether that has been answered already, so that nobody else need hear of it."""
        manager = self._middleware.manager
        if self._failure is not None:
            await self._settle()
            return stems_from(error, self._failure)
        if self.watcher is not None and self._ended is not None:
            await self.closed()
            await self._commit_late()
            return stems_from(error, self._ended)
        try:
            await manager.commit(self.session, failed=True)
        except StoreError as failure:
            await manager.failed("commit", failure, self.session)
        # For example out of the app's own session.save().
        if isinstance(error, SessionLimitReached) and not self._started:
            await self._refuse()
            return True
        if isinstance(error, StoreError) and not self._started and self._middleware.on_store_failure != "raise":
            await self.unavailable()
            return True
        if not self._started and isinstance(self.session._cookie, tuple) and self._scope["type"] == "http":
            # A session was saved under a new token before the crash. An error page of the server would not carry its cookie.
            self._started = True
            await self._answer(500, b"Internal Server Error", None, self._owed_cookie())
        return False

    async def _settle(self) -> None:
        """We answered in the app's place: undo the commit that failed, or finish it if the browser was told of its token."""
        manager = self._middleware.manager
        if self.session._plan is not None:
            self.session._touch_due = False  # the store has just failed: activity is not worth another call
            try:
                await manager.commit(self.session, failed=True)
            except StoreError as failure:
                logger.debug("a commit that failed could not be undone either (%s)", type(failure).__name__)

    def _is_settled(self, status: object = None) -> bool:
        """Whether the answer may leave without any question to the store; most may."""
        self._failed = is_failure(status)
        return self._middleware.manager.is_settled(self.session, self._failed)

    def _with_headers(self, message: Message, *, cacheable: bool = True) -> Message:
        """The message that begins the answer, as it leaves: a copy with what the session has to say, or itself."""
        session = self.session
        self._started = session._started = True
        due, session._cookie = session._cookie, False
        self._told_caches = reads = session._accessed and cacheable
        if due is False and not reads:
            return message
        # A degraded session is what it is because the store was away for a moment.
        private = reads and (session._degraded or (self._middleware.no_store_when_logged_in and session._is_of_a_user))
        try:
            headers: Headers = [*(message.get("headers") or ())]
            if reads:
                vary_on(headers)
            if private or (cacheable and due is not False):
                keep_out_of_caches(headers, no_store=private)
            if due is not False:
                cookie = self._middleware.cookie
                headers.append(cookie.delete() if due is True else cookie.set(due[0].value, due[1]))
                if due is not True and cookie.secure and not _plain_http.is_told and is_plain_http(self._scope):
                    _plain_http.tell(cookie.name)
        except (AttributeError, TypeError, ValueError):
            return message  # what the app calls headers is none; let the server tell it
        return {**message, "headers": headers}

    async def _commit_and_start(self, message: Message, *, cacheable: bool = True) -> None:
        """Commit before the answer leaves. If the store fails, the client is told so instead, and the app as well.

        Raises:
            StoreError: in the app's ``await send(…)``, so that it does not go on as if all were well.
        """
        manager = self._middleware.manager
        try:
            await manager.commit(self.session, failed=self._failed)
        except StoreError as failure:
            await manager.failed("commit", failure, self.session)
            if self._middleware.on_store_failure != "raise":
                self._failure = failure
                await self.unavailable()
            raise
        except SessionLimitReached as failure:
            self._failure = failure
            await self._refuse()
            raise
        await self._send(self._with_headers(message, cacheable=cacheable))

    async def _commit_late(self) -> None:
        """Save what changed after the answer had left. Nobody can be told any more, so failures are logged."""
        manager = self._middleware.manager
        try:
            await manager.commit(self.session, failed=self._failed)
        except StoreError as failure:
            await manager.failed("late commit", failure, self.session)
            if self._middleware.on_store_failure == "raise":
                raise


def is_failure(status: object) -> bool:
    return isinstance(status, int) and status >= 500


def stems_from(error: BaseException | None, origin: BaseException) -> bool:
    """Whether ``error`` is ``origin`` or was raised because of it; frameworks wrap what passes through them."""
    for _ in range(20):
        if error is None or error is origin:
            return error is origin
        if isinstance(error, BaseExceptionGroup):  # of several tasks that sent at the same time, say
            return all(stems_from(each, origin) for each in error.exceptions)
        error = error.__cause__ or error.__context__
    return False


_PREFETCH = re.compile(rb"[ \t]*prefetch[ \t]*(?:;|\Z)")


def is_activity(scope: Scope) -> bool:
    """Whether somebody is there: preflights and speculative loads come without one.

    ``Sec-Purpose: prefetch`` is from the Fetch standard's prefetch extension and W3C's Speculation Rules. It is a token that may
    have parameters (RFC 9651, sections 3.1.2 and 3.3.4).
    """
    if scope.get("method") == "OPTIONS":
        return False
    for name, value in scope.get("headers", ()):
        if name == b"sec-purpose":
            return _PREFETCH.match(value) is None
    return True


class _PlainHttp:
    """Whether this process has warned that browsers drop its cookie."""

    is_told = False

    def tell(self, name: str) -> None:
        # A log line and no Python warning: a response is on its way, and tests turn warnings into errors.
        self.is_told = True
        logger.warning(
            "the session cookie %s is Secure, but was sent over plain http to a host that is not loopback, and no header of a "
            "proxy says otherwise: browsers drop it. Serve https, have the proxy send X-Forwarded-Proto, or for development "
            "use CookieConfig.insecure_development().",
            name,
        )


_plain_http = _PlainHttp()
