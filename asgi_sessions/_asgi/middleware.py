"""SessionMiddleware: its options, and the way of a request from the cookie to the app.

The middleware reads the cookie before the app runs. It commits when the first byte is about to leave: after that, no cookie
can be sent.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from datetime import timedelta
from functools import cache
from typing import Any, get_args

from asgi_sessions._asgi.exchange import OnStoreFailure
from asgi_sessions._asgi.foreign import refuse_foreign, refuse_twin, report_foreign, twin
from asgi_sessions._asgi.http import HttpExchange
from asgi_sessions._asgi.lifespan import lifespan
from asgi_sessions._asgi.responses import unavailable
from asgi_sessions._asgi.websocket import WebSocketExchange
from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.cookie import MOST_DAYS, CookieConfig
from asgi_sessions._core.elsewhere import explains_options
from asgi_sessions._core.facts import Devices
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.origin import is_activity
from asgi_sessions._core.session import OURS
from asgi_sessions._core.timeouts import Timeouts, duration
from asgi_sessions._core.types import Clock, EventHook, Scope
from asgi_sessions._engine.contract import Store, lacking_for_users
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.upkeep import Upkeep, upkeep_of
from asgi_sessions._engine.watch import Watch
from asgi_sessions.errors import ConfigurationError, StoreError

logger = logging.getLogger("asgi_sessions")

_STORE_METHODS = ("load", "create", "update", "touch", "rename", "delete", "index", "aclose")


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
        refuse_twin(app, cookie.name)
        report_foreign(app)
        if not cookie.secure:
            _warn_of_insecure(cookie.name)
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
        """The same middleware around another app, for frameworks with one per route. All of them share one manager."""
        _refuse_no_app(app)
        refuse_twin(app, self.cookie.name)
        other = copy(self)
        other.app = app
        return other

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3. Frameworks type their scopes differently, so the types are loose."""
        kind = scope["type"]
        if (kind != "http" and kind != "websocket") or (self._skip is not None and self._skip(scope)):
            if kind == "lifespan":
                await lifespan(self.app, scope, receive, send, self.upkeep, self.manager)
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
        # From here to the app in one frame: another one costs each await 0.15 µs, of 2 in all.
        exchange: HttpExchange | WebSocketExchange
        if kind == "http":
            exchange = HttpExchange(self, scope, send)
        else:
            exchange = WebSocketExchange(self, scope, receive, send)
            receive = exchange.receive
        values = self.cookie.read(scope.get("headers", ()))
        # Browsers keep one cookie under a __Host- name. A second one is an attack, and either may be the false one.
        duplicated = len(values) if values and len(values) > 1 and self.cookie.is_host_bound else 0
        keys = self.manager.recognise(values) if values and not duplicated else None
        del values  # error collectors record the local variables of each frame in a traceback
        try:
            if keys:
                # A handshake renews no token: some servers drop the headers of `websocket.accept`, and with them the new
                # token. The next HTTP response renews it.
                session = await self.manager.load(keys, active=is_activity(scope), renews=kind == "http")
            else:
                if duplicated:
                    await self.manager.tell("cookie.duplicated", count=duplicated)
                session = self.manager.begin()  # no cookie of ours: an empty session, and no I/O
        except StoreError as failure:
            await self.manager.failed("load", failure)
            if self.on_store_failure == "raise":
                raise
            if self.on_store_failure == "unavailable":
                await unavailable(scope, send, self.manager.guard.retry_after)
                return
            session = self.manager.degraded()
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
            session._origin = None  # a cycle otherwise: all of the request would wait for the collector
            # Without an outer one the key stays as it is. NiceGUI keeps the request of a page, and while the page's socket is
            # open it reads the session of its own middleware there.
            if outer is not None:
                scope["session"] = scope[OURS] = outer
            if exchange.live is not None:
                exchange.stop_watching()


@cache  # some frameworks build the middleware once per route
def _warn_of_insecure(cookie_name: str) -> None:
    logger.warning("the session cookie %s is sent over plain http too: for development only", cookie_name)


def _refuse_no_app(app: object) -> None:
    if not callable(app):
        raise ConfigurationError(
            f"SessionMiddleware(app=<{type(app).__name__}>): give an ASGI app; it comes first, the store second"
        )
