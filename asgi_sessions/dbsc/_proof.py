"""Proofs: the JWTs by which a browser proves its private key (W3C, Device Bound Session Credentials, "DBSC Proof JWTs").

The content of a proof counts only after its signature was checked. The parser accepts the form that browsers send and refuses
everything else. It follows no URL, knows two algorithms, and accepts a key at registration only.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from asgi_sessions._core.json import json_in
from asgi_sessions._core.token import base64url

MAX_PROOF: Final = 4096
"""Bytes. A proof has 500 with ES256, and 2,000 with RS256 and 4,096 bits."""

ALGORITHMS: Final = ("ES256", "RS256")
"""The algorithms offered to browsers (RFC 7518, sections 3.3 and 3.4). The draft also permits ``none``, which proves nothing."""

_PART: Final = re.compile(rb"[A-Za-z0-9_-]+")
_P256_BYTES: Final = 32
_RSA_BITS: Final = (2048, 4096)
_RSA_EXPONENT: Final = "AQAB"  # 65537, as in every browser; small exponents have led to attacks


class ProofInvalid(Exception):
    """Raised if a proof is not valid. The message is the reason in the event."""


class Key:
    """A public key and its stored bytes."""

    __slots__ = ("_key", "algorithm", "packed")

    def __init__(self, algorithm: str, packed: bytes) -> None:
        """``packed``: the coordinates x and y of a point on P-256, 32 bytes each, or the modulus of RSA.

        Raises:
            ProofInvalid: the bytes are no key.
        """
        self.algorithm = algorithm
        self.packed = packed
        self._key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
        try:
            if algorithm == "ES256":
                self._key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + packed)
            else:
                self._key = rsa.RSAPublicNumbers(65537, int.from_bytes(packed)).public_key()
        except ValueError:
            raise ProofInvalid("the key is none") from None

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether the private key signed this message, in the form of JWS (RFC 7518, sections 3.3 and 3.4)."""
        try:
            if isinstance(self._key, ec.EllipticCurvePublicKey):
                if len(signature) != 2 * _P256_BYTES:  # two numbers of fixed width instead of DER
                    return False
                r, s = int.from_bytes(signature[:_P256_BYTES]), int.from_bytes(signature[_P256_BYTES:])
                self._key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
            else:
                self._key.verify(signature, message, padding.PKCS1v15(), SHA256())
        except (InvalidSignature, ValueError):
            return False
        return True


class Proof:
    """A well-formed proof. Only :meth:`is_signed_by` checks whether it is genuine."""

    __slots__ = ("_message", "_signature", "algorithm", "challenge", "key")

    def __init__(self, header: bytes) -> None:
        """``header``: the value of ``Secure-Session-Response``, bare or as a quoted string.

        Raises:
            ProofInvalid: the value is no well-formed proof.
        """
        raw = unquoted(header)
        if len(raw) > MAX_PROOF:
            raise ProofInvalid("it is too long")
        parts = raw.split(b".")
        if len(parts) != 3 or not all(_PART.fullmatch(part) for part in parts):
            raise ProofInvalid("it does not have three parts")
        head, payload = _object(parts[0]), _object(parts[1])
        if set(head) - {"jwk"} != {"alg", "typ"} or head["typ"] != "dbsc+jwt":
            # Refuses headers that point to another key (jku, x5u, x5c) or need an extension (crit, b64): RFC 8725, section 3.
            raise ProofInvalid("its header is not that of a proof")
        if head["alg"] not in ALGORITHMS:
            raise ProofInvalid("its algorithm was not offered")
        challenge = payload.get("jti")
        if not isinstance(challenge, str) or not challenge.isascii():
            raise ProofInvalid("it names no challenge")
        self.algorithm: str = head["alg"]
        self.challenge = challenge
        self.key: Key | None = None if "jwk" not in head else _key_in(head["jwk"], self.algorithm)
        self._signature = _bytes(parts[2])
        self._message = parts[0] + b"." + parts[1]

    def is_signed_by(self, key: Key) -> bool:
        """Whether the private key of ``key`` made this proof."""
        return self.algorithm == key.algorithm and key.verify(self._signature, self._message)


def unquoted(value: bytes) -> bytes:
    """A header's value without the quotes of a string (RFC 9651, section 3.3.3). Escapes are not decoded."""
    value = value.strip(b" \t")
    return value[1:-1] if len(value) >= 2 and value[:1] == value[-1:] == b'"' else value


def _key_in(jwk: object, algorithm: str) -> Key:
    """The public key of a JWK (RFC 7517; RFC 7518, sections 6.2.1 and 6.3.1) for this algorithm."""
    if not isinstance(jwk, dict) or not all(isinstance(value, str) for value in jwk.values()):
        raise ProofInvalid("the key is no JWK")
    if algorithm == "ES256":
        if set(jwk) != {"kty", "crv", "x", "y"} or jwk["kty"] != "EC" or jwk["crv"] != "P-256":
            raise ProofInvalid("the key is no public key of P-256")
        x, y = _bytes(jwk["x"].encode("utf-8", "replace")), _bytes(jwk["y"].encode("utf-8", "replace"))
        if not len(x) == len(y) == _P256_BYTES:
            raise ProofInvalid("the key is no point of P-256")
        return Key(algorithm, x + y)
    if set(jwk) != {"kty", "n", "e"} or jwk["kty"] != "RSA" or jwk["e"] != _RSA_EXPONENT:
        raise ProofInvalid("the key is no public key of RSA with the exponent 65537")
    modulus = _bytes(jwk["n"].encode("utf-8", "replace"))
    if (
        not _RSA_BITS[0] <= int.from_bytes(modulus).bit_length() <= _RSA_BITS[1]
        or modulus[0] == 0
        or not modulus[-1] & 1
    ):
        raise ProofInvalid("the key has too few bits, or too many")
    return Key(algorithm, modulus)


def _bytes(part: bytes) -> bytes:
    """Decode base64url without padding (RFC 7515, appendix C). Only the canonical encoding is accepted."""
    try:
        data = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except ValueError:
        raise ProofInvalid("a part of it is no base64url") from None
    if base64url(data).encode("ascii") != part:
        raise ProofInvalid("a part of it has two spellings")
    return data


def _object(part: bytes) -> dict[str, Any]:
    try:
        return json_in(_bytes(part))
    except ValueError:
        raise ProofInvalid("a part of it is no JSON object") from None
