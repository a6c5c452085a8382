"""A browser's device in software, around a transport of httpx: for tests of apps with device-bound sessions.

::

    device = SoftwareDevice(httpx.ASGITransport(app))
    client = httpx.AsyncClient(transport=device, base_url="https://testserver")
    await client.post("/login", data=…)  # the device registers its key
    await client.get("/account")  # and proves it whenever the bound cookie is missing

It behaves like Chromium towards the server. It registers a key when a response offers that. It holds requests while a bound
cookie is missing, and proves the key first. It drops the key when the server answers that the session has ended. Bound cookies
are in ``cookies``, apart from the client's. Real browsers differ in other respects, so test with one before you go live.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from asgi_sessions._core.extras import needs
from asgi_sessions._core.token import base64url

with needs("client", "asgi_sessions.dbsc.testing"):
    import httpx

__all__ = ["BoundSession", "SoftwareDevice", "SoftwareKey"]

_OFFER: Final = re.compile(r'\((?P<algorithms>[A-Z0-9 ]+)\);path="(?P<path>[^"]+)";challenge="(?P<challenge>[^"]+)"')
_CHALLENGE: Final = re.compile(r'"(?P<challenge>[^"]+)";id="(?P<id>[^"]+)"')
_ATTEMPTS: Final = 3


class SoftwareKey:
    """A key pair that makes proofs."""

    def __init__(self, algorithm: str = "ES256") -> None:
        """``algorithm``: ``ES256`` or ``RS256``."""
        self.algorithm = algorithm
        self._key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        if algorithm == "ES256":
            self._key = ec.generate_private_key(ec.SECP256R1())
        else:
            self._key = rsa.generate_private_key(65537, 2048)

    @property
    def jwk(self) -> dict[str, str]:
        """The public key (RFC 7517)."""
        numbers: Any = self._key.public_key().public_numbers()
        if self.algorithm == "ES256":
            x, y = (base64url(number.to_bytes(32)) for number in (numbers.x, numbers.y))
            return {"kty": "EC", "crv": "P-256", "x": x, "y": y}
        return {"kty": "RSA", "n": base64url(numbers.n.to_bytes(256)), "e": "AQAB"}

    def proof(self, challenge: str, *, registers: bool = False, **header: Any) -> str:
        """A proof for a challenge. ``registers``: include the public key. ``header``: more header fields, to test refusals."""
        head = {"alg": self.algorithm, "typ": "dbsc+jwt", **({"jwk": self.jwk} if registers else {}), **header}
        message = ".".join(base64url(json.dumps(part).encode("utf-8")) for part in (head, {"jti": challenge}))
        return f"{message}.{base64url(self.sign(message.encode('ascii')))}"

    def sign(self, message: bytes) -> bytes:
        """The signature of a message in the form of JWS (RFC 7518, sections 3.3 and 3.4)."""
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(SHA256())))
            return r.to_bytes(32) + s.to_bytes(32)
        return self._key.sign(message, padding.PKCS1v15(), SHA256())


@dataclass
class BoundSession:
    """The device's data of one bound session."""

    identifier: str
    refresh_url: str
    cookie: str
    """The name of the bound cookie."""
    exempt: list[str]
    key: SoftwareKey
    challenge: str | None = None


@dataclass
class SoftwareDevice(httpx.AsyncBaseTransport):
    """A transport of httpx that binds sessions like a browser."""

    inner: httpx.AsyncBaseTransport
    clock: Callable[[], float] = time.time
    """Returns seconds since the epoch. Bound cookies expire by this clock."""
    algorithm: str = "ES256"
    sessions: dict[str, BoundSession] = field(default_factory=dict)
    """The bound sessions, by their identifiers."""
    cookies: dict[str, tuple[str, float]] = field(default_factory=dict)
    """The bound cookies: name → (value, expiry)."""
    holds: bool = True
    """``False``: send requests without a proof first, as browsers do for a page of another origin."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, after all due proofs."""
        skipped: list[str] = []
        if self.holds:
            for session in [*self.sessions.values()]:
                path = request.url.path
                is_exempt = any(path == each or path.startswith(each + "/") for each in session.exempt)
                if not is_exempt and self.cookie(session.cookie) is None and not await self.refresh(request, session):
                    skipped.append(session.identifier)
        self._put_cookies(request)
        if skipped:
            request.headers["secure-session-skipped"] = ", ".join(
                f'server_error;session_identifier="{id}"' for id in skipped
            )
        response = await self.inner.handle_async_request(request)
        self._take_cookies(response)
        offer = _OFFER.fullmatch(response.headers.get("secure-session-registration", ""))
        if offer is not None:
            await self.register(request, response, offer["path"], offer["challenge"])
        return response

    def cookie(self, name: str) -> str | None:
        """The value of a bound cookie, or ``None`` if it is missing or has expired."""
        value, expires_at = self.cookies.get(name, ("", 0.0))
        return value if self.clock() < expires_at else None

    async def register(self, request: httpx.Request, response: httpx.Response, path: str, challenge: str) -> bool:
        """Register a fresh key and return whether the server accepted it."""
        key = SoftwareKey(self.algorithm)
        set_cookie = response.headers.get_list("set-cookie")
        sent = await self._post(request, path, proof=key.proof(challenge, registers=True), cookies=set_cookie)
        if sent.status_code == 200:
            self._note(key, sent)
        return sent.status_code == 200

    async def refresh(self, request: httpx.Request, session: BoundSession) -> bool:
        """Prove the key of a session; ``False``: the server did not answer the proof."""
        for _ in range(_ATTEMPTS):
            proof = None if session.challenge is None else session.key.proof(session.challenge)
            sent = await self._post(request, session.refresh_url, proof=proof, id=session.identifier)
            if sent.status_code in (200, 204):
                self.sessions.pop(session.identifier, None)
                if sent.status_code == 204 or sent.json()["session_identifier"] == session.identifier:
                    self._note(session.key, sent, session)
                return True
            if sent.status_code >= 500:
                return False
            challenge = _CHALLENGE.fullmatch(sent.headers.get("secure-session-challenge", ""))
            if sent.status_code != 403 or challenge is None or challenge["id"] != session.identifier:
                self.sessions.pop(session.identifier, None)  # the session has ended
                return True
            session.challenge = challenge["challenge"]
        return False

    async def _post(
        self,
        request: httpx.Request,
        path: str,
        *,
        proof: str | None,
        id: str | None = None,
        cookies: list[str] | None = None,
    ) -> httpx.Response:
        headers = {"host": request.headers["host"], "sec-fetch-site": "same-origin", "sec-fetch-mode": "no-cors"}
        if "cookie" in request.headers:
            headers["cookie"] = request.headers["cookie"]
        if cookies:  # from the response with the offer
            headers["cookie"] = "; ".join(each.partition(";")[0] for each in cookies)
        if proof is not None:
            headers["secure-session-response"] = proof
        if id is not None:
            headers["sec-secure-session-id"] = id
        post = httpx.Request("POST", request.url.join(path), headers=headers, extensions=request.extensions)
        sent = await self.inner.handle_async_request(post)
        await sent.aread()
        self._take_cookies(sent)
        return sent

    def _note(self, key: SoftwareKey, answer: httpx.Response, known: BoundSession | None = None) -> None:
        """Follow the instructions of the server."""
        challenge = _CHALLENGE.fullmatch(answer.headers.get("secure-session-challenge", ""))
        if answer.status_code == 200:
            said = answer.json()
            exempt = [each["path"] for each in said["scope"]["scope_specification"] if each["type"] == "exclude"]
            known = BoundSession(
                said["session_identifier"], said["refresh_url"], said["credentials"][0]["name"], exempt, key
            )
        if known is not None:
            self.sessions[known.identifier] = known
            known.challenge = None if challenge is None else challenge["challenge"]

    def _put_cookies(self, request: httpx.Request) -> None:
        own = [f"{name}={value}" for name in self.cookies if (value := self.cookie(name)) is not None]
        if own:
            given = [request.headers["cookie"]] if "cookie" in request.headers else []
            request.headers["cookie"] = "; ".join([*given, *own])

    def _take_cookies(self, response: httpx.Response) -> None:
        """Store the bound cookies of a response."""
        for text in response.headers.get_list("set-cookie"):
            for name, morsel in SimpleCookie(text).items():
                if "-bound-" in name:
                    self.cookies[name] = (morsel.value, self.clock() + float(morsel["max-age"] or 0))

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self.inner.aclose()
