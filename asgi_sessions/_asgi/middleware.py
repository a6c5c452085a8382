"""SessionMiddleware: its options, and the path of a request from the cookie to the app.

The middleware reads the cookie before the app runs. It commits when the first byte is about to leave: after that, no cookie
can be sent.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Unpack, get_args

from asgi_sessions._asgi.exchange import Exchange, OnStoreFailure
from asgi_sessions._asgi.foreign import binders_inside, check_inside, refuse_foreign, twin
from asgi_sessions._asgi.http import HttpExchange
from asgi_sessions._asgi.lifespan import lifespan
from asgi_sessions._asgi.responses import unavailable
from asgi_sessions._asgi.websocket import WebSocketExchange
from asgi_sessions._core.arguments import expect, expect_app
from asgi_sessions._core.cookie import MOST_DAYS, CookieConfig, values_called
from asgi_sessions._core.elsewhere import explains_options
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.origin import is_activity
from asgi_sessions._core.session import OURS, Session
from asgi_sessions._core.timeouts import Timeouts
from asgi_sessions._core.types import Scope
from asgi_sessions._engine.adopt import adopt
from asgi_sessions._engine.contract import Store
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.upkeep import Upkeep
from asgi_sessions._engine.watch import Watch
from asgi_sessions.errors import ConfigurationError, StoreError
from asgi_sessions.sessions import Sessions, SessionsOptions, sessions_of

if TYPE_CHECKING:
    from asgi_sessions.dbsc._binder import Binder

logger = logging.getLogger("asgi_sessions")


class SessionMiddleware:
    """Puts a :class:`Session` into ``scope["session"]`` of every HTTP request and WebSocket.

    Args:
        app: the ASGI app to wrap.
        store: the :class:`Sessions` of the app, or a store. From a store, the middleware builds a Sessions with ``options``.
        cookie: name and attributes of the cookie.
        skip: ``skip(scope) -> bool``: true for requests without a session.
        passive: ``passive(scope) -> bool``: true for requests without activity of the user, such as polls of a page. They do
            not move the idle timeout. See also :meth:`Session.mark_passive`.
        realm: ``realm(scope) -> str``, for one app with several hosts or tenants. A token counts only in its realm, for example
            its host name. See ``docs/realms.md``.
        on_store_failure: the answer to a request with a session cookie if the store fails. ``"unavailable"``: 503 with
            Retry-After. ``"raise"``: the ``StoreError`` goes to your error handlers. ``"anonymous"``: an empty session, marked
            ``is_degraded``, which is never saved.
        no_store_when_logged_in: add ``Cache-Control: no-store`` to each response after the session of a user was read, so that
            "Back" does not show the page after the log-out. It does not cover sessions of access tokens.
        options: the options of :class:`Sessions`, such as ``timeouts``. Allowed only with a store.

    Raises:
        ConfigurationError: an option is wrong, or two do not fit together. The message says what to do.
    """

    @forgets_arguments
    @explains_options
    def __init__(
        self,
        app: Callable[..., Awaitable[None]],  # frameworks type their ASGI apps differently
        store: Sessions | Store,
        *,
        cookie: CookieConfig = CookieConfig(),  # noqa: B008 - frozen
        skip: Callable[[Scope], bool] | None = None,
        passive: Callable[[Scope], bool] | None = None,
        realm: Callable[[Scope], str] | None = None,
        on_store_failure: OnStoreFailure = "unavailable",
        no_store_when_logged_in: bool = False,
        **options: Unpack[SessionsOptions],
    ) -> None:
        expect_app("SessionMiddleware", app, skip=skip, passive=passive, realm=realm)
        self.sessions: Sessions = sessions_of("SessionMiddleware", store, options)
        expect("SessionMiddleware(cookie)", cookie, CookieConfig)
        if on_store_failure not in get_args(OnStoreFailure):
            raise ConfigurationError(
                f"SessionMiddleware(on_store_failure={on_store_failure!r}): use 'unavailable', 'raise' or 'anonymous'"
            )
        expect("SessionMiddleware(no_store_when_logged_in)", no_store_when_logged_in, bool)
        _check_timeouts(self.sessions.timeouts)
        check_inside(app, cookie.name)
        if not cookie.secure:
            _warn_of_insecure(cookie.name)
        self.app = app
        self.cookie = cookie
        self._adopts = bool(self.sessions.adopt)
        self.on_store_failure = on_store_failure
        self.no_store_when_logged_in = no_store_when_logged_in
        self._skip = skip
        self._passive = passive
        self._manager: Manager = self.sessions._manager.for_cookie(cookie.name, cookie.may_be_withheld, realm)
        self._upkeep: Upkeep = self.sessions._upkeep
        self._watch: Watch | None = self._upkeep.watch if self._manager.devices.live else None
        self._binder: Binder | None = _binder(self.sessions, self._manager, cookie, app)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3. Frameworks type their scopes differently, so the types are loose."""
        kind = scope["type"]
        if self._binder is not None and kind == "http" and self._binder.answers(scope):
            await self._binder.answer(scope, send)
            return
        if (kind != "http" and kind != "websocket") or (self._skip is not None and self._skip(scope)):
            if kind == "lifespan":
                await lifespan(self.app, scope, receive, send, self._upkeep, scope.get("app"))
            else:
                await self.app(scope, receive, send)
            return
        outer = scope.get("session")
        if outer is not None:
            refuse_foreign(scope)
            if outer.is_bearer:
                # The request has an access token: its cookie is ignored.
                await self.app(scope, receive, send)
                return
            if getattr(outer._keeper, "cookie_name", None) == self.cookie.name:
                raise twin(self.cookie.name)
        # One frame from here to the app: another one costs each await 0.15 µs, of 2 µs in all.
        exchange: HttpExchange | WebSocketExchange
        if kind == "http":
            exchange = HttpExchange(self, scope, send)
        else:
            exchange = WebSocketExchange(self, scope, receive, send)
            receive = exchange.receive
        values = values_called(scope.get("headers", ()), self.cookie.wanted)
        if values and len(values) > 1 and self.cookie.is_host_bound:
            # Browsers keep one cookie under a __Host- name. A second one is an attack, and either may be forged.
            await self._manager.emit_event("cookie.duplicated", count=len(values))
            values = []
        keys = self._manager.recognise(values, scope) if values else None
        del values  # error collectors record the local variables of each frame in a traceback
        if not (keys or self._manager.guard.knows_time):
            await self._manager.start(reports=False)  # the app has no lifespan, or the store failed then
        if not keys and not self._adopts:
            session = self._manager.begin()  # no cookie of ours: an empty session, and no I/O
        else:
            try:
                # A handshake renews no token: some servers drop the headers of `websocket.accept`, and with them the new
                # token. The next HTTP response renews it.
                if keys:
                    active = is_activity(scope, self._passive)
                    session = await self._manager.load(keys, active=active, renews=kind == "http")
                else:
                    session = await self._adopt(scope, exchange)
            except StoreError as failure:
                await self._manager.failed("load", failure)
                if self.on_store_failure == "raise":
                    raise
                if self.on_store_failure == "unavailable":
                    await unavailable(scope, send, self._manager.guard.retry_after)
                    return
                session = self._manager.degraded()
            if self._binder is not None and not self._binder.is_proven(scope, session):
                judged = await self._binder.judge(scope, send, session)
                if judged is None:
                    return  # answered: the browser proves its device and repeats the request
                session = judged
        del keys  # the collector counts what requests in flight hold
        session._origin = scope
        exchange.session = scope["session"] = scope[OURS] = session
        try:
            await self.app(scope, receive, exchange.send)
        except GeneratorExit:
            raise  # the loop is shutting down: no await would finish
        except BaseException as error:
            scope["session"] = session  # for error pages further out: an inner middleware may have put its own there
            if not await exchange.crashed(error):
                raise
        else:
            if exchange.live is not None:
                await exchange.live.closed()
            if not exchange.is_complete():
                await exchange.finish()
        finally:
            session._origin = None  # breaks a cycle, which would keep the request until the collector runs
            # Without an outer session the key stays. NiceGUI keeps the request of a page, and reads the session of its own
            # middleware there while the page's socket is open.
            if outer is not None:
                scope["session"] = scope[OURS] = outer
            if exchange.live is not None:
                exchange.stop_watching()

    async def _adopt(self, scope: Scope, exchange: Exchange) -> Session:
        """The session of a request without our cookie. It may be adopted from another library.

        Raises:
            StoreError: a store failed.
        """
        adopted = None
        # A cross-site form may carry the old cookie although SameSite withholds ours. It gets no session, as with our cookie.
        if not self.cookie.may_be_withheld(scope):
            active, is_http = is_activity(scope, self._passive), scope["type"] == "http"
            adopted = await adopt(self.sessions.adopt, self._manager, scope, active=active, renews=is_http)
        if adopted is None:
            return self._manager.begin()
        exchange.add_to_cookie(adopted.headers)
        return adopted.session


def _binder(sessions: Sessions, manager: Manager, cookie: CookieConfig, app: object) -> Binder | None:
    options = sessions.device_bound
    if options is None:
        return None
    if any(inner.path == options.path for inner in binders_inside(app)):
        raise ConfigurationError(
            f"a second SessionMiddleware with device_bound stands inside, and both would answer {options.path}. Give one of "
            "them DeviceBound(path=…) with another path."
        )
    from asgi_sessions.dbsc._binder import Binder  # slow to import, and most apps bind no sessions

    return Binder(options, manager, cookie)


def _check_timeouts(timeouts: Timeouts | None) -> None:
    if timeouts is None:
        raise ConfigurationError("SessionMiddleware: its Sessions has no timeouts. Give it timeouts=")
    if timeouts.remember_absolute > timedelta(days=MOST_DAYS) and timeouts.renew is None:
        raise ConfigurationError(
            f"Timeouts(remember_absolute={timeouts.remember_absolute!r}): browsers keep a cookie for {MOST_DAYS} days "
            "at most. Use a shorter time, or renew=… so that a new cookie is sent in time."
        )


@cache  # some frameworks build the middleware once per route
def _warn_of_insecure(cookie_name: str) -> None:
    logger.warning("the session cookie %s is sent over plain http too: for development only", cookie_name)
