"""Switch from another session library without logging users out.

::

    sessions = Sessions(store, adopt=[FromStarlette(secret_key=OLD_KEY, user=lambda data: data.get("user_id"))])

A request with the old cookie, and without ours, gets one of our sessions with the same data and user. The response sets our
cookie and removes the old one. ``docs/switching.md`` has the steps.
"""

from __future__ import annotations

from asgi_sessions._core.adoption import OldCookie, OldSession, Reader
from asgi_sessions.migrate._signed import FromDjangoSignedCookies, FromFlask, FromLitestarCookie, FromStarlette
from asgi_sessions.migrate._stored import (
    FromDjango,
    FromDjangoCache,
    FromExpressSession,
    FromFastapiRedisSdk,
    FromFlaskSession,
    FromLitestar,
    FromStarsessions,
)

__all__ = [
    "FromDjango",
    "FromDjangoCache",
    "FromDjangoSignedCookies",
    "FromExpressSession",
    "FromFastapiRedisSdk",
    "FromFlask",
    "FromFlaskSession",
    "FromLitestar",
    "FromLitestarCookie",
    "FromStarlette",
    "FromStarsessions",
    "OldCookie",
    "OldSession",
    "Reader",
]
