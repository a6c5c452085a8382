"""BearerMiddleware: whoever brings an access token has a session in the scope, read-only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from asgi_sessions._cookie import vary_on
from asgi_sessions._errors import ConfigurationError, SessionError, StoreError, TokenError, TokenExpired
from asgi_sessions._middleware import warn_of_late_read
from asgi_sessions._record import MessagePackCodec
from asgi_sessions._session import Session
from asgi_sessions._types import Hidden, Message, Receive, Scope, Send
from asgi_sessions.tokens._jwt import Claims
from asgi_sessions.tokens._tokens import Tokens

_codec = MessagePackCodec()


class BearerSession(Session):
    """The session of an access token: ``user_id``, ``id``, ``is_fresh()``, and with ``strict`` its data. Read-only."""

    __slots__ = ("_claims",)

    is_bearer = True
    scheme = "Bearer"
    _claims: Claims

    @property
    def claims(self) -> Claims:
        """What the access token says."""
        self._accessed = True
        return self._claims

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
        token, problem = _presented(scope)
        if problem is not None:
            await _refuse(scope, receive, send, 400, problem)
            return
        if token is None:
            if self._required:
                # RFC 6750, section 3.1: who brought nothing is told of no error.
                await _refuse(scope, receive, send, 401, b"Bearer")
            else:
                await self.app(scope, receive, _Answer(scope, send).send)
            return
        try:
            session = await self._session(token)
        except TokenError as error:
            text = str(error).encode("ascii", "replace")
            await _refuse(scope, receive, send, 401, b'Bearer error="invalid_token", error_description="' + text + b'"')
            return
        except StoreError:
            await _refuse(scope, receive, send, 503, None)
            return
        scope["session"] = session
        await self.app(scope, receive, _Answer(scope, send, session).send)

    async def _session(self, token: Hidden[bytes]) -> BearerSession:
        claims = self._tokens.verify(token.value)
        manager = self._tokens._manager
        session = BearerSession._empty(manager, manager.clock())
        session._claims = claims
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


def _presented(scope: Scope) -> tuple[Hidden[bytes] | None, bytes | None]:
    """The access token of a request, if it brings one; and why it is refused unseen, if it is."""
    given = [value.strip(b" \t") for name, value in scope.get("headers", ()) if name == b"authorization"]
    # A scheme in any case, and spaces (RFC 9110, sections 11.1 and 11.4). Without a token it is an attempt all the same.
    bearers = [
        rest.strip(b" ")
        for scheme, _, rest in (value.partition(b" ") for value in given)
        if scheme.lower() == b"bearer"
    ]
    if not bearers:
        return None, None
    if len(given) > 1:
        return None, b'Bearer error="invalid_request"'
    return Hidden(bearers[0]), None


class _Answer:
    """One answer on its way: caches are told that it depends on who asked (RFC 9111, section 4.1)."""

    __slots__ = ("_scope", "_send", "_session", "_start")

    def __init__(self, scope: Scope, send: Send, session: BearerSession | None = None) -> None:
        self._scope = scope
        self._send = send
        self._session = session
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            if self._depends():
                headers = [*(message.get("headers") or ())]
                vary_on(headers, b"Authorization")
                message = {**message, "headers": headers}
            elif self._session is not None and self._scope.get("method") in ("GET", "HEAD"):
                self._start = message
        elif self._start is not None and self._session is not None and self._session._accessed:
            warn_of_late_read(self._start, b"Authorization")
            self._start = None
        await self._send(message)

    def _depends(self) -> bool:
        """Whether the app looked at who is asking. Where there is no session to tell, it may have noticed that there is none."""
        session = self._session if self._session is not None else self._scope.get("session")
        return session._accessed if isinstance(session, Session) else True


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
