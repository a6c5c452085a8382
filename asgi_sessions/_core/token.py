"""Tokens: mints them, refuses others before any I/O, and computes the key of a token's record.

Only the browser keeps the token::

    Zk3                   the shard of the record (three base64url characters)
    q0T4…43 characters    256 random bits
    8yQb…22 characters    only with secret keys: HMAC-SHA-256, cut to 128 bits

OWASP asks for at least 64 bits of entropy in a session identifier, NIST SP 800-63B-4 (section 5.1) for 64 bits. We use 256,
which is beyond doubt.
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
"""18 bits: 262,144 shards spread evenly over the 16,384 slots of a Redis Cluster."""

RANDOM_BYTES = 32
BARE_CHARS = SHARD_CHARS + 43
"""A token without signature: the shard and 32 bytes as unpadded base64url."""

KEY_SUFFIX_CHARS = 22
"""Of a key, after the shard: 128 bits of a hash. It leads back to no token, and no two tokens share one."""
KEY_CHARS = SHARD_CHARS + KEY_SUFFIX_CHARS

SIGNATURE_BYTES = 16
"""128 bits. An attacker has one guess per request, so a forgery is infeasible (RFC 2104, section 5)."""
SIGNED_CHARS = BARE_CHARS + 22

ID_BYTES = 12
"""An id is not a secret: 96 bits are enough to avoid collisions."""
ID_CHARS = 16

OWNER_CHARS = 22

MAX_USER_ID = 16 * 1024
"""Bytes of a user id as UTF-8. Every session of the user stores it."""

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def base64url(data: bytes) -> str:
    """Encode as base64url without padding (RFC 4648, section 5)."""
    return b2a_base64(data, newline=False).translate(_URL_SAFE, b"=").decode("ascii")


def new_id() -> str:
    """A new public id: 16 base64url characters."""
    return secrets.token_urlsafe(ID_BYTES)


def is_id(value: object) -> bool:
    """Whether this has the format of a public id. If not, no session has it, and the store need not be asked."""
    return isinstance(value, str) and len(value) == ID_CHARS and value.isascii() and not value.encode().strip(ALPHABET)


def user_id_in(name: str, value: object) -> str:
    """Check a user id and return it: a non-empty ``str`` of valid Unicode, of 16 kB at most.

    Args:
        name: the called function, for the message: ``log_in()``.
    Raises:
        SessionDataError: it is not a valid user id.
    """
    if not isinstance(value, str):
        raise SessionDataError(f"{name}: a user id is a str, not {type(value).__name__}; pass str(user.id)")
    if not value:
        raise SessionDataError(f"{name}: the user id is empty")
    text = str.__str__(value)  # str() of a str Enum is another text
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise SessionDataError(f"{name}: the user id is not valid Unicode: it holds a lone surrogate") from None
    if size > MAX_USER_ID:
        raise SessionDataError(f"{name}: the user id has {size:,} bytes; {MAX_USER_ID:,} are allowed")
    return text


def owner_of(user_id: str) -> str:
    """The name of a user's index in the store: 22 base64url characters.

    It is a hash, so any user id is allowed (braces, colons, NUL, ten kilobytes), and none appears in a key name.

    Raises:
        SessionDataError: it is not a valid user id; see :func:`user_id_in`.
    """
    return owner_of_known(user_id_in("owner_of()", user_id))


@lru_cache(maxsize=4096)
def owner_of_known(user_id: str) -> str:
    """:func:`owner_of`, for a user id that was checked when its session began."""
    return base64url(sha256(b"asgi-sessions owner\0" + user_id.encode("utf-8")).digest()[:16])


def realm_of(name: object) -> bytes:
    """The realm of a request from the result of the app's ``realm=``. It begins with NUL, which no token contains.

    Raises:
        SessionError: ``name`` is not a ``str``.
    """
    if not isinstance(name, str):
        raise SessionError(
            f"SessionMiddleware(realm=…) returned the type {type(name).__name__}: return a str, such as the host"
        )
    return b"\0" + name.encode("utf-8", "surrogatepass")


def shard_of(name: str) -> str:
    """The shard of a token, a key or an owner: its first three characters."""
    return name[:SHARD_CHARS]


def key_of(token: str, realm: bytes = b"") -> str:
    """The key of a token's record, 25 characters: its shard, then 128 bits of SHA-256 of the token as base64url.

    A key is useless for logging in, so a store, a backup or a slow-query log may contain it. In another ``realm`` the same token
    has another key, and so no record.
    """
    return _key_of(token[:BARE_CHARS].encode("ascii"), realm)


def _key_of(bare: bytes, realm: bytes) -> str:
    digest = b2a_base64(sha256(bare + realm).digest()[:16], newline=False).translate(_URL_SAFE, b"=")
    return (bare[:SHARD_CHARS] + digest).decode("ascii")


class Signer:
    """Signs messages for one purpose: each begins with its ``context``."""

    __slots__ = ("_hmac",)

    def __init__(self, key: bytes, context: bytes) -> None:
        self._hmac = Hmac(key, context)

    def sign(self, bare: bytes) -> bytes:
        """The signature as base64url."""
        return b2a_base64(self._hmac.digest(bare)[:SIGNATURE_BYTES], newline=False).translate(_URL_SAFE, b"=")


class TokenMint:
    """Mints tokens and recognises its own.

    ``keys``: subkeys for signing, of which the first signs. Without keys, tokens are not signed. ``purpose`` is part of every
    signature, so that the token of one cookie is worthless under another name.
    """

    __slots__ = ("_signers", "_size")

    def __init__(self, keys: Sequence[bytes] = (), purpose: str = "") -> None:
        context = b"asgi-sessions token\0" + purpose.encode("utf-8") + b"\0"
        self._signers = tuple(Signer(key, context) for key in keys)
        self._size = SIGNED_CHARS if self._signers else BARE_CHARS

    def mint(self, shard: str | None = None, realm: bytes = b"") -> str:
        """A new token in this shard, or in a random one. A user's sessions share a shard, anonymous ones are spread out.

        ``realm``: from :func:`realm_of`. The token is worthless in another one.
        """
        if shard is None:
            shard = shard_of(secrets.token_urlsafe(SHARD_CHARS))
        return self.signed(shard, secrets.token_urlsafe(RANDOM_BYTES), realm)

    def signed(self, shard: str, secret: str, realm: bytes = b"") -> str:
        """The token for a secret of 43 base64url characters."""
        bare = shard + secret
        if not self._signers:
            return bare
        return bare + self._signers[0].sign(bare.encode("ascii") + realm).decode("ascii")

    def key_in(self, raw: bytes, realm: bytes = b"") -> str | None:
        """The key of the token in ``raw`` if it has our format and, with secret keys, our signature. Otherwise ``None``.

        Never raises. It takes a microsecond and no I/O.
        """
        if len(raw) != self._size or raw.translate(None, ALPHABET):
            return None
        if self._signers:
            bare, presented = raw[:BARE_CHARS], raw[BARE_CHARS:]
            # Every key is tried even after a match, so that the time does not depend on which one it is.
            good = False
            for signer in self._signers:
                good |= compare_digest(signer.sign(bare + realm), presented)
            return _key_of(bare, realm) if good else None
        return _key_of(raw, realm)
