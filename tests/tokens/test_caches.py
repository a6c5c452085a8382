"""An answer that depends on the access token says so to caches, in both orders of the middlewares, stateless and strict."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from asgi_sessions import SessionMiddleware, SessionWarning, StoreError
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import BearerMiddleware, TokenEndpoints, Tokens
from tests.tokens.conftest import SECRET, some_tokens
from tests.wrapped import Wrapped

PUBLIC = {"cache-control": "public, max-age=60"}


async def reads(request: Request) -> Response:
    return PlainTextResponse("hello " + str(request.scope["session"].user_id), headers=PUBLIC)


async def reads_the_claims(request: Request) -> Response:
    claims = getattr(request.scope["session"], "claims", None)
    return PlainTextResponse(claims.user_id if claims else str(request.scope["session"].user_id), headers=PUBLIC)


async def same_for_all(request: Request) -> Response:
    return PlainTextResponse("the shop is open", headers=PUBLIC)


async def varies_already(request: Request) -> Response:
    return PlainTextResponse(str(request.scope["session"].user_id), headers={"vary": "Accept, authorization"})


async def varies_on_all(request: Request) -> Response:
    return PlainTextResponse(str(request.scope["session"].user_id), headers={"vary": "*"})


async def streams(request: Request) -> Response:
    async def body() -> Any:
        yield "hello "
        yield str(request.scope["session"].user_id)

    return StreamingResponse(body(), headers=PUBLIC)


async def streams_what_it_read_before(request: Request) -> Response:
    request.scope["session"].mark_accessed()
    return await streams(request)


async def streams_privately(request: Request) -> Response:
    response = await streams(request)
    response.headers["cache-control"] = "private, max-age=60"
    return response


ROUTES = [
    Route(f"/{each.__name__}", each, methods=["GET", "POST"])
    for each in (
        reads,
        reads_the_claims,
        same_for_all,
        varies_already,
        varies_on_all,
        streams,
        streams_what_it_read_before,
        streams_privately,
    )
]
ORDERS = ["bearer outside", "bearer inside", "bearer alone"]


def built(order: str, store: Store, tokens: Tokens, clock: FakeClock, *, strict: bool = False, **options: Any) -> Any:
    app: Any = Starlette(routes=ROUTES)
    options = {"clock": clock, "secret_keys": [SECRET], **options}
    if order == "bearer alone":
        return BearerMiddleware(app, tokens, strict=strict)
    if order == "bearer outside":
        return BearerMiddleware(SessionMiddleware(app, store, **options), tokens, strict=strict)
    return SessionMiddleware(BearerMiddleware(app, tokens, strict=strict), store, **options)


Get = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture(params=[False, True], ids=["stateless", "strict"])
def strict(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=ORDERS)
def get(request: pytest.FixtureRequest, memory: Store, clock: FakeClock, strict: bool) -> Get:
    tokens = some_tokens(memory, clock)
    app = built(request.param, memory, tokens, clock, strict=strict)

    async def get(path: str, *, method: str = "GET", token: str | None = None, bearer: bool = True) -> httpx.Response:
        if bearer and token is None:
            token = (await tokens.log_in("alice")).access_token
        headers = {"authorization": f"Bearer {token}"} if bearer else {}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://api.example") as client:
            return await client.request(method, path, headers=headers)

    get.order = request.param  # type: ignore[attr-defined]  # for the tests in which it matters
    return get


def vary(response: httpx.Response) -> list[str]:
    return sorted(member.strip().lower() for member in response.headers.get("vary", "").split(",") if member.strip())


@pytest.mark.parametrize("path", ["/reads", "/reads_the_claims"])
async def test_what_was_read_from_a_tokens_session_varies_on_authorization(get: Get, path: str) -> None:
    response = await get(path)

    assert response.text.endswith("alice")
    assert vary(response) == ["authorization"]
    assert response.headers["cache-control"] == "public, max-age=60"


async def test_what_did_not_look_at_it_is_the_same_for_all(get: Get) -> None:
    assert vary(await get("/same_for_all")) == []


async def test_a_page_for_people_without_a_token_is_not_for_people_with_one(get: Get) -> None:
    """Else a cache gives "not logged in" to those who are."""
    if get.order == "bearer alone":  # type: ignore[attr-defined]
        # Nothing tells whether the app noticed that there is no session: to be safe, it has.
        assert vary(await get("/same_for_all", bearer=False)) == ["authorization"]
    else:
        assert vary(await get("/reads", bearer=False)) == ["authorization", "cookie"]
        assert vary(await get("/same_for_all", bearer=False)) == []


async def test_what_the_app_said_is_not_said_twice(get: Get) -> None:
    assert vary(await get("/varies_already")) == ["accept", "authorization"]
    assert vary(await get("/varies_on_all")) == ["*"]


@pytest.mark.parametrize("token", ["x", "", "a.b.c"])
async def test_the_refusal_of_a_token_is_kept_by_no_cache(get: Get, token: str) -> None:
    response = await get("/reads", token=token)

    assert (response.status_code, response.headers["cache-control"]) == (401, "no-store")


async def test_a_late_read_is_warned_of_once_and_only_where_a_cache_may_keep_the_answer(get: Get) -> None:
    with pytest.warns(SessionWarning, match="'Vary: Authorization'") as warned:
        assert (await get("/streams")).text == "hello alice"
    assert len(warned) == 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vary(await get("/streams_what_it_read_before")) == ["authorization"]
        await get("/streams_privately")
        await get("/streams", method="POST")


@pytest.mark.parametrize("order", ORDERS)
async def test_a_store_that_is_away_is_a_503_that_no_cache_keeps(order: str, memory: Store, clock: FakeClock) -> None:
    faulty: Any = Wrapped(memory)
    tokens = some_tokens(faulty, clock)
    pair = await tokens.log_in("alice")
    faulty.fail["load"] = StoreError("on purpose")
    app = built(order, faulty, tokens, clock, strict=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://api.example") as client:
        response = await client.get("/reads", headers={"authorization": f"Bearer {pair.access_token}"})

    assert (response.status_code, response.headers["cache-control"]) == (503, "no-store")


async def test_an_accepted_websocket_says_nothing_and_a_denied_one_varies(memory: Store, clock: FakeClock) -> None:
    tokens = some_tokens(memory, clock)
    pair = await tokens.log_in("alice")
    answers: list[Any] = [{"type": "websocket.accept"}, {"type": "websocket.http.response.start", "status": 403}]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    for answer in answers:

        async def app(scope: Any, receive: Any, send: Any, answer: Any = answer) -> None:
            assert scope["session"].user_id == "alice"
            await send(answer)

        headers = [(b"authorization", f"Bearer {pair.access_token}".encode())]
        await BearerMiddleware(app, tokens)({"type": "websocket", "headers": headers}, None, send)

    assert "headers" not in sent[0]
    assert sent[1]["headers"] == [(b"vary", b"Authorization")]


async def test_the_message_of_the_app_is_not_changed(memory: Store, clock: FakeClock) -> None:
    tokens = some_tokens(memory, clock)
    message = {"type": "http.response.start", "status": 200, "headers": ((b"vary", b"Accept"),)}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(message)

    async def send(sent: Any) -> None:
        assert sent["headers"] == [(b"vary", b"Accept, Authorization")]

    await BearerMiddleware(app, tokens)({"type": "http", "method": "GET", "headers": []}, None, send)

    assert message["headers"] == ((b"vary", b"Accept"),)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, "no-store"),
        ("public, max-age=60", 'max-age=60, private, no-cache="Set-Cookie"'),
        ("no-store", "no-store"),
    ],
    ids=["nothing", "public", "no-store"],
)
async def test_the_answer_with_a_refresh_cookie_stays_out_of_shared_caches(
    memory: Store, clock: FakeClock, said: str | None, expected: str
) -> None:
    tokens = some_tokens(memory, clock)
    pair = await tokens.log_in("alice")
    response = JSONResponse({"access_token": pair.access_token}, headers={"cache-control": said} if said else None)

    TokenEndpoints(tokens).set_cookie(response, pair)

    assert response.headers["cache-control"] == expected
    assert response.headers["set-cookie"].startswith("__Host-Http-refresh=")


SCHEMES: dict[str, tuple[bytes, int]] = {
    "another case": (b"bEARER ", 200),
    "many spaces": (b"Bearer    ", 200),
    "spaces around": (b"  Bearer ", 200),
    "a tab": (b"Bearer\t", 401),
    "no space": (b"Bearer", 401),
    "another scheme that begins alike": (b"BearerX ", 401),
    "a comma": (b"Bearer x, ", 401),
}


@pytest.mark.parametrize(("before", "status"), SCHEMES.values(), ids=SCHEMES.keys())
async def test_how_a_token_may_be_written(memory: Store, clock: FakeClock, before: bytes, status: int) -> None:
    tokens = some_tokens(memory, clock)
    pair = await tokens.log_in("alice")
    app = BearerMiddleware(Starlette(routes=ROUTES), tokens, required=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://api.example") as client:
        response = await client.get("/reads", headers=[(b"authorization", before + pair.access_token.encode())])

    assert response.status_code == status


@pytest.mark.parametrize("value", [b"Bearer", b"bearer ", b" Bearer  "])
async def test_a_scheme_without_a_token_is_an_attempt_and_not_a_visitor(
    memory: Store, clock: FakeClock, value: bytes
) -> None:
    """Where a token is, no cookie counts; also where one was meant to be."""
    app = built("bearer outside", memory, some_tokens(memory, clock), clock)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://api.example") as client:
        assert (await client.get("/reads", headers=[(b"authorization", value)])).status_code == 401
