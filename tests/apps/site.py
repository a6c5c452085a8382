"""A site behind uvicorn on loopback, and a browser for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_sessions import CookieConfig
from tests.ports import free_port
from tests.serving import serving

NAME = CookieConfig().name
ME = {"user": "alice", "data": {"basket": ["tea"]}}
"""What ``/me`` answers after :func:`log_in`."""


async def _log_in(request: Request) -> Response:
    request.scope["session"].log_in(request.path_params["user"])
    request.scope["session"]["basket"] = ["tea"]
    return Response()


async def _me(request: Request) -> Response:
    session = request.scope["session"]
    return JSONResponse({"user": session.user_id, "data": dict(session)})


async def _log_out(request: Request) -> Response:
    request.scope["session"].destroy()
    return Response()


def routes() -> list[Route]:
    """The site's own routes, on our session: ``/login/USER``, ``/me``, ``/logout``."""
    return [
        Route("/login/{user}", _log_in, methods=["POST"]),
        Route("/me", _me),
        Route("/logout", _log_out, methods=["POST"]),
    ]


class Browser(httpx.AsyncClient):
    """Sends Secure cookies to loopback over plain http, as browsers do. Every cookie here has the path ``/``."""

    def __init__(self, url: str) -> None:
        super().__init__(base_url=url, timeout=20)

    def build_request(self, *args: Any, **kwargs: Any) -> httpx.Request:
        request = super().build_request(*args, **kwargs)
        if self.cookie_header:
            request.headers["cookie"] = self.cookie_header
        return request

    async def log_in(self, user: str = "alice") -> None:
        assert (await self.post(f"/login/{user}")).status_code == 200

    async def log_out(self) -> None:
        assert (await self.post("/logout")).status_code == 200

    async def me(self) -> Any:
        return (await self.get("/me")).json()

    @property
    def cookie_header(self) -> str:
        """All cookies, for clients that have no jar."""
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.cookies.jar)

    @property
    def names(self) -> set[str]:
        return {cookie.name for cookie in self.cookies.jar}


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[Browser]:
    """A browser on the site of ``app``, while it is up."""
    port = free_port()
    async with serving(app, port), Browser(f"http://127.0.0.1:{port}") as browser:
        yield browser
