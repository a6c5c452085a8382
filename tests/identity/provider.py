"""An identity provider on loopback: metadata, keys, and messages signed by another library than the one that verifies them."""

from __future__ import annotations

import json
import warnings
from typing import Any

from joserfc import jwk, jws
from joserfc.errors import SecurityWarning
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_sessions.identity._messages import LOGOUT
from tests.ports import free_port

ALL = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA", "HS256"]

KEYS: dict[str, Any] = {
    "RS256": jwk.RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"}),
    "ES256": jwk.ECKey.generate_key("P-256", {"kid": "ec", "use": "sig", "alg": "ES256"}),
    "EdDSA": jwk.OKPKey.generate_key("Ed25519", {"kid": "ed"}),
}


class Provider:
    """Serves what tests put into :attr:`metadata` and :attr:`keys`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.keys: list[Any] = [key.as_dict(private=False) for key in KEYS.values()]
        self.keys_of_events: list[Any] = []
        self.metadata: dict[str, Any] = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}
        self.fetched: list[str] = []
        self.status = 200
        self.body: bytes | None = None
        routes = [
            Route("/{tenant:path}.well-known/openid-configuration", self._metadata),
            Route("/.well-known/ssf-configuration{tenant:path}", self._metadata_of_events),
            Route("/jwks", self._keys),
            Route("/jwks-of-events", self._keys_of_events),
            Route("/elsewhere", self._keys),
        ]
        self.app = Starlette(routes=routes)

    async def _metadata(self, request: Request) -> Response:
        self.fetched.append(request.url.path)
        return JSONResponse(self.metadata, self.status)

    async def _metadata_of_events(self, request: Request) -> Response:
        self.fetched.append(request.url.path)
        uri = f"http://127.0.0.1:{self.port}/jwks-of-events"
        return JSONResponse({**self.metadata, "jwks_uri": uri} if self.keys_of_events else self.metadata, self.status)

    async def _keys_of_events(self, request: Request) -> Response:
        self.fetched.append(request.url.path)
        return JSONResponse({"keys": self.keys_of_events}, self.status)

    async def _keys(self, request: Request) -> Response:
        self.fetched.append(request.url.path)
        if self.body is not None:
            return Response(self.body, self.status, media_type="application/json")
        return JSONResponse({"keys": self.keys}, self.status)

    # ── Messages ──

    def claims(self, now: float, **more: Any) -> dict[str, Any]:
        """Those of a logout token. A value of ``None`` leaves a claim out."""
        claims = {
            "iss": self.url,
            "aud": "shop",
            "iat": int(now),
            "exp": int(now) + 120,
            "jti": f"jti-{now}",
            "sid": "s1",
            "sub": "a1",
            "events": {LOGOUT: {}},
            **more,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def event(self, now: float, events: dict[str, Any], subject: Any, **more: Any) -> dict[str, Any]:
        """The claims of a security event token."""
        return self.claims(now, exp=None, sid=None, sub=None, sub_id=subject, events=events, **more)


def signed(claims: dict[str, Any], alg: str = "RS256", *, key: Any = None, **header: Any) -> str:
    """A token. A header of ``None`` is left out."""
    key = KEYS[alg] if key is None else key
    members = {"alg": alg, "typ": "logout+jwt", "kid": getattr(key, "kid", None), **header}
    header = {name: value for name, value in members.items() if value is not None}
    registry = jws.JWSRegistry(algorithms=ALL, strict_check_header=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # of EdDSA, which RFC 9864 names Ed25519
        return jws.serialize_compact(header, json.dumps(claims), key, algorithms=ALL, registry=registry)
