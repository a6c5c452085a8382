"""Tokens: mint them, refuse the rest before any I/O, and turn one into the key its record lives under.

A token is what the browser keeps and nobody else::

    Zk3                   its shard: where the record lives (three base64url characters)
    q0T4…43 characters    256 random bits
    8yQb…22 characters    only with secret keys: HMAC-SHA-256, cut to 128 bits

OWASP asks for at least 64 bits of entropy in a session identifier, NIST SP 800-63B-4 (section 5.1) for 64 bits; we use
256 so that nobody has to think about it.
"""

from __future__ import annotations

import secrets
from binascii import b2a_base64
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from hmac import compare_digest

from asgi_sessions._core.hmac import Hmac
from asgi_sessions.errors import SessionDataError, SessionError

SHARD_CHARS = 3
"""18 bits: 262,144 shards spread well over the 16,384 slots of a Redis Cluster."""

RANDOM_BYTES = 32
BARE_CHARS = SHARD_CHARS + 43
"""A token without signature: its shard and 32 bytes as unpadded base64url."""

KEY_SUFFIX_CHARS = 22
"""Of a key, after the shard: 128 bits of a hash. Who knows it finds no token for it, and no two tokens share one."""
KEY_CHARS = SHARD_CHARS + KEY_SUFFIX_CHARS

SIGNATURE_BYTES = 16
"""128 bits: an attacker has one guess per request, so a forgery stays out of reach (RFC 2104, section 5)."""
SIGNED_CHARS = BARE_CHARS + 22

ID_BYTES = 12
"""An id is a handle, not a secret: 96 bits are enough that two never meet."""
ID_CHARS = 16

OWNER_CHARS = 22

MAX_USER_ID = 16 * 1024
"""Bytes of a user's id as UTF-8. It is stored with every session of the user."""

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def base64url(data: bytes) -> str:
    """Without padding (RFC 4648, section 5)."""
    return b2a_base64(data, newline=False).translate(_URL_SAFE, b"=").decode("ascii")


def new_id() -> str:
    """A fresh public id: 16 base64url characters."""
    return secrets.token_urlsafe(ID_BYTES)


def is_id(value: object) -> bool:
    """Whether this has the form of a public id. Anything else is the id of no session, so no store need be asked for it."""
    return isinstance(value, str) and len(value) == ID_CHARS and value.isascii() and not value.encode().strip(ALPHABET)


def user_id_in(name: str, value: object) -> str:
    """``value`` as the id of a user: a non-empty ``str`` of valid Unicode, of 16 kB at most.

    Args:
        name: what it was given to, for the message: ``log_in()``.
    Raises:
        SessionDataError: it is none.
    """
    if not isinstance(value, str):
        raise SessionDataError(f"{name}: a user id is a str, not {type(value).__name__}; pass str(user.id)")
    if not value:
        raise SessionDataError(f"{name}: the user id is empty")
    text = str.__str__(value)  # of a str Enum, str() would be another text
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise SessionDataError(f"{name}: the user id is not valid Unicode: it holds a lone surrogate") from None
    if size > MAX_USER_ID:
        raise SessionDataError(f"{name}: the user id has {size:,} bytes; {MAX_USER_ID:,} are allowed")
    return text


def owner_of(user_id: str) -> str:
    """The name under which a store keeps the index of one user's sessions: 22 base64url characters.

    A hash, so that any user id will do (braces, colons, NUL, ten kilobytes) and none stands in a key name.

    Raises:
        SessionDataError: it is no user's id; see :func:`user_id_in`.
    """
    return owner_of_known(user_id_in("owner_of()", user_id))


@lru_cache(maxsize=4096)
def owner_of_known(user_id: str) -> str:
    """:func:`owner_of`, for a user id that was checked when its session began."""
    return base64url(sha256(b"asgi-sessions owner\0" + user_id.encode("utf-8")).digest()[:16])


def realm_of(name: object) -> bytes:
    """The realm of a request, from what the app's ``realm=`` says of it; in front of it stands NUL, which is in no token.

    Raises:
        SessionError: ``name`` is no ``str``.
    """
    if not isinstance(name, str):
        raise SessionError(
            f"SessionMiddleware(realm=…) returned a {type(name).__name__}: return a str, such as the host"
        )
    return b"\0" + name.encode("utf-8", "surrogatepass")


def shard_of(name: str) -> str:
    """The shard that a token, a key or an owner names: its first three characters."""
    return name[:SHARD_CHARS]


def key_of(token: str, realm: bytes = b"") -> str:
    """The key of a token's record: its shard, then 128 bits of SHA-256 of the token as base64url; 25 characters.

    Knowing a key does not help to log in, so a store, a backup or a slow-query log may hold it. In another ``realm`` the same
    token has another key, and so leads to nothing.
    """
    return _key_of(token[:BARE_CHARS].encode("ascii"), realm)


def _key_of(bare: bytes, realm: bytes) -> str:
    digest = b2a_base64(sha256(bare + realm).digest()[:16], newline=False).translate(_URL_SAFE, b"=")
    return (bare[:SHARD_CHARS] + digest).decode("ascii")


class Signer:
    """Signs what begins with ``context``, which no other purpose does."""

    __slots__ = ("_hmac",)

    def __init__(self, key: bytes, context: bytes) -> None:
        self._hmac = Hmac(key, context)

    def sign(self, bare: bytes) -> bytes:
        """The signature as base64url."""
        return b2a_base64(self._hmac.digest(bare)[:SIGNATURE_BYTES], newline=False).translate(_URL_SAFE, b"=")


class TokenMint:
    """Makes tokens and recognises its own.

    ``keys``: subkeys for signing, the one that signs first; none means that tokens are not signed. ``purpose`` goes into
    every signature, so that the token of one cookie is worthless under another name.
    """

    __slots__ = ("_signers", "_size")

    def __init__(self, keys: Sequence[bytes] = (), purpose: str = "") -> None:
        context = b"asgi-sessions token\0" + purpose.encode("utf-8") + b"\0"
        self._signers = tuple(Signer(key, context) for key in keys)
        self._size = SIGNED_CHARS if self._signers else BARE_CHARS

    def mint(self, shard: str | None = None, realm: bytes = b"") -> str:
        """A fresh token in that shard, or anywhere: one user's sessions live together, anonymous ones are spread out.

        ``realm``: as :func:`realm_of` makes it; the token is worthless in another one.
        """
        if shard is None:
            shard = shard_of(secrets.token_urlsafe(SHARD_CHARS))
        return self.signed(shard, secrets.token_urlsafe(RANDOM_BYTES), realm)

    def signed(self, shard: str, secret: str, realm: bytes = b"") -> str:
        """The token of a secret of 43 base64url characters."""
        bare = shard + secret
        if not self._signers:
            return bare
        return bare + self._signers[0].sign(bare.encode("ascii") + realm).decode("ascii")

    def parse(self, raw: bytes) -> str | None:
        """The token in ``raw``, or ``None`` unless it has our form and, with secret keys, our signature.

        Never raises, whatever the bytes; costs a microsecond and no I/O.
        """
        return None if self.key_in(raw) is None else raw.decode("ascii")

    def key_in(self, raw: bytes, realm: bytes = b"") -> str | None:
        """The key of the token in ``raw``, where :meth:`parse` finds one."""
        if len(raw) != self._size or raw.translate(None, ALPHABET):
            return None
        if self._signers:
            bare, presented = raw[:BARE_CHARS], raw[BARE_CHARS:]
            # Every key is tried even after a hit: there are two or three, and time then says nothing about which.
            good = False
            for signer in self._signers:
                good |= compare_digest(signer.sign(bare + realm), presented)
            return _key_of(bare, realm) if good else None
        return _key_of(raw, realm)
