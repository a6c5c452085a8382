"""Litestar: ``plugins=[SessionPlugin(sessions)]`` adds the middleware, a dependency and the cookie for the OpenAPI document.

A handler gets the session with ``session: CurrentSession``, under this name. ``request.session`` is the same object.
``request.clear_session()`` ends the session like ``session.destroy()``, and ``request.set_session({…})`` replaces its data.
Another session middleware of the same app is a ``ConfigurationError``. A route may have one, with its own session.
``guards=[require_user]`` and ``guards=[require_fresh(timedelta(minutes=5))]`` answer 401, and ``guards=[require_device_bound]``
answers 403. A refused WebSocket is closed before it is accepted. ``security=[{"SessionCookie": []}]`` on a route shows the
cookie in the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from copy import copy
from datetime import timedelta
from typing import Annotated, Any

from asgi_sessions import ConfigurationError, CookieConfig, Session, SessionDataError, SessionMiddleware, Sessions
from asgi_sessions._asgi.foreign import foreign_class
from asgi_sessions._core.elsewhere import explains_options
from asgi_sessions._core.extras import needs
from asgi_sessions.frameworks._session import NOT_BOUND, UNKNOWN, Freshness, opened, outage, saved, session_in
from asgi_sessions.stores import Store

with needs("litestar", "asgi_sessions.frameworks.litestar"):
    from litestar import Litestar, Request, WebSocket, asgi, di
    from litestar.config.app import AppConfig
    from litestar.connection import ASGIConnection
    from litestar.datastructures.headers import MutableScopeHeaders
    from litestar.exceptions import (
        NotAuthorizedException,
        NotFoundException,
        PermissionDeniedException,
        ServiceUnavailableException,
    )
    from litestar.handlers import ASGIRouteHandler, BaseRouteHandler
    from litestar.middleware import DefineMiddleware
    from litestar.middleware.session import SessionMiddleware as LitestarsMiddleware
    from litestar.middleware.session.base import BaseBackendConfig, BaseSessionBackend
    from litestar.openapi.spec import Components, SecurityScheme
    from litestar.plugins import InitPlugin, ReceiveRoutePlugin
    from litestar.routes import BaseRoute
    from litestar.types import Empty, Receive, Scope, Send

Connection = ASGIConnection[Any, Any, Any, Any]
Guard = Callable[[Connection, BaseRouteHandler], Awaitable[None]]

CurrentSession = Annotated[Session, getattr(di, "Dependency", lambda kind: kind)(kind="named")]
"""Litestar's ``NamedDependency[Session]``. Before 2.23 a dependency needs no mark."""


class SessionPlugin(InitPlugin, ReceiveRoutePlugin):
    """Sets sessions up for one app. The arguments are those of :class:`SessionMiddleware`."""

    @explains_options
    def __init__(self, store: Sessions | Store, *, cookie: CookieConfig = CookieConfig(), **options: Any) -> None:  # noqa: B008 - frozen
        middleware: Any = SessionMiddleware  # their types of ASGI are narrower than ours
        # Litestar builds a middleware for each route. Those are copies of this one. This one wraps no app.
        self._middleware: SessionMiddleware = middleware(print, store, cookie=cookie, **options)
        self.session_config: SessionConfig = SessionConfig(self._middleware)
        self.middleware: DefineMiddleware = DefineMiddleware(_Middleware, backend=SessionBackend(self.session_config))
        self.scheme: SecurityScheme = SecurityScheme(type="apiKey", security_scheme_in="cookie", name=cookie.name)

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middleware, the dependency and the security scheme to the app. Litestar calls it."""
        # The first is outermost, so that authentication finds the session and the response cache never sees our cookie.
        app_config.middleware.insert(0, self.middleware)
        app_config.dependencies.setdefault("session", di.Provide(_find, sync_to_thread=False))
        # The middleware of routes gets no lifespan events. We start first and stop last: the app's hooks may use the store.
        app_config.on_startup.insert(0, self._begin)
        app_config.on_startup.append(self._ask)  # after the app's hooks, which may create tables
        app_config.on_shutdown.append(self._end)
        app_config.request_class = _with_verbs(app_config.request_class or Request)
        app_config.websocket_class = _with_verbs(app_config.websocket_class or WebSocket)
        if (bound := self._middleware.sessions.device_bound) is not None:
            app_config.route_handlers.append(_endpoints(bound.path, app_config.path))
        if app_config.openapi_config is not None:
            config = copy(app_config.openapi_config)  # all apps share the default one
            others = config.components if isinstance(config.components, list) else [config.components]
            config.components = [*others, Components(security_schemes={"SessionCookie": self.scheme})]
            app_config.openapi_config = config
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Add Litestar's methods to request classes of routes, and check the app's middleware again. Litestar calls it."""
        for handler in getattr(route, "route_handlers", None) or [getattr(route, "route_handler", None)]:
            app = handler.ownership_layers[0]
            for entry in app.middleware:  # now complete, with that of other plugins
                if entry is not self.middleware and (name := foreign_class(getattr(entry, "middleware", entry))):
                    raise ConfigurationError(
                        f"{name} and SessionPlugin are both middleware of this Litestar app. Remove one. If some routes need "
                        "the other one, add it to those routes or to their router, where it has its own session."
                    )
            for name in ("request_class", "websocket_class"):
                if own := next(
                    (cls for layer in handler.ownership_layers[:0:-1] if (cls := getattr(layer, name, None))), None
                ):
                    setattr(handler, name, _with_verbs(own))

    def _begin(self, app: Litestar) -> None:
        self._middleware._upkeep.require_event_loop()
        self._middleware._upkeep.begin(app)

    async def _ask(self, app: Litestar) -> None:
        await self._middleware._manager.start()

    async def _end(self, app: Litestar) -> None:
        await self._middleware._upkeep.end(app)


class SessionConfig(BaseBackendConfig["SessionBackend"]):
    """The type of ``SessionPlugin.session_config``, for Litestar's ``TestClient(app, session_config=…)``."""

    def __init__(self, sessions: SessionMiddleware) -> None:
        self._backend_class = SessionBackend
        self.sessions = sessions
        self.key: str = sessions.cookie.name


class SessionBackend(BaseSessionBackend[SessionConfig]):
    """The session of a cookie, for ``set_session_data()`` and ``get_session_data()`` of Litestar's test clients."""

    def get_session_id(self, connection: Connection) -> str | None:
        """The cookie's value."""
        return connection.cookies.get(self.config.key)

    async def load_from_connection(self, connection: Connection) -> dict[str, Any]:
        """A copy of the session's data."""
        return (await self._opened(connection)).copy()

    async def store_in_message(self, scope_session: Any, message: Any, connection: Connection) -> None:
        """Replace the session's data. A user stays logged in."""
        session = await self._opened(connection)
        session.clear()
        session.update(scope_session)
        cookie = await saved(self.config.sessions, session, connection.scope)
        if cookie is not None:
            MutableScopeHeaders.from_message(message).add("set-cookie", cookie)

    async def _opened(self, connection: Connection) -> Session:
        value = self.get_session_id(connection)
        header = [] if value is None else [(b"cookie", f"{self.config.key}={value}".encode())]
        return await opened(self.config.sessions, {**connection.scope, "headers": header})


class _Middleware(LitestarsMiddleware[SessionBackend]):
    """Builds our middleware. Other Litestar plugins look for this class in the app's middleware."""

    def __new__(cls, app: Any, backend: SessionBackend) -> Any:
        made = copy(backend.config.sessions)
        made.app = app
        return made


def _endpoints(path: str, base: str) -> ASGIRouteHandler:
    """Routes for the two paths where browsers prove their keys. Without a route, Litestar calls no middleware."""
    prefix = "/" + base.strip("/") if base.strip("/") else ""
    if not path.startswith(prefix + "/"):
        raise ConfigurationError(
            f"DeviceBound(path={path!r}): all routes of this app are below Litestar(path={base!r}). Use "
            f"DeviceBound(path={prefix + path!r})."
        )

    async def answered_by_the_middleware(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFoundException

    below = path[len(prefix) :]
    return asgi([f"{below}/register", f"{below}/refresh"], copy_scope=False)(answered_by_the_middleware)


async def require_user(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard: answers 401 without a logged-in user."""
    session = _find(connection.scope)
    if (seconds := outage(session)) is not None:
        raise ServiceUnavailableException(UNKNOWN, headers={"Retry-After": str(seconds)})
    if session.user_id is None:
        raise NotAuthorizedException("Not logged in", headers={"WWW-Authenticate": "Cookie"})


def require_fresh(within: timedelta, *, methods: Iterable[str] = (), level: int = 0) -> Guard:
    """Return a guard: it answers 401 unless the user logged in or confirmed less than ``within`` ago.

    ``methods`` and ``level``: the required methods, and the lowest assurance level, as for :meth:`Session.is_fresh`.
    """
    asked = Freshness.asked(within, methods, level)

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        await require_user(connection, handler)
        session = _find(connection.scope)
        if not asked.is_met(session):
            challenge = asked.challenge(session.scheme)
            raise NotAuthorizedException("Confirm who you are", headers={"WWW-Authenticate": challenge})

    return guard


async def require_device_bound(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard: answers 401 without a user, and 403 unless the request came from the session's device.

    It refuses browsers without DBSC: Firefox, Safari, and many versions of Chrome. It refuses every browser for the first
    seconds after a log-in, until the browser has registered its key. Use it only if the user has another way.
    """
    await require_user(connection, handler)
    if not _find(connection.scope).is_device_bound:
        raise PermissionDeniedException(NOT_BOUND)


def current_session(connection: Connection) -> Session:
    """The session of a ``Request`` or ``WebSocket``.

    Raises:
        ConfigurationError: there is none. The message says what is missing.
    """
    return _find(connection.scope)


def _find(scope: Scope) -> Session:
    return session_in(scope, "give the app plugins=[SessionPlugin(sessions)]")


class _Verbs:
    """Litestar's session methods, for our session. If the scope has the session of another middleware, they use it."""

    __slots__ = ()
    scope: Any

    @property
    def session(self) -> Any:
        session = super().session  # type: ignore[misc]  # of the connection that this is mixed into
        if isinstance(session, Session):
            session.mark_accessed()  # msgspec reads a dict without calling its methods
        return session

    def set_session(self, value: Any) -> None:
        session = self.scope.get("session")
        if not isinstance(session, Session):
            super().set_session(value)  # type: ignore[misc]
        elif value is None or value is Empty:
            session.destroy()
        elif isinstance(value, Mapping):
            data = dict(value)  # it may be the session itself
            session.clear()
            session.update(data)
        else:
            raise SessionDataError(f"set_session(): give a dict, not {type(value).__name__}")

    def clear_session(self) -> None:
        session = self.scope.get("session")
        if isinstance(session, Session):
            session.destroy()
        else:
            super().clear_session()  # type: ignore[misc]


def _with_verbs(base: type[Any]) -> type[Any]:
    return base if issubclass(base, _Verbs) else type(base.__name__, (_Verbs, base), {})
