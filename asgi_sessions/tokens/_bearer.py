"""BearerMiddleware: whoever brings an access token has a session in the scope, read-only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from asgi_sessions._errors import ConfigurationError, SessionError, StoreError, TokenError, TokenExpired
from asgi_sessions._middleware import refuse_foreign
from asgi_sessions._record import MessagePackCodec
from asgi_sessions._session import OURS, Session
from asgi_sessions._types import Message, Receive, Scope, Send
from asgi_sessions.tokens._jwt import Claims
from asgi_sessions.tokens._tokens import Tokens

_codec = MessagePackCodec()


class BearerSession(Session):
    """The session of an access token: ``user_id``, ``id``, ``is_fresh()``, and with ``strict`` its data. Read-only."""

    __slots__ = ("claims",)

    is_bearer = True
    scheme = "Bearer"
    claims: Claims

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise SessionError("this session came with an access token and is read-only; use POST /token/revoke to end it")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse
    log_in = regenerate = confirm = destroy = end_others = _refuse

    async def save(self) -> None:
        """There is nothing to save."""


class BearerMiddleware:
    """Puts a read-only session into ``scope["session"]`` of every request with ``Authorization: Bearer``.

    Requests without one pass untouched: to a SessionMiddleware, inside or outside of this, or to an app that looks for
    ``scope.get("session")``. Cookie or bearer, never both: where a token is, no cookie counts.

    Args:
        app: the ASGI app to wrap.
        tokens: whose access tokens count.
        strict: also ask the store whether the session lives, so that a log-out bites at once and not when the token expires.
        required: refuse requests without a token.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], tokens: Tokens, *, strict: bool = False, required: bool = False
    ) -> None:
        if not callable(app):
            raise ConfigurationError(
                f"BearerMiddleware(app={app!r}): give an ASGI app; it comes first, the tokens second"
            )
        if not isinstance(tokens, Tokens):
            raise ConfigurationError(f"BearerMiddleware(tokens={type(tokens).__name__}): give a Tokens")
        self.app = app
        self._tokens = tokens
        self._strict = strict
        self._required = required

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refuse_foreign(scope)
        given = [value for name, value in scope.get("headers", ()) if name == b"authorization"]
        bearers = [value for value in given if value[:7].lower() == b"bearer "]  # RFC 6750, section 2.1
        if not bearers:
            if self._required:
                # RFC 6750, section 3.1: who brought nothing is told of no error.
                await _refuse(scope, receive, send, 401, b"Bearer")
            else:
                await self.app(scope, receive, send)
            return
        if len(given) > 1:
            await _refuse(scope, receive, send, 400, b'Bearer error="invalid_request"')
            return
        try:
            session = await self._session(bearers[0][7:].strip(b" "))
        except TokenError as error:
            text = str(error).encode("ascii", "replace")
            await _refuse(scope, receive, send, 401, b'Bearer error="invalid_token", error_description="' + text + b'"')
            return
        except StoreError:
            await _refuse(scope, receive, send, 503, None)
            return
        outer = scope.get("session")
        scope["session"] = scope[OURS] = session
        try:
            await self.app(scope, receive, send)
        finally:
            scope["session"] = scope[OURS] = session if outer is None else outer

    async def _session(self, token: bytes) -> BearerSession:
        claims = self._tokens.verify(token)
        manager = self._tokens._manager
        session = BearerSession._empty(manager, manager.clock())
        session.claims = claims
        session._id, session._user_id = claims.session_id, claims.user_id
        session._authenticated_at, session._created_at = claims.authenticated_at, claims.authenticated_at
        session._started = True
        if self._strict:
            record, body = await self._tokens.living(claims)
            if body.user_id != claims.user_id:
                raise TokenExpired("the session of the token has ended")
            session._created_at, session._authenticated_at = body.created_at, body.authenticated_at
            session._record = record
            dict.update(session, _codec.decode(body.payload))
        return session


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, challenge: bytes | None) -> None:
    headers = [(b"content-length", b"0"), (b"cache-control", b"no-store")]
    headers.append((b"retry-after", b"1") if challenge is None else (b"www-authenticate", challenge))
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the server answers 403
            return
        kind = "websocket.http.response"
    else:
        kind = "http.response"
    start: Message = {"type": f"{kind}.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": f"{kind}.body", "body": b""})
