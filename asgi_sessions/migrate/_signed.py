"""Readers of signed cookies: the data is in the cookie."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from asgi_sessions._core.adoption import OldCookie, OldSession
from asgi_sessions._core.extras import needs
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions.errors import ConfigurationError
from asgi_sessions.migrate._base import ReaderBase, UserOf

MAX_COOKIE = 16 * 1024
"""Bytes of a signed cookie. Browsers keep 4 kB."""


class FromStarlette(ReaderBase):
    """Sessions of ``starlette.middleware.sessions.SessionMiddleware``: JSON in a signed cookie.

    Args:
        secret_key: the ``secret_key`` of the old middleware.
        user: finds the user's id in the data, such as ``lambda data: data.get("user_id")``; ``None`` if nobody is logged in.
        cookie, path, domain: of the old cookie: ``session_cookie``, ``path``, ``domain``.
        max_age: of the old middleware, in seconds; ``None`` if it was ``None``.
        drop: keys that are not carried over.
        keep_old: leave the old cookie in the browser, so that the old app can come back.
    Raises:
        ConfigurationError: an argument makes no sense. MissingExtra: itsdangerous is not installed.
    """

    name = "starlette"
    is_stored = False

    @forgets_arguments
    def __init__(
        self,
        *,
        secret_key: str,
        user: UserOf | None = None,
        cookie: str = "session",
        path: str = "/",
        domain: str | None = None,
        max_age: int | None = 14 * 24 * 3600,
        drop: tuple[str, ...] = (),
        keep_old: bool = False,
    ) -> None:
        super().__init__(cookie=cookie, user=user, path=path, domain=domain, drop=drop, keep_old=keep_old)
        if not isinstance(secret_key, str) or not secret_key:
            raise ConfigurationError(
                "FromStarlette(secret_key=…): give the secret_key of the old SessionMiddleware, a str"
            )
        with needs("migrate", "FromStarlette"):
            import itsdangerous
        self._signer = itsdangerous.TimestampSigner(secret_key)
        self._max_age = max_age

    def recognise(self, value: bytes, now: float) -> OldCookie | None:
        """See :class:`Reader`."""
        if len(value) > MAX_COOKIE:
            return None
        import itsdangerous

        try:
            content, signed_at = self._signer.unsign(value, max_age=None, return_timestamp=True)
            data = base64.b64decode(content)
        except (itsdangerous.BadData, binascii.Error, ValueError):
            return None
        age = now - signed_at.timestamp()
        if self._max_age is not None and not 0 <= age + 60 <= self._max_age + 60:
            return None
        until = signed_at.timestamp() + (365 * 86400 if self._max_age is None else self._max_age)
        return OldCookie(value, until, data)

    async def read(self, cookie: OldCookie, now: float) -> OldSession | None:
        """See :class:`Reader`."""
        try:
            data: Any = json.loads(cookie.content)
        except (ValueError, RecursionError):
            return None
        return self.session(data) if isinstance(data, dict) and data else None

    async def forget(self, cookie: OldCookie) -> None:
        """Nothing: the session was in the cookie."""
