"""Provider: the log-in at an identity provider that a session came from, and the links that lead from it to the session. Pure.

A session notes its provider log-in in its sealed body. That note decides whether a log-out of the provider means the session.
A link is a record of its own. It leads from a subject, or from a session at the provider, to the users whose sessions may be
meant.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import msgspec

from asgi_sessions._core.token import KEY_CHARS, base64url
from asgi_sessions.errors import SessionDataError

MOST_BYTES: Final = 2048
"""Of an issuer, a subject or a session id. OpenID Connect Core 1.0, section 2, allows a subject 255 characters."""

MOST_OWNERS: Final = 32
"""How many users one link leads to. Mostly it is one: a subject is a person."""

MATCH_LEEWAY: Final = 60.0
"""Seconds by which the clock of a provider may differ from ours. A session that began so late may still be meant."""


class ProviderLogIn(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The log-in at an identity provider that a session came from."""

    issuer: str
    """``iss`` of the ID token: a URL."""
    subject: str
    """``sub``: the user, as the provider names them."""
    sid: str | None = None
    """``sid``: the session at the provider; ``None``: the ID token did not say it."""

    def __repr__(self) -> str:
        return f"<ProviderLogIn at {self.issuer}>"

    def is_meant(self, issuer: str, subject: str | None, sid: str | None) -> bool:
        """Whether a log-out by the provider means the session of this log-in.

        With a ``sid`` it means that session of the provider. A log-in without one may be of that session, if it is of the same
        subject.
        """
        if self.issuer != issuer:
            return False
        if sid is not None and self.sid is not None:
            return self.sid == sid
        return subject is not None and self.subject == subject


class Link(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a link leads to. Later versions may append fields."""

    owners: tuple[str, ...] = ()
    """The indexes of the users, the latest last."""
    is_ended: bool = False
    """Of a session of the provider: the provider has ended it. It never comes back, so a log-in that arrives later ends at once.
    Of a token of the provider: it was carried out."""

    def with_owner(self, owner: str) -> Link:
        """With this user as the latest."""
        return Link((*self.without_owner(owner).owners, owner)[-MOST_OWNERS:], self.is_ended)

    def without_owner(self, owner: str) -> Link:
        """Without this user."""
        return Link(tuple(each for each in self.owners if each != owner), self.is_ended)


_NO_LINK: Final = Link()
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_log_in: Final = msgspec.msgpack.Decoder(ProviderLogIn).decode
_decode_link: Final = msgspec.msgpack.Decoder(Link).decode


def pack(value: ProviderLogIn | Link) -> bytes:
    """As bytes, for a body; an empty link has none."""
    return b"" if value == _NO_LINK else _encode(value)


def unpack_log_in(data: bytes) -> ProviderLogIn | None:
    """What :func:`pack` was given; ``None`` for anything else."""
    try:
        return _decode_log_in(data) if data else None
    except (msgspec.MsgspecError, ValueError):
        return None


def unpack_link(data: bytes) -> Link:
    """What :func:`pack` was given; an empty link for anything else."""
    try:
        return _decode_link(data)
    except (msgspec.MsgspecError, ValueError):
        return Link()


def key_of_subject(issuer: str, subject: str) -> str:
    """Where the link of a subject is stored."""
    return _key("subject", issuer, subject)


def key_of_sid(issuer: str, sid: str) -> str:
    """Where the link of a session of the provider is stored."""
    return _key("sid", issuer, sid)


def key_of_token(issuer: str, jti: str) -> str:
    """Where it is noted that a token of the provider was carried out."""
    return _key("jti", issuer, jti)


def _key(kind: str, *names: str) -> str:
    """A hash, so the names themselves are not in the store. Their lengths keep two pairs of names apart."""
    sizes = ",".join(str(len(name)) for name in names)
    text = "\0".join(("asgi-sessions provider", kind, sizes, *names))
    return base64url(sha256(text.encode("utf-8")).digest())[:KEY_CHARS]


def provider_in(called: str, value: object) -> ProviderLogIn:
    """The provider log-in that the app names, as ``(issuer, subject)`` or ``(issuer, subject, sid)``.

    Raises:
        SessionDataError: it is none.
    """
    if not isinstance(value, tuple) or len(value) not in (2, 3):
        raise SessionDataError(
            f"{called}: provider is a {type(value).__name__}; give (issuer, subject, sid) of the ID token, "
            'such as provider=(claims["iss"], claims["sub"], claims.get("sid"))'
        )
    issuer, subject, sid = (*value, None)[:3]
    return ProviderLogIn(
        name_in(called, "issuer", issuer),
        name_in(called, "subject", subject),
        None if sid is None else name_in(called, "sid", sid),
    )


def name_in(called: str, what: str, value: object) -> str:
    """A name that a provider gives.

    Raises:
        SessionDataError: it is no text, empty, too long, or not valid Unicode.
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
