"""Quart: after ``init_app(app, sessions)``, ``quart.session``, ``flash()`` and the rest use our session.

``current_session()`` returns this session with its type. ``session.permanent = True`` has no effect: call
``log_in(user_id, remember=True)``. The test client's ``session_transaction()`` works as Quart documents it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial, wraps
from typing import Any, Final, Self

from asgi_sessions import ConfigurationError, Session, SessionMiddleware, Sessions
from asgi_sessions._asgi.exchange import is_failure
from asgi_sessions._asgi.foreign import refuse_foreign_outside
from asgi_sessions._core.arguments import expect
from asgi_sessions._core.elsewhere import explains_options
from asgi_sessions._core.extras import needs
from asgi_sessions._core.origin import path_below_root
from asgi_sessions._core.session import OURS
from asgi_sessions.frameworks._session import NOT_BOUND, UNKNOWN, Freshness, opened, outage, saved, session_in
from asgi_sessions.stores import Store

with needs("quart", "asgi_sessions.frameworks.quart"):
    from markupsafe import Markup
    from quart import Quart, current_app, has_request_context, has_websocket_context, request, websocket
    from quart.sessions import SessionInterface, SessionMixin
    from werkzeug.datastructures import WWWAuthenticate
    from werkzeug.exceptions import Forbidden, ServiceUnavailable, Unauthorized

_logger = logging.getLogger("asgi_sessions")

_MADE_FOR_TESTS: Final = "_quart._preserve_context"
"""A key in the scopes that Quart makes for its test client and ``test_request_context()``."""

_OPENED_BY_US: Final = "asgi_sessions.opened_for_a_test"
"""A key in those scopes whose session we opened, since no middleware ran."""


@explains_options
def init_app(app: Quart, store: Sessions | Store, **options: Any) -> None:
    """Wrap the app in :class:`SessionMiddleware`, with its arguments, and make ``quart.session`` use its session."""
    expect("init_app(app)", app, Quart)
    quart: Any = app  # their types of ASGI are narrower than ours
    quart.asgi_app = SessionMiddleware(quart.asgi_app, store, **options)
    quart.session_interface = ScopeSessionInterface(quart.asgi_app)

    @app.before_serving
    async def refuse_foreign() -> None:
        refuse_foreign_outside(quart.asgi_app)


def mount(app: Quart, path: str, inside: Any) -> None:
    """Serve an ASGI app below a path of this app, inside the ``SessionMiddleware``: a ``SessionsPage``, ``ActivityEndpoints``.

    Raises:
        ConfigurationError: ``path`` does not begin with ``/``, or ends with one; or ``inside`` is no app.
    """
    expect("mount(app)", app, Quart)
    if not callable(inside):
        raise ConfigurationError(f"mount(inside={type(inside).__name__}): give an ASGI app, such as a SessionsPage")
    if not (isinstance(path, str) and path.startswith("/") and not path.endswith("/")):
        raise ConfigurationError(f"mount(path={path!r}): give a path such as '/account/sessions'")
    quart: Any = app
    holder, name = (quart.asgi_app, "app") if isinstance(quart.asgi_app, SessionMiddleware) else (quart, "asgi_app")
    around = getattr(holder, name)

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        root, below = str(scope.get("root_path", "")).rstrip("/"), path_below_root(scope)
        if f"{below}/".startswith(f"{path}/"):
            await inside({**scope, "path": root + below, "root_path": root + path}, receive, send)
        else:
            await around(scope, receive, send)

    setattr(holder, name, mounted)


def current_session() -> Session:
    """The session of this request or WebSocket."""
    return _find((request if has_request_context() else websocket).scope)


def require_fresh(
    within: timedelta, *, methods: Iterable[str] = (), level: int = 0
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for views: they answer 401 unless the user logged in or confirmed less than ``within`` ago.

    ``methods`` and ``level``: the required methods, and the lowest assurance level, as for :meth:`Session.is_fresh`.
    """
    return partial(_require, asked=Freshness.asked(within, methods, level))


def require_user(view: Callable[..., Any], *, within: timedelta | None = None) -> Callable[..., Any]:
    """Decorate a view to answer 401 without a logged-in user. Put it below the route."""
    return _require(view, asked=None if within is None else Freshness.asked(within, (), 0))


def _require(view: Callable[..., Any], *, asked: Freshness | None) -> Callable[..., Any]:
    @wraps(view)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        session = current_session()
        if (seconds := outage(session)) is not None:
            raise ServiceUnavailable(UNKNOWN, retry_after=seconds)
        if session.user_id is None:
            raise Unauthorized("Not logged in", www_authenticate=WWWAuthenticate("cookie"))
        if asked is not None and not asked.is_met(session):
            why: dict[str, str | None] = {**asked.parameters}
            raise Unauthorized("Confirm who you are", www_authenticate=WWWAuthenticate(session.scheme.lower(), why))
        return await current_app.ensure_async(view)(*args, **kwargs)

    return guarded


def require_device_bound(view: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a view to answer 401 without a user, and 403 unless the request came from the session's device.

    It refuses browsers without DBSC: Firefox, Safari, and many versions of Chrome. It refuses every browser for the first
    seconds after a log-in, until the browser has registered its key. Use it only if the user has another way.
    """

    @wraps(view)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        if not current_session().is_device_bound:
            raise Forbidden(NOT_BOUND)
        return await current_app.ensure_async(view)(*args, **kwargs)

    return require_user(guarded)


class ScopeSessionInterface(SessionInterface):
    """Gives Quart the session of the middleware. Quart's contexts for tests pass no middleware. They get the session of their
    cookies, and ``session_transaction()`` saves it.
    """

    def __init__(self, middleware: SessionMiddleware) -> None:
        self._middleware = middleware

    async def open_session(self, app: Quart, request: Any) -> ScopeSession:
        """The session of this request, from its scope. Quart calls it."""
        scope, skip = request.scope, self._middleware._skip
        if _MADE_FOR_TESTS in scope and OURS not in scope and not (skip is not None and skip(scope)):
            scope[OURS] = scope["session"] = await opened(self._middleware, scope)
            scope[_OPENED_BY_US] = True
        return ScopeSession(scope)

    async def save_session(self, app: Quart, session: SessionMixin, response: Any) -> None:
        """Save the session of a test. The middleware saves all others.

        After an error of its handler, Quart closes a WebSocket as if nothing had happened. So this drops the unsaved changes.
        """
        ours: Session | None = session._scope.get(OURS) if isinstance(session, ScopeSession) else None
        if ours is not None and has_websocket_context() and is_failure(getattr(response, "status_code", None)):
            ours._refill(self._middleware._manager.planner.codec.decode(ours._loaded) if ours._loaded else {})
        if isinstance(session, ScopeSession) and _OPENED_BY_US in session._scope:
            cookie = await saved(self._middleware, session._scope[OURS], session._scope)
            if cookie is not None and response is not None:
                response.headers.add("set-cookie", cookie)


class ScopeSession(SessionMixin):
    """The object behind ``quart.session``. It passes everything on to the session in the scope, methods included."""

    def __init__(self, scope: Any) -> None:
        self._scope = scope

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(_find(self._scope), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_scope":
            object.__setattr__(self, name, value)
        elif name == "permanent":
            if value and not self.permanent:
                _logger.warning("session.permanent = True has no effect: use session.log_in(user_id, remember=True)")
        elif name != "accessed":  # Quart 0.23 sets it in every request; our session tracks it itself
            setattr(_find(self._scope), name, value)

    @property  # type: ignore[misc]  # Quart's has a setter; see __setattr__
    def permanent(self) -> bool:
        """Whether the cookie outlives the browser, by ``log_in(user_id, remember=True)``."""
        return _find(self._scope)._remembered

    @property
    def new(self) -> bool:  # type: ignore[override]  # Quart's is a constant
        return _find(self._scope).is_new

    @property
    def modified(self) -> bool:  # type: ignore[override]  # the same
        return _find(self._scope).modified

    @property
    def accessed(self) -> bool:  # type: ignore[override]  # the same
        session: Session | None = self._scope.get(OURS)
        return session is not None and session.accessed

    def __getitem__(self, key: str) -> Any:
        value = _find(self._scope)[key]
        return value if key != "_flashes" else [(kind, Markup(text) if safe else text) for kind, text, safe in value]  # noqa: S704

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "_flashes":  # flash() stores tuples, maybe with Markup, and sessions refuse both
            value = [[kind, str(Markup(text)), hasattr(text, "__html__")] for kind, text in value]  # noqa: S704 - noted
        _find(self._scope)[key] = value

    def __delitem__(self, key: str) -> None:
        del _find(self._scope)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(_find(self._scope))

    def __len__(self) -> int:
        return len(_find(self._scope))

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def __ior__(self, other: Any) -> Self:
        self.update(other)
        return self


def _find(scope: Any) -> Session:
    return session_in(scope, "call init_app(app, sessions)")
