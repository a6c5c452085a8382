"""Answers in place of the app."""

from __future__ import annotations

from typing import Final

from asgi_sessions._core.types import Message

WS_INTERNAL_ERROR: Final = 1011
WS_POLICY_VIOLATION: Final = 1008
WS_TRY_AGAIN_LATER: Final = 1013  # IANA WebSocket close code registry (RFC 6455, section 11.7)
WS_SESSION_ENDED: Final = 4401
"""From the range for private use (RFC 6455, section 7.4.2), after HTTP's 401."""


async def nothing() -> None:
    """To be awaited in the place of a message that is dropped."""


def response(
    kind: str, status: int, text: bytes, retry_after: int | None, cookie: tuple[bytes, bytes] | None
) -> tuple[Message, Message]:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(text)),
        (b"cache-control", b"no-store"),
    ]
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    if cookie is not None:
        headers.append(cookie)
    return {"type": f"{kind}.start", "status": status, "headers": headers}, {"type": f"{kind}.body", "body": text}
