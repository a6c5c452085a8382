"""Quart: after ``init_app(app, store)``, ``quart.session``, ``flash()`` and the rest work on a session of ours.

``current_session()`` is that session with its type, for the verbs; ``session.permanent`` is nothing but a key in the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial, wraps
from typing import Any

from markupsafe import Markup
from quart import Quart, current_app, has_request_context, request, websocket
from quart.sessions import SessionInterface, SessionMixin
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from asgi_sessions import ConfigurationError, Session, SessionMiddleware
from asgi_sessions._elsewhere import explains_options
from asgi_sessions._middleware import refuse_foreign_around
from asgi_sessions._session import OURS
from asgi_sessions._timeouts import duration
from asgi_sessions.stores import Store


@explains_options
def init_app(app: Quart, store: Store, **options: Any) -> None:
    """Wrap the app in :class:`SessionMiddleware`, with its options, and put its session behind ``quart.session``."""
    quart: Any = app  # their types of ASGI are narrower than ours
    quart.asgi_app = SessionMiddleware(quart.asgi_app, store, **options)
    quart.session_interface = ScopeSessionInterface()

    @app.before_serving
    async def refuse_foreign() -> None:
        refuse_foreign_around(quart.asgi_app)


def current_session() -> Session:
    """The session of this request or WebSocket."""
    return _find((request if has_request_context() else websocket).scope)


def require_fresh(within: timedelta) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for views: 401 unless they logged in, or ``session.confirm()`` was called, less than ``within`` ago."""
    return partial(require_user, within=duration("require_fresh(within)", within))


def require_user(view: Callable[..., Any], *, within: timedelta | None = None) -> Callable[..., Any]:
    """A decorator for views, to stand below the route: 401 if nobody is logged in."""

    @wraps(view)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        session = current_session()
        if session.user_id is None:
            raise Unauthorized("Not logged in", www_authenticate=WWWAuthenticate("cookie"))
        if within is not None and not session.is_fresh(within):
            why = {"error": "insufficient_user_authentication", "max_age": f"{within.total_seconds():.0f}"}
            raise Unauthorized("Confirm who you are", www_authenticate=WWWAuthenticate(session.scheme.lower(), {**why}))
        return await current_app.ensure_async(view)(*args, **kwargs)

    return guarded


class ScopeSessionInterface(SessionInterface):
    async def open_session(self, app: Quart, request: Any) -> ScopeSession:
        return ScopeSession(request.scope)

    async def save_session(self, app: Quart, session: SessionMixin, response: Any) -> None:
        """Nothing to do: the middleware saves."""


class ScopeSession(SessionMixin):
    """What ``quart.session`` is: passes everything on to the session in the scope, verbs included."""

    def __init__(self, scope: Any) -> None:
        self._scope = scope

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(_find(self._scope), name)

    def __getitem__(self, key: str) -> Any:
        value = _find(self._scope)[key]
        return value if key != "_flashes" else [(kind, Markup(text) if safe else text) for kind, text, safe in value]  # noqa: S704

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "_flashes":  # flash() puts tuples there, maybe with Markup in them; sessions refuse both
            value = [[kind, str(Markup(text)), hasattr(text, "__html__")] for kind, text in value]  # noqa: S704 - noted
        _find(self._scope)[key] = value

    def __delitem__(self, key: str) -> None:
        del _find(self._scope)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(_find(self._scope))

    def __len__(self) -> int:
        return len(_find(self._scope))


def _find(scope: Any) -> Session:
    session: Session | None = scope.get(OURS)
    if session is None:  # said at the first use: skip= may leave a path out
        raise ConfigurationError("this request has no session: call init_app(app, store); does skip= leave it out?")
    session.mark_accessed()  # an empty dict is read as JSON without calling a method of it
    return session
