"""The middleware, the endpoints and the client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from asgi_sessions import ConfigurationError, CookieConfig, Session, SessionError, SessionMiddleware, StoreError
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import BearerMiddleware, TokenEndpoints, TokenError, Tokens
from asgi_sessions.tokens.client import TokenAuth
from tests.tokens.conftest import SECRET, some_tokens
from tests.wrapped import Wrapped


async def who(request: Request) -> Response:
    session = request.scope.get("session")
    if session is None:
        return JSONResponse({"user": None})
    facts = {
        "user": session.user_id,
        "data": dict(session),
        "id": session.id,
        "is_session": isinstance(session, Session),
    }
    return JSONResponse(facts)


def an_app(
    store: Store, clock: FakeClock, tokens: Tokens, *, strict: bool = False, order: str = "bearer outside"
) -> Any:
    endpoints = TokenEndpoints(tokens)

    async def log_in(request: Request) -> Response:
        request.scope["session"].log_in("cookie user")
        return PlainTextResponse("in")

    async def begin(request: Request) -> Response:
        pair = await tokens.log_in("alice", scope=request.scope)
        response = JSONResponse({"access_token": pair.access_token})
        endpoints.set_cookie(response, pair)
        return response

    async def write(request: Request) -> Response:
        request.scope["session"]["a"] = 1
        return PlainTextResponse("written")

    app: Any = Starlette(
        routes=[
            Route("/", who, methods=["GET", "POST"]),
            Route("/login", log_in, methods=["POST"]),
            Route("/begin", begin, methods=["POST"]),
            Route("/write", write, methods=["POST"]),
            Mount("/", endpoints),
        ]
    )
    if order == "bearer outside":
        return BearerMiddleware(SessionMiddleware(app, store, clock=clock, secret_keys=[SECRET]), tokens, strict=strict)
    return SessionMiddleware(BearerMiddleware(app, tokens, strict=strict), store, clock=clock, secret_keys=[SECRET])


@pytest.fixture(params=["bearer outside", "bearer inside"])
async def client(
    request: pytest.FixtureRequest, store: Store, clock: FakeClock, tokens: Tokens
) -> AsyncIterator[httpx.AsyncClient]:
    app = an_app(store, clock, tokens, order=request.param)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://api.example.org") as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def refusal(client: httpx.AsyncClient, headers: Any) -> tuple[int, str | None]:
    answer = await client.get("/", headers=headers)
    return answer.status_code, answer.headers.get("www-authenticate")


# ── The middleware ──


async def test_who_brings_a_token_has_a_session(client: httpx.AsyncClient, tokens: Tokens) -> None:
    pair = await tokens.log_in("alice")

    said = (await client.get("/", headers=bearer(pair.access_token))).json()

    assert said == {"user": "alice", "data": {}, "id": pair.session_id, "is_session": True}


async def test_cookie_or_bearer_never_both(client: httpx.AsyncClient, tokens: Tokens) -> None:
    pair = await tokens.log_in("alice")
    await client.post("/login")
    assert (await client.get("/")).json()["user"] == "cookie user"

    answer = await client.get("/", headers=bearer(pair.access_token))

    assert answer.json()["user"] == "alice"
    assert "set-cookie" not in answer.headers
    assert (await refusal(client, bearer(pair.access_token[:-5])))[0] == 401
    assert (await client.get("/")).json()["user"] == "cookie user"


async def test_the_session_of_a_token_is_read_only(client: httpx.AsyncClient, tokens: Tokens) -> None:
    pair = await tokens.log_in("alice")

    with pytest.raises(SessionError, match="read-only"):
        await client.post("/write", headers=bearer(pair.access_token))


REFUSED = {
    "nonsense": ("Bearer x", 401, "invalid_token"),
    "nothing": ("Bearer ", 401, "invalid_token"),
    "another spelling": ("bearer x", 401, "invalid_token"),
    "bytes": ("Bearer é", 401, "invalid_token"),
}


@pytest.mark.parametrize(("value", "status", "error"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_bad_token_is_refused_as_rfc_6750_says(
    client: httpx.AsyncClient, value: str, status: int, error: str
) -> None:
    code, challenge = await refusal(client, {"authorization": value.encode("latin-1")})

    assert code == status
    assert challenge is not None
    assert challenge.startswith(f'Bearer error="{error}", error_description="')


async def test_other_schemes_and_tokens_in_the_url_are_not_looked_at(client: httpx.AsyncClient, tokens: Tokens) -> None:
    pair = await tokens.log_in("alice")

    assert (await client.get("/", headers={"authorization": "Basic YTpi"})).json()["user"] is None
    assert (await client.get(f"/?access_token={pair.access_token}")).json()["user"] is None
    form = await client.post("/", data={"access_token": pair.access_token})
    assert form.json()["user"] is None


async def test_two_authorization_headers_are_refused(client: httpx.AsyncClient, tokens: Tokens) -> None:
    pair = await tokens.log_in("alice")
    twice = [("authorization", f"Bearer {pair.access_token}"), ("authorization", "Bearer x")]

    assert await refusal(client, twice) == (400, 'Bearer error="invalid_request"')


async def test_required_refuses_who_brings_nothing(tokens: Tokens) -> None:
    app = BearerMiddleware(Starlette(routes=[Route("/", who)]), tokens, required=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://x.example") as client:
        assert await refusal(client, {}) == (401, "Bearer")


async def test_strict_bites_at_once_and_stateless_within_fifteen_minutes(
    store: Store, clock: FakeClock, tokens: Tokens
) -> None:
    pair = await tokens.log_in("alice", data={"plan": "large"})
    apps = [an_app(store, clock, tokens, strict=strict) for strict in (True, False)]
    strict, stateless = (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://api.example.org") for app in apps
    )
    headers = bearer(pair.access_token)
    assert (await strict.get("/", headers=headers)).json()["data"] == {"plan": "large"}

    await tokens.sessions.revoke_all("alice")

    assert (await refusal(strict, headers))[0] == 401
    assert (await refusal(stateless, headers))[0] == 200
    clock.advance(timedelta(minutes=15, seconds=10))
    assert (await refusal(stateless, headers))[0] == 401
    for each in (strict, stateless):
        await each.aclose()


async def test_a_dead_store_is_a_503_in_strict_mode_and_nothing_to_others(store: Store, clock: FakeClock) -> None:
    faulty: Any = Wrapped(store)
    tokens = some_tokens(faulty, clock)
    pair = await tokens.log_in("alice")
    faulty.fail["load"] = StoreError("on purpose")
    for strict, status in ((True, 503), (False, 200)):
        app = BearerMiddleware(Starlette(routes=[Route("/", who)]), tokens, strict=strict)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://x.example") as client:
            assert (await refusal(client, bearer(pair.access_token)))[0] == status


async def test_a_websocket_with_a_bad_token_is_refused(tokens: Tokens) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = BearerMiddleware(Starlette(), tokens)
    scope = {"type": "websocket", "headers": [(b"authorization", b"Bearer x")], "extensions": {}}
    await middleware(dict(scope), None, send)
    await middleware({**scope, "extensions": {"websocket.http.response": {}}}, None, send)

    assert sent[0] == {"type": "websocket.close", "code": 1008, "reason": ""}
    assert (sent[1]["type"], sent[1]["status"]) == ("websocket.http.response.start", 401)


# ── The endpoints ──


async def test_a_refresh_in_json_or_as_a_form(client: httpx.AsyncClient, tokens: Tokens) -> None:
    pair = await tokens.log_in("alice")

    first = await client.post("/token/refresh", json={"refresh_token": pair.refresh_token})
    form = {"grant_type": "refresh_token", "refresh_token": first.json()["refresh_token"]}
    second = await client.post("/token/refresh", data=form)

    for answer in (first, second):
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        assert sorted(answer.json()) == ["access_token", "expires_in", "refresh_token", "token_type"]
        assert (answer.json()["token_type"], answer.json()["expires_in"]) == ("Bearer", 900)
        assert "set-cookie" not in answer.headers


async def test_a_browser_keeps_its_refresh_token_in_a_cookie(client: httpx.AsyncClient) -> None:
    begun = await client.post("/begin")
    assert "refresh_token" not in begun.json()
    assert begun.headers["set-cookie"].startswith("__Host-Http-refresh=")
    for attribute in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/"):
        assert attribute in begun.headers["set-cookie"]
    before = client.cookies["__Host-Http-refresh"]

    answer = await client.post("/token/refresh")

    assert sorted(answer.json()) == ["access_token", "expires_in", "token_type"]
    assert client.cookies["__Host-Http-refresh"] != before
    assert (await client.get("/", headers=bearer(answer.json()["access_token"]))).json()["user"] == "alice"
    assert (await client.post("/token/refresh", headers={"sec-fetch-site": "cross-site"})).status_code == 403
    both = await client.post("/token/refresh", json={"refresh_token": before})
    assert (both.status_code, both.json()["error"]) == (400, "invalid_request")


async def test_the_loser_of_a_race_leaves_the_winners_cookie_alone(client: httpx.AsyncClient, clock: FakeClock) -> None:
    await client.post("/begin")
    old = client.cookies["__Host-Http-refresh"]
    await client.post("/token/refresh")
    clock.advance(60)
    client.cookies.clear()

    late = await client.post("/token/refresh", headers={"cookie": f"__Host-Http-refresh={old}"})

    assert (late.status_code, late.json()["error"]) == (400, "invalid_grant")
    assert "set-cookie" not in late.headers


async def test_revoke_is_200_for_whatever_is_given(client: httpx.AsyncClient, tokens: Tokens) -> None:
    one, other = await tokens.log_in("alice"), await tokens.log_in("alice")

    for token in (one.refresh_token, other.access_token, "unknown", one.refresh_token):
        assert (await client.post("/token/revoke", data={"token": token})).status_code == 200

    for pair in (one, other):
        with pytest.raises(TokenError):
            await tokens.refresh(pair.refresh_token)
    await client.post("/begin")
    answer = await client.post("/token/revoke")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (await client.post("/token/revoke")).status_code == 400


FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}
BAD: dict[str, tuple[Any, Any, int]] = {
    "nothing": (b"", {}, 400),
    "no JSON": (b"{", JSON, 400),
    "an array": (b"[]", JSON, 400),
    "a number": (b'{"refresh_token": 5}', JSON, 400),
    "deep": (b"[" * 4000, JSON, 400),
    "a form said twice": (b"refresh_token=a&refresh_token=b", FORM, 400),
    "no form": (b"\xff", FORM, 400),
    "another kind": (b"x", {"content-type": "text/plain"}, 415),
    "too long": (b"x" * 5000, JSON, 413),
    "a token that is none": (b'{"refresh_token": "x"}', JSON, 400),
    "a surrogate": (b'{"refresh_token": "\\ud800"}', JSON, 400),
}


@pytest.mark.parametrize(("content", "headers", "status"), BAD.values(), ids=BAD.keys())
async def test_bad_requests_are_4xx_in_the_shape_of_oauth(
    client: httpx.AsyncClient, content: bytes, headers: Any, status: int
) -> None:
    answer = await client.post("/token/refresh", content=content, headers=headers)

    assert answer.status_code == status
    assert answer.json()["error"] in ("invalid_request", "invalid_grant")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "kinds",
    [
        [b"application/json", b"text/plain"],
        [b"application/json", b"application/json"],
        [b"\xa0application/json"],
        [b""],
    ],
    ids=["two", "twice the same", "a space that is none", "empty"],
)
async def test_a_body_whose_kind_is_not_clear_is_not_read(
    client: httpx.AsyncClient, tokens: Tokens, kinds: list[bytes]
) -> None:
    pair = await tokens.log_in("alice")
    content = json.dumps({"refresh_token": pair.refresh_token})

    answer = await client.post("/token/refresh", content=content, headers=[(b"content-type", kind) for kind in kinds])

    assert answer.status_code == 415


@pytest.mark.parametrize(
    "kind", ["application/json;charset=utf-8", "Application/JSON ; x=y", 'application/json; x="a,b"']
)
async def test_the_kind_of_a_body_in_other_spellings(client: httpx.AsyncClient, tokens: Tokens, kind: str) -> None:
    pair = await tokens.log_in("alice")
    content = json.dumps({"refresh_token": pair.refresh_token})

    assert (await client.post("/token/refresh", content=content, headers={"content-type": kind})).status_code == 200


async def test_the_public_keys_can_be_cached(client: httpx.AsyncClient) -> None:
    answer = await client.get("/.well-known/jwks.json")

    assert answer.headers["content-type"] == "application/jwk-set+json"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert [sorted(key) for key in answer.json()["keys"]] == [["alg", "crv", "kid", "kty", "use", "x"]]
    assert "d" not in json.dumps(answer.json()["keys"][0]).split('"')


async def test_a_dead_store_is_a_503_and_the_token_still_counts(store: Store, clock: FakeClock) -> None:
    faulty: Any = Wrapped(store)
    tokens = some_tokens(faulty, clock)
    pair = await tokens.log_in("alice")
    transport = httpx.ASGITransport(TokenEndpoints(tokens))
    async with httpx.AsyncClient(transport=transport, base_url="https://x.example") as client:
        faulty.fail["load"] = StoreError("on purpose")
        body = {"refresh_token": pair.refresh_token}
        assert (await client.post("/token/refresh", json=body)).status_code == 503
        faulty.fail.clear()
        assert (await client.post("/token/refresh", json=body)).status_code == 200


def test_what_does_not_fit_is_refused_when_it_is_built(tokens: Tokens, memory: Any) -> None:
    nothing: Any = None
    name: Any = "__Host-Http-refresh"
    builds: list[Any] = [lambda: TokenEndpoints(memory), lambda: BearerMiddleware(nothing, tokens)]
    builds += [lambda: TokenEndpoints(tokens, cookie=name), lambda: TokenEndpoints(tokens, cookie=CookieConfig())]
    for build in (*builds, lambda: BearerMiddleware(Starlette(), nothing)):
        with pytest.raises(ConfigurationError):
            build()


# ── The client ──


async def test_the_client_refreshes_by_itself_once_for_many(store: Store, clock: FakeClock, tokens: Tokens) -> None:
    app = an_app(store, clock, tokens)
    pair = await tokens.log_in("alice")
    kept: list[tuple[str, str]] = []
    refreshes: list[str] = []

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/token/refresh":
            refreshes.append(scope["path"])
        await app(scope, receive, send)

    async def keep(access: str, refresh: str) -> None:
        kept.append((access, refresh))

    auth = TokenAuth(
        "https://api.example.org/token/refresh", pair.refresh_token, access_token=pair.access_token, keep=keep
    )
    transport = httpx.ASGITransport(counting)
    async with httpx.AsyncClient(transport=transport, base_url="https://api.example.org", auth=auth) as client:
        assert (await client.get("/")).json()["user"] == "alice"
        assert refreshes == []
        clock.advance(timedelta(minutes=16))

        answers = await asyncio.gather(*(client.get("/") for _ in range(20)))

        assert {answer.json()["user"] for answer in answers} == {"alice"}
        assert len(refreshes) == 1
        assert (len(kept), kept[0][1] != pair.refresh_token) == (1, True)
        await tokens.sessions.revoke_all("alice")
        clock.advance(timedelta(minutes=16))
        with pytest.raises(TokenError, match="log in again"):
            await client.get("/")


@pytest.mark.parametrize("path", ["refresh", "revoke"])
async def test_two_refresh_cookies_are_4xx(client: httpx.AsyncClient, path: str) -> None:
    """Under a ``__Host-`` name a second one was smuggled in."""
    twice = [("cookie", "__Host-Http-refresh=a"), ("cookie", "__Host-Http-refresh=b")]

    answer = await client.post(f"/token/{path}", headers=twice)

    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")
