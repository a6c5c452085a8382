"""The endpoints for the messages of identity providers. Each is an ASGI app for one route."""

from __future__ import annotations

import hmac
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from asgi_sessions._asgi.responses import answer
from asgi_sessions._core.arguments import expect, several
from asgi_sessions._core.hidden import Hidden, forgets_arguments
from asgi_sessions._core.provider import MATCH_LEEWAY
from asgi_sessions._core.record import acting
from asgi_sessions._core.token import owner_of
from asgi_sessions._core.types import Event, Receive, Scope, Send, instant
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.providers import REASON
from asgi_sessions._forms import FORM, NeverArrived, TooLong, body_of, form_in, kind_of
from asgi_sessions.errors import ConfigurationError, StoreError
from asgi_sessions.identity._messages import (
    LEEWAY,
    OLDEST_EVENT,
    Meant,
    Message,
    Refused,
    events_in,
    logout_in,
    meant_by,
    message_in,
    subject_in,
)
from asgi_sessions.identity._provider import IdentityProvider, KeysUnavailable
from asgi_sessions.sessions import Sessions, _now_of, refuse_no_users

MOST_BYTES: Final = 32_768
RETRY_AFTER: Final = 10
"""Seconds in the ``Retry-After`` of an answer without keys."""

SECEVENT: Final = "application/secevent+jwt"  # RFC 8935, section 2.1

_NO_STORE: Final = {"cache-control": "no-store"}

FindUser = Callable[[Mapping[str, Any]], str | Awaitable[str | None] | None]


class _Endpoint:
    """Reads one message, carries it out, and answers."""

    _is_event: bool

    def __init__(self, sessions: Sessions, providers: IdentityProvider | Iterable[IdentityProvider]) -> None:
        called = type(self).__name__
        expect(f"{called}(sessions)", sessions, Sessions)
        refuse_no_users(called, sessions.store)
        given = (
            (providers,)
            if isinstance(providers, IdentityProvider)
            else several(f"{called}(providers)", providers, "[IdentityProvider(…)]")
        )
        for provider in given:
            expect(f"{called}(providers)", provider, IdentityProvider)
        if not given or len({each.issuer for each in given}) < len(given):
            raise ConfigurationError(f"{called}(providers): give at least one, and one for each issuer")
        self._providers: tuple[IdentityProvider, ...] = given
        self._sessions = sessions
        self._manager: Manager = sessions._manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await answer(scope, send, 404)
            return
        if scope["method"] != "POST":
            await answer(scope, send, 405, b"", (b"allow", b"POST"))
            return
        response = await self._respond(Request(scope, receive))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        manager = self._manager
        try:
            now = await _now_of(manager, "provider log-out")
            # The token is no local variable: error collectors record those, and the app's `find_user` may fail.
            message = await message_in(await self._token(request), self._providers, now, is_event=self._is_event)
            return await self._carry_out(message)
        except Refused as refused:
            await self._report(str(refused))
            return self._refusal(refused)
        except KeysUnavailable as failure:
            await self._report(f"the keys of the provider could not be fetched: {failure}")
            return _unavailable(RETRY_AFTER)
        except StoreError:
            return _unavailable(manager.guard.retry_after)

    async def _body(self, request: Request, kind: str) -> bytes:
        if kind_of(request) != kind:
            raise Refused(f"the request is not of the type {kind}")
        try:
            return await body_of(request, MOST_BYTES)
        except TooLong:
            raise Refused("the request is too long") from None
        except NeverArrived:
            raise Refused("the request never arrived") from None

    async def _is_new(self, message: Message) -> bool:
        async with self._manager.asking("provider log-out"):
            return await self._manager.providers.is_new(message.provider.issuer, message.jti)

    async def _done(self, message: Message, until: float) -> None:
        async with self._manager.asking("provider log-out"):
            await self._manager.providers.done(message.provider.issuer, message.jti, until)

    async def _end(self, message: Message, meant: Meant) -> None:
        await self._sessions.revoke_provider(
            meant.issuer, subject=meant.subject, sid=meant.sid, before=instant(message.issued_at)
        )

    async def _report(self, reason: str) -> None:
        """Emit the event of a refused message. It is logged at most once a minute for each reason, since anyone may send one."""
        manager = self._manager
        details = {"host": type(self).__name__, "reason": reason}
        await manager.events.emit(Event("provider.refused", instant(manager.clock()), None, None, details))

    async def _token(self, request: Request) -> bytes:
        raise NotImplementedError

    async def _carry_out(self, message: Message) -> Response:
        raise NotImplementedError

    def _refusal(self, refused: Refused) -> Response:
        raise NotImplementedError


class BackChannelLogout(_Endpoint):
    """The ``backchannel_logout_uri`` of an app (OpenID Connect Back-Channel Logout 1.0).

    It answers 200 when the sessions have ended, and 400 if the logout token is not valid or was used before. It answers 503 with
    ``Retry-After`` if the store or the provider's keys cannot be reached. Then sessions may still be alive, and the provider may
    send the same token again.

    Args:
        sessions: the :class:`Sessions` of the app. The app begins each session with ``log_in(…, provider=…)``.
        providers: the providers that may send logout tokens.
    """

    _is_event = False

    async def _token(self, request: Request) -> bytes:
        body = await self._body(request, FORM)
        try:
            token = form_in(body, max_fields=10).get("logout_token", "").encode("ascii")
        except ValueError:  # also a UnicodeError
            raise Refused("the request is no form") from None
        if not token:
            raise Refused("there is no logout_token")
        return token

    async def _carry_out(self, message: Message) -> Response:
        meant = logout_in(message, self._manager.clock())
        if not await self._is_new(message):
            raise Refused("it was carried out before")
        await self._end(message, meant)
        await self._done(message, message.claims["exp"] + LEEWAY)
        return Response(status_code=200, headers=_NO_STORE)

    def _refusal(self, refused: Refused) -> Response:
        content = {"error": "invalid_request", "error_description": str(refused)}
        return JSONResponse(content, 400, headers=_NO_STORE)


class SecurityEvents(_Endpoint):
    """The push endpoint of an app for the security event tokens of OpenID Shared Signals (RFC 8417, RFC 8935).

    The events ``session-revoked`` and ``credential-change`` of OpenID CAEP 1.0 end sessions that began before them. They mean all
    sessions of the subject, or one session at the provider. A new credential ends no session. Other events are acknowledged
    without effect.

    It answers 202 when the sessions have ended, also if the token was used before. It answers 400 with ``err`` if the token is
    not valid, and 503 as :class:`BackChannelLogout` does.

    Args:
        sessions: the :class:`Sessions` of the app.
        transmitters: the providers that may send events. Their ``audience`` is the ``aud`` of the stream.
        issuers: further issuers. The transmitters may name subjects (``iss_sub``) of these and of their own issuers.
        find_user: returns the user id for a subject of another format (RFC 9493), such as ``{"format": "email", …}``, or
            ``None`` if there is no such user. All sessions of that user from before the event end, and those that this server
            cannot read. Without this function such a token is refused.
        authorization: the required value of the ``Authorization`` header, if you agreed on one.
    """

    _is_event = True

    @forgets_arguments
    def __init__(
        self,
        sessions: Sessions,
        transmitters: IdentityProvider | Iterable[IdentityProvider],
        *,
        issuers: Iterable[str] = (),
        find_user: FindUser | None = None,
        authorization: str | None = None,
    ) -> None:
        super().__init__(sessions, transmitters)
        if find_user is not None and not callable(find_user):
            raise ConfigurationError("SecurityEvents(find_user=…): give a function")
        if authorization is not None and not (
            isinstance(authorization, str) and authorization and authorization.isascii()
        ):
            raise ConfigurationError("SecurityEvents(authorization=…): give text of ASCII, such as 'Bearer …'")
        self._issuers = several("SecurityEvents(issuers)", issuers, "['https://id.example.org']")
        self._find_user = find_user
        self._authorization = None if authorization is None else Hidden(authorization.encode("ascii"))

    async def _token(self, request: Request) -> bytes:
        expected = self._authorization
        if expected is not None:
            given = b"\0".join(value for name, value in request.scope["headers"] if name == b"authorization")
            if not hmac.compare_digest(given, expected.value):
                raise Refused("the Authorization header is another", "authentication_failed")
        return await self._body(request, SECEVENT)

    async def _carry_out(self, message: Message) -> Response:
        events = events_in(message, self._manager.clock())
        if events and await self._is_new(message):
            for event in events:
                await self._end_of(message, event)
            await self._done(message, message.issued_at + OLDEST_EVENT + LEEWAY)
        return Response(status_code=202, headers=_NO_STORE)

    async def _end_of(self, message: Message, event: str) -> None:
        issuer, subject = message.provider.issuer, subject_in(message, event)
        meant = meant_by(subject, event, issuer, (issuer, *self._issuers))
        if meant is not None:
            await self._end(message, meant)
            return
        if self._find_user is None:
            raise Refused("its subject is of a format that is not understood; see SecurityEvents(find_user=…)")
        found = self._find_user(subject)
        user_id = await found if inspect.isawaitable(found) else found
        if user_id is not None:
            await self._end_user(user_id, message)

    async def _end_user(self, user_id: str, message: Message) -> None:
        until = message.issued_at + MATCH_LEEWAY
        async with self._manager.asking("provider log-out"):
            is_done = await self._end_older(user_id, until)
            if not is_done and await self._manager.guard.confirm_ends(owner_of(user_id)):
                await self._end_older(user_id, until)  # a failover has restored them

    async def _end_older(self, user_id: str, until: float) -> bool:
        """End the sessions of a user from before a time. Returns whether there were any."""
        users, has_ended = self._manager.users, False
        index = await self._manager.resolver.index_of(owner_of(user_id))
        known = {record.id: body for record, body in await users.records(user_id)}
        for id in {**index, **known}:
            body = known.get(id)
            if body is None:  # it does not open on this server, so it may be from before the event
                has_ended |= bool(await users.end(user_id, REASON, id=id))
            elif body.created_at <= until:
                has_ended |= bool(await users.end(user_id, REASON, id=id, **acting(body)))
        return has_ended

    def _refusal(self, refused: Refused) -> Response:
        headers = {**_NO_STORE, "content-language": "en"}  # RFC 8935, section 2.3
        return JSONResponse({"err": refused.code, "description": str(refused)}, 400, headers=headers)


def _unavailable(seconds: float) -> Response:
    return Response(status_code=503, headers={**_NO_STORE, "retry-after": str(math.ceil(seconds))})
