"""All answers in place of the app."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from asgi_sessions._core.types import Message, Receive, Scope, Send

# IANA WebSocket close code registry (RFC 6455, section 11.7)
WS_POLICY_VIOLATION: Final = 1008
WS_INTERNAL_ERROR: Final = 1011
WS_TRY_AGAIN_LATER: Final = 1013
WS_SESSION_ENDED: Final = 4401  # from the range for private use (RFC 6455, section 7.4.2), after HTTP's 401
WS_CRASHES: Final = frozenset({WS_INTERNAL_ERROR, 4500})  # after an error of the handler; 4500 is Litestar's

JAVASCRIPT: Final = b"text/javascript; charset=utf-8"


def can_answer(scope: Scope) -> bool:
    """Whether this is a request, or a handshake at a server with the extension "Websocket Denial Response"."""
    return scope["type"] == "http" or "websocket.http.response" in (scope.get("extensions") or {})


async def answer(
    scope: Scope,
    send: Send,
    status: int,
    text: bytes = b"",
    *headers: tuple[bytes, bytes],
    kind: bytes = b"text/plain; charset=utf-8",
    cache: bytes = b"no-store",
    code: int = WS_POLICY_VIOLATION,
    reason: str = "",
) -> None:
    """Answer a request, or deny a WebSocket handshake, with a short text.

    Args:
        text: the body, or by default the name of the status.
        headers: further headers.
        kind: the media type of the text.
        cache: the value of ``Cache-Control``.
        code, reason: close a WebSocket with these if the server lacks the extension "Websocket Denial Response". The socket was
            not accepted yet, so the server answers 403.
    """
    if not can_answer(scope):
        await close(send, code, reason)
        return
    response = "http.response" if scope["type"] == "http" else "websocket.http.response"
    content = text or HTTPStatus(status).phrase.encode()
    own = ((b"content-type", kind), (b"content-length", b"%d" % len(content)), (b"cache-control", cache))
    await send({"type": f"{response}.start", "status": status, "headers": [*own, *headers]})
    # A response to HEAD has the headers of GET and no content (RFC 9110, section 9.3.2).
    await send({"type": f"{response}.body", "body": b"" if scope.get("method") == "HEAD" else content})


async def unavailable(scope: Scope, send: Send, retry_after: int, *headers: tuple[bytes, bytes]) -> None:
    """Answer 503: the store failed. ``retry_after``: seconds."""
    retry = (b"retry-after", b"%d" % retry_after)
    await answer(scope, send, 503, b"", retry, *headers, code=WS_TRY_AGAIN_LATER, reason="session store unavailable")


async def close(send: Send, code: int, reason: str) -> None:
    """Close a socket."""
    await send({"type": "websocket.close", "code": code, "reason": reason})


async def end(scope: Scope, send: Send, start: Message) -> None:
    """Close a socket or stream after the end of its session. ``start``: the start message of the answer."""
    if scope["type"] == "websocket":
        await close(send, WS_SESSION_ENDED, "session ended")
        return
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    if start.get("trailers"):  # the server waits for them (ASGI, HTTP Trailers extension)
        await send({"type": "http.response.trailers", "headers": [], "more_trailers": False})


async def fail_to_start(error: Exception, receive: Receive, send: Send) -> None:
    """Report an error as a failed start-up. After a bare exception, a server assumes an app without lifespan."""
    await receive()  # lifespan.startup
    await send({"type": "lifespan.startup.failed", "message": str(error)})


async def nothing() -> None:
    """Do nothing. Awaited for a dropped message."""
