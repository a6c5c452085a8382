"""IdentityProvider: the name of a provider and its public keys, which are fetched on demand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import httpx
from anyio.lowlevel import RunVar
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from asgi_sessions._core.arguments import several
from asgi_sessions._core.json import json_in
from asgi_sessions.errors import ConfigurationError

ALGORITHMS: Final = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "Ed25519",
    "EdDSA",
)
"""The algorithms with a public key. Tokens with ``none`` or HMAC are refused (RFC 8725, section 3.1)."""

FRESH_FOR: Final = 600.0
"""Seconds until fetched keys are fetched again. A withdrawn key counts for at most this time."""

KEPT_FOR: Final = 86400.0
"""Seconds for which fetched keys count if the provider does not answer."""

FETCH_EVERY: Final = 10.0
"""Least seconds between two fetches. An attacker's tokens with unknown keys must not make the app flood the provider."""

MOST_BYTES: Final = 262_144
MOST_KEYS: Final = 100
LEAST_RSA_BITS: Final = 2048  # RFC 7518, section 3.3
TIMEOUT: Final = 5.0

_logger = logging.getLogger("asgi_sessions")


class KeysUnavailable(Exception):
    """Raised if the keys of a provider cannot be fetched. The message is the reason, without text from the provider."""


@dataclass(frozen=True)
class IdentityProvider:
    """An identity provider. Its messages end sessions.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    issuer: str
    """The claim ``iss`` of its tokens, a URL. Compared exactly."""
    audience: str
    """The claim ``aud`` of its tokens: the app's client id at the provider."""
    jwks_uri: str | None = None
    """The URL of its public keys. ``None``: take it from the provider's metadata (OpenID Connect Discovery 1.0, section 4)."""
    algorithms: tuple[str, ...] = ALGORITHMS
    """The accepted signature algorithms (RFC 7518, section 3.1)."""
    untyped: bool = False
    """Also accept logout tokens without ``typ: logout+jwt``, for a provider that does not set it. Other tokens of the provider
    are still refused, since they have no ``events``, or a ``nonce``."""
    http: Callable[[], httpx.AsyncClient] | None = field(default=None, repr=False)
    """Makes the client for the fetch of keys, for example with a proxy or your own certificate authority."""
    keys: tuple[Keys, Keys] = field(init=False, repr=False, compare=False)
    """For logout tokens, and for security events: each has metadata of its own, which may name other keys."""

    def __post_init__(self) -> None:
        for name in ("issuer", "audience"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ConfigurationError(f"IdentityProvider({name}={value!r}): give text")
        for name in ("issuer", "jwks_uri"):
            value = getattr(self, name)
            if value is not None and not is_safe(value):
                raise ConfigurationError(
                    f"IdentityProvider({name}={value!r}): give a URL with https://; only a loopback address may have http://"
                )
        algorithms = several("IdentityProvider(algorithms)", self.algorithms, "such as ['RS256']")
        if not algorithms or not all(each in ALGORITHMS for each in algorithms):
            raise ConfigurationError(
                f"IdentityProvider(algorithms={algorithms!r}): only those with a public key: {', '.join(ALGORITHMS)}"
            )
        if self.http is not None and not callable(self.http):
            raise ConfigurationError("IdentityProvider(http=…): give a function that makes an httpx.AsyncClient")
        object.__setattr__(self, "algorithms", algorithms)
        of_logouts = Keys(self, metadata_of(self.issuer, is_event=False))
        of_events = Keys(self, metadata_of(self.issuer, is_event=True)) if self.jwks_uri is None else of_logouts
        object.__setattr__(self, "keys", (of_logouts, of_events))


def is_safe(url: object) -> bool:
    """Whether an answer from this URL is authentic: it uses TLS, or the host is this machine."""
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    is_local = host in ("localhost", "127.0.0.1", "::1")
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_local))


def metadata_of(issuer: str, *, is_event: bool) -> str:
    """The URL of a provider's metadata.

    The well-known path is appended to the issuer (OpenID Connect Discovery 1.0, section 4). For Shared Signals it stands before
    the path of the issuer (OpenID Shared Signals Framework 1.0, section 7.2.1).
    """
    if not is_event:
        return issuer.rstrip("/") + "/.well-known/openid-configuration"
    parts = urlsplit(issuer)
    return f"{parts.scheme}://{parts.netloc}/.well-known/ssf-configuration{parts.path.rstrip('/')}"


class Keys:
    """The public keys of a provider. They are fetched if they are old, or if a token names an unknown key.

    ``metadata``: the URL of the provider's metadata.
    """

    def __init__(self, provider: IdentityProvider, metadata: str) -> None:
        self._provider = provider
        self._metadata = metadata
        self._known: list[PyJWK] = []
        self._fetched_at = self._tried_at = float("-inf")
        self._failure: str | None = None  # of the last fetch
        self._turn: RunVar[anyio.Lock] = RunVar(f"Keys {id(self)}")  # of the running event loop

    async def find(self, kid: str | None, alg: str, now: float) -> PyJWK | None:
        """The provider's key with this id for this algorithm, or ``None``.

        Args:
            kid: the key id from the token, or ``None``. Then the provider must have just one key for the algorithm.
            now: seconds since the epoch.
        Raises:
            KeysUnavailable: the key is unknown, and the keys could not be fetched.
        """
        if now - self._fetched_at < FRESH_FOR and (key := self._only(kid, alg)) is not None:
            return key
        failure = await self._refresh(now)
        if now - self._fetched_at < KEPT_FOR and (key := self._only(kid, alg)) is not None:
            return key
        if failure is not None:
            raise KeysUnavailable(failure)
        return None

    def _only(self, kid: str | None, alg: str) -> PyJWK | None:
        found = [key for key in self._known if kid in (None, key.key_id) and _fits(key, alg)]
        return found[0] if len(found) == 1 else None

    async def _refresh(self, now: float) -> str | None:
        """Fetch the keys, at most once in ``FETCH_EVERY``. Returns why the last fetch failed, or ``None``."""
        tried_at, turn = self._tried_at, self._turn.get(None) or anyio.Lock()
        self._turn.set(turn)
        async with turn:
            # Another request may have fetched them while this one waited for the lock.
            if self._tried_at == tried_at and not 0 <= now - tried_at < FETCH_EVERY:
                self._tried_at, self._failure = now, "the last fetch was interrupted"
                try:
                    with anyio.fail_after(2 * TIMEOUT):
                        self._known = await self._fetched()
                    self._fetched_at, self._failure = now, None
                except (KeysUnavailable, TimeoutError) as failure:
                    self._failure = str(failure) or "no answer in time"
                    _logger.warning("provider.no_keys issuer=%s reason=%s", self._provider.issuer, self._failure)
        return self._failure

    async def _fetched(self) -> list[PyJWK]:
        provider = self._provider
        async with (provider.http or _client)() as client:
            uri = provider.jwks_uri
            if uri is None:
                found = await _json(client, self._metadata)
                if found.get("issuer") != provider.issuer:  # OpenID Connect Discovery 1.0, section 4.3
                    raise KeysUnavailable("its metadata names another issuer")
                uri = found.get("jwks_uri")
                if not is_safe(uri):
                    raise KeysUnavailable("its metadata names no jwks_uri with https://")
            members = (await _json(client, str(uri))).get("keys")
        if not isinstance(members, list) or len(members) > MOST_KEYS:
            raise KeysUnavailable("its keys are no JWK set")
        return [key for key in map(_key, members) if key is not None]


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False)


async def _json(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    try:
        async with client.stream("GET", url, headers={"accept": "application/json"}) as response:
            if response.status_code != 200:
                raise KeysUnavailable(f"{urlsplit(url).path} answered {response.status_code}")
            body = b""
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise KeysUnavailable(f"{urlsplit(url).path} is longer than {MOST_BYTES:,} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise KeysUnavailable(f"{urlsplit(url).path} could not be fetched: {type(error).__name__}") from error
    try:
        return json_in(body)
    except ValueError:
        raise KeysUnavailable(f"{urlsplit(url).path} is no JSON object") from None


def _key(member: object) -> PyJWK | None:
    """A public key for signatures, or ``None`` for another JWK, such as an encryption key or a secret."""
    if (
        not isinstance(member, dict)
        or member.get("use", "sig") != "sig"
        or member.get("kty") not in ("RSA", "EC", "OKP")
    ):
        return None
    public = {name: value for name, value in member.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
    try:
        key = PyJWK(public)
    except (PyJWTError, ValueError, TypeError):
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < LEAST_RSA_BITS:
        return None
    return key


def _fits(key: PyJWK, alg: str) -> bool:
    said = key._jwk_data.get("alg")
    family = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}[alg[:2]]
    return key.key_type == family and said in (None, alg)
