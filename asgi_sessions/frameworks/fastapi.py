"""FastAPI: the session as a dependency, two requirements, and the cookie in the OpenAPI document.

::

    app.add_middleware(SessionMiddleware, store=RedisStore.from_url("redis://localhost"))


    @app.post("/login")
    def log_in(session: CurrentSession): ...  # async or not, HTTP or WebSocket


    @app.get("/account")
    async def account(user_id: CurrentUser): ...  # 401 if nobody is logged in


    @app.delete("/account", dependencies=[Depends(require_fresh(timedelta(minutes=5)))])
    async def close_account(session: CurrentSession): ...

If the cookie has another name, the OpenAPI document is told so by ``Annotated[Session, Depends(SessionCookie("sid"))]``,
``Annotated[str, Depends(RequireUser("sid"))]`` and ``require_fresh(…, name="sid")``.
"""

# No `from __future__ import annotations` here: not every FastAPI resolves it for a dependency that is an object.

from datetime import timedelta
from typing import Annotated, Final

from fastapi import Depends, HTTPException
from fastapi.openapi.models import APIKey, APIKeyIn
from fastapi.requests import HTTPConnection
from fastapi.security.base import SecurityBase

from asgi_sessions import CookieConfig, Session
from asgi_sessions._timeouts import duration
from asgi_sessions.frameworks.starlette import current_session

NAME: Final = CookieConfig().name

# The reasons for these stand in the package's docstring.
LOG_IN: Final = "Cookie"
CONFIRM: Final = "{} error=insufficient_user_authentication, max_age={:.0f}"


class _Scheme(SecurityBase):
    """What FastAPI shows in the OpenAPI document: a key in a cookie."""

    def __init__(self, name: str = NAME) -> None:
        self.model = APIKey.model_validate({"in": APIKeyIn.cookie, "name": name})
        self.scheme_name = "SessionCookie"


class SessionCookie(_Scheme):
    """A dependency: the session."""

    async def __call__(self, connection: HTTPConnection) -> Session:
        return current_session(connection)


class RequireUser(_Scheme):
    """A dependency: the id of the user; 401 if nobody is logged in, or if the last proof of who it is lies too far back."""

    def __init__(self, name: str = NAME, *, within: timedelta | None = None) -> None:
        super().__init__(name)
        self.within = within
        self._find = SessionCookie(name)

    async def __call__(self, connection: HTTPConnection) -> str:
        session = await self._find(connection)
        if session.user_id is None:
            raise HTTPException(401, "Not logged in", {"WWW-Authenticate": LOG_IN})
        if self.within is not None and not session.is_fresh(self.within):
            challenge = CONFIRM.format(session.scheme, self.within.total_seconds())
            raise HTTPException(401, "Confirm who you are", {"WWW-Authenticate": challenge})
        return session.user_id


require_user = RequireUser()


def require_fresh(within: timedelta, *, name: str = NAME) -> RequireUser:
    """A dependency: the user's id; 401 unless they logged in, or ``session.confirm()`` was called, less than ``within`` ago."""
    return RequireUser(name, within=duration("require_fresh(within)", within))


CurrentSession = Annotated[Session, Depends(SessionCookie())]
CurrentUser = Annotated[str, Depends(require_user)]
