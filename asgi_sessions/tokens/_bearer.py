"""BearerMiddleware: gives each request with an access token a read-only session."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from asgi_sessions._asgi.exchange import stems_from
from asgi_sessions._asgi.foreign import refuse_foreign
from asgi_sessions._asgi.http import warn_of_late_read
from asgi_sessions._asgi.lifespan import lifespan
from asgi_sessions._asgi.responses import WS_CRASHES, WS_POLICY_VIOLATION, answer, close, unavailable
from asgi_sessions._core.arguments import expect, expect_app
from asgi_sessions._core.cookie import vary_on
from asgi_sessions._core.facts import unpack_facts
from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.payload import MessagePackCodec
from asgi_sessions._core.planner import RecordRules
from asgi_sessions._core.proofs import Proofs, level_in, methods_in, pack_proofs
from asgi_sessions._core.record import Body, Record
from asgi_sessions._core.session import OURS, Session
from asgi_sessions._core.types import Message, Scope, Send, instant
from asgi_sessions._engine.manager import Manager
from asgi_sessions.errors import (
    SessionDataError,
    SessionReadOnly,
    SessionWarning,
    StoreError,
    TokenError,
    TokenExpired,
)
from asgi_sessions.tokens._jwt import Claims
from asgi_sessions.tokens._tokens import Tokens

logger = logging.getLogger("asgi_sessions")

_codec = MessagePackCodec()

_KEEP_ELSEWHERE = "keep this in a database, under session.user_id or session.id"
_END = "end it with POST /token/revoke, Tokens.revoke() or Sessions.revoke(user_id, session.id)"
_RENEW = "the client logs in again, and Tokens.log_in() gives it new tokens"


def _refused(what: str, advice: str) -> Callable[..., NoReturn]:
    """A method that raises the error for ``what``."""

    def refuse(self: BearerSession, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise SessionReadOnly."""
        raise self.refuse(what, advice)

    return refuse


class BearerSession(Session):
    """The read-only session of an access token: ``user_id``, ``id``, ``is_fresh()``, and with ``strict`` its data.

    Each call to change or end it raises :class:`SessionReadOnly`. If the app does not handle that error,
    :class:`BearerMiddleware` answers 403.
    """

    __slots__ = ("_claims", "_ends_at", "_expires_at", "refusal")

    is_bearer = True
    scheme = "Bearer"
    _claims: Claims
    _ends_at: float
    _expires_at: float
    refusal: SessionReadOnly | None
    """The last refused call."""

    @property
    def claims(self) -> Claims:
        """The claims of the access token."""
        self._accessed = True
        return self._claims

    if not TYPE_CHECKING:  # type checkers see the methods of Session
        __setitem__ = _refused("session[…] = …", _KEEP_ELSEWHERE)
        __delitem__ = _refused("del session[…]", _KEEP_ELSEWHERE)
        __ior__ = _refused("session |= …", _KEEP_ELSEWHERE)
        update = _refused("session.update()", _KEEP_ELSEWHERE)
        popitem = _refused("session.popitem()", _KEEP_ELSEWHERE)
        set_as = _refused("session.set_as()", _KEEP_ELSEWHERE)
        write_model = _refused("session.write_model()", _KEEP_ELSEWHERE)
        once = _refused("session.once()", _KEEP_ELSEWHERE)
        touch = _refused("session.touch()", "a refresh of its tokens is the activity of its user")
        mark_modified = _refused("session.mark_modified()", _KEEP_ELSEWHERE)
        clear = _refused("session.clear()", _END)
        destroy = _refused("session.destroy()", _END)
        end_others = _refused("session.end_others()", "use Sessions.revoke_all(user_id, keep=session)")
        log_in = _refused("session.log_in()", _RENEW)
        confirm = _refused("session.confirm()", _RENEW)
        begin_log_in = _refused("session.begin_log_in()", _RENEW)
        regenerate = _refused("session.regenerate()", _RENEW)
        impersonate = _refused("session.impersonate()", "use the cookie session of the actor")
        stop_impersonating = _refused("session.stop_impersonating()", "use the cookie session of the actor")

    def refuse(self, what: str, advice: str) -> SessionReadOnly:
        """The error for ``what``. The session keeps it in :attr:`refusal`."""
        self.refusal = SessionReadOnly(f"{what}: this session came with an access token and is read-only; {advice}")
        return self.refusal

    def pop(self, key: str, /, *default: Any) -> Any:
        """``default`` if the key is missing, so that ``session.pop("flashes", [])`` works without stored messages."""
        if dict.__contains__(self, key):
            raise self.refuse("session.pop()", _KEEP_ELSEWHERE)
        return super().pop(key, *default)

    def setdefault(self, key: str, default: Any = None, /) -> Any:
        """The value of an existing key."""
        if not dict.__contains__(self, key):
            raise self.refuse("session.setdefault()", _KEEP_ELSEWHERE)
        return self[key]

    @property
    def actor_id(self) -> str | None:
        """The id of the user who acts as :attr:`user_id`, from the claim ``act``, or ``None``."""
        self._accessed = True
        return self._claims.actor_id

    def is_fresh(self, within: timedelta, *, methods: Iterable[str] = (), level: int = 0) -> bool:
        """Like :meth:`Session.is_fresh`. Always ``False`` if another user acts as this one."""
        return super().is_fresh(within, methods=methods, level=level) and self._claims.actor_id is None

    @property
    def expires_at(self) -> datetime:
        """When the session ends without a refresh. Without ``strict`` this is the expiry of the access token."""
        self._accessed = True
        return instant(self._expires_at)

    @property
    def ends_at(self) -> datetime:
        """When the session ends at the latest. Without ``strict`` this is the expiry of the access token."""
        self._accessed = True
        return instant(self._ends_at)

    @property
    def is_new(self) -> bool:
        """Always ``False``: the session began with the log-in of the client."""
        self._accessed = True
        return False

    @property
    def modified(self) -> bool:
        """Whether a list or dict in it was changed in place. :meth:`save` and the response refuse such a change."""
        return self._record is not None and self._keeper.is_modified(self)

    @modified.setter
    def modified(self, value: bool) -> None:
        self.mark_modified()

    async def save(self) -> None:
        """Do nothing, since a read-only session has no changes.

        Raises:
            SessionReadOnly: a list or dict in the session was changed in place.
        """
        if self.modified:
            raise self.refuse("a change of a list or dict in the session", _KEEP_ELSEWHERE)


class BearerMiddleware:
    """Puts a read-only session into ``scope["session"]`` of every request with ``Authorization: Bearer``.

    Requests without a token pass unchanged, for example to a SessionMiddleware inside or outside of this. In a request with a
    token, session cookies are ignored.

    Args:
        app: the ASGI app to wrap.
        tokens: issues and verifies the access tokens.
        strict: also ask the store whether the session is alive. Then a log-out takes effect at once, and not when the token
            expires.
        required: refuse requests without a token.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], tokens: Tokens, *, strict: bool = False, required: bool = False
    ) -> None:
        expect_app("BearerMiddleware", app)
        expect("BearerMiddleware(tokens)", tokens, Tokens)
        self.app = app
        self._tokens = tokens
        self._strict = strict
        self._required = required

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            if scope["type"] == "lifespan":  # an API may have no SessionMiddleware
                await lifespan(self.app, scope, receive, send, self._tokens.sessions._upkeep, None)
            else:
                await self.app(scope, receive, send)
            return
        refuse_foreign(scope)
        token, problem = _presented(scope)
        if problem is not None:
            await _challenge(scope, send, 400, problem)
            return
        if token is None:
            if self._required:
                # Without a token, the challenge contains no error (RFC 6750, section 3.1).
                await _challenge(scope, send, 401, b"Bearer")
            else:
                await self.app(scope, receive, _Answer(scope, send).send)
            return
        try:
            session = await self._session(token)
        except TokenError as error:
            text = str(error).encode("ascii", "replace")
            await _challenge(scope, send, 401, b'Bearer error="invalid_token", error_description="' + text + b'"')
            return
        except StoreError:
            await unavailable(scope, send, self._tokens._manager.guard.retry_after)
            return
        outer = scope.get("session")
        scope["session"] = scope[OURS] = session
        exchange = _Exchange(scope, _Answer(scope, send, session).send, session, self._tokens._manager)
        try:
            await self.app(scope, receive, exchange.send)
        except Exception as error:
            scope["session"] = session  # for error pages further out, as in SessionMiddleware
            await exchange.crashed(error)
            raise  # also after an answer: servers log it, and test clients show it
        else:
            await exchange.finish()
        finally:
            if outer is not None:
                scope["session"] = scope[OURS] = outer

    async def _session(self, token: Hidden[bytes]) -> BearerSession:
        claims = self._tokens.verify(token.value)
        manager = self._tokens._manager
        session = BearerSession._empty(manager, manager.clock())
        session._claims, session.refusal = claims, None
        session._id, session._user_id = claims.session_id, claims.user_id
        session._authenticated_at, session._created_at = claims.authenticated_at, claims.authenticated_at
        session._proof, session._expires_at, session._ends_at = _proof_in(claims), claims.expires_at, claims.expires_at
        session._started = True
        if self._strict:
            record, body = await self._tokens.living(claims)
            if body.user_id != claims.user_id:
                raise TokenExpired("the session of the token has ended")
            session._created_at, session._authenticated_at = body.created_at, body.authenticated_at
            session._proof = body.proof
            session._expires_at, session._ends_at = _ends_of(record, body, manager.records)
            session._provider, session._record, session._loaded = body.provider, record, body.payload
            dict.update(session, _codec.decode(body.payload))
        return session


def _ends_of(record: Record, body: Body, rules: RecordRules) -> tuple[float, float]:
    """When a session ends without activity and at the latest: by the times that :meth:`RecordRules.over` applies to it."""
    if body.kind == "token" or not rules.judges:
        return record.expires_at, unpack_facts(body.about).ends_at or record.expires_at
    timeouts, remembered = rules.timeouts, body.remembered
    idle_at = timeouts.expires_at(body.created_at, record.seen_at, remembered)
    return min(record.expires_at, idle_at), timeouts.ends_at(created_at=body.created_at, remembered=remembered)


def _proof_in(claims: Claims) -> bytes:
    """The methods and the level in a token. It has no times of the methods, so none counts as recent."""
    try:
        methods = methods_in("amr", claims.extra.get("amr", ()))
        level = level_in("acr", int(str(claims.extra.get("acr", 0))))
    except (SessionDataError, ValueError):
        return b""
    return pack_proofs(Proofs(tuple((method, -math.inf) for method in methods), level or 0))


def _presented(scope: Scope) -> tuple[Hidden[bytes] | None, bytes | None]:
    """The access token of a request, or ``None``, and the challenge of an answer 400 if the header is ambiguous."""
    given = [value.strip(b" \t") for name, value in scope.get("headers", ()) if name == b"authorization"]
    # The scheme is case-insensitive (RFC 9110, section 11.1), and spaces are allowed (11.4). An empty token is an invalid token.
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
    """One answer. Adds ``Vary: Authorization`` if the answer depends on the user (RFC 9111, section 4.1)."""

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
        """Whether the app read the session. Without any session, the app may have noticed that, so the result is ``True``."""
        session: Session | None = self._session if self._session is not None else self._scope.get(OURS)
        return session._accessed if session is not None else True


class _Exchange:
    """One request with a token. A refused change becomes a 403, unless the app handles the error."""

    __slots__ = ("_is_answered", "_manager", "_scope", "_send", "_session", "_started")

    def __init__(self, scope: Scope, send: Send, session: BearerSession, manager: Manager) -> None:
        self._manager = manager
        self._scope = scope
        self._send = send
        self._session = session
        self._started = False  # has the answer left, or was the socket accepted?
        self._is_answered = False  # we answered in place of the app: its messages are dropped

    async def send(self, message: Message) -> None:
        """The app calls this to send.

        Raises:
            SessionReadOnly: a list or dict in the session was changed in place. The client has got a 403.
        """
        if self._is_answered:
            return
        if not self._started:
            if message.get("status") == 500 and self._session.refusal is not None:
                # The framework's page for unhandled errors.
                await self._forbid(self._session.refusal)
                return
            try:
                await self._session.save()
            except SessionReadOnly as refusal:
                await self._forbid(refusal)
                raise
            self._started = message["type"] != "websocket.close"
        elif message["type"] == "websocket.close" and message.get("code") in WS_CRASHES and self._session.refusal:
            await self._forbid(self._session.refusal)
            return
        await self._send(message)

    async def crashed(self, error: Exception) -> None:
        """The app raised an error. Answer 403 if a refused change is the cause and an answer can still be sent."""
        refusal = self._session.refusal
        if refusal is None or not stems_from(error, refusal) or self._is_answered:
            return
        if not self._started or self._scope["type"] == "websocket":
            await self._forbid(refusal)

    async def finish(self) -> None:
        """Warn of changes after the start of the answer."""
        if not self._is_answered and self._session.modified:
            why = "it came with an access token and is read-only"
            await self._manager.emit_event("session.not_saved", session=self._session, reason=why)
            warnings.warn(f"the session was changed and is not saved: {why}", SessionWarning, stacklevel=2)

    async def _forbid(self, refusal: SessionReadOnly) -> None:
        self._is_answered = True
        logger.warning("session.read_only: %s", refusal)
        if self._scope["type"] == "websocket" and self._started:
            await close(self._send, WS_POLICY_VIOLATION, "the session is read-only")
        else:
            await answer(self._scope, self._send, 403, str(refusal).encode())


async def _challenge(scope: Scope, send: Send, status: int, challenge: bytes) -> None:
    await answer(scope, send, status, b"", (b"www-authenticate", challenge))
