"""Finds session middlewares that are not ours, and a second one of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from asgi_sessions._core.cookie import CookieConfig
from asgi_sessions._core.session import Session
from asgi_sessions._core.types import Scope
from asgi_sessions.errors import ConfigurationError

if TYPE_CHECKING:
    from asgi_sessions.dbsc._binder import Binder

logger = logging.getLogger("asgi_sessions")

_OURS: Final = "asgi_sessions._asgi.middleware.SessionMiddleware"
_LITESTAR: Final = "litestar.app.Litestar"
_INNER: Final = ("app", "asgi_app", "middleware_stack")
_FOREIGN: Final = frozenset(
    {
        "litestar.security.session_auth.middleware.MiddlewareWrapper",
        "litestar.middleware.session.base.SessionMiddleware",
        "starlette.middleware.sessions.SessionMiddleware",
        "starsessions.middleware.SessionMiddleware",
    }
)
"""Middlewares that write ``scope["session"]``. Only the check at start-up needs names. A request shows their session."""


def refuse_foreign(scope: Scope) -> None:
    """Refuse a request whose ``scope["session"]`` is not ours: a foreign middleware stands outside of ours.

    Both would write this key of the scope, and the foreign one would put our data into its own cookie.
    """
    found = scope.get("session")
    if found is not None and not isinstance(found, Session):
        raise _error(f"it put a {_name(type(found))} into scope['session']", _foreign_outside(scope.get("app")))


def refuse_foreign_outside(app: Any) -> None:
    """Refuse to start ``app``, the outermost one, if it shows a foreign middleware outside of ours."""
    if names := _foreign_outside(app):
        raise _error("found at start-up", names)


def check_inside(app: Any, cookie_name: str) -> None:
    """Look for session middlewares in ``app``, which is about to be wrapped.

    A second one of ours with the same cookie is refused. A foreign one is only logged: the app may want its session there.
    """
    for cls, cookie in _chain(app):
        if _is_ours(cls) and cookie.name == cookie_name:
            raise twin(cookie_name)
        if name := foreign_class(cls):
            logger.warning(
                "%s is installed inside of SessionMiddleware: request.session is its session, not ours", name
            )


def binders_inside(app: Any) -> Iterator[Binder]:
    """The binders of the middlewares of ours in ``app``, outermost first."""
    for _ in range(100):
        if app is None:
            return
        plugins = app.plugins if _LITESTAR in _names(type(app)) else ()  # Litestar puts ours around each route
        for found in (app, *(getattr(each, "_middleware", None) for each in plugins)):
            if _is_ours(type(found)) and found._binder is not None:
                yield found._binder
        # Starlette and FastAPI have a middleware_stack from their first message on; Quart has an asgi_app.
        app = next((inner for name in _INNER if (inner := getattr(app, name, None)) is not None), None)


def foreign_class(cls: Any) -> str | None:
    """The name of a foreign session middleware, if ``cls`` is one or derives from one."""
    names = _names(cls)
    return None if _FOREIGN.isdisjoint(names) else names[0]


def twin(cookie_name: str) -> ConfigurationError:
    """The error for two middlewares of ours with one cookie."""
    return ConfigurationError(
        f"SessionMiddleware is installed twice with the cookie {cookie_name!r}: both would write it. Remove one, or give it "
        "another name with cookie=CookieConfig(name=…)."
    )


def _error(seen: str, names: Sequence[str]) -> ConfigurationError:
    which = " and ".join(names) or "another session middleware"
    return ConfigurationError(
        f"{which} is installed outside of asgi_sessions' SessionMiddleware ({seen}). Remove it. If a part of the app needs "
        "it, mount that part as an app and install it there: inside ours it has a session of its own."
    )


def _foreign_outside(app: Any) -> list[str]:
    classes = [cls for cls, _ in _chain(app)]
    ours = [index for index, cls in enumerate(classes) if _is_ours(cls)]
    return [name for cls in classes[: max(ours, default=len(classes))] if (name := foreign_class(cls))]


def _chain(app: Any) -> Iterator[tuple[type, Any]]:
    """The class of each wrapped app, outermost first, and its cookie if it is ours."""
    for _ in range(100):
        if app is None:
            return
        yield type(app), getattr(app, "cookie", None)
        for entry in getattr(app, "user_middleware", ()):  # Starlette and FastAPI build theirs later
            if isinstance(entry.cls, type):
                yield entry.cls, entry.kwargs.get("cookie", CookieConfig())
        app = getattr(app, "app", None)


def _is_ours(cls: Any) -> bool:
    return _OURS in _names(cls)


def _names(cls: Any) -> list[str]:
    return [_name(base) for base in getattr(cls, "__mro__", ())]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
