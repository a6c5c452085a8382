"""SessionMiddleware: the only file that knows ASGI. Layer 5.

Pure ASGI: one object per request stands between the server and the app, reads the cookie before the app runs, and commits
when the first byte is about to leave, since afterwards no cookie can be sent.
"""

from __future__ import annotations

import enum
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, get_args
from weakref import WeakSet

from asgi_sessions._cipher import Secrets
from asgi_sessions._cookie import CookieConfig, keep_out_of_shared_caches, vary_on_cookie
from asgi_sessions._errors import ConfigurationError, SessionDataError, StoreError
from asgi_sessions._manager import Manager
from asgi_sessions._session import Session
from asgi_sessions._store import Store
from asgi_sessions._timeouts import Timeouts
from asgi_sessions._types import Clock, EventHook, Headers, Message, Receive, Scope, Send

logger = logging.getLogger("asgi_sessions")

OnStoreFailure = Literal["unavailable", "raise", "anonymous"]

_STORE_METHODS = ("load", "create", "update", "touch", "rename", "delete", "index", "aclose")

WS_INTERNAL_ERROR: Final = 1011
WS_TRY_AGAIN_LATER: Final = 1013  # IANA WebSocket close code registry (RFC 6455, section 11.7)


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
        on_event: is given an :class:`Event` for everything that happens to sessions; may be a coroutine function.
        clock: seconds since the epoch; for tests.

    Raises:
        ConfigurationError: something does not fit together; the message says what to do.
    """

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
        clock: Clock = time.time,
    ) -> None:
        if not callable(app):
            raise ConfigurationError(
                f"SessionMiddleware(app={app!r}): give an ASGI app; it comes first, the store second"
            )
        missing = [name for name in _STORE_METHODS if not callable(getattr(store, name, None))]
        if isinstance(store, type) or missing:
            raise ConfigurationError(
                f"SessionMiddleware(store={store!r}): give a store, such as MemoryStore() or RedisStore.from_url('redis://…')"
                + (f"; this one has no {', '.join(missing)}" if missing else "")
            )
        for name, value, kind in (("cookie", cookie, CookieConfig), ("timeouts", timeouts, Timeouts)):
            if not isinstance(value, kind):
                raise ConfigurationError(f"SessionMiddleware({name}={value!r}): give a {kind.__name__}")
        if on_store_failure not in get_args(OnStoreFailure):
            raise ConfigurationError(
                f"SessionMiddleware(on_store_failure={on_store_failure!r}): use 'unavailable', 'raise' or 'anonymous'"
            )
        for name, function in (("skip", skip), ("on_event", on_event), ("clock", clock)):
            if function is not None and not callable(function):
                raise ConfigurationError(f"SessionMiddleware({name}={function!r}): give a function")
        if inspect.iscoroutinefunction(skip):
            raise ConfigurationError("SessionMiddleware(skip=…): give a plain function, not a coroutine function")
        _refuse_twice(app, cookie.name)
        if not cookie.secure and _first_time(store):
            logger.warning("the session cookie %s is sent over plain http too: for development only", cookie.name)
        self.app = app
        self.cookie = cookie
        self.on_store_failure = on_store_failure
        self._skip = skip
        self.manager = Manager(
            store,
            cookie_name=cookie.name,
            timeouts=timeouts,
            secrets=Secrets(secret_keys),
            clock=clock,
            on_event=on_event,
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3; typed loosely, since frameworks type their scopes differently."""
        kind = scope["type"]
        if (kind == "http" or kind == "websocket") and (self._skip is None or not self._skip(scope)):
            outer = scope.get("session")
            if isinstance(outer, Session) and getattr(outer._keeper, "cookie_name", None) == self.cookie.name:
                raise ConfigurationError(_TWICE.format(name=self.cookie.name))
            await (_Request if kind == "http" else _Socket)(self, scope, receive, send).run()
        elif kind == "lifespan":
            await self.app(scope, receive, _Lifespan(send, self.manager.store).send)
        else:
            await self.app(scope, receive, send)

    async def open(self, values: list[bytes], scope: Scope) -> Session:
        """The session that goes with these values of our cookie.

        Raises:
            StoreError: the store failed.
        """
        if len(values) > 1 and self.cookie.is_host_bound:
            # Browsers keep one cookie under such a name. A second one was smuggled in, and nobody can say which is which.
            await self.manager.tell("cookie.duplicated", count=len(values))
            return self.manager.begin()
        tokens = self.manager.recognise(values)
        if not tokens:
            return self.manager.begin()
        session = await self.manager.load(tokens)
        if not _is_activity(scope):
            session._touch_due = session._renewal_due = session._active = False
        return session


class _Exchange:
    """One request on its way: what an HTTP request and a WebSocket have in common."""

    _started: bool = False  # has the answer, and with it the cookie, left?
    _failed: bool = False  # did the app answer 5xx? Then nothing it did to the session counts, then or later
    _failure: StoreError | None = None  # we answered in the app's place; whatever it still sends is dropped
    _session: Session

    def __init__(self, middleware: SessionMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        self._middleware = middleware
        self._scope = scope
        self._receive = receive
        self._send = send

    async def run(self) -> None:
        middleware = self._middleware
        try:
            values = middleware.cookie.read(self._scope.get("headers", ()))
            # Without a cookie of ours: an empty session, and no I/O.
            self._session = await middleware.open(values, self._scope) if values else middleware.manager.begin()
        except StoreError as failure:
            await middleware.manager.tell("store.failed", step="load", reason=str(failure))
            if middleware.on_store_failure == "raise":
                raise
            if middleware.on_store_failure == "unavailable":
                await self.unavailable()
                return
            self._session = middleware.manager.degraded()
        self._scope["session"] = self._session
        try:
            await middleware.app(self._scope, self.receiver(), self.send)
        except GeneratorExit:
            raise  # the loop is shutting down and closes what is left; nothing can be waited for any more
        except BaseException as error:
            if not await self._crashed(error):
                raise
        else:
            if not self._started or not self._is_untouched():
                await self._finish()

    def receiver(self) -> Receive:
        """What the app receives by."""
        return self._receive

    async def send(self, message: Message) -> None:
        raise NotImplementedError

    async def unavailable(self) -> None:
        """Tell the client to come back later, in the app's place."""
        raise NotImplementedError

    def session(self) -> Session:
        """The session, with what the app put in its place taken over.

        Litestar's ``set_session()`` replaces ``scope["session"]``; its ``clear_session()`` puts ``Empty`` there, which has
        been a class and is a member of an enum.
        """
        session = self._session
        current = self._scope.get("session", session)
        if current is session or isinstance(current, Session):  # or another middleware's, with a cookie of its own
            return session
        if isinstance(current, Mapping):
            session.clear()
            session.update(current)
        elif current is None or isinstance(current, type | enum.Enum):
            session.destroy()
        else:
            raise SessionDataError(
                f"scope['session'] was replaced by a {type(current).__name__}; put a dict there, or change the session itself"
            )
        return session

    def _is_untouched(self) -> bool:
        """Whether there was no session and the app did not ask for one: then nothing of ours need be looked at (1 of 3 µs)."""
        session = self._session
        return not session._accessed and session._record is None and self._scope.get("session") is session

    def _is_settled(self, status: object = None) -> bool:
        """Whether the answer may leave without any question to the store; most may."""
        self._failed = _is_failure(status)
        return self._middleware.manager.is_settled(self.session(), failed=self._failed)

    async def _commit_or_answer(self) -> None:
        """Commit before the answer leaves. If the store fails, the client is told so instead, and the app as well.

        Raises:
            StoreError: in the app's ``await send(…)``, so that it does not go on as if all were well.
        """
        manager = self._middleware.manager
        try:
            await manager.commit(self.session(), failed=self._failed)
        except StoreError as failure:
            await manager.tell("store.failed", session=self._session, step="commit", reason=str(failure))
            if self._middleware.on_store_failure != "raise":
                self._failure = failure
                await self.unavailable()
            raise

    async def _commit_late(self) -> None:
        """Save what changed after the answer had left. Nobody can be told any more, so failures are logged."""
        manager = self._middleware.manager
        try:
            await manager.commit(self.session(), failed=self._failed)
        except StoreError as failure:
            await manager.tell("store.failed", session=self._session, step="late commit", reason=str(failure))
            if self._middleware.on_store_failure == "raise":
                raise

    async def _finish(self) -> None:
        if self._failure is not None:
            return
        # An app that has returned without an answer has failed, whatever it thinks; no cookie leaves.
        self._failed = self._failed or not self._started
        self._session._started = True
        session = self.session()
        if not self._middleware.manager.is_settled(session, failed=self._failed):
            await self._commit_late()

    async def _crashed(self, error: BaseException) -> bool:
        """The app raised. Whether that has been answered already, so that nobody else need hear of it."""
        manager = self._middleware.manager
        if self._failure is not None:
            return _stems_from(error, self._failure)
        try:
            await manager.commit(self._session, failed=True)
        except StoreError as failure:
            await manager.tell("store.failed", session=self._session, step="commit", reason=str(failure))
        # For example out of the app's own session.save().
        if isinstance(error, StoreError) and not self._started and self._middleware.on_store_failure != "raise":
            await self.unavailable()
            return True
        return False


class _Request(_Exchange):
    """An HTTP request."""

    async def send(self, message: Message) -> None:
        if self._failure is not None:
            return
        if not self._started and message["type"] == "http.response.start":
            if self._is_untouched():
                self._failed = _is_failure(message.get("status"))
                self._started = self._session._started = True
            else:
                if not self._is_settled(message.get("status")):
                    await self._commit_or_answer()
                self._started = self._session._started = True
                message = with_session_headers(message, self._session, self._middleware.cookie)
        await self._send(message)

    async def unavailable(self) -> None:
        self._started = True
        start, body = _unavailable_response("http.response", self._middleware.manager.retry_after)
        await self._send(start)
        await self._send(body)


class _Socket(_Exchange):
    """A WebSocket, from handshake to close."""

    _accepted: bool = False

    def receiver(self) -> Receive:
        return self.receive

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.disconnect" and self._accepted:
            # Many apps leave by an exception now; what they changed before was well meant.
            await self._commit_late()
        return message

    async def send(self, message: Message) -> None:
        if self._failure is not None:
            return
        kind = message["type"]
        if not self._started and kind == "websocket.accept":
            if not self._is_settled():
                await self._commit_or_answer()
            self._started = self._session._started = self._accepted = True
            message = with_session_headers(message, self._session, self._middleware.cookie, cacheable=False)
        elif not self._started and kind == "websocket.http.response.start":
            if not self._is_settled(message.get("status")):
                await self._commit_or_answer()
            self._started = self._session._started = True
            message = with_session_headers(message, self._session, self._middleware.cookie)
        elif kind == "websocket.close":
            message = await self._closing(message)
        await self._send(message)

    async def _closing(self, message: Message) -> Message:
        self._started = True
        self._session._started = True  # a refused handshake is answered by the server, without our cookie
        manager = self._middleware.manager
        try:
            await manager.commit(self.session())
        except StoreError as failure:
            await manager.tell("store.failed", session=self._session, step="commit at close", reason=str(failure))
            return {**message, "code": WS_INTERNAL_ERROR}
        return message

    async def unavailable(self) -> None:
        self._started = True
        if "websocket.http.response" in (self._scope.get("extensions") or {}):
            start, body = _unavailable_response("websocket.http.response", self._middleware.manager.retry_after)
            await self._send(start)
            await self._send(body)
        else:
            await self._send(
                {"type": "websocket.close", "code": WS_TRY_AGAIN_LATER, "reason": "session store unavailable"}
            )


class _Lifespan:
    """Closes the store's connections when the app has shut down, before the server hears of it and stops the loop."""

    __slots__ = ("_send", "_store")

    def __init__(self, send: Send, store: Store) -> None:
        self._send = send
        self._store = store

    async def send(self, message: Message) -> None:
        if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            try:
                await self._store.aclose()
            except Exception:
                logger.exception("closing the session store failed")
        await self._send(message)


def with_session_headers(
    message: Message, session: Session, cookie: CookieConfig, *, cacheable: bool = True
) -> Message:
    """The message with what the session has to say: a copy, since others may keep the original; or itself if that is nothing."""
    due, session._cookie = session._cookie, False
    if due is False and not (session._accessed and cacheable):
        return message
    try:
        headers: Headers = [*(message.get("headers") or ())]
        if session._accessed and cacheable:
            vary_on_cookie(headers)
        if due is not False:
            if cacheable:
                keep_out_of_shared_caches(headers)
            headers.append(cookie.delete() if due is True else cookie.set(*due))
    except (AttributeError, TypeError, ValueError):
        return message  # what the app calls headers is none; let the server tell it
    return {**message, "headers": headers}


def _unavailable_response(kind: str, retry_after: int) -> tuple[Message, Message]:
    text = b"Service Unavailable"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(text)),
        (b"retry-after", b"%d" % retry_after),
        (b"cache-control", b"no-store"),
    ]
    return {"type": f"{kind}.start", "status": 503, "headers": headers}, {"type": f"{kind}.body", "body": text}


def _is_failure(status: object) -> bool:
    return isinstance(status, int) and status >= 500


def _stems_from(error: BaseException | None, origin: BaseException) -> bool:
    """Whether ``error`` is ``origin`` or was raised because of it; frameworks wrap what passes through them."""
    for _ in range(20):
        if error is None or error is origin:
            return error is origin
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        else:
            error = error.__cause__ or error.__context__
    return False


def _is_activity(scope: Scope) -> bool:
    """Whether somebody is there: preflights and speculative loads come without one.

    ``Sec-Purpose: prefetch`` is from the Fetch standard's prefetch extension and W3C's Speculation Rules.
    """
    if scope.get("method") == "OPTIONS":
        return False
    for name, value in scope.get("headers", ()):
        if name == b"sec-purpose":
            return b"prefetch" not in value
    return True


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


def _refuse_twice(app: Any, name: str) -> None:
    for _ in range(100):  # as far as wrapped apps can be seen from outside
        if app is None:
            return
        if isinstance(app, SessionMiddleware) and app.cookie.name == name:
            raise ConfigurationError(_TWICE.format(name=name))
        app = getattr(app, "app", None)
