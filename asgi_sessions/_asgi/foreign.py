"""Finds session middlewares that are not ours, and a second one of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, Final

from asgi_sessions._core.cookie import CookieConfig
from asgi_sessions._core.session import Session
from asgi_sessions._core.types import Scope
from asgi_sessions.errors import ConfigurationError

logger = logging.getLogger("asgi_sessions")

_OURS: Final = "asgi_sessions._asgi.middleware.SessionMiddleware"


TWICE = (
    "SessionMiddleware is installed twice with the cookie {name!r}: both would write it. Remove one, or give it another "
    "name with cookie=CookieConfig(name=…)."
)


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


def refuse_foreign_app(app: Any) -> None:
    """The same when the lifespan starts, as far as the app in the scope, such as Starlette, lists its middleware."""
    if names := _foreign_outside(app):
        raise _foreign("found at start-up", names)


def refuse_foreign_around(app: Any) -> None:
    """The same for apps that are wrapped by hand, as Quart's are: ``app`` is the outermost one."""
    classes = takewhile(lambda cls: not _is_ours(cls), (cls for cls, _ in _wrapped(app)))
    if names := [name for cls in classes if (name := foreign_class(cls))]:
        raise _foreign("found at start-up", names)


def foreign_class(cls: Any) -> str | None:
    """The name of a session middleware that is not ours, if ``cls`` is one or derives from one."""
    names = _names(cls)
    return names[0] if not _SESSION_MIDDLEWARES.isdisjoint(names) else None


def _is_ours(cls: Any) -> bool:
    return _OURS in _names(cls)


def _names(cls: Any) -> list[str]:
    """The names of a class and its bases; none for what is no class."""
    return [_name(base) for base in getattr(cls, "__mro__", ())]


def _foreign(seen: str, names: Sequence[str]) -> ConfigurationError:
    which = " and ".join(names) or "another session middleware"
    return ConfigurationError(
        f"{which} is installed outside of asgi_sessions' SessionMiddleware ({seen}). Remove it. If a part of the app needs "
        "it, mount that part as an app and install it there: inside ours it has a session of its own."
    )


def _foreign_outside(app: Any) -> list[str]:
    """Foreign session middlewares outside of ours, by the list that Starlette and FastAPI keep: outermost first."""
    classes = [getattr(entry, "cls", None) for entry in getattr(app, "user_middleware", ())]
    ours = [index for index, cls in enumerate(classes) if _is_ours(cls)]
    return [name for cls in classes[: max(ours, default=len(classes))] if (name := foreign_class(cls))]


def refuse_twin(app: Any, cookie_name: str) -> None:
    """Refuse another one of ours with the same cookie among the middleware that is wrapped, as far as it can be seen."""
    for cls, cookie in _wrapped(app):
        if _is_ours(cls) and cookie.name == cookie_name:
            raise ConfigurationError(TWICE.format(name=cookie_name))


def report_foreign(app: Any) -> None:
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
