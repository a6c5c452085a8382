"""What a session does, the same in every framework."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from asgi_sessions import DeviceBound, MemoryStore, Sessions
from asgi_sessions.dbsc.testing import SoftwareDevice
from asgi_sessions.errors import StoreUnreachable
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.frameworks.apps import BUILDERS, App
from tests.frameworks.client import Client
from tests.wrapped import Wrapped

Build = Callable[..., App]

# Litestar closes a WebSocket that it refuses; the others answer the handshake with a whole response.
DENIES_WITH_A_RESPONSE = {"starlette", "fastapi", "quart"}


@pytest.fixture(params=sorted(BUILDERS))
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def build(framework: str) -> Build:
    return BUILDERS[framework]


def set_cookies(response: Any) -> list[str]:
    return [str(line) for line in response.headers.get_list("set-cookie")]


# ── Other sites ──


@pytest.mark.parametrize("path", ["/basket/tea", "/logout", "/crash/write", "/background"])
async def test_a_form_of_another_site_leaves_the_users_cookie_alone(
    build: Build, memory: MemoryStore, path: str
) -> None:
    """It comes without the cookie, and a browser takes whatever cookie the answer has."""
    app = build(memory).asgi
    form = {"origin": "https://evil.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    alice = Client(app)
    await alice.post("/login/alice")

    attacked = await Client(app).post(path, headers=form)
    logged_in = await Client(app).post("/login/bob", headers=form)

    assert set_cookies(attacked) == []
    assert len(set_cookies(logged_in)) == 1
    assert len(memory) == 2


# ── Reading and writing ──


async def test_a_request_that_leaves_the_session_alone_gets_nothing_from_us(build: Build, memory: MemoryStore) -> None:
    response = await Client(build(memory).asgi).get("/untouched")

    assert response.status_code == 200
    assert {"set-cookie", "vary", "cache-control"}.isdisjoint(response.headers)


async def test_reading_an_anonymous_session_sets_no_cookie_and_varies(build: Build, memory: MemoryStore) -> None:
    response = await Client(build(memory).asgi).get("/session")

    assert response.json() == {}
    assert set_cookies(response) == []
    assert response.headers["vary"] == "Cookie"


async def test_the_whole_session_read_as_json_varies_even_though_no_method_of_it_is_called(
    build: Build, memory: MemoryStore
) -> None:
    """Serializers in Rust and C read a dict from inside; that must not pass for "not read"."""
    client = Client(build(memory).asgi)
    await client.post("/basket/apple")

    response = await client.get("/session")

    assert response.json() == {"basket": ["apple"]}
    assert response.headers["vary"] == "Cookie"


async def test_a_nested_change_is_saved_without_a_flag(build: Build, store: Store) -> None:
    client = Client(build(store).asgi)

    first = await client.post("/basket/apple")
    second = await client.post("/basket/pear")

    assert len(set_cookies(first)) == 1
    assert set_cookies(second) == []
    assert await client.session() == {"basket": ["apple", "pear"]}


async def test_a_response_that_sets_the_cookie_is_kept_out_of_shared_caches(build: Build, memory: MemoryStore) -> None:
    response = await Client(build(memory).asgi).post("/basket/apple")

    (cookie,) = set_cookies(response)
    assert cookie.endswith("; Path=/; Secure; HttpOnly; SameSite=Lax")
    assert response.headers["cache-control"] == "no-store"


# ── Logging in and out ──


@pytest.mark.parametrize("path", ["/login/alice", "/sync/alice"], ids=["async", "in a thread"])
async def test_logging_in_keeps_the_basket_under_a_new_token_and_kills_the_old(
    build: Build, store: Store, path: str
) -> None:
    client = Client(build(store).asgi)
    await client.post("/basket/apple")
    thief = client.another()

    response = await client.post(path)

    assert response.is_success
    assert client.token != thief.token
    assert await client.session() == {"basket": ["apple"]}
    assert (await client.get("/account")).json() == {"user": "alice"}
    assert await thief.session() == {}
    assert (await thief.get("/account")).status_code == 401


async def test_logging_out_removes_the_cookie_and_a_replay_is_refused(build: Build, store: Store) -> None:
    client = Client(build(store).asgi)
    await client.post("/login/alice")
    thief = client.another()

    response = await client.post("/logout")

    assert [line for line in set_cookies(response) if "Max-Age=0" in line] == set_cookies(response) != []
    assert client.token is None
    assert (await thief.get("/account")).status_code == 401


async def test_without_a_user_an_account_is_401_with_a_challenge(build: Build, memory: MemoryStore) -> None:
    response = await Client(build(memory).asgi).get("/account")

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Cookie"
    assert set_cookies(response) == []


@pytest.mark.parametrize("path", ["/account", "/grave", "/bound", "/ws/account"])
@pytest.mark.parametrize("framework", ["fastapi", "litestar", "quart"])  # those with guards of ours
async def test_during_an_outage_nobody_is_told_to_log_in(build: Build, memory: MemoryStore, path: str) -> None:
    """With ``on_store_failure="anonymous"`` the user may be logged in. A front end that gets 401 leaves the page."""
    store = Wrapped(memory)
    client = Client(build(store, on_store_failure="anonymous").asgi)
    await client.post("/login/alice")
    store.fail["load"] = StoreUnreachable("no")

    if path.startswith("/ws"):
        async with client.websocket(path) as socket:
            assert not socket.accepted
        assert socket.answer.get("status", socket.answer.get("code")) in (503, 4500)
        return
    response = await client.get(path)

    assert (response.status_code, set_cookies(response)) == (503, [])
    assert int(response.headers["retry-after"]) > 0
    assert "www-authenticate" not in response.headers
    assert "no-store" in response.headers["cache-control"]


async def test_what_needs_a_fresh_log_in_is_401_after_a_while_until_the_user_confirms(
    build: Build, memory: MemoryStore, clock: FakeClock
) -> None:
    client = Client(build(memory, clock=clock).asgi)
    await client.post("/login/alice")
    assert (await client.get("/grave")).json() == {"user": "alice"}

    clock.advance(timedelta(minutes=5))
    stale = await client.get("/grave")
    account = await client.get("/account")
    await client.post("/confirm")
    confirmed = await client.get("/grave")

    assert stale.status_code == 401
    assert stale.headers["www-authenticate"] == "Cookie error=insufficient_user_authentication, max_age=300"
    assert account.json() == {"user": "alice"}
    assert confirmed.json() == {"user": "alice"}


async def test_without_a_user_what_needs_a_fresh_log_in_asks_to_log_in(build: Build, memory: MemoryStore) -> None:
    response = await Client(build(memory).asgi).get("/grave")

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Cookie"


# ── Bound to a device ──

SECRET = "3qH0h8bWc1yN7vXr5LxJ2mZkT9dPfUeA"


@pytest.fixture
def bound(build: Build, memory: MemoryStore, clock: FakeClock) -> Any:
    """The app, with sessions that are bound to devices."""
    return build(Sessions(memory, secret_keys=[SECRET], device_bound=DeviceBound(), clock=clock)).asgi


def with_device(app: Any, clock: FakeClock) -> tuple[Client, SoftwareDevice]:
    """A browser with DBSC."""
    client = Client(app)
    client._transport = device = SoftwareDevice(client._transport, clock=clock)
    return client, device


async def test_what_needs_a_bound_session_is_for_browsers_that_prove_their_device(bound: Any, clock: FakeClock) -> None:
    client, device = with_device(bound, clock)
    await client.post("/login/alice")

    assert len(device.sessions) == 1
    assert (await client.get("/bound")).json() == {"user": "alice"}
    clock.advance(timedelta(minutes=20))  # the browser proves its key once more
    assert (await client.get("/bound")).json() == {"user": "alice"}


async def test_a_browser_that_cannot_bind_its_session_is_403_there_and_served_elsewhere(bound: Any) -> None:
    client = Client(bound)
    await client.post("/login/alice")

    refused = await client.get("/bound")

    assert refused.status_code == 403
    assert (await client.get("/account")).json() == {"user": "alice"}


async def test_within_the_grace_a_request_without_the_proof_is_403_there(bound: Any, clock: FakeClock) -> None:
    """It was sent before the browser had registered its key. A thief could have sent it."""
    client, _ = with_device(bound, clock)
    await client.post("/login/alice")

    early = client.another()

    assert (await early.get("/account")).json() == {"user": "alice"}
    assert (await early.get("/bound")).status_code == 403


async def test_a_stolen_pair_of_cookies_is_worth_nothing_there_after_its_time(bound: Any, clock: FakeClock) -> None:
    client, device = with_device(bound, clock)
    await client.post("/login/alice")
    thief = client.another()
    for name, (value, _) in device.cookies.items():
        thief.cookies.set(name, value, domain="testserver.local")
    at_first = await thief.get("/bound")

    clock.advance(timedelta(minutes=11))
    later = await thief.get("/bound")

    assert at_first.json() == {"user": "alice"}
    assert later.status_code == 307  # once more, with a proof
    thief.cookies.delete(next(iter(device.cookies)))
    assert (await thief.get("/bound")).status_code == 401
    assert (await client.get("/bound")).json() == {"user": "alice"}


async def test_without_a_user_what_needs_a_bound_session_asks_to_log_in(bound: Any) -> None:
    response = await Client(bound).get("/bound")

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Cookie"


async def test_a_socket_that_needs_a_bound_session_is_refused_without_one(framework: str, bound: Any) -> None:
    client = Client(bound)
    await client.post("/login/alice")

    async with client.websocket("/ws/bound") as socket:
        assert not socket.accepted

    if framework in DENIES_WITH_A_RESPONSE:
        assert socket.answer["status"] == 403
    else:
        assert socket.answer["type"] == "websocket.close"


async def test_a_socket_that_proves_its_device_is_accepted(bound: Any, clock: FakeClock) -> None:
    client, device = with_device(bound, clock)
    await client.post("/login/alice")
    ((name, (value, _)),) = device.cookies.items()

    async with client.websocket("/ws/bound", cookie=f"{name}={value}") as socket:
        assert socket.accepted
        assert json.loads((await socket.next())["text"]) == "alice"


# ── Crashes ──


async def test_a_crash_discards_the_changes_of_its_request(build: Build, store: Store) -> None:
    client = Client(build(store).asgi)
    await client.post("/basket/apple")

    response = await client.post("/crash/data")

    assert response.status_code == 500
    assert await client.session() == {"basket": ["apple"]}


async def test_a_crash_discards_a_log_in(build: Build, memory: MemoryStore) -> None:
    client = Client(build(memory).asgi)
    await client.post("/basket/apple")
    token = client.token

    response = await client.post("/crash/login")

    assert response.status_code == 500
    assert set_cookies(response) == []
    assert client.token == token
    assert (await client.get("/account")).status_code == 401
    assert await client.session() == {"basket": ["apple"]}


async def test_a_log_out_counts_even_if_the_handler_then_crashes(build: Build, store: Store) -> None:
    client = Client(build(store).asgi)
    await client.post("/login/alice")
    thief = client.another()

    response = await client.post("/crash/logout")

    assert response.status_code == 500
    assert (await thief.get("/account")).status_code == 401


# ── Late changes ──


async def test_a_change_in_the_middle_of_a_stream_is_saved(build: Build, store: Store) -> None:
    client = Client(build(store).asgi)
    await client.post("/basket/apple")

    response = await client.get("/stream")

    assert response.text == "first, last"
    assert await client.session() == {"basket": ["apple"], "late": "stream"}


async def test_a_change_in_a_background_task_is_saved(build: Build, memory: MemoryStore) -> None:
    app = build(memory)
    client = Client(app.asgi)
    await client.post("/basket/apple")

    response = await client.post("/background")
    await app.settle()

    assert response.is_success
    assert await client.session() == {"basket": ["apple"], "late": "background"}


# ── WebSockets ──


async def test_a_websocket_reads_the_session_and_its_changes_are_there_when_the_client_has_gone(
    build: Build, store: Store
) -> None:
    client = Client(build(store).asgi)
    await client.post("/basket/apple")

    async with client.websocket("/ws") as socket:
        heard = await socket.say("hello")

    assert socket.accepted
    assert socket.headers("set-cookie") == []
    assert json.loads(heard["text"]) == {"basket": ["apple"], "sockets": 1, "heard": ["hello"]}
    assert await client.session() == {"basket": ["apple"], "sockets": 1, "heard": ["hello"], "left": True}


async def test_a_websocket_that_begins_a_session_sets_its_cookie_on_accept(build: Build, memory: MemoryStore) -> None:
    client = Client(build(memory).asgi)

    async with client.websocket("/ws") as socket:
        assert len(socket.headers("set-cookie")) == 1
        assert await client.session() == {"sockets": 1}
        await socket.say("hello")

    assert await client.session() == {"sockets": 1, "heard": ["hello"], "left": True}


async def test_changes_are_saved_before_the_app_closes_a_websocket(build: Build, memory: MemoryStore) -> None:
    client = Client(build(memory).asgi)

    async with client.websocket("/ws") as socket:
        closed = await socket.say("bye")

        assert closed["type"] == "websocket.close"
        assert await client.session() == {"sockets": 1, "heard": ["bye"]}


async def test_a_websocket_whose_handler_raises_loses_its_unsaved_changes(build: Build, memory: MemoryStore) -> None:
    client = Client(build(memory).asgi)

    async def crash() -> None:
        async with client.websocket("/ws") as socket:
            await socket.say("hello")
            await socket.send("crash")

    with suppress(BaseExceptionGroup):  # Starlette and FastAPI hand the error to the server
        await crash()

    assert await client.session() == {"sockets": 1}


async def test_a_websocket_that_needs_a_user_is_refused_without_one(
    build: Build, framework: str, memory: MemoryStore
) -> None:
    async with Client(build(memory).asgi).websocket("/ws/account") as socket:
        assert not socket.accepted

    if framework in DENIES_WITH_A_RESPONSE:
        assert socket.answer["status"] == 401
        assert socket.headers("www-authenticate") == ["Cookie"]
    else:
        assert socket.answer["type"] == "websocket.close"


async def test_a_websocket_that_needs_a_user_is_accepted_with_one(build: Build, memory: MemoryStore) -> None:
    client = Client(build(memory).asgi)
    await client.post("/login/alice")

    async with client.websocket("/ws/account") as socket:
        assert socket.accepted
        assert json.loads((await socket.next())["text"]) == "alice"


# ── The end of the app ──


async def test_the_store_is_closed_when_the_app_shuts_down(build: Build) -> None:
    closed = []

    class Watched(MemoryStore):
        async def aclose(self) -> None:
            closed.append(True)

    app = build(Watched())
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    said = []

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        said.append(message["type"])

    await app.asgi({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert closed
