"""For clients: an httpx ``Auth`` that refreshes by itself, once for many requests at the same time."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio
import httpx

from asgi_sessions._errors import TokenError

EARLY = 30.0
"""Seconds before its end at which an access token is exchanged."""

Keep = Callable[[str, str], Awaitable[None] | None]


class TokenAuth(httpx.Auth):
    """``httpx.AsyncClient(auth=TokenAuth(…))``.

    Args:
        url: of ``/token/refresh``.
        refresh_token: the one that was kept last.
        access_token: likewise, if there is one.
        keep: ``keep(access_token, refresh_token)``, a function or coroutine function: keep both, before they are used.
    """

    def __init__(self, url: str, refresh_token: str, *, access_token: str = "", keep: Keep | None = None) -> None:
        self._url = url
        self._refresh_token = refresh_token
        self._access_token = access_token
        self._expires_at = time.monotonic() + EARLY * 2 if access_token else 0.0
        self._keep = keep
        self._lock = anyio.Lock()

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        used = self._access_token
        if not used or time.monotonic() >= self._expires_at:
            async for step in self._refreshed(used):
                step.response = yield step.request
            used = self._access_token
        request.headers["authorization"] = f"Bearer {used}"
        response = yield request
        if response.status_code == 401 and "invalid_token" in response.headers.get("www-authenticate", ""):
            async for step in self._refreshed(used):
                step.response = yield step.request
            request.headers["authorization"] = f"Bearer {self._access_token}"
            yield request

    async def _refreshed(self, used: str) -> AsyncGenerator[_Step, None]:
        """Refresh, unless another request has done so since ``used`` was the access token."""
        async with self._lock:
            if self._access_token != used:
                return
            step = _Step(httpx.Request("POST", self._url, json={"refresh_token": self._refresh_token}))
            yield step
            response = step.response
            if response is None or response.status_code != 200:
                raise TokenError("the refresh was refused: log in again")
            await response.aread()
            said: dict[str, Any] = response.json()
            self._access_token, self._refresh_token = said["access_token"], said["refresh_token"]
            self._expires_at = time.monotonic() + float(said["expires_in"]) - EARLY
            if self._keep is not None:
                kept = self._keep(self._access_token, self._refresh_token)
                if kept is not None:
                    await kept


class _Step:
    def __init__(self, request: httpx.Request) -> None:
        self.request = request
        self.response: httpx.Response | None = None
