"""The ASGI side: what is refused when the app is built, lifespan, skipping, failure policies, events, sockets."""

from __future__ import annotations

import gc
import logging
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import anyio
import httpx
import pytest

from asgi_sessions import (
    ConfigurationError,
    CookieConfig,
    Event,
    MemoryStore,
    Session,
    SessionDataError,
    SessionError,
    SessionMiddleware,
    SessionWarning,
    StoreError,
    Timeouts,
)
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock, log_in_sync, session_cookie
from asgi_sessions.testing import log_in as log_in_client
from tests.support import PLAIN, Browser, app_with, destroy, inner_app, log_in, put, read, regenerate
from tests.websockets import Socket
from tests.wrapped import Wrapped

# ── Built wrongly ──


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"store": None}, "give a store"),
        ({"store": MemoryStore}, "give a store"),
        ({"store": "redis://localhost"}, "give a store"),
        ({"app": None}, "it comes first"),
        ({"cookie": "session"}, "CookieConfig"),
        ({"timeouts": 3600}, "Timeouts"),
        ({"on_store_failure": "ignore"}, "'unavailable', 'raise' or 'anonymous'"),
        ({"skip": "/static"}, "skip"),
        ({"on_event": "print"}, "on_event"),
        ({"clock": 5}, "clock"),
        ({"secret_keys": "one string that is long enough to be a key"}, "give a list"),
        ({"secret_keys": ["short"]}, "at least 32"),
        ({"secret_keys": ["changeme-changeme-changeme-changeme"]}, "placeholder"),
        ({"secret_keys": ["x" * 40]}, "placeholder"),
        ({"secret_keys": [12345]}, "str or bytes"),
        ({"secret_keys": ["kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1"] * 2}, "repeats an earlier one"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_fails_when_the_app_is_built(options: dict[str, Any], says: str) -> None:
    arguments = {"app": inner_app, "store": MemoryStore(), **options}

    with pytest.raises(ConfigurationError, match=says):
        SessionMiddleware(**arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"idle": 60},
        {"absolute": 1.5},
        {"touch": 0},
        {"renew": 600},
        {"idle": timedelta(0)},
        {"renew": timedelta(seconds=9)},
    ],
    ids=str,
)
def test_a_duration_that_is_none_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"timedelta|must lie between"):
        Timeouts(**options)


def test_installed_twice_with_one_cookie_is_refused_when_it_can_be_seen(memory: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        app_with_two(memory, CookieConfig(), CookieConfig())


async def test_installed_twice_with_one_cookie_is_refused_at_the_first_request(memory: MemoryStore) -> None:
    inner = app_with(memory)

    async def something_between(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    with pytest.raises(ConfigurationError, match="twice"):
        await Browser(SessionMiddleware(something_between, memory)).do()


def app_with_two(memory: MemoryStore, outer: CookieConfig, inner: CookieConfig) -> SessionMiddleware:
    return SessionMiddleware(SessionMiddleware(inner_app, memory, cookie=inner), MemoryStore(), cookie=outer)


async def test_two_middlewares_with_two_cookies_do_not_disturb_each_other(memory: MemoryStore) -> None:
    app = app_with_two(memory, PLAIN, CookieConfig())

    response = await Browser(app).do(put(a=1))

    assert [line.split("=")[0] for line in response.all("set-cookie")] == ["__Host-Http-session"]


# ── Lifespan, skip ──


async def test_the_store_is_closed_before_the_server_hears_of_the_shutdown() -> None:
    order: list[str] = []

    class Closing(MemoryStore):
        async def aclose(self) -> None:
            order.append("closed")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message: Any) -> None:
        order.append(message["type"])

    await SessionMiddleware(app, Closing())({"type": "lifespan"}, None, send)

    assert order == ["lifespan.startup.complete", "closed", "lifespan.shutdown.complete"]


async def test_skipped_requests_have_no_session(store: Store) -> None:
    wrapped = Wrapped(store)
    app = app_with(wrapped, skip=lambda scope: scope["method"] == "HEAD")
    browser = Browser(app)
    await browser.do(put(a=1))
    wrapped.calls.clear()

    with pytest.raises(KeyError, match="session"):
        await browser.do(method="HEAD")

    assert wrapped.calls == []


# ── The session's attributes ──


async def test_the_attributes_of_a_session(memory: MemoryStore, clock: FakeClock) -> None:
    browser = Browser(app_with(memory, clock=clock))
    seen: list[Any] = []

    def look(session: Session) -> None:
        attributes = (session.user_id, session.is_new, session.created_at, session.authenticated_at, session.expires_at)
        seen.append((session.id, *attributes))

    await browser.do(lambda s: (look(s), s.update(a=1)))
    clock.advance(30)
    await browser.do(look)
    clock.advance(30)
    await browser.do(lambda s: (s.log_in("alice"), look(s)))
    clock.advance(30)
    await browser.do(lambda s: (s.regenerate(), look(s)))

    (id0, user0, new0, created0, auth0, expires0), (id1, _, new1, created1, _, expires1) = seen[:2]
    (id2, user2, new2, created2, auth2, _), (id3, user3, new3, created3, auth3, _) = seen[2:]
    assert (id0, created0, expires0) == (id1, created1, expires1)
    assert (user0, new0, auth0, new1) == (None, True, None, False)
    assert expires0 - created0 == timedelta(hours=1)
    assert id2 != id1
    assert (user2, new2, auth2) == ("alice", True, created2)
    assert created2 - created1 == timedelta(seconds=60)
    assert (id3, user3, new3, created3, auth3) == (id2, "alice", False, created2, auth2)


async def test_freshness_ends_and_a_confirmation_renews_it_with_a_new_token(
    memory: MemoryStore, clock: FakeClock
) -> None:
    browser = Browser(app_with(memory, clock=clock))
    five = timedelta(minutes=5)
    await browser.do(log_in("alice"))
    old = browser.another()

    assert (await browser.do(lambda s: s.is_fresh(five))).body == b"True"
    clock.advance(five)
    assert (await browser.do(lambda s: s.is_fresh(five))).body == b"False"
    await browser.do(lambda s: s.confirm())

    assert browser.token != old.token
    assert (await browser.do(lambda s: s.is_fresh(five))).body == b"True"
    assert (await read(old))["user_id"] is None


async def test_a_confirmation_of_nobody_is_an_error(memory: MemoryStore) -> None:
    with pytest.raises(SessionError, match="no user is logged in"):
        await Browser(app_with(memory)).do(lambda s: s.confirm())


async def test_is_fresh_wants_a_timedelta(memory: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match="timedelta"):
        await Browser(app_with(memory)).do(lambda s: s.is_fresh(cast("Any", 300)))


async def test_after_destroy_a_write_begins_a_fresh_anonymous_session(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock))
    await browser.do(log_in("alice"))
    old = browser.another()
    old_id = (await read(browser))["id"]

    await browser.do(lambda s: (s.update(lost=1), s.destroy(), s.update(notice="Goodbye.")))

    found = await read(browser)
    assert browser.token not in (None, old.token)
    assert (found["data"], found["user_id"]) == ({"notice": "Goodbye."}, None)
    assert found["id"] != old_id
    assert await store.load(old.key) is None


async def test_verbs_one_after_another_in_one_request(store: Store, clock: FakeClock) -> None:
    """The last word counts, and nothing of what came before stays behind."""
    app = app_with(store, clock=clock)
    wanted: list[tuple[Any, str | None]] = [
        (lambda s: (s.log_in("bob"), s.destroy()), None),
        (lambda s: (s.destroy(), s.log_in("bob")), "bob"),
        (lambda s: (s.log_in("bob"), s.log_in("carol")), "carol"),
        (lambda s: (s.regenerate(), s.log_in("bob")), "bob"),
        (lambda s: (s.log_in("bob"), s.regenerate()), "bob"),
        (lambda s: (s.destroy(), s.destroy()), None),
        (lambda s: (s.regenerate(), s.destroy()), None),
    ]
    for verbs, user in wanted:
        browser = Browser(app)
        await browser.do(log_in("alice"))
        old = browser.another()
        await browser.do(verbs)
        assert (await read(browser))["user_id"] == user
        assert (await read(old))["user_id"] is None


async def test_save_after_a_log_in_sends_the_cookie_with_the_response(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock))

    async def handler(session: Session) -> None:
        session.log_in("alice")
        await session.save()
        session["more"] = 1

    await browser.do(handler)

    assert (await read(browser))["user_id"] == "alice"
    assert (await read(browser))["data"] == {"more": 1}


# ── When the store fails ──


async def test_policy_raise_hands_the_error_to_the_app_and_its_server(store: Store) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, on_store_failure="raise"))
    await browser.do(put(a=1))

    wrapped.fail["update"] = ConnectionError("refused")
    with pytest.raises(StoreError):
        await browser.do(put(a=2))
    wrapped.fail["load"] = ConnectionError("refused")
    with pytest.raises(StoreError):
        await browser.do()


@pytest.mark.parametrize("policy", ["unavailable", "raise"])
async def test_an_error_page_of_the_app_after_a_failed_log_out_deletes_the_cookie(store: Store, policy: Any) -> None:
    """The handler called ``save()``, and the framework made a page of its ``StoreError``."""
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, on_store_failure=policy))
    await browser.do(log_in("alice"))
    wrapped.fail["delete"] = ConnectionError("refused")

    with suppress(StoreError):  # the server logs it
        browser.last = await browser.do(destroy, status=503)

    assert (browser.last.status, browser.token) == (503, None)


async def test_policy_anonymous_gives_an_empty_session_of_which_nothing_is_written(store: Store) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, on_store_failure="anonymous"))
    await browser.do(put(a=1))
    wrapped.fail["load"] = ConnectionError("refused")
    wrapped.calls.clear()

    response = await browser.do(lambda s: (s.is_degraded, dict(s)))
    assert (response.status, response.body, response.set_cookie) == (200, b"(True, {})", None)
    with pytest.warns(SessionWarning, match="could not be asked$"):  # to write earlier would not help
        assert (await browser.do(put(b=1))).status == 200
    assert (await browser.do(log_in("alice"))).status == 503
    assert set(wrapped.calls) == {"load"}

    wrapped.fail.clear()
    assert (await read(browser))["data"] == {"a": 1}


async def test_a_failed_commit_stops_the_app_where_it_sends(store: Store) -> None:
    """Its background tasks and database transactions must not go on as if the client had been told yes."""
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped))
    await browser.do(put(a=1))
    wrapped.fail["update"] = ConnectionError("refused")
    went_on: list[int] = []

    response = await browser.do(put(a=2), after=lambda s: went_on.append(1))

    assert response.status == 503
    assert [m["type"] for m in response.messages] == ["http.response.start", "http.response.body"]
    assert went_on == []


async def test_an_app_that_swallows_the_failure_cannot_answer_over_the_503(store: Store) -> None:
    wrapped = Wrapped(store)

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        try:
            await inner_app(scope, receive, send)
        except StoreError:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"fine"})

    browser = Browser(SessionMiddleware(stubborn, wrapped))
    await browser.do(put(a=1))
    wrapped.fail["update"] = ConnectionError("refused")

    response = await browser.do(put(a=2))

    assert (response.status, response.body) == (503, b"Service Unavailable")


async def test_a_store_error_out_of_save_is_a_503_unless_the_app_handles_it(store: Store) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped))
    await browser.do(put(a=1))
    wrapped.fail["update"] = ConnectionError("refused")

    async def handler(session: Session) -> None:
        session["a"] = 2
        await session.save()

    assert (await browser.do(handler)).status == 503


async def test_a_cancelled_request_still_finishes_its_commit(store: Store) -> None:
    """BaseHTTPMiddleware and some servers cancel the app when the client goes away."""
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped))
    await browser.do(put(a=1))
    under_way, go_on = anyio.Event(), anyio.Event()

    async def hold() -> None:
        under_way.set()
        await go_on.wait()

    wrapped.before["update"] = hold
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(browser.another().do, put(a=2))
        await under_way.wait()
        tasks.cancel_scope.cancel()
        go_on.set()
    wrapped.before.clear()

    assert (await read(browser))["data"] == {"a": 2}


# ── Events ──


async def test_the_events_of_a_life(memory: MemoryStore, clock: FakeClock) -> None:
    events: list[Event] = []

    async def hook(event: Event) -> None:
        events.append(event)

    browser = Browser(app_with(memory, clock=clock, on_event=hook, timeouts=Timeouts(renew=timedelta(minutes=10))))
    await browser.do(put(a=1))
    await browser.do(log_in("alice"))
    await browser.do(regenerate)
    clock.advance(600)
    await browser.do()
    await browser.do(lambda s: s.confirm())
    await browser.do(destroy)
    await browser.do(log_in("alice"))
    clock.advance(3600)
    await browser.do()

    assert [(event.name, event.user_id, event.details.get("reason")) for event in events] == [
        ("session.created", None, None),
        ("session.logged_in", "alice", None),
        ("session.regenerated", "alice", None),
        ("session.renewed", "alice", None),
        ("session.confirmed", "alice", None),
        ("session.ended", "alice", "logged_out"),
        ("session.logged_in", "alice", None),
        ("session.ended", "alice", "idle"),
    ]
    assert len({event.session_id for event in events[1:6]}) == 1
    assert all(event.at.tzinfo is not None for event in events)


async def test_a_hook_that_raises_is_logged_and_changes_nothing(
    memory: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(event: Event) -> None:
        raise RuntimeError("hook")

    browser = Browser(app_with(memory, on_event=hook))

    assert (await browser.do(put(a=1))).status == 200
    assert (await read(browser))["data"] == {"a": 1}
    assert "the on_event hook failed on session.created" in caplog.text


async def test_an_insecure_cookie_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Some frameworks build the middleware once per route."""
    with caplog.at_level(logging.WARNING, "asgi_sessions"):
        for _ in range(2):
            app_with(MemoryStore(), cookie=CookieConfig(name="seen-once", secure=False))

    assert [record.getMessage() for record in caplog.records] == [
        "the session cookie seen-once is sent over plain http too: for development only"
    ]


# ── WebSockets ──


async def test_a_socket_that_crashes_loses_its_changes_but_not_its_destroy(store: Store) -> None:
    browser = Browser(app_with(store))
    await browser.do(log_in("alice"))

    with pytest.raises(BaseExceptionGroup):  # noqa: PT012 - the block is one socket's life
        async with Socket(browser) as socket:
            await socket.accept()
            socket.session.destroy()
            socket.crash = ZeroDivisionError()

    assert (await read(browser))["user_id"] is None


async def test_an_error_after_the_client_has_gone_loses_no_changes(store: Store) -> None:
    """Starlette's handlers leave so: the disconnect raises WebSocketDisconnect in ``receive_text()``."""
    browser = Browser(app_with(store))
    await browser.do(log_in("alice"))

    with pytest.raises(BaseExceptionGroup):  # noqa: PT012 - the block is one socket's life
        async with Socket(browser) as socket:
            await socket.accept()
            socket.session["a"] = 1
            socket.crash = ZeroDivisionError()  # raised after the disconnect

    assert (await read(browser))["data"] == {"a": 1}


async def test_a_socket_closed_by_the_app_saves_first(store: Store) -> None:
    browser = Browser(app_with(store))
    await browser.do(log_in("alice"))

    async with Socket(browser) as socket:
        await socket.accept()
        socket.session["a"] = 1
        assert (await socket.close())["code"] == 1000
        assert (await read(browser))["data"] == {"a": 1}


async def test_a_socket_closed_with_1011_has_failed(store: Store) -> None:
    """Litestar and others close it so after an error of the handler."""
    browser = Browser(app_with(store))
    await browser.do(log_in("alice"))

    async with Socket(browser) as socket:
        await socket.accept()
        socket.session["a"] = 1
        await socket.session.save()
        socket.session["a"] = 2
        assert (await socket.close(1011))["code"] == 1011

    assert (await read(browser))["data"] == {"a": 1}


async def test_a_socket_whose_last_save_fails_closes_with_1011(store: Store) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped))
    await browser.do(log_in("alice"))

    async with Socket(browser) as socket:
        await socket.accept()
        socket.session["a"] = 1
        wrapped.fail["update"] = ConnectionError("refused")
        assert (await socket.close())["code"] == 1011


@pytest.mark.parametrize("extensions", [True, False], ids=["denial response", "close"])
async def test_a_handshake_while_the_store_is_down_is_refused(store: Store, extensions: bool) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped))
    await browser.do(log_in("alice"))
    wrapped.fail["load"] = ConnectionError("refused")

    socket = Socket(browser, extensions=extensions)
    async with socket:
        assert not hasattr(socket, "session")  # the app never saw it

    if extensions:
        assert [m.get("status") for m in socket.sent] == [503, None]
    else:
        assert [(m["type"], m["code"]) for m in socket.sent] == [("websocket.close", 1013)]


async def test_a_brand_new_session_in_an_accepted_socket_warns(memory: MemoryStore) -> None:
    browser = Browser(app_with(memory))

    with pytest.warns(SessionWarning):  # noqa: PT031 - the block is one socket's life
        async with Socket(browser) as socket:
            await socket.accept()
            socket.session["a"] = 1

    assert len(memory) == 0


async def test_an_accept_without_news_is_passed_on_as_it_is(memory: MemoryStore) -> None:
    async with Socket(Browser(app_with(memory))) as socket:
        assert (await socket.accept()).headers == [(b"x-app", b"1")]


# ── Helpers for tests ──


class Client:
    def __init__(self) -> None:
        self.base_url = httpx.URL("https://testserver")
        self.cookies = httpx.Cookies()


@pytest.mark.parametrize("keys", [(), ("kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1",)], ids=["unsigned", "signed"])
async def test_a_client_is_made_logged_in(store: Store, keys: tuple[str, ...]) -> None:
    client = Client()

    await log_in_client(client, store, "alice", data={"a": 1}, secret_keys=keys)

    ((name, token),) = client.cookies.items()
    browser = Browser(app_with(store, secret_keys=keys), token)
    assert name == browser.name
    assert (await read(browser))["user_id"] == "alice"
    assert (await read(browser))["data"] == {"a": 1}


def test_a_client_is_made_logged_in_from_a_synchronous_test(memory: MemoryStore) -> None:
    client = Client()

    log_in_sync(client, memory, "alice", remember=True)

    assert len(memory) == 1
    assert list(client.cookies) == ["__Host-Http-session"]


async def test_an_anonymous_cookie_without_data_makes_no_sense(memory: MemoryStore) -> None:
    with pytest.raises(SessionDataError, match="data"):
        await session_cookie(memory, None)


async def test_a_request_leaves_no_garbage_behind(memory: MemoryStore) -> None:
    """What is in a cycle waits for the collector, and with it everything that is in the session."""
    browser = Browser(app_with(memory))
    await browser.do(put(a=1))

    def sessions() -> int:
        return sum(type(each) is Session for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = sessions()
        for _ in range(5):
            await browser.do()
        assert sessions() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["a key", "items", "put in", "a second time"])
async def test_what_was_handed_out_is_compared_again_after_a_save(store: Store, clock: FakeClock, how: str) -> None:
    """Only a list or dict can still change without a word then."""
    browser = Browser(app_with(store, clock=clock))
    await browser.do(put(cart=[], n=0))

    async def handler(session: Session) -> None:
        if how == "items":
            cart = dict(session.items())["cart"]
        elif how == "put in":
            session["cart"] = cart = list[int]()
        else:
            cart = session["cart"]
        session["n"] = 1
        await session.save()
        if how == "a second time":
            cart.append(0)
            await session.save()
        cart.append(1)

    assert (await browser.do(handler)).status == 200

    assert (await read(browser))["data"] == {"cart": [0, 1] if how == "a second time" else [1], "n": 1}
