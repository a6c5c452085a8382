"""CrossOriginProtection: the truth table, hostile headers, WebSockets, and what is refused when it is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from litestar import Litestar
from litestar.middleware import DefineMiddleware
from quart import Quart
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from asgi_sessions import ConfigurationError, CookieConfig, DeviceBound, MemoryStore, SessionMiddleware, Sessions
from asgi_sessions.cross_origin import CrossOriginProtection
from asgi_sessions.dbsc.testing import SoftwareDevice
from asgi_sessions.frameworks.litestar import SessionPlugin
from asgi_sessions.frameworks.quart import init_app
from asgi_sessions.testing import FakeClock

HOST = "app.example"
Headers = list[tuple[bytes, bytes]]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


async def ask(scope: dict[str, Any], **options: Any) -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("nothing is to be received")

    async def send(message: Any) -> None:
        sent.append(message)

    await CrossOriginProtection(app, **options)(scope, receive, send)
    return sent


def http(method: str = "POST", **pairs: str) -> dict[str, Any]:
    headers = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in pairs.items()]
    return {"type": "http", "method": method, "path": "/", "headers": headers}


def with_headers(headers: Headers) -> dict[str, Any]:
    return {**http(), "headers": headers}


async def passes(scope: dict[str, Any], **options: Any) -> bool:
    sent = await ask(scope, **options)
    if scope["type"] == "websocket":
        assert sent[0]["type"] in ("websocket.accept", "websocket.close")
        return bool(sent[0]["type"] == "websocket.accept")
    assert sent[0]["status"] in (200, 403)
    return bool(sent[0]["status"] == 200)


SITES = {None: None, "": None, "same-origin": True, "none": True, "same-site": False, "cross-site": False, "odd": False}
ORIGINS = {
    None: True,
    "": True,
    f"https://{HOST}": True,
    f"http://{HOST}": True,  # the scheme is not compared
    f"https://{HOST}:443": True,
    f"https://{HOST}:8443": False,
    "https://other.example": False,
    f"https://sub.{HOST}": False,
    f"https://{HOST}.evil.example": False,
    f"https://{HOST}.": False,
    f"https://{HOST}/": False,
    f"https://{HOST}@evil.example": False,
    "null": False,
    HOST: False,
    "https://APP.example": True,
    "https://": False,
}


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "QUERY", "get"])
async def test_the_truth_table(method: str, site: str | None, origin: str | None) -> None:
    pairs = {"host": HOST}
    if site is not None:
        pairs["sec_fetch_site"] = site
    if origin is not None:
        pairs["origin"] = origin
    said = SITES[site]
    expected = method in ("GET", "HEAD", "OPTIONS") or (ORIGINS[origin] if said is None else said)

    assert await passes(http(method, **pairs)) is expected
    # A handshake is judged like a POST, though its method is GET.
    socket = {**http(**pairs), "type": "websocket"}
    assert await passes(socket) is (ORIGINS[origin] if said is None else said)


@pytest.mark.parametrize("site", [None, "cross-site", "same-site"])
@pytest.mark.parametrize(
    "origin", ["https://partner.example", "https://partner.example:443", "HTTPS://Partner.Example"]
)
async def test_a_trusted_origin_passes_whatever_the_site(site: str | None, origin: str) -> None:
    pairs = {"host": HOST, "origin": origin, **({"sec_fetch_site": site} if site else {})}

    assert await passes(http(**pairs), trusted_origins=["https://partner.example"])
    assert not await passes(http(**pairs), trusted_origins=["https://partner.example:8443", "http://partner.example"])


async def test_null_is_nobody() -> None:
    assert not await passes(http(host=HOST, origin="null"), trusted_origins=["https://partner.example"])
    assert not await passes(http(host="null", origin="null"))


async def test_what_is_skipped_passes() -> None:
    scope = http(host=HOST, sec_fetch_site="cross-site")

    assert await passes(scope, skip=lambda scope: scope["path"] == "/")
    assert not await passes(scope, skip=lambda scope: scope["path"] == "/webhook")


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("app.example:8000", "http://app.example:8000", True),
        ("app.example:8000", "http://app.example:8001", False),
        ("app.example:443", "https://app.example", True),
        ("app.example:443", "http://app.example", False),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("[::1]:8000", "http://[::2]:8000", False),
        ("APP.example", "https://app.EXAMPLE", True),
        ("", "https://app.example", False),
    ],
)
async def test_hosts_and_ports(host: str, origin: str, expected: bool) -> None:
    assert await passes(http(host=host, origin=origin)) is expected


async def test_without_a_host_no_origin_is_ours() -> None:
    assert not await passes(http(origin=f"https://{HOST}"))


@pytest.mark.parametrize("name", [b"origin", b"host", b"sec-fetch-site"])
async def test_a_header_that_comes_twice_is_refused(name: bytes) -> None:
    """A proxy and we might each believe another one of them."""
    headers = [(b"host", HOST.encode()), (b"origin", f"https://{HOST}".encode()), (b"sec-fetch-site", b"same-origin")]
    assert await passes(with_headers(headers))

    again = next(value for known, value in headers if known == name)

    assert not await passes(with_headers([*headers, (name, again)]))


@given(st.lists(st.tuples(st.sampled_from([b"origin", b"host", b"sec-fetch-site", b"x"]), st.binary(max_size=400))))
async def test_no_headers_raise(headers: Headers) -> None:
    assert await passes(with_headers(headers)) in (True, False)


async def test_64_kb_are_refused() -> None:
    assert not await passes(http(host=HOST, origin="https://" + "a" * 65_536))
    assert not await passes(http(host="a" * 65_536, origin="https://" + "a" * 65_536))


async def test_a_refusal_says_why_in_a_word() -> None:
    start, body = await ask(http(host=HOST, sec_fetch_site="cross-site"))

    assert start["status"] == 403
    assert body["body"] == b"Forbidden: the request comes from another origin"
    assert (b"content-length", str(len(body["body"])).encode()) in start["headers"]


async def test_a_handshake_is_denied_with_an_answer_where_the_server_can() -> None:
    scope = {**http(host=HOST, origin="https://evil.example"), "type": "websocket"}

    (closed,) = await ask(scope)
    start, _ = await ask({**scope, "extensions": {"websocket.http.response": {}}})

    assert closed["type"] == "websocket.close"
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)


async def test_lifespan_passes() -> None:
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await CrossOriginProtection(inner)({"type": "lifespan"}, None, None)

    assert seen == ["lifespan"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"trusted_origins": "https://partner.example"}, id="a single string"),
        *(
            pytest.param({"trusted_origins": [origin]}, id=repr(origin))
            for origin in (
                "partner.example",
                "https://partner.example/",
                "https://partner.example/path",
                "https://*.partner.example",
                "https://user@partner.example",
                "https://",
                "null",
                "*",
                "",
                None,
                "https://bücher.example",
                "https://partner.example:port",
            )
        ),
        pytest.param({"skip": 1}, id="skip is no function"),
        pytest.param({"skip": ask}, id="skip is a coroutine function"),
        pytest.param({"app": None}, id="no app"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_app_is_built(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="CrossOriginProtection"):
        CrossOriginProtection(**{"app": app, **options})


# ── Device-bound sessions inside ──

SECRET = "3qH0h8bWc1yN7vXr5LxJ2mZkT9dPfUeA"


def bound_sessions(clock: FakeClock | None = None, **options: Any) -> Sessions:
    bound = DeviceBound(refresh_initiators=["front.example"], **options)
    return Sessions(MemoryStore(), secret_keys=[SECRET], device_bound=bound, clock=clock or FakeClock())


class Between:
    """A middleware of the app's own."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def alone(sessions: Sessions) -> Any:
    return CrossOriginProtection(SessionMiddleware(app, sessions))


def beyond_others(sessions: Sessions) -> Any:
    return CrossOriginProtection(Between(Between(SessionMiddleware(app, sessions))))


def behind_another_of_ours(sessions: Sessions) -> Any:
    return CrossOriginProtection(SessionMiddleware(SessionMiddleware(app, sessions), MemoryStore(), cookie=OTHER))


def in_starlette(sessions: Sessions) -> Any:
    return Starlette(middleware=[Middleware(CrossOriginProtection), Middleware(SessionMiddleware, sessions)])


def around_starlette(sessions: Sessions) -> Any:
    return CrossOriginProtection(Starlette(middleware=[Middleware(SessionMiddleware, sessions)]))


def around_fastapi(sessions: Sessions) -> Any:
    inner = FastAPI()
    inner.add_middleware(SessionMiddleware, sessions)
    return CrossOriginProtection(inner)


def around_quart(sessions: Sessions) -> Any:
    inner = Quart(__name__)
    init_app(inner, sessions)
    return CrossOriginProtection(inner)


def around_litestar(sessions: Sessions) -> Any:
    return CrossOriginProtection(Litestar(plugins=[SessionPlugin(sessions)]))


def in_litestar(sessions: Sessions) -> Any:
    return Litestar(plugins=[SessionPlugin(sessions)], middleware=[DefineMiddleware(CrossOriginProtection)])


OTHER = CookieConfig(name="other")
BUILDERS = [
    alone,
    beyond_others,
    behind_another_of_ours,
    in_starlette,
    around_starlette,
    around_fastapi,
    around_quart,
    around_litestar,
    in_litestar,
]


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"https://{HOST}")


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__.replace("_", " "))
@pytest.mark.parametrize("headers", [{"sec-fetch-site": "same-site"}, {"origin": "https://front.example"}], ids=str)
async def test_the_endpoints_of_bound_sessions_are_reached_from_other_hosts(
    build: Callable[[Sessions], Any], headers: dict[str, str]
) -> None:
    built = build(bound_sessions())
    async with client_of(built) as client:
        await client.post("/transfer", headers=headers)  # refused, before there is anything to be found in Starlette
        await client.get("/")  # Starlette builds its middlewares now

        answers = [await client.post(f"/dbsc/{each}", headers=headers) for each in ("register", "refresh")]
        elsewhere = await client.post("/transfer", headers={**headers, "secure-session-response": "x"})

    assert [answer.status_code for answer in answers] == [401, 401]
    assert elsewhere.status_code in ({403} if build is not in_litestar else {404})  # Litestar: no route, no middleware


REFUSED: dict[str, dict[str, Any]] = {
    "another method": {"method": "DELETE"},
    "below": {"path": "/dbsc/refresh/more"},
    "above": {"path": "/dbsc"},
    "another endpoint": {"path": "/dbsc/other"},
    "a longer name": {"path": "/dbsc/refreshed"},
    "with a slash": {"path": "/dbsc/refresh/"},
    "in capitals": {"path": "/DBSC/refresh"},
    "elsewhere": {"path": "/app/dbsc/refresh"},
    "a handshake": {"type": "websocket"},
}


async def status_of(app: Any, scope: dict[str, Any]) -> int:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return 403 if sent[0]["type"] == "websocket.close" else int(sent[0]["status"])


@pytest.mark.parametrize("more", REFUSED.values(), ids=REFUSED)
async def test_nothing_else_is_let_through_for_them(more: dict[str, Any]) -> None:
    scope = {**http(host=HOST, sec_fetch_site="same-site"), "path": "/dbsc/refresh"}
    protected = alone(bound_sessions())

    assert await status_of(protected, scope) == 401
    assert await status_of(protected, {**scope, **more}) == 403


async def test_the_endpoints_are_where_the_options_and_the_root_path_say() -> None:
    protected = alone(bound_sessions(path="/keys"))
    scope = http(host=HOST, sec_fetch_site="same-site")

    async def status(path: str, root_path: str) -> int:
        return await status_of(protected, {**scope, "path": path, "root_path": root_path})

    assert await status("/keys/refresh", "") == 401
    assert await status("/app/keys/refresh", "/app") == 401
    assert await status("/keys/refresh", "/app") == 401  # some mounts leave it out
    assert await status("/dbsc/refresh", "") == 403
    assert await status("/app/keys/refresh", "") == 403


async def test_the_endpoints_of_a_mounted_app_are_let_through_inside_of_it_or_by_skip() -> None:
    """From outside, a mounted app is not found. (Starlette writes into the scope.)"""
    scope = {**http(host=HOST, sec_fetch_site="same-site"), "path": "/shop/dbsc/refresh"}

    def mounted(inner: Any) -> Any:
        return Starlette(routes=[Mount("/shop", app=inner)])

    shop = mounted(SessionMiddleware(app, bound_sessions()))

    assert await status_of(CrossOriginProtection(shop), {**scope}) == 403
    skipping = CrossOriginProtection(shop, skip=lambda scope: scope["path"].startswith("/shop/dbsc/"))
    assert await status_of(skipping, {**scope}) == 401
    assert await status_of(mounted(alone(bound_sessions())), {**scope}) == 401


async def test_without_bound_sessions_nothing_is_let_through() -> None:
    scope = {**http(host=HOST, sec_fetch_site="same-site"), "path": "/dbsc/refresh"}

    assert await status_of(CrossOriginProtection(SessionMiddleware(app, MemoryStore())), scope) == 403
    assert await status_of(CrossOriginProtection(app), scope) == 403


async def test_a_browser_proves_its_key_for_a_page_of_another_host(clock: FakeClock) -> None:
    async def visit(request: Request) -> PlainTextResponse:
        session: Any = request.session
        if request.url.path == "/login":
            session.log_in("alice")
        return PlainTextResponse(f"{session.user_id} {session.is_device_bound}")

    class SameSite(httpx.ASGITransport):
        """The proofs come with what browsers say where another host made them."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path == "/dbsc/refresh":
                request.headers.update({"sec-fetch-site": "same-site", "origin": "https://front.example"})
                paths.append(request.url.path)
            return await super().handle_async_request(request)

    paths: list[str] = []
    inner = Starlette(routes=[Route("/login", visit), Route("/", visit)])
    protected = CrossOriginProtection(SessionMiddleware(inner, bound_sessions(clock)))
    device = SoftwareDevice(SameSite(protected), clock=clock)
    async with httpx.AsyncClient(transport=device, base_url=f"https://{HOST}") as client:
        await client.get("/login")
        clock.advance(660)

        assert (await client.get("/")).text == "alice True"
        assert paths == ["/dbsc/refresh"]
