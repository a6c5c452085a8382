"""Secrets: subkeys for every purpose, and records encrypted at rest.

Each purpose has its own subkey of a secret: HKDF (RFC 5869) with a label for each. Each record is sealed with AES-256-GCM under
its own subkey, derived from the record's key. So no AES key comes near the limit on random nonces (2^32 messages, NIST SP
800-38D, section 8.3). There is no fallback: with secrets configured, a record that does not open is not read.
"""

from __future__ import annotations

import base64
import hmac
import os
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from asgi_sessions._core.arguments import several
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.hmac import Hmac
from asgi_sessions.errors import ConfigurationError

MIN_SECRET_BYTES = 32
SECRET_ID_BYTES = 4
NONCE_BYTES = 12

_MIN_DISTINCT_BYTES = 3
"""Fewer distinct bytes look like a repeated character."""

# The input of HKDF-Expand before and after the label. One block is enough (RFC 5869, section 2.3).
_EXPANDED = b"asgi-sessions "
_FIRST_BLOCK = b"\x01"

# Published examples, so attackers know them. Compared without case and punctuation.
_FAMOUS = (
    "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",  # FastAPI's documentation
    "thisismyscretkey",  # Superset's first default (CVE-2023-27524), spelled so
    "thisisasecret1234",  # Superset's deployment template
    "yourownrandomgeneratedsecretkey",  # Superset's documentation
    "testnondevsecret",  # Superset's Docker Compose file
    "djangoinsecure",  # the prefix of Django's startproject
    "changeme",
    "changethis",
    "replaceme",
)
_PLAIN_FORM = str.maketrans("013457$@", "oleastsa")  # ch4ng3m3 is changeme


class Secrets:
    """The secrets of a deployment. The first one writes and all of them read, so a rotation logs no user out."""

    __slots__ = ("_by_id", "_hmacs", "_roots", "_sealing", "are_given")

    @forgets_arguments
    def __init__(self, secret_keys: Sequence[str | bytes] = ()) -> None:
        given = several("secret_keys", secret_keys, "newest first: secret_keys=[key]")
        roots: list[bytes] = []
        for number, secret in enumerate(given, start=1):
            raw = _checked(secret, number)
            # HKDF-Extract (RFC 5869, section 2.2), once per secret. Every subkey is one HKDF-Expand block of it.
            root = hmac.digest(b"asgi-sessions", raw, "sha256")
            if root in roots:
                raise ConfigurationError(f"secret_keys: number {number} repeats an earlier one; remove it")
            roots.append(root)
        self._roots = tuple(roots)
        self.are_given: bool = bool(roots)
        self._hmacs: dict[str, tuple[Hmac, ...]] = {}
        sealing = [(_expand(root, b"secret id")[:SECRET_ID_BYTES], _of_records(root)) for root in roots]
        self._sealing = sealing[0] if sealing else None
        self._by_id: dict[bytes, list[Hmac]] = {}
        for secret_id, subkeys in sealing:
            self._by_id.setdefault(secret_id, []).append(subkeys)

    def __repr__(self) -> str:
        return f"<Secrets: {len(self._roots)}>"

    def agree_with(self, other: Secrets) -> bool:
        """Whether both may belong to one deployment: they share a secret, or both have none.

        During a rotation the lists differ in order and length, but share a secret.
        """
        if not (self.are_given and other.are_given):
            return self.are_given == other.are_given
        return not set(self._roots).isdisjoint(other._roots)

    def subkeys(self, label: str) -> tuple[bytes, ...]:
        """The subkeys for one purpose: 32 bytes from each secret, in their order."""
        return tuple(_expand(root, label.encode("utf-8")) for root in self._roots)

    def hmacs(self, label: str) -> tuple[Hmac, ...]:
        """An HMAC under each of the :meth:`subkeys`."""
        made = self._hmacs.get(label)
        if made is None:
            made = self._hmacs[label] = tuple(map(Hmac, self.subkeys(label)))
        return made

    def seal(self, plain: bytes, *, key: str, associated: bytes) -> bytes:
        """Encrypt ``plain`` for the record under ``key``. Returns secret id, nonce, and ciphertext with tag."""
        if self._sealing is None:
            raise ConfigurationError("a record cannot be sealed: give secret_keys")
        secret_id, subkeys = self._sealing
        nonce = os.urandom(NONCE_BYTES)
        return secret_id + nonce + _aes_again(subkeys, key).encrypt(nonce, plain, associated)

    def is_by_first(self, sealed: bytes) -> bool:
        """Whether the first secret sealed it, by the id at its beginning."""
        return self._sealing is not None and sealed[:SECRET_ID_BYTES] == self._sealing[0]

    def has_sealed(self, sealed: bytes) -> bool:
        """Whether one of the secrets sealed it, by the id at its beginning."""
        return sealed[:SECRET_ID_BYTES] in self._by_id

    def open(self, sealed: bytes, *, key: str, associated: bytes) -> bytes | None:
        """The plain bytes, if they were sealed for this record, or ``None``. The reason is not disclosed."""
        nonce = sealed[SECRET_ID_BYTES : SECRET_ID_BYTES + NONCE_BYTES]
        if len(nonce) < NONCE_BYTES:
            return None
        for subkeys in self._by_id.get(sealed[:SECRET_ID_BYTES], ()):
            try:
                return _aes(subkeys, key).decrypt(nonce, sealed[SECRET_ID_BYTES + NONCE_BYTES :], associated)
            except InvalidTag:
                continue
        return None


def _of_records(root: bytes) -> Hmac:
    """An HMAC for the subkeys of single records, equal to :func:`_expand`. Every read needs one."""
    return Hmac(_expand(root, b"seal records"), _EXPANDED + b"record ")


def _aes(subkeys: Hmac, key: str) -> AESGCM:
    return AESGCM(subkeys.digest(key.encode("utf-8") + _FIRST_BLOCK))


# A session with one write mostly has more, and deriving the key again costs 5 % of a write. An entry takes 2.5 kB.
_aes_again = lru_cache(maxsize=256)(_aes)


def _expand(root: bytes, info: bytes) -> bytes:
    """HKDF-Expand to 32 bytes (RFC 5869, section 2.3)."""
    return hmac.digest(root, _EXPANDED + info + _FIRST_BLOCK, "sha256")


def _checked(secret: object, number: int) -> bytes:
    advice = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
    if isinstance(secret, str):
        try:
            raw = secret.encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigurationError(f"secret_keys: number {number} is not valid text; {advice}") from None
    elif isinstance(secret, bytes):
        raw = secret
    else:
        raise ConfigurationError(f"secret_keys: number {number} is of type {type(secret).__name__}; give str or bytes")
    if len(raw) < MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"secret_keys: number {number} has {len(raw)} bytes, at least {MIN_SECRET_BYTES} are needed; {advice}"
        )
    if len(set(raw)) < _MIN_DISTINCT_BYTES or any(_is_famous(text) for text in _readings(raw)):
        raise ConfigurationError(f"secret_keys: number {number} is a well-known placeholder or a repetition; {advice}")
    return raw


def _readings(raw: bytes) -> list[str]:
    """A secret as text, in all forms in which people encode a placeholder."""
    texts = [raw.decode("latin-1"), raw.hex(), unicodedata.normalize("NFKC", raw.decode("utf-8", "replace"))]
    for decode in (bytes.fromhex, base64.b64decode, base64.urlsafe_b64decode):
        try:
            texts.append(decode(raw.decode("ascii")).decode("latin-1"))
        except ValueError:
            continue
    return texts


def _is_famous(text: str) -> bool:
    folded = text.lower()
    plain = "".join(c for c in folded if c.isascii() and c.isalnum())
    decoded = "".join(c for c in folded.translate(_PLAIN_FORM) if c.isascii() and c.isalnum())
    return any(famous in plain or famous in decoded for famous in _FAMOUS)
