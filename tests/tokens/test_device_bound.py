"""The claim ``device_bound`` of access tokens that a device-bound session mints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_sessions import DeviceBound, MemoryStore, SessionDataError, SessionError, SessionMiddleware, Sessions
from asgi_sessions.dbsc.testing import SoftwareDevice
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import BearerMiddleware, Tokens
from tests.support import Browser, inner_app, log_in
from tests.tokens.conftest import KEY, SECRET, URL

Browse = Callable[..., httpx.AsyncClient]


@pytest.fixture
def tokens(memory: MemoryStore, clock: FakeClock) -> Tokens:
    sessions = Sessions(memory, secret_keys=[SECRET], device_bound=DeviceBound(), clock=clock)
    return Tokens(sessions, keys=[KEY], issuer=URL, audience=URL)


@pytest.fixture
def app(tokens: Tokens) -> Any:
    """A front end that mints tokens at ``/token``, and an API that tells what it sees of its caller."""

    async def log_in(request: Request) -> Response:
        session: Any = request.session
        session.log_in("alice")
        return JSONResponse("in")

    async def mint(request: Request) -> Response:
        session: Any = request.session
        return JSONResponse(tokens.access_token(session, **dict(request.query_params)))

    async def who(request: Request) -> Response:
        session: Any = request.session
        claims = session.claims.extra if session.is_bearer else None
        return JSONResponse({"user": session.user_id, "bound": session.is_device_bound, "extra": claims})

    return Starlette(routes=[Route("/login", log_in), Route("/token", mint), Route("/", who)])


@pytest.fixture
async def browse(app: Any, tokens: Tokens, clock: FakeClock) -> AsyncIterator[Browse]:
    """Makes browsers that have logged in."""
    clients: list[httpx.AsyncClient] = []
    protected = SessionMiddleware(BearerMiddleware(app, tokens), tokens.sessions)

    def make(*, with_device: bool) -> httpx.AsyncClient:
        transport: Any = httpx.ASGITransport(protected)
        device = SoftwareDevice(transport, clock=clock) if with_device else transport
        clients.append(httpx.AsyncClient(transport=device, base_url="https://testserver"))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


async def minted_by(client: httpx.AsyncClient) -> str:
    await client.get("/login")
    return str((await client.get("/token?scope=read")).json())


async def test_a_request_that_proved_its_device_mints_a_token_that_says_so(browse: Browse, tokens: Tokens) -> None:
    claims = tokens.verify(await minted_by(browse(with_device=True)))

    assert claims.extra == {"scope": "read", "device_bound": True}


async def test_any_other_request_mints_a_token_without_the_claim(browse: Browse, tokens: Tokens) -> None:
    claims = tokens.verify(await minted_by(browse(with_device=False)))

    assert claims.extra == {"scope": "read"}


async def test_within_the_grace_a_request_without_the_proof_mints_a_token_without_the_claim(
    browse: Browse, tokens: Tokens
) -> None:
    client = browse(with_device=True)
    await client.get("/login")
    early = browse(with_device=False)
    early.cookies = client.cookies

    claims = tokens.verify((await early.get("/token")).json())

    assert claims.extra == {}


@pytest.mark.parametrize("value", [True, False, None])
@pytest.mark.parametrize("with_device", [True, False], ids=["bound", "not bound"])
async def test_the_claim_cannot_be_given(
    browse: Browse, app: Any, tokens: Tokens, with_device: bool, value: object
) -> None:
    async def claim(request: Request) -> Response:
        with pytest.raises(SessionDataError, match="'device_bound' says whether"):
            tokens.access_token(request.scope["session"], device_bound=value)
        return JSONResponse("refused")

    app.routes.append(Route("/claim", claim))
    client = browse(with_device=with_device)
    await client.get("/login")

    assert (await client.get("/claim")).json() == "refused"


@pytest.mark.parametrize("strict", [False, True], ids=["stateless", "strict"])
async def test_a_session_that_came_with_such_a_token_proves_no_device(
    browse: Browse, app: Any, tokens: Tokens, strict: bool
) -> None:
    """Whoever has copied the token can present it from anywhere. Only the claim says how it was minted."""
    token = await minted_by(browse(with_device=True))
    api = BearerMiddleware(app, tokens, strict=strict)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url=URL) as thief:
        seen = (await thief.get("/", headers={"authorization": f"Bearer {token}"})).json()

    assert seen == {"user": "alice", "bound": False, "extra": {"scope": "read", "device_bound": True}}


async def test_a_stolen_cookie_mints_nothing_after_the_grace(browse: Browse, clock: FakeClock) -> None:
    client = browse(with_device=True)
    await client.get("/login")
    await client.get("/token")  # the browser shows its first cookie
    thief = browse(with_device=False)
    thief.cookies = client.cookies
    clock.advance(timedelta(seconds=30))

    with pytest.raises(SessionError, match="nobody is logged in"):
        await thief.get("/token")


async def test_an_access_token_says_how_its_user_logged_in(clock: FakeClock, tokens: Tokens) -> None:
    """``amr`` and ``acr`` are those of OpenID Connect Core 1.0, section 2."""
    browser = Browser(SessionMiddleware(inner_app, tokens.sessions))
    found: list[str] = []

    logins: list[dict[str, Any]] = [{"methods": ["pwd", "otp"]}, {"level": 3}, {"methods": ["pwd"], "level": 0}, {}]
    for said in logins:
        await browser.do(log_in("alice", **said))
        await browser.do(lambda session: found.append(tokens.access_token(session)))

    claims = [tokens.verify(token).extra for token in found]
    assert claims == [{"amr": ["pwd", "otp"], "acr": "2"}, {"acr": "3"}, {"amr": ["pwd"], "acr": "0"}, {}]


@pytest.mark.parametrize("claim", ["amr", "acr"])
async def test_those_claims_are_not_the_apps(tokens: Tokens, claim: str) -> None:
    browser = Browser(SessionMiddleware(inner_app, tokens.sessions))
    await browser.do(lambda session: session.log_in("alice"))

    with pytest.raises(SessionDataError, match=claim):
        await browser.do(lambda session: tokens.access_token(session, **{claim: "x"}))
