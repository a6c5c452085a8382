"""Keys for access tokens. Each key has one algorithm, and its thumbprint as its name."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from os import PathLike
from typing import Any, Literal, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from jwt.algorithms import Algorithm, ECAlgorithm, HMACAlgorithm, OKPAlgorithm

from asgi_sessions._core.arguments import expect, path_in, several
from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.token import base64url
from asgi_sessions.errors import ConfigurationError

Alg = Literal["EdDSA", "ES256", "HS256"]


class SigningKey:
    """A key for access tokens. Make one with ``generate``, ``from_pem``, ``from_jwk``, ``from_file`` or ``secret``.

    Use Ed25519 (EdDSA, RFC 8037) or P-256 (ES256, RFC 7518, section 3.4) if other services verify the tokens. Use a secret
    (HS256) if only the issuing service does. A public key verifies and cannot sign.
    """

    __slots__ = ("_private", "_public", "_scheme", "alg", "jwk", "kid", "retired_at")

    alg: Alg
    kid: str
    """The JWK thumbprint with SHA-256 (RFC 7638). A secret has another hash, since a thumbprint would confirm a guess of it."""
    jwk: dict[str, str] | None
    """The public key as a JWK (RFC 7517), or ``None`` for a secret."""

    @forgets_arguments
    def __init__(self, key: Any, *, retired_at: datetime | None = None) -> None:
        if retired_at is not None and (not isinstance(retired_at, datetime) or retired_at.tzinfo is None):
            raise ConfigurationError("SigningKey(retired_at=…): give an aware datetime")
        self.retired_at: float | None = None if retired_at is None else retired_at.timestamp()
        self._private: Any = None
        self._scheme: Algorithm
        if isinstance(key, bytes):
            Secrets([key])  # refuses short and well-known secrets
            self.alg, self._scheme = "HS256", HMACAlgorithm(HMACAlgorithm.SHA256)
            self._private = self._public = key
            self.jwk, self.kid = None, base64url(hmac.digest(key, b"asgi-sessions kid", "sha256"))
            return
        if isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
            self._private, key = key, key.public_key()
        self._public = key
        if isinstance(key, ed25519.Ed25519PublicKey):
            self.alg, self._scheme = "EdDSA", OKPAlgorithm()
            raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            members = {"crv": "Ed25519", "kty": "OKP", "x": base64url(raw)}
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            self.alg, self._scheme = "ES256", ECAlgorithm(ECAlgorithm.SHA256)
            numbers = key.public_numbers()
            x, y = (base64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
            members = {"crv": "P-256", "kty": "EC", "x": x, "y": y}
        else:
            raise ConfigurationError(
                f"SigningKey: a key of type {type(key).__name__} cannot be used. Use Ed25519, P-256, or a secret of 32 bytes. "
                "Make one with: asgi-sessions keygen"
            )
        # RFC 7638, section 3.3: the required members, sorted, without white space.
        self.kid = base64url(sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()).digest())
        self.jwk = {**members, "kid": self.kid, "alg": self.alg, "use": "sig"}

    def __repr__(self) -> str:
        return f"<SigningKey {self.alg} {self.kid[:8]}>"

    @property
    def can_sign(self) -> bool:
        return self._private is not None

    @classmethod
    def generate(cls, alg: Alg = "EdDSA") -> Self:
        """A new random key."""
        if alg == "EdDSA":
            return cls(ed25519.Ed25519PrivateKey.generate())
        if alg == "ES256":
            return cls(ec.generate_private_key(ec.SECP256R1()))
        raise ConfigurationError(
            f"SigningKey.generate({alg!r}): use 'EdDSA' or 'ES256'; for HS256, SigningKey.secret(…)"
        )

    @classmethod
    @forgets_arguments
    def secret(cls, secret: str | bytes, **options: Any) -> Self:
        """A secret for HS256: at least 32 bytes."""
        expect("SigningKey.secret()", secret, str, bytes)
        return cls(_bytes_of("SigningKey.secret()", secret), **options)

    @classmethod
    @forgets_arguments
    def from_pem(cls, pem: str | bytes, *, password: bytes | None = None, **options: Any) -> Self:
        """A private key, or a public key, which only verifies."""
        expect("SigningKey.from_pem()", pem, str, bytes)
        data = _bytes_of("SigningKey.from_pem()", pem)
        try:
            key: Any = (
                serialization.load_pem_private_key(data, password)
                if b"PRIVATE" in data
                else serialization.load_pem_public_key(data)
            )
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(
                f"SigningKey.from_pem(): the key cannot be read ({type(error).__name__})"
            ) from None
        return cls(key, **options)

    @classmethod
    @forgets_arguments
    def from_jwk(cls, jwk: dict[str, Any] | str, **options: Any) -> Self:
        """A key from a JWK (RFC 7517). A given ``alg`` must be the one that the key is for."""
        try:
            members = json.loads(jwk) if isinstance(jwk, str) else dict(jwk)
            if members.get("kty") == "oct":
                made = cls(base64.urlsafe_b64decode(members["k"] + "=="), **options)
            else:
                scheme = OKPAlgorithm if members.get("kty") == "OKP" else ECAlgorithm
                made = cls(scheme.from_jwk(members), **options)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"SigningKey.from_jwk(): the key cannot be read ({type(error).__name__})"
            ) from None
        if members.get("alg", made.alg) not in (made.alg, "Ed25519" if made.alg == "EdDSA" else made.alg):
            raise ConfigurationError(f"SigningKey.from_jwk(): the key is for {made.alg}, and says {members['alg']!r}")
        if members.get("use", "sig") != "sig":
            raise ConfigurationError(f"SigningKey.from_jwk(): the key is for {members['use']!r}, not for signatures")
        return made

    @classmethod
    @forgets_arguments
    def from_file(cls, path: str | PathLike[str], **options: Any) -> Self:
        """A key from a PEM or JWK file."""
        file = path_in("SigningKey.from_file()", path)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"SigningKey.from_file({str(path)!r}): {error.strerror}") from None
        if data.lstrip().startswith(b"{"):
            return cls.from_jwk(data.decode("utf-8", "replace"), **options)
        return cls.from_pem(data, **options)

    def pem(self) -> str:
        """The private key as PEM (PKCS #8). Keep it in a file that only the app can read."""
        if self._private is None or isinstance(self._private, bytes):
            raise ConfigurationError("SigningKey.pem(): it has no private key as PEM")
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        pem: bytes = self._private.private_bytes(encoding, form, serialization.NoEncryption())
        return pem.decode("ascii")

    def sign(self, message: bytes) -> bytes:
        """The signature of ``message`` with the private key. Needs :attr:`can_sign`."""
        signature: bytes = self._scheme.sign(message, self._private)
        return signature

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether this key made ``signature``. Never raises."""
        try:
            return bool(self._scheme.verify(message, self._public, signature))
        except Exception:  # a hostile signature may cause any error in a library
            return False


def _bytes_of(name: str, text: str | bytes) -> bytes:
    try:
        return text.encode("utf-8") if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name}: that is not valid text") from None


class KeyRing:
    """The keys of a deployment: the first one signs, all of them verify."""

    def __init__(self, keys: Sequence[SigningKey]) -> None:
        keys = several("keys", keys, "the SigningKey that signs first")
        for key in keys:
            expect("one of keys", key, SigningKey)
        if not keys or not keys[0].can_sign:
            raise ConfigurationError("keys=[…]: the first key signs, so give a private key first")
        if keys[0].retired_at is not None:
            raise ConfigurationError("keys=[…]: the first key signs, so it cannot be retired")
        self.signing = keys[0]
        self._by_kid = {key.kid: key for key in keys}
        if len(self._by_kid) != len(keys):
            raise ConfigurationError("keys=[…]: a key is listed twice. Remove one of them")

    def get(self, kid: str, now: float, lifetime: float) -> SigningKey | None:
        key = self._by_kid.get(kid)
        return key if key is not None and _is_current(key, now, lifetime) else None

    def jwks(self, now: float, lifetime: float) -> dict[str, list[dict[str, str]]]:
        """The public keys (RFC 7517, section 5). A retired key leaves after the expiry of its last token."""
        keys = [key for key in self._by_kid.values() if _is_current(key, now, lifetime)]
        return {"keys": [key.jwk for key in keys if key.jwk is not None]}


def _is_current(key: SigningKey, now: float, lifetime: float) -> bool:
    return key.retired_at is None or now < key.retired_at + lifetime
