"""The messages of identity providers: logout tokens and security event tokens. Pure, except for the fetch of keys.

PyJWT verifies the signature. This file checks the claims, in the order of the specifications.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from jwt import PyJWS
from jwt.algorithms import OKPAlgorithm
from jwt.exceptions import PyJWTError

from asgi_sessions._core.json import is_time, json_in
from asgi_sessions._core.provider import name_in
from asgi_sessions.errors import SessionDataError
from asgi_sessions.identity._provider import IdentityProvider

LEEWAY: Final = 60.0
"""Seconds by which the clock of a provider may differ from ours."""

MOST_AHEAD: Final = 86400.0
"""The longest accepted life of a logout token, in seconds. The store remembers the token until it expires. The specification
recommends two minutes."""

OLDEST_EVENT: Final = 7 * 86400.0
"""The greatest accepted age of a security event token, in seconds, since it has no expiry. The store remembers it for so long."""

LOGOUT: Final = "http://schemas.openid.net/event/backchannel-logout"
CAEP: Final = "https://schemas.openid.net/secevent/caep/event-type/"
SESSION_REVOKED: Final = CAEP + "session-revoked"
CREDENTIAL_CHANGE: Final = CAEP + "credential-change"

Code = Literal["invalid_request", "invalid_key", "invalid_issuer", "invalid_audience", "authentication_failed"]
"""Error codes of RFC 8935, section 2.4. A logout endpoint answers ``invalid_request`` for each of them."""

_LOGOUT_TYPES: Final = ("logout+jwt", "application/logout+jwt")
_EVENT_TYPES: Final = ("secevent+jwt", "application/secevent+jwt")  # RFC 8417, section 2.3
_UNTYPED: Final = ("", "jwt")

# RFC 8725, section 3: a header with a key of its own, or with an extension, is refused.
_REFUSED_IN_HEADER: Final = frozenset({"crit", "b64", "zip", "enc", "jwk", "jku", "x5u", "x5c"})


_jws: Final = PyJWS()
if "Ed25519" not in _jws.get_algorithms():  # the newer name of EdDSA with this curve (RFC 9864)
    _jws.register_algorithm("Ed25519", OKPAlgorithm())


class Refused(Exception):
    """Raised if a message is refused. The text is one of ours and contains nothing from the message."""

    def __init__(self, text: str, code: Code = "invalid_request") -> None:
        super().__init__(text)
        self.code: Code = code


@dataclass(frozen=True, slots=True)
class Message:
    """A verified token of this provider for this app."""

    provider: IdentityProvider
    claims: dict[str, Any]
    jti: str
    issued_at: float


@dataclass(frozen=True, slots=True)
class Meant:
    """The sessions that a message means."""

    issuer: str
    subject: str | None
    sid: str | None


# ── Signature and audience ──


async def message_in(token: bytes, providers: Sequence[IdentityProvider], now: float, *, is_event: bool) -> Message:
    """The message in a token.

    Args:
        is_event: the token must be a security event token instead of a logout token.
    Raises:
        Refused: the token is not valid. KeysUnavailable: the provider's keys could not be fetched.
    """
    try:
        whole = _jws.decode_complete(token, options={"verify_signature": False})
        header, claims = whole["header"], json_in(whole["payload"])
    except (PyJWTError, ValueError):
        raise Refused("it is no signed JWT") from None
    provider = next((each for each in providers if each.issuer == claims.get("iss")), None)
    if provider is None:
        raise Refused("the issuer is not known here", "invalid_issuer")
    _check_type(header.get("typ", ""), is_event, provider.untyped)
    alg, kid = header.get("alg"), header.get("kid")
    if not isinstance(alg, str) or alg not in provider.algorithms or not _REFUSED_IN_HEADER.isdisjoint(header):
        raise Refused("the header asks for something that is not supported", "invalid_key")
    key = await provider.keys[is_event].find(kid, alg, now)
    if key is None:
        raise Refused("the provider has no such key", "invalid_key")
    try:
        _jws.decode_complete(token, key.key, algorithms=[alg])
    except (PyJWTError, ValueError, TypeError):
        raise Refused("the signature does not match", "invalid_key") from None
    audience = claims.get("aud")
    if provider.audience not in (audience if isinstance(audience, list) else [audience]):
        raise Refused("it is for another audience", "invalid_audience")
    issued_at = _time(claims, "iat")
    if issued_at > now + LEEWAY:
        raise Refused("it comes from the future")
    return Message(provider, claims, _text(claims, "jti"), issued_at)


def _check_type(typ: object, is_event: bool, untyped: bool) -> None:
    said = typ.lower() if isinstance(typ, str) else None
    if said not in (_EVENT_TYPES if is_event else (*_LOGOUT_TYPES, *(_UNTYPED if untyped else ()))):
        raise Refused("it is of another type" if is_event else "it is of another type; see IdentityProvider.untyped")


# ── Logout tokens ──


def logout_in(message: Message, now: float) -> Meant:
    """The sessions that a logout token ends (OpenID Connect Back-Channel Logout 1.0, sections 2.4 and 2.6).

    Raises:
        Refused: the token is not valid.
    """
    claims = message.claims
    expires_at = _time(claims, "exp")
    if now >= expires_at + LEEWAY:
        raise Refused("it has expired")
    if expires_at > now + MOST_AHEAD:
        raise Refused("it lives too long")
    if not isinstance(_events(claims).get(LOGOUT), dict):
        raise Refused("it does not say that it is a log-out")
    if "nonce" in claims:
        raise Refused("it has a nonce, as an ID token has")
    subject, sid = (None if name not in claims else _text(claims, name) for name in ("sub", "sid"))
    if subject is None and sid is None:
        raise Refused("it names neither a subject nor a session")
    return Meant(message.provider.issuer, subject, sid)


# ── Security event tokens ──


def events_in(message: Message, now: float) -> list[str]:
    """The types of the events in a token that end sessions (OpenID CAEP 1.0). Other events are left out.

    A new credential (``change_type`` ``create``) ends no session, for example if the user adds a passkey.

    Raises:
        Refused: the token is not valid.
    """
    if now - message.issued_at > OLDEST_EVENT:
        raise Refused("it is too old")
    found = []
    for name, event in _events(message.claims).items():
        if not isinstance(event, dict):
            raise Refused("an event is no JSON object")
        if name == CREDENTIAL_CHANGE:
            if event.get("change_type") not in ("create", "revoke", "update", "delete"):
                raise Refused("a credential change does not say what was changed")
            if event["change_type"] == "create":
                continue
        if name in (SESSION_REVOKED, CREDENTIAL_CHANGE):
            found.append(name)
    return found


def subject_in(message: Message, event: str) -> Mapping[str, Any]:
    """The subject (RFC 9493) of the token, or of the event in tokens of older drafts.

    Raises:
        Refused: the subject is missing.
    """
    subject = message.claims.get("sub_id", message.claims["events"][event].get("subject"))
    if not isinstance(subject, dict):
        raise Refused("it has no subject")
    return subject


def meant_by(subject: Mapping[str, Any], event: str, issuer: str, issuers: Sequence[str]) -> Meant | None:
    """The sessions that a subject means, or ``None`` for a format without issuer and subject, such as ``email``.

    Args:
        event: the type of the event. A changed credential belongs to the user, so all sessions of the user end.
        issuer: the issuer of the token.
        issuers: the token may name subjects of these issuers.
    Raises:
        Refused: the subject is malformed, or belongs to an issuer outside of ``issuers``.
    """
    if subject.get("format") == "complex" or ("format" not in subject and "user" in subject):
        user, session = subject.get("user"), subject.get("session")
        known = None if user is None else _meant_by_user(user, issuers)
        if session is None or event == CREDENTIAL_CHANGE or (user is not None and known is None):
            return known
        sid = _text(_object(session), "id")
        return Meant(issuer, None, sid) if known is None else Meant(known.issuer, known.subject, sid)
    return _meant_by_user(subject, issuers)


def _meant_by_user(subject: object, issuers: Sequence[str]) -> Meant | None:
    given = _object(subject)
    if given.get("format", given.get("subject_type")) not in ("iss_sub", "iss-sub"):
        return None
    issuer = _text(given, "iss")
    if issuer not in issuers:
        raise Refused("the issuer may not speak of a subject of that issuer", "invalid_issuer")
    return Meant(issuer, _text(given, "sub"), None)


# ── Claims ──


def _events(claims: dict[str, Any]) -> dict[str, Any]:
    events = claims.get("events")
    if not isinstance(events, dict) or not events:
        raise Refused("it has no events")
    return events


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused("a subject is no JSON object")
    return value


def _text(claims: Mapping[str, Any], name: str) -> str:
    try:
        return name_in("", name, claims.get(name))
    except SessionDataError:
        raise Refused(f"{name} is no text, empty, or too long") from None


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if not is_time(value):
        raise Refused(f"{name} is no time")
    return float(value)
