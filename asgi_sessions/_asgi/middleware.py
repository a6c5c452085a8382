"""SessionMiddleware: the only file that knows ASGI.

Pure ASGI: one object per request stands between the server and the app, reads the cookie before the app runs, and commits
when the first byte is about to leave, since afterwards no cookie can be sent.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from copy import copy
from datetime import timedelta
from itertools import takewhile
from typing import Any, ClassVar, Final, Literal, NoReturn, get_args
from weakref import WeakSet

import anyio

from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.cookie import MOST_DAYS, CookieConfig, is_not_shared, keep_out_of_caches, vary_on
from asgi_sessions._core.elsewhere import explains_options
from asgi_sessions._core.facts import Devices
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.origin import is_plain_http
from asgi_sessions._core.session import OURS, Asked, Session
from asgi_sessions._core.timeouts import Timeouts, duration
from asgi_sessions._core.types import Clock, EventHook, Headers, Message, Receive, Scope, Send
from asgi_sessions._engine.contract import Store, lacking_for_users
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.upkeep import Upkeep, require_event_loop, upkeep_of
from asgi_sessions._engine.watch import Watch, Watcher
from asgi_sessions.errors import (
    ConfigurationError,
    SessionError,
    SessionLimitReached,
    SessionWarning,
    StoreError,
)

logger = logging.getLogger("asgi_sessions")

OnStoreFailure = Literal["unavailable", "raise", "anonymous"]

_STORE_METHODS = ("load", "create", "update", "touch", "rename", "delete", "index", "aclose")

SEND_GRACE: Final = 5.0
"""Seconds that a message may still take when its socket or stream has ended. A client that stopped reading can block it
for ever: the server waits until its buffer drains.
"""

WS_INTERNAL_ERROR: Final = 1011
WS_POLICY_VIOLATION: Final = 1008
WS_TRY_AGAIN_LATER: Final = 1013  # IANA WebSocket close code registry (RFC 6455, section 11.7)
WS_SESSION_ENDED: Final = 4401
"""From the range for private use (RFC 6455, section 7.4.2), after HTTP's 401."""


class SessionMiddleware:
    """Puts a :class:`Session` into ``scope["session"]`` of every HTTP request and WebSocket.

    Args:
        app: the ASGI app to wrap.
        store: where sessions are kept. Its connections are closed when the app's lifespan ends.
        cookie: name and attributes of the cookie.
        timeouts: how long sessions live.
        secret_keys: secrets of at least 32 bytes, newest first. With them, tokens are signed and records encrypted. The first one
            writes, all of them read.
        skip: ``skip(scope) -> bool``: requests that shall have no session at all.
        on_store_failure: what a request with a session cookie gets when the store cannot be asked. ``"unavailable"``: 503 with
            Retry-After. ``"raise"``: the ``StoreError`` goes to your error handlers. ``"anonymous"``: an empty session, marked
            ``is_degraded``, of which nothing is written.
        devices: what is kept so that users can recognise and end their sessions: limits, history, facts. See :class:`Devices`.
        store_deadline: how long a load, or a whole commit, may take; a request does one of each. ``None``: 0.45 s. A database
            that is slower but well may need more.
        no_store_when_logged_in: put ``Cache-Control: no-store`` into every response to a request that read the session of a
            user, so that "Back" does not show its page after the log-out.
        on_event: is given an :class:`Event` for everything that happens to sessions; may be a coroutine function.
        clock: seconds since the epoch; for tests.

    Raises:
        ConfigurationError: something does not fit together; the message says what to do.
    """

    @forgets_arguments
    @explains_options
    def __init__(
        self,
        app: Callable[..., Awaitable[None]],  # frameworks type their ASGI apps differently
        store: Store,
        *,
        cookie: CookieConfig = CookieConfig(),  # noqa: B008 - frozen
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        secret_keys: Sequence[str | bytes] = (),
        skip: Callable[[Scope], bool] | None = None,
        on_store_failure: OnStoreFailure = "unavailable",
        on_event: EventHook | None = None,
        devices: Devices | None = None,
        store_deadline: timedelta | None = None,
        no_store_when_logged_in: bool = False,
        clock: Clock = time.time,
    ) -> None:
        _refuse_no_app(app)
        missing = [name for name in _STORE_METHODS if not callable(getattr(store, name, None))]
        if isinstance(store, type) or missing:
            # Its type only: a str may be a secret key, or a URL with a password in it.
            given = store.__name__ if isinstance(store, type) else f"<{type(store).__name__}>"
            raise ConfigurationError(
                f"SessionMiddleware(store={given}): give a store, such as MemoryStore() or RedisStore.from_url('redis://…')"
                + (f"; this one has no {', '.join(missing)}" if missing else "")
            )
        for name, value, kind in (("cookie", cookie, CookieConfig), ("timeouts", timeouts, Timeouts)):
            if not isinstance(value, kind):
                raise ConfigurationError(f"SessionMiddleware({name}={value!r}): give a {kind.__name__}")
        if devices is not None:
            if not isinstance(devices, Devices):
                raise ConfigurationError(f"SessionMiddleware(devices={devices!r}): give a Devices")
            if lacking := lacking_for_users(store):
                raise ConfigurationError(
                    f"SessionMiddleware(devices=…): {type(store).__name__} does not know the sessions of a user; it has no "
                    f"{', '.join(lacking)}. Leave devices= out, or use another store."
                )
        if on_store_failure not in get_args(OnStoreFailure):
            raise ConfigurationError(
                f"SessionMiddleware(on_store_failure={on_store_failure!r}): use 'unavailable', 'raise' or 'anonymous'"
            )
        for name, function in (("skip", skip), ("on_event", on_event), ("clock", clock)):
            if function is not None and not callable(function):
                raise ConfigurationError(f"SessionMiddleware({name}={function!r}): give a function")
        if not isinstance(no_store_when_logged_in, bool):
            raise ConfigurationError(
                f"SessionMiddleware(no_store_when_logged_in={no_store_when_logged_in!r}): give True or False"
            )
        if timeouts.remember_absolute > timedelta(days=MOST_DAYS) and timeouts.renew is None:
            raise ConfigurationError(
                f"Timeouts(remember_absolute={timeouts.remember_absolute!r}): browsers keep a cookie for {MOST_DAYS} days "
                "at most. Use a shorter time, or renew=… so that a new cookie is sent now and then."
            )
        if inspect.iscoroutinefunction(skip):
            raise ConfigurationError("SessionMiddleware(skip=…): give a plain function, not a coroutine function")
        deadline = None
        if store_deadline is not None:
            deadline = duration("SessionMiddleware(store_deadline)", store_deadline).total_seconds()
            if not 0.01 <= deadline <= 30:
                raise ConfigurationError(
                    f"SessionMiddleware(store_deadline={store_deadline!r}): must lie between 10 milliseconds and 30 seconds"
                )
        _refuse_twin(app, cookie.name)
        _report_foreign(app)
        if not cookie.secure and _first_time(store):
            logger.warning("the session cookie %s is sent over plain http too: for development only", cookie.name)
        self.app = app
        self.cookie = cookie
        self.on_store_failure = on_store_failure
        self.no_store_when_logged_in = no_store_when_logged_in
        self._skip = skip
        self.manager: Manager = Manager(
            store,
            cookie_name=cookie.name,
            timeouts=timeouts,
            secrets=Secrets(secret_keys),
            clock=clock,
            on_event=on_event,
            devices=devices,
            deadline=deadline,
            may_be_withheld=cookie.may_be_withheld,
        )
        self.upkeep: Upkeep = upkeep_of(store)
        self.watch: Watch | None = self.upkeep.watch if self.manager.devices.live else None

    def around(self, app: Callable[..., Awaitable[None]]) -> SessionMiddleware:
        """The same middleware, around another app; for frameworks that build one per route. All of them share one manager."""
        _refuse_no_app(app)
        _refuse_twin(app, self.cookie.name)
        other = copy(self)
        other.app = app
        return other

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3; typed loosely, since frameworks type their scopes differently."""
        kind = scope["type"]
        if (kind != "http" and kind != "websocket") or (self._skip is not None and self._skip(scope)):
            if kind == "lifespan":
                await refuse_foreign_at_startup(scope, receive, send)
                await _Lifespan(self.upkeep, self.manager, receive, send).run(self.app, scope)
            else:
                await self.app(scope, receive, send)
            return
        outer = scope.get("session")
        if outer is not None:
            refuse_foreign(scope)
            if outer.is_bearer:
                # Somebody is known by an access token: a cookie beside it counts nothing.
                await self.app(scope, receive, send)
                return
            if getattr(outer._keeper, "cookie_name", None) == self.cookie.name:
                raise ConfigurationError(_TWICE.format(name=self.cookie.name))
        # From here to the app in one frame: every await that passes through another one costs 0.15 µs, of 2 in all.
        exchange: _Exchange = (_Request if kind == "http" else _Socket)(self, scope, send)
        values = self.cookie.read(scope.get("headers", ()))
        # Browsers keep one cookie under a __Host- name. A second one was smuggled in, and nobody can say which is which.
        duplicated = len(values) if values and len(values) > 1 and self.cookie.is_host_bound else 0
        keys = self.manager.recognise(values) if values and not duplicated else None
        del values  # error collectors record the local variables of every function that an exception leaves
        try:
            if keys:
                session = await self.manager.load(keys)
                if not _is_activity(scope):
                    session._touch_due = session._renewal_due = session._active = False
                if kind == "websocket":
                    # Some servers drop the headers of `websocket.accept`. The new token would be lost with them, and the
                    # old one dies after the grace. The next HTTP response renews the token.
                    session._renews = session._renewal_due = False
            else:
                if duplicated:
                    await self.manager.tell("cookie.duplicated", count=duplicated)
                session = self.manager.begin()  # no cookie of ours: an empty session, and no I/O
        except StoreError as failure:
            await self.manager.failed("load", failure)
            if self.on_store_failure == "raise":
                raise
            if self.on_store_failure == "unavailable":
                await exchange.unavailable()
                return
            session = self.manager.degraded()
        session._origin = scope
        exchange.session = scope["session"] = scope[OURS] = session
        try:
            await self.app(scope, receive if kind == "http" else exchange.receiver(receive), exchange.send)
        except GeneratorExit:
            raise  # the loop is shutting down and closes what is left; nothing can be waited for any more
        except BaseException as error:
            scope["session"] = session  # for error pages further out; an inner middleware may have left its own here
            if not await exchange.crashed(error):
                raise
        else:
            if exchange.watcher is not None:
                await exchange.closed()
            if not exchange.is_complete():
                await exchange.finish()
        finally:
            session._origin = None  # a cycle otherwise: all of the request would wait for the collector
            # Without an outer one the key stays as it is. NiceGUI keeps the request of a page, and while the page's socket is
            # open it reads the session of its own middleware there.
            if outer is not None:
                scope["session"] = scope[OURS] = outer
            if exchange.watcher is not None:
                exchange.stop_watching()


class SessionEnded(ConnectionResetError):
    """What an app hears that goes on sending to a socket or stream whose session has ended.

    An ``OSError``, since that is what servers raise when the other side is gone (ASGI, HTTP & WebSocket message format 2.4).
    """


class _Exchange:
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

    def __init__(self, middleware: SessionMiddleware, scope: Scope, send: Send) -> None:
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
        await self._answer(503, b"Service Unavailable", manager.retry_after, self._owed_cookie())

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
        self._failed = _is_failure(status)
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


class _Request(_Exchange):
    """An HTTP request."""

    __slots__ = ("_start",)

    def _closing_messages(self) -> Iterator[Message]:
        yield {"type": "http.response.body", "body": b"", "more_body": False}
        if self._start.get("trailers"):  # ASGI, HTTP Trailers extension: the server waits for them
            yield {"type": "http.response.trailers", "headers": [], "more_trailers": False}

    def send(self, message: Message) -> Awaitable[None]:
        if self._failure is not None:
            return _nothing()
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
                self._failed = _is_failure(message.get("status"))
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
        start, body = _response("http.response", status, text, retry_after, cookie)
        if self._scope.get("method") == "HEAD":  # the headers of a GET and no content: RFC 9110, section 9.3.2
            body["body"] = b""
        await self._send(start)
        await self._send(body)


class _Socket(_Exchange):
    """A WebSocket, from handshake to close."""

    __slots__ = ("_accepted", "_receive", "_waiting")
    _ENDED: ClassVar[Mapping[str, object]] = {"code": WS_SESSION_ENDED, "reason": "session ended"}

    def _closing_messages(self) -> Iterator[Message]:
        yield {"type": "websocket.close", **self._ENDED}

    def receiver(self, receive: Receive) -> Receive:
        self._accepted = False
        self._receive = receive
        self._waiting: anyio.CancelScope | None = None
        return self.receive

    async def receive(self) -> Message:
        if self.watcher is None:
            message = await self._receive()
        else:
            if self._ended is None:
                with anyio.CancelScope() as self._waiting:
                    message = await self._receive()
                self._waiting = None
            if self._ended is not None:
                await self.closed()
                message = {"type": "websocket.disconnect", **self._ENDED}
        if message["type"] == "websocket.disconnect" and self._accepted:
            # Many apps leave by an exception now; what they changed before was well meant.
            await self._commit_late()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        if self._failure is not None:
            return _nothing()
        kind = message["type"]
        if kind == "websocket.close":
            is_closed = self.watcher is not None and self._ended is not None
            return _nothing() if is_closed else self._close(message)
        if self.watcher is not None:
            return self._send_watched(message)
        accepts = kind == "websocket.accept"
        if not self._started and (accepts or kind == "websocket.http.response.start"):
            settled = self._is_settled(message.get("status"))
            self._accepted = accepts
            if accepts and self._middleware.watch is not None:
                return self._accept(message, settled=settled)
            if not settled:
                return self._commit_and_start(message, cacheable=not accepts)
            message = self._with_headers(message, cacheable=not accepts)
        return self._send(message)

    async def _accept(self, message: Message, *, settled: bool) -> None:
        if settled:
            await self._send(self._with_headers(message, cacheable=False))
        else:
            await self._commit_and_start(message, cacheable=False)
        self._begin_watching()

    def _session_ended(self) -> None:
        super()._session_ended()
        if self._waiting is not None:
            self._waiting.cancel()

    async def _close(self, message: Message) -> None:
        self._started = True
        self.session._started = True  # a refused handshake is answered by the server, without our cookie
        manager = self._middleware.manager
        try:
            await manager.commit(self.session)
        except StoreError as failure:
            await manager.failed("commit at close", failure, self.session)
            message = {**message, "code": WS_INTERNAL_ERROR}
        await self._send(message)

    async def _answer(
        self,
        status: int,
        text: bytes,
        retry_after: int | None = None,
        cookie: tuple[bytes, bytes] | None = None,
    ) -> None:
        if "websocket.http.response" in (self._scope.get("extensions") or {}):
            for message in _response("websocket.http.response", status, text, retry_after, cookie):
                await self._send(message)
        elif retry_after is not None:
            await self._send(
                {"type": "websocket.close", "code": WS_TRY_AGAIN_LATER, "reason": "session store unavailable"}
            )
        else:
            await self._send({"type": "websocket.close", "code": WS_POLICY_VIOLATION, "reason": "too many sessions"})


async def _nothing() -> None:
    """To be awaited in the place of a message that is dropped."""


class _Lifespan:
    """The lifespan of an app: its store is kept up from start to end, and closed before the server hears of the end and stops
    the loop.
    """

    __slots__ = ("_manager", "_receive", "_send", "_upkeep")

    def __init__(self, upkeep: Upkeep, manager: Manager, receive: Receive, send: Send) -> None:
        self._upkeep = upkeep
        self._manager = manager
        self._receive = receive
        self._send = send

    async def run(self, app: Callable[..., Awaitable[None]], scope: Scope) -> None:
        try:
            require_event_loop(self._manager.store)
        except ConfigurationError as error:
            await _fail_to_start(error, self._receive, self._send)
        try:
            await app(scope, self._receive, self.send)
        except GeneratorExit:
            raise  # the loop is shutting down and closes what is left; nothing can be waited for any more
        except BaseException:  # the app does not get so far as to say that it has shut down
            await self._end()
            raise

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self._upkeep.begin(self, self._manager)
            await self._manager.start()
        elif kind in ("lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            await self._end()
        await self._send(message)

    async def _end(self) -> None:
        await self._upkeep.end(self, self._manager)


def _response(
    kind: str, status: int, text: bytes, retry_after: int | None, cookie: tuple[bytes, bytes] | None
) -> tuple[Message, Message]:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(text)),
        (b"cache-control", b"no-store"),
    ]
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    if cookie is not None:
        headers.append(cookie)
    return {"type": f"{kind}.start", "status": status, "headers": headers}, {"type": f"{kind}.body", "body": text}


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


def _is_failure(status: object) -> bool:
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


def _is_activity(scope: Scope) -> bool:
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

_TWICE = (
    "SessionMiddleware is installed twice with the cookie {name!r}: both would write it. Remove one, or give it another "
    "name with cookie=CookieConfig(name=…)."
)


_seen_insecure: WeakSet[Any] = WeakSet()


def _first_time(store: Any) -> bool:
    """Whether a store is met for the first time: some frameworks build the middleware once per route."""
    try:
        met = store in _seen_insecure
        _seen_insecure.add(store)
    except TypeError:  # a store that cannot be hashed or weakly referenced
        return True
    return not met


_SESSION_MIDDLEWARES = frozenset(
    (
        "litestar.security.session_auth.middleware.MiddlewareWrapper",
        "litestar.middleware.session.base.SessionMiddleware",
        "starlette.middleware.sessions.SessionMiddleware",
        "starsessions.middleware.SessionMiddleware",
    )
)
"""Middlewares that are known to write ``scope["session"]``. A start-up check needs to know them by name; a request does not."""


def refuse_foreign(scope: Scope) -> None:
    """Raise if ``scope["session"]`` holds the session of a middleware that is not ours and stands outside of ours.

    Both would write the same key of the scope, and the outer one would put what it finds there into its own cookie.
    """
    found = scope.get("session")
    if found is not None and not isinstance(found, Session):
        raise _foreign(f"it put a {_name(type(found))} into scope['session']", _foreign_outside(scope.get("app")))


async def refuse_foreign_at_startup(scope: Scope, receive: Receive, send: Send) -> None:
    """The same when the lifespan starts, as far as the app in the scope, such as Starlette, lists its middleware."""
    names = _foreign_outside(scope.get("app"))
    if names:
        await _fail_to_start(_foreign("found at start-up", names), receive, send)


async def _fail_to_start(error: ConfigurationError, receive: Receive, send: Send) -> NoReturn:
    """Tell the server: it takes an exception alone for an app without lifespan, and goes on."""
    await receive()  # lifespan.startup
    await send({"type": "lifespan.startup.failed", "message": str(error)})
    raise error


def refuse_foreign_around(app: Any) -> None:
    """The same for apps that are wrapped by hand, as Quart's are: ``app`` is the outermost one."""
    classes = list(takewhile(lambda cls: not issubclass(cls, SessionMiddleware), (cls for cls, _ in _wrapped(app))))
    if names := [name for cls in classes if (name := foreign_class(cls))]:
        raise _foreign("found at start-up", names)


def foreign_class(cls: Any) -> str | None:
    """The name of a session middleware that is not ours, if ``cls`` is one or derives from one."""
    names = [_name(base) for base in getattr(cls, "__mro__", ())]
    return names[0] if names and not _SESSION_MIDDLEWARES.isdisjoint(names) else None


def _foreign(seen: str, names: Sequence[str]) -> ConfigurationError:
    which = " and ".join(names) or "another session middleware"
    return ConfigurationError(
        f"{which} is installed outside of asgi_sessions' SessionMiddleware ({seen}). Remove it. If a part of the app needs "
        "it, mount that part as an app and install it there: inside ours it has a session of its own."
    )


def _foreign_outside(app: Any) -> list[str]:
    """Foreign session middlewares outside of ours, by the list that Starlette and FastAPI keep: outermost first."""
    classes = [getattr(entry, "cls", None) for entry in getattr(app, "user_middleware", ())]
    ours = [index for index, cls in enumerate(classes) if isinstance(cls, type) and issubclass(cls, SessionMiddleware)]
    return [name for cls in classes[: max(ours, default=len(classes))] if (name := foreign_class(cls))]


def _refuse_no_app(app: object) -> None:
    if not callable(app):
        raise ConfigurationError(
            f"SessionMiddleware(app=<{type(app).__name__}>): give an ASGI app; it comes first, the store second"
        )


def _refuse_twin(app: Any, cookie_name: str) -> None:
    """Refuse another one of ours with the same cookie among the middleware that is wrapped, as far as it can be seen."""
    for cls, cookie in _wrapped(app):
        if issubclass(cls, SessionMiddleware) and cookie.name == cookie_name:
            raise ConfigurationError(_TWICE.format(name=cookie_name))


def _report_foreign(app: Any) -> None:
    """Say in the log that a foreign one is wrapped. It is allowed, but the app may have expected ours in its place."""
    for cls, _ in _wrapped(app):
        if name := foreign_class(cls):
            logger.warning(
                "%s is installed inside of SessionMiddleware: request.session is its session, not ours", name
            )


def _wrapped(app: Any) -> Iterator[tuple[type, Any]]:
    """The class of each app that is wrapped, outermost first, and its cookie if it is one of ours."""
    for _ in range(100):
        if app is None:
            return
        yield type(app), getattr(app, "cookie", None)
        for entry in getattr(app, "user_middleware", ()):  # Starlette and FastAPI build theirs later
            if isinstance(entry.cls, type):
                yield entry.cls, entry.kwargs.get("cookie", CookieConfig())
        app = getattr(app, "app", None)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
