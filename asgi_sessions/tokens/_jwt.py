"""Access tokens: JWTs in the form of RFC 9068. All other tokens are refused.

Cheap checks come first, and the claims count only after the signature was checked. PyJWT's algorithms do the cryptography. The
checks and their order are in this file, because JWT libraries have had faults there.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from asgi_sessions._core.json import is_time, json_in
from asgi_sessions._core.token import base64url
from asgi_sessions.errors import SessionDataError, TokenExpired, TokenInvalid
from asgi_sessions.tokens._keys import KeyRing

MAX_TOKEN: Final = 8192
"""Bytes. Servers refuse longer headers, and ours have 500."""

MAX_LIFETIME: Final = 3600.0
"""Seconds between ``iat`` and ``exp``. A token with a longer life is refused, even if its signature is good."""

LEEWAY: Final = 10.0
"""Seconds by which the clocks of two servers may differ."""

_PART = re.compile(rb"[A-Za-z0-9_-]+")
_HEADER = {"alg", "typ", "kid"}
_TYPES = ("at+jwt", "application/at+jwt")  # RFC 9068, section 4


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a verified access token."""

    user_id: str
    session_id: str
    issued_at: float
    expires_at: float
    authenticated_at: float
    token_id: str
    extra: dict[str, Any]

    @property
    def actor_id(self) -> str | None:
        """The id of the user who acts as ``user_id`` (RFC 8693, section 4.1), or ``None``."""
        actor: str | None = self.extra["act"]["sub"] if "act" in self.extra else None
        return actor


def encode(ring: KeyRing, claims: dict[str, Any]) -> str:
    """An access token with these claims.

    Raises:
        SessionDataError: the claims are no JSON, or the token is too long for :func:`decode`.
    """
    key = ring.signing
    header = {"alg": key.alg, "kid": key.kid, "typ": "at+jwt"}
    message = f"{_part(header)}.{_part(claims)}".encode("ascii")
    token = f"{message.decode('ascii')}.{base64url(key.sign(message))}"
    if len(token) > MAX_TOKEN:
        raise SessionDataError(
            f"an access token of {len(token):,} bytes would be refused; {MAX_TOKEN:,} are allowed: give it fewer claims, "
            "or the user a shorter id"
        )
    return token


def decode(token: str | bytes, ring: KeyRing, *, issuer: str, audience: str, now: float, lifetime: float) -> Claims:
    """The claims of an access token.

    Raises:
        TokenExpired: the token has expired.
        TokenInvalid: any other fault. Only the message names the reason.
    """
    if not isinstance(token, str | bytes):
        raise TokenInvalid(f"a token is a str or bytes, not {type(token).__name__}")
    raw = token if isinstance(token, bytes) else token.encode("utf-8", "replace")
    if len(raw) > MAX_TOKEN:
        raise TokenInvalid("the token is too long")
    parts = raw.split(b".")
    if len(parts) != 3 or not all(_PART.fullmatch(part) for part in parts):
        raise TokenInvalid("the token does not have three parts")
    header = _object(parts[0])
    if set(header) != _HEADER or not all(isinstance(value, str) for value in header.values()):
        # Refuses headers with a key (jwk, jku, x5c, x5u) or an extension (crit, b64, zip): RFC 8725, section 3.
        raise TokenInvalid("the header of the token is not one of ours")
    if header["typ"].lower() not in _TYPES:
        raise TokenInvalid("the token is of another type")
    key = ring.get(header["kid"], now, lifetime)
    if key is None or key.alg != header["alg"]:
        raise TokenInvalid("the token names no key of ours")
    try:
        signature = base64.urlsafe_b64decode(parts[2] + b"=" * (-len(parts[2]) % 4))
    except ValueError:
        raise TokenInvalid("the signature is no base64url") from None
    if base64url(signature).encode("ascii") != parts[2] or not key.verify(parts[0] + b"." + parts[1], signature):
        raise TokenInvalid("the signature does not match")
    return _checked(_object(parts[1]), issuer, audience, now)


def _checked(claims: dict[str, Any], issuer: str, audience: str, now: float) -> Claims:
    if claims.get("iss") != issuer or claims.get("aud") != audience:
        raise TokenInvalid("the token has another issuer or audience")
    sub, sid, jti = (_text(claims, name) for name in ("sub", "sid", "jti"))
    exp, iat, auth_time = (_time(claims, name) for name in ("exp", "iat", "auth_time"))
    if "nbf" in claims and _time(claims, "nbf") > now + LEEWAY:
        raise TokenInvalid("the token is not valid yet")
    if iat > now + LEEWAY or not 0 < exp - iat <= MAX_LIFETIME:
        raise TokenInvalid("the times of the token make no sense")
    if now >= exp + LEEWAY:
        raise TokenExpired("the token has expired")
    if "act" in claims:
        _text(claims["act"] if isinstance(claims["act"], dict) else {}, "sub")
    known = {"iss", "aud", "sub", "sid", "jti", "exp", "iat", "auth_time", "nbf", "client_id"}
    return Claims(sub, sid, iat, exp, auth_time, jti, {key: value for key, value in claims.items() if key not in known})


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise TokenInvalid(f"the claim {name} is not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise TokenInvalid(f"the claim {name} is not valid text") from None
    return value


def _time(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if not is_time(value):
        raise TokenInvalid(f"the claim {name} is not a time")
    return float(value)


def _part(content: dict[str, Any]) -> str:
    try:
        text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SessionDataError(f"access_token(): the claims are no JSON ({error})") from None
    return base64url(text.encode("utf-8"))


def _object(part: bytes) -> dict[str, Any]:
    try:
        text = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
        if base64url(text).encode("ascii") != part:
            raise TokenInvalid("a part of the token has two spellings")
        return json_in(text)
    except ValueError:
        raise TokenInvalid("a part of the token is no JSON object") from None
