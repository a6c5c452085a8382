"""FastAPI: the session as a dependency, three requirements, and the cookie in the OpenAPI document.

::

    sessions = Sessions(RedisStore.from_url("redis://localhost"))
    app.add_middleware(SessionMiddleware, sessions)


    @app.post("/login")
    def log_in(session: CurrentSession): ...  # async or not, HTTP or WebSocket


    @app.get("/account")
    async def account(user_id: CurrentUser): ...  # 401 without a user


    @app.delete("/account", dependencies=[Depends(require_fresh(timedelta(minutes=5)))])
    async def close_account(session: CurrentSession): ...

The OpenAPI document shows the cookie and a 401 for routes that need a user, but not for ``CurrentSession`` alone. It shows a 403
for ``require_device_bound``. If the cookie has another name, use ``Annotated[str, Depends(RequireUser("sid"))]``,
``require_fresh(…, name="sid")`` and ``RequireDeviceBound("sid")``.
"""

# No `from __future__ import annotations` here: not every FastAPI resolves it for an object as a dependency.

from collections.abc import Callable, Iterable
from copy import deepcopy
from datetime import timedelta
from functools import wraps
from typing import Annotated, Any, Final, TypeVar, cast

from asgi_sessions import ConfigurationError, CookieConfig, Session
from asgi_sessions._core.extras import needs
from asgi_sessions._core.timeouts import duration
from asgi_sessions.frameworks._session import NOT_BOUND, UNKNOWN, Freshness, outage
from asgi_sessions.frameworks.starlette import current_session

with needs("fastapi", "asgi_sessions.frameworks.fastapi"):
    from fastapi import Depends, FastAPI, HTTPException
    from fastapi.openapi.models import APIKey, APIKeyIn
    from fastapi.requests import HTTPConnection
    from fastapi.security.base import SecurityBase

__all__ = [
    "CurrentSession",
    "CurrentUser",
    "RequireDeviceBound",
    "RequireUser",
    "SessionCookie",
    "current_session",
    "document_refusals",
    "require_device_bound",
    "require_fresh",
    "require_user",
    "session_as",
]

T = TypeVar("T")
_MISSING: Final = object()

NAME: Final = CookieConfig().name

# The docstring of the package gives the reason for this scheme.
LOG_IN: Final = "Cookie"


class _Scheme(SecurityBase):
    """The security scheme for the OpenAPI document: a key in a cookie."""

    scheme_name = "SessionCookie"
    description: str | None = None

    def __init__(self, name: str = NAME) -> None:
        name = CookieConfig(name).name  # checks the name
        self.model: APIKey = APIKey.model_validate(
            {"in": APIKeyIn.cookie, "name": name, "description": self.description}
        )


async def _session(connection: HTTPConnection) -> Session:
    return current_session(connection)


class SessionCookie(_Scheme):
    """A dependency: the session. The OpenAPI document shows that the route needs the cookie."""

    async def __call__(self, connection: HTTPConnection) -> Session:
        return current_session(connection)


class RequireUser(_Scheme):
    """A dependency: the user id. It answers 401 without a user, or if the user's last proof of identity is too old."""

    def __init__(
        self, name: str = NAME, *, within: timedelta | None = None, methods: Iterable[str] = (), level: int = 0
    ) -> None:
        super().__init__(name)
        self.within = within
        self._asked: Freshness | None = None if within is None else Freshness.asked(within, methods, level)

    async def __call__(self, connection: HTTPConnection) -> str:
        session = current_session(connection)
        if (seconds := outage(session)) is not None:
            raise HTTPException(503, UNKNOWN, {"Retry-After": str(seconds)})
        if session.user_id is None:
            raise HTTPException(401, "Not logged in", {"WWW-Authenticate": LOG_IN})
        if self._asked is not None and not self._asked.is_met(session):
            challenge = self._asked.challenge(session.scheme)
            raise HTTPException(401, "Confirm who you are", {"WWW-Authenticate": challenge})
        return session.user_id


require_user: RequireUser = RequireUser()


def require_fresh(within: timedelta, *, methods: Iterable[str] = (), level: int = 0, name: str = NAME) -> RequireUser:
    """A dependency: the user id. It answers 401 unless the user logged in or confirmed less than ``within`` ago.

    ``methods`` and ``level``: the required methods, and the lowest assurance level, as for :meth:`Session.is_fresh`.
    """
    return RequireUser(name, within=duration("require_fresh(within)", within), methods=methods, level=level)


class RequireDeviceBound(RequireUser):
    """A dependency: the user id. It answers 401 without a user, and 403 unless the request came from the session's device.

    It refuses browsers without DBSC: Firefox, Safari, and many versions of Chrome. It refuses every browser for the first
    seconds after a log-in, until the browser has registered its key. It refuses access tokens. Use it only if the user has
    another way.
    """

    scheme_name = "DeviceBoundSession"
    description: str | None = "The cookie of a session that is bound to the device of the browser (DBSC)."

    async def __call__(self, connection: HTTPConnection) -> str:
        user_id = await super().__call__(connection)
        if not current_session(connection).is_device_bound:
            raise HTTPException(403, NOT_BOUND)
        return user_id


require_device_bound: RequireDeviceBound = RequireDeviceBound()


def session_as(
    kind: type[T], key: str | None = None, *, default_factory: Callable[[], T] | None = None
) -> Callable[[HTTPConnection], T]:
    """A dependency: a typed value of the session, or the whole session as an object of this type.

    ``Annotated[Cart, Depends(session_as(Cart, "cart", default_factory=Cart))]``. ``session.set_as("cart", cart)`` stores it
    again.

    Args:
        key: the key of the value. ``None`` means the whole session.
        default_factory: makes the value if none is stored, or if the stored one does not fit the type. Without it, a missing
            value is ``None``, and a value of another type is a ``SessionDataError``.
    Raises:
        ConfigurationError: ``default_factory`` cannot be called, or ``key`` is not a ``str``.
    """
    if default_factory is not None and not callable(default_factory):
        raise ConfigurationError("session_as(default_factory=…): give a function or a class")
    if not isinstance(key, str | None):
        raise ConfigurationError("session_as(key=…): give a str, or leave it out for the whole session")

    async def typed(connection: HTTPConnection) -> Any:
        session = current_session(connection)
        if default_factory is None:
            return session.read_model(kind) if key is None else session.get_as(key, kind)
        found = session.read_model(kind, _MISSING) if key is None else session.get_as(key, kind, _MISSING)
        return default_factory() if found is _MISSING else found

    return cast("Callable[[HTTPConnection], T]", typed)


CurrentSession = Annotated[Session, Depends(_session)]
"""The session of the request, as the type of a parameter."""
CurrentUser = Annotated[str, Depends(require_user)]
"""The id of the user, as the type of a parameter. The answer is 401 if no user is logged in."""

_DETAIL: Final = {
    "application/json": {
        "schema": {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
    }
}
REFUSAL: Final[dict[str, Any]] = {
    "description": "The user is not logged in, or has to confirm their identity again.",
    "headers": {
        "WWW-Authenticate": {
            "description": "`Cookie`, with `error=insufficient_user_authentication` (RFC 9470) if the last proof is too old.",
            "schema": {"type": "string"},
        }
    },
    "content": _DETAIL,
}
"""The 401 of the OpenAPI document."""

UNBOUND: Final[dict[str, Any]] = {
    "description": "The session is not bound to a device, or the browser did not prove that the request comes from it.",
    "content": _DETAIL,
}
"""The 403 of the OpenAPI document."""

_REFUSALS: Final = (
    ("401", REFUSAL, frozenset({_Scheme.scheme_name, RequireDeviceBound.scheme_name})),
    ("403", UNBOUND, frozenset({RequireDeviceBound.scheme_name})),
)
"""Status, response, and the schemes of the dependencies with this refusal."""


def document_refusals(document: dict[str, Any]) -> dict[str, Any]:
    """Add the missing 401 and 403 responses to the operations that need the cookie, and return the document.

    Importing this module makes ``FastAPI.openapi()`` call it. Call it yourself if you have your own ``app.openapi``.
    """
    for path in document.get("paths", {}).values():
        for operation in path.values():
            schemes = (
                {name for each in operation.get("security", ()) for name in each} if isinstance(operation, dict) else ()
            )
            for status, refusal, refusing in _REFUSALS:
                if refusing.intersection(schemes):
                    responses = operation.setdefault("responses", {})
                    if not {status, "4XX"} & responses.keys():
                        responses[status] = deepcopy(refusal)
    return document


def _documenting(openapi: Callable[[FastAPI], dict[str, Any]]) -> Callable[[FastAPI], dict[str, Any]]:
    @wraps(openapi)
    def documented(app: FastAPI) -> dict[str, Any]:
        return document_refusals(openapi(app))

    return documented


# A dependency can add a security scheme to its operation, but no response. FastAPI's documented way is to replace `openapi`.
# This does so for all apps, since a dependency does not know its app.
FastAPI.openapi = _documenting(FastAPI.openapi)  # type: ignore[assignment, method-assign]
