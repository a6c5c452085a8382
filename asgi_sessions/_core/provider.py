"""Provider: the log-in of a session at an identity provider, and the links to find the session again. Pure.

The sealed body of a session holds its provider log-in. It decides whether a log-out at the provider ends the session. A link is a
separate record. It points from a subject, or from a session at the provider, to the users with such sessions.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import msgspec

from asgi_sessions._core.token import KEY_CHARS, base64url
from asgi_sessions.errors import SessionDataError

MOST_BYTES: Final = 2048
"""The limit for an issuer, a subject or a sid. OpenID Connect Core 1.0, section 2, allows a subject 255 characters."""

MOST_OWNERS: Final = 32
"""How many users a link holds. Usually it is one: a subject is a person."""

MATCH_LEEWAY: Final = 60.0
"""Seconds by which the clocks of the provider and the app may differ. A log-out also ends sessions up to this much younger."""


class ProviderLogIn(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The log-in of a session at an identity provider."""

    issuer: str
    """``iss`` of the ID token: a URL."""
    subject: str
    """``sub``: the provider's name for the user."""
    sid: str | None = None
    """``sid``: the session at the provider. ``None``: the ID token has no ``sid``."""

    def __repr__(self) -> str:
        return f"<ProviderLogIn at {self.issuer}>"

    @property
    def links(self) -> list[str]:
        """The keys of its links, that of the ``sid`` last."""
        of_sid = [] if self.sid is None else [key_of_sid(self.issuer, self.sid)]
        return [key_of_subject(self.issuer, self.subject), *of_sid]

    def is_meant(self, issuer: str, subject: str | None, sid: str | None, *, is_older: bool) -> bool:
        """Whether a log-out by the provider ends the session of this log-in. ``is_older``: the log-in was before it.

        If both have a ``sid``, only that must match. Otherwise the subject must match, since a log-in without a ``sid`` may
        belong to any session of its subject.
        """
        if self.issuer != issuer:
            return False
        if sid is not None and self.sid is not None:
            return self.sid == sid
        return is_older and self.subject == subject


class Link(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The content of a link. Later versions may append fields."""

    owners: tuple[str, ...] = ()
    """The indexes of the users, the latest last."""
    is_ended: bool = False
    """For a ``sid``: the provider has ended this session for good, so a log-in that arrives later ends at once. For a token of
    the provider: it was processed."""

    def with_owner(self, owner: str) -> Link:
        """Return the link with this user as the latest."""
        return Link((*self.without_owner(owner).owners, owner)[-MOST_OWNERS:], self.is_ended)

    def without_owner(self, owner: str) -> Link:
        """Return the link without this user."""
        return Link(tuple(each for each in self.owners if each != owner), self.is_ended)


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_log_in: Final = msgspec.msgpack.Decoder(ProviderLogIn).decode
_decode_link: Final = msgspec.msgpack.Decoder(Link).decode


def pack(value: ProviderLogIn | Link) -> bytes:
    """Encode as bytes, for a body. An empty link gives ``b""``."""
    return b"" if value == Link() else _encode(value)


def unpack_log_in(data: bytes) -> ProviderLogIn | None:
    """Decode a log-in of :func:`pack`. Invalid bytes give ``None``."""
    try:
        return _decode_log_in(data) if data else None
    except (msgspec.MsgspecError, ValueError):
        return None


def unpack_link(data: bytes) -> Link:
    """Decode a link of :func:`pack`. Invalid bytes give an empty link."""
    try:
        return _decode_link(data)
    except (msgspec.MsgspecError, ValueError):
        return Link()


def key_of_subject(issuer: str, subject: str) -> str:
    """The key of the link of a subject."""
    return _key("subject", issuer, subject)


def key_of_sid(issuer: str, sid: str) -> str:
    """The key of the link of a session at the provider."""
    return _key("sid", issuer, sid)


def key_of_token(issuer: str, jti: str) -> str:
    """The key of the link of a processed token of the provider."""
    return _key("jti", issuer, jti)


def _key(kind: str, *names: str) -> str:
    """Hash names to a key, so that the store does not contain them. Their lengths make the encoding unambiguous."""
    sizes = ",".join(str(len(name)) for name in names)
    text = "\0".join(("asgi-sessions provider", kind, sizes, *names))
    return base64url(sha256(text.encode("utf-8")).digest())[:KEY_CHARS]


def provider_in(called: str, value: object) -> ProviderLogIn:
    """Check a provider log-in, given as ``(issuer, subject)`` or ``(issuer, subject, sid)``.

    Raises:
        SessionDataError: the value has another form.
    """
    if not isinstance(value, tuple) or len(value) not in (2, 3):
        raise SessionDataError(
            f"{called}: provider is of type {type(value).__name__}; give (issuer, subject, sid) of the ID token, "
            'such as provider=(claims["iss"], claims["sub"], claims.get("sid"))'
        )
    issuer, subject, sid = (*value, None)[:3]
    return ProviderLogIn(
        name_in(called, "issuer", issuer),
        name_in(called, "subject", subject),
        None if sid is None else name_in(called, "sid", sid),
    )


def name_in(called: str, what: str, value: object) -> str:
    """Check a name from a provider and return it.

    Raises:
        SessionDataError: the name is not text, empty, too long, or not valid Unicode.
    """
    if not isinstance(value, str) or not value:
        raise SessionDataError(f"{called}: the {what} of the provider is no text, or empty")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise SessionDataError(f"{called}: the {what} of the provider is not valid Unicode") from None
    if size > MOST_BYTES:
        raise SessionDataError(f"{called}: the {what} of the provider has {size:,} bytes; {MOST_BYTES:,} are allowed")
    return value
