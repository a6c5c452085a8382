"""authlib's Starlette client on our session, against a small OpenID provider on loopback."""

from __future__ import annotations

import tests.apps

tests.apps.needs("authlib", "joserfc")

import time
from collections.abc import Callable
from typing import Any

import pytest
from authlib.integrations.starlette_client import OAuth
from joserfc import jwk, jwt
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from asgi_sessions import SessionMiddleware
from asgi_sessions.stores import Store
from tests.apps.site import Browser, routes, served


class Provider:
    """OpenID Connect, as much as a client needs: discovery, code, tokens, keys. Everyone is alice."""

    def __init__(self) -> None:
        self.key = jwk.RSAKey.generate_key(2048, {"kid": "1", "alg": "RS256", "use": "sig"})
        self.codes: dict[str, dict[str, Any]] = {}
        self.url = ""
        self.app = Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self.configuration),
                Route("/authorize", self.authorize),
                Route("/token", self.token, methods=["POST"]),
                Route("/jwks", self.jwks),
            ]
        )

    async def configuration(self, request: Request) -> Response:
        ends = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "jwks"}
        return JSONResponse(
            {
                "issuer": self.url,
                "id_token_signing_alg_values_supported": ["RS256"],
                **{name: f"{self.url}/{path}" for name, path in ends.items()},
            }
        )

    async def authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?code={code}&state={asked['state']}", 302)

    async def token(self, request: Request) -> Response:
        async with request.form() as form:
            asked = self.codes.pop(str(form["code"]))
        now = int(time.time())
        claims = {"iss": self.url, "aud": "shop", "sub": "alice", "name": "Alice", "iat": now, "exp": now + 600}
        id_token = jwt.encode({"alg": "RS256", "kid": "1"}, {**claims, "nonce": asked["nonce"]}, self.key)
        return JSONResponse({"access_token": "a", "token_type": "Bearer", "id_token": id_token, "expires_in": 600})

    async def jwks(self, request: Request) -> Response:
        return JSONResponse({"keys": [self.key.as_dict(private=False)]})


def a_shop(store: Store, provider: str, keep: Callable[[Any], Any] = dict) -> Starlette:
    oauth = OAuth()
    oauth.register(
        "op",
        client_id="shop",
        client_secret="x",
        server_metadata_url=f"{provider}/.well-known/openid-configuration",
        client_kwargs={"scope": "openid profile", "code_challenge_method": "S256"},
    )

    async def enter(request: Request) -> Response:
        response: Response = await oauth.op.authorize_redirect(request, str(request.url_for("back")))
        return response

    async def back(request: Request) -> Response:
        token = await oauth.op.authorize_access_token(request)
        session: Any = request.session
        session.log_in(token["userinfo"]["sub"])
        session["user"] = keep(token["userinfo"])
        return RedirectResponse("/me", 303)

    async def put(request: Request) -> Response:
        request.session["basket"] = ["tea"]
        return PlainTextResponse("ok")

    mine = [Route("/enter", enter), Route("/back", back, name="back"), Route("/put", put, methods=["POST"])]
    return Starlette(routes=[*routes(), *mine], middleware=[Middleware(SessionMiddleware, store=store)])


async def through_the_provider(browser: Browser) -> Any:
    """Follow the redirects there and back, without our cookies at the provider's."""
    there = await browser.get("/enter")
    assert there.status_code == 302
    async with Browser("http://127.0.0.1") as elsewhere:
        back = await elsewhere.get(there.headers["location"])
    return await browser.get(back.headers["location"])


async def test_log_in_by_openid_connect(store: Store) -> None:
    provider = Provider()
    async with served(provider.app) as op:
        provider.url = str(op.base_url).rstrip("/")
        async with served(a_shop(store, provider.url)) as browser:
            await browser.post("/put")
            stranger = dict(browser.cookies)

            assert (await through_the_provider(browser)).status_code == 303

            me = await browser.me()
            assert me["user"] == "alice"
            assert me["data"]["basket"] == ["tea"]  # the log-in kept the visitor's data
            assert me["data"]["user"]["name"] == "Alice"
            assert not [key for key in me["data"] if key.startswith("_state_")]
            assert dict(browser.cookies) != stranger  # and gave the session a new token

            await browser.log_out()
            assert await browser.me() == {"user": None, "data": {}}


async def test_claims_as_authlib_hands_them_out_are_refused_with_advice(store: Store) -> None:
    """They are of a class of its own. They would come back as a dict; so the app makes one of them."""
    provider = Provider()
    async with served(provider.app) as op:
        provider.url = str(op.base_url).rstrip("/")
        async with served(a_shop(store, provider.url, keep=lambda claims: claims)) as browser:
            assert (await through_the_provider(browser)).status_code == 500
            assert (await browser.me())["user"] is None


async def test_a_callback_with_a_foreign_state_is_refused(store: Store) -> None:
    provider = Provider()
    async with served(provider.app) as op:
        provider.url = str(op.base_url).rstrip("/")
        async with served(a_shop(store, provider.url)) as browser:
            await browser.get("/enter")

            with pytest.raises(AssertionError):
                assert (await browser.get("/back?code=x&state=y")).status_code == 303

            assert (await browser.me())["user"] is None
