"""TokenEndpoints: an ASGI app to mount at the root, with endpoints for refresh, revocation and public keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from asgi_sessions._asgi.responses import unavailable
from asgi_sessions._core.arguments import expect
from asgi_sessions._core.cookie import CookieConfig, keep_out_of_caches
from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.json import json_in
from asgi_sessions._core.types import Receive, Scope, Send
from asgi_sessions._forms import FORM, JSON, NeverArrived, TooLong, body_of, form_in, kind_of
from asgi_sessions.cross_origin import CrossOriginProtection
from asgi_sessions.errors import ConfigurationError, StoreError, TokenError
from asgi_sessions.tokens._tokens import TokenPair, Tokens

MAX_BODY: Final = 4096

REFRESH_COOKIE: Final = CookieConfig("__Host-Http-refresh", samesite="strict")
"""The cookie for the refresh token of a browser."""

_NO_STORE = {"cache-control": "no-store", "pragma": "no-cache"}  # RFC 6749, section 5.1


class TokenEndpoints:
    """``POST /token/refresh``, ``POST /token/revoke``, ``GET /.well-known/jwks.json``.

    A client sends the refresh token in the body (``{"refresh_token": …}`` or a form). A browser sends it in a cookie. A request
    with both is refused. The answer carries the next refresh token in the same way. Answers have the form of OAuth 2.0
    (RFC 6749, sections 5.1 and 5.2, and RFC 7009). If the store fails, the answer is 503 with ``Retry-After``.

    Args:
        tokens: issues and revokes the tokens.
        cookie: the cookie for browsers, or ``None`` if no browser refreshes here.
        trusted_origins: other origins whose pages may refresh by cookie.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        cookie: CookieConfig | None = REFRESH_COOKIE,
        trusted_origins: Iterable[str] = (),
    ) -> None:
        if not isinstance(tokens, Tokens):
            raise ConfigurationError(f"TokenEndpoints({type(tokens).__name__}): give a Tokens")
        if cookie is not None:
            expect("TokenEndpoints(cookie)", cookie, CookieConfig)
            if cookie.name == CookieConfig().name:
                raise ConfigurationError(
                    f"TokenEndpoints(cookie): {cookie.name} is the cookie of the sessions; use another name"
                )
        self._tokens = tokens
        self._cookie = cookie
        router = Router(
            [
                Route("/token/refresh", self._refresh, methods=["POST"]),
                Route("/token/revoke", self._revoke, methods=["POST"]),
                Route("/.well-known/jwks.json", self._jwks, methods=["GET"]),
            ]
        )
        self._app = CrossOriginProtection(router, trusted_origins=trusted_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except StoreError:
            await unavailable(scope, send, self._tokens._manager.guard.retry_after)

    def set_cookie(self, response: Response, pair: TokenPair) -> None:
        """Add the refresh token as a cookie to the response of a browser's log-in. Send only the access token in the body.

        Raises:
            ConfigurationError: these endpoints have no cookie.
        """
        if self._cookie is None:
            raise ConfigurationError("TokenEndpoints(cookie=None): no browser refreshes here")
        # The body probably contains the access token (RFC 6749, section 5.1).
        keep_out_of_caches(response.raw_headers, no_store=False)
        seconds = int(pair.refresh_expires_at.timestamp() - self._tokens.clock())
        response.raw_headers.append(self._cookie.set(pair.refresh_token, max(seconds, 1)))

    async def _refresh(self, request: Request) -> Response:
        try:
            token, by_cookie = await self._presented(request, "refresh_token")
            if not token.value:
                return _error("invalid_request", "there is no refresh token")
            pair = await self._tokens.refresh(token.value, scope=request.scope)
        except _Bad as bad:
            return _error(bad.code, str(bad), bad.status)
        except TokenError as error:
            # The cookie stays: the browser may already have its successor, from another tab.
            return _error("invalid_grant", str(error))
        more = {} if by_cookie else {"refresh_token": pair.refresh_token}
        response = JSONResponse(
            {"access_token": pair.access_token, "token_type": "Bearer", "expires_in": pair.expires_in, **more},
            headers=_NO_STORE,
        )
        del more
        if by_cookie:
            self.set_cookie(response, pair)
        return response

    async def _revoke(self, request: Request) -> Response:
        try:
            token, by_cookie = await self._presented(request, "token")
            if not token.value:
                return _error("invalid_request", "there is no token")
            if not await self._tokens.revoke(token.value) and not by_cookie:
                await self._revoke_access(token)
        except _Bad as bad:
            return _error(bad.code, str(bad), bad.status)
        response = Response(status_code=200, headers=_NO_STORE)  # also for an unknown token (RFC 7009, section 2.2)
        if by_cookie and self._cookie is not None:
            response.raw_headers.append(self._cookie.delete())
        return response

    async def _revoke_access(self, token: Hidden[str]) -> None:
        """End the session of an access token. An invalid token changes nothing."""
        try:
            claims = self._tokens.verify(token.value)
        except TokenError:
            return
        await self._tokens.end(claims)

    async def _jwks(self, request: Request) -> Response:
        # Shorter than a retired key stays valid, so that verifiers see a new key in time.
        headers = {"cache-control": "public, max-age=300"}
        return JSONResponse(self._tokens.jwks(), headers=headers, media_type="application/jwk-set+json")

    async def _presented(self, request: Request, name: str) -> tuple[Hidden[str], bool]:
        """The token, and whether it came by cookie. Tokens in the query are ignored (RFC 9700, section 4.3.2)."""
        in_body = _field(await _fields(request), name)
        values = [] if self._cookie is None else self._cookie.read(request.scope.get("headers", ()))
        if in_body and values:
            raise _Bad("invalid_request", "give the token in the body or in the cookie, not in both")
        if in_body:
            return Hidden(in_body), False
        if len(values) > 1:
            raise _Bad("invalid_grant", "two cookies of the same name")
        return (Hidden(values[0].decode("ascii", "replace")), True) if values else (Hidden(""), False)


class _Bad(Exception):
    def __init__(self, code: str, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.code = code
        self.status = status


async def _fields(request: Request) -> dict[str, Any]:
    try:
        body = await body_of(request, MAX_BODY)
    except TooLong:
        raise _Bad("invalid_request", "the request is too long", 413) from None
    except NeverArrived:
        raise _Bad("invalid_request", "the request never arrived") from None
    if not body:
        return {}
    kind = kind_of(request)
    try:
        if kind == JSON:
            return json_in(body)
        if kind == FORM:
            return dict(form_in(body, max_fields=20, keep_blank=False))
    except ValueError:
        raise _Bad("invalid_request", "the request cannot be read") from None
    raise _Bad("invalid_request", "send JSON or a form", 415)


def _field(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise _Bad("invalid_request", f"{name} is not text")
    return value


def _error(code: str, text: str, status: int = 400) -> Response:
    return JSONResponse({"error": code, "error_description": text}, status, headers=_NO_STORE)
