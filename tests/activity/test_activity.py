"""What counts as activity, what a front end is told, and "stay logged in"."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest

from asgi_sessions import ConfigurationError, MemoryStore, Session, SessionMiddleware, Sessions, Timeouts
from asgi_sessions.activity import SCRIPT, ActivityEndpoints
from asgi_sessions.errors import StoreUnreachable
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with, destroy, log_in, put
from tests.websockets import Socket
from tests.wrapped import Wrapped

IDLE, ABSOLUTE = Timeouts().idle.total_seconds(), Timeouts().absolute.total_seconds()
PAST_A_TOUCH = 61


async def seen_at(store: Store, browser: Browser) -> float:
    record = await store.load(browser.key)
    assert record is not None
    return record.seen_at


# ── Requests that are no activity ──


def polls(scope: Any) -> bool:
    return any(name == b"x-poll" for name, _ in scope["headers"])


POLL = [(b"x-poll", b"1")]


async def test_a_passive_request_moves_no_idle_timeout(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock, passive=polls))
    await browser.do(log_in("alice"))
    began = clock()

    clock.advance(PAST_A_TOUCH)
    await browser.do(request_headers=POLL)
    assert await seen_at(store, browser) == pytest.approx(began, abs=0.01)
    await browser.do()
    assert await seen_at(store, browser) == pytest.approx(clock(), abs=0.01)


async def test_polls_keep_nobody_logged_in(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock, passive=polls))
    await browser.do(log_in("alice"))

    users: list[Any] = []
    for _ in range(7):
        clock.advance(IDLE / 6)
        await browser.do(lambda session: users.append(session.user_id), request_headers=POLL)

    assert users == ["alice"] * 5 + [None] * 2


def passive(session: Session) -> None:
    session.mark_passive()


async def test_a_handler_can_say_so_itself(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock))
    await browser.do(log_in("alice"))
    began = clock()
    clock.advance(PAST_A_TOUCH)

    await browser.do(passive)

    assert await seen_at(store, browser) == pytest.approx(began, abs=0.01)


async def test_what_a_passive_request_writes_is_saved(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock))
    await browser.do(log_in("alice"))
    began = clock()
    clock.advance(PAST_A_TOUCH)

    def handler(session: Session) -> None:
        session.mark_passive()
        session["a"] = 1

    await browser.do(handler)

    record = await store.load(browser.key)
    assert record is not None
    assert record.seen_at == pytest.approx(began, abs=0.01)
    assert (await browser.do(lambda session: session["a"])).body == b"1"


async def test_a_passive_request_renews_no_token(store: Store, clock: FakeClock) -> None:
    timeouts = Timeouts(renew=timedelta(minutes=5))
    browser = Browser(app_with(store, clock=clock, timeouts=timeouts, passive=polls))
    await browser.do(log_in("alice"))
    clock.advance(301)

    assert (await browser.do(request_headers=POLL)).set_cookie is None
    assert (await browser.do(passive)).set_cookie is None
    assert (await browser.do()).set_cookie is not None


@pytest.mark.parametrize("wrong", [1, "poll", True])
def test_what_is_no_predicate_is_refused(memory: MemoryStore, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"SessionMiddleware\(passive=…\): give a plain function"):
        app_with(memory, passive=wrong)


# ── Somebody is here ──


async def test_a_socket_says_that_its_user_is_here(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, clock=clock))
    await browser.do(log_in("alice"))

    async with Socket(browser) as socket:
        await socket.accept()
        for _ in range(30):  # two and a half hours
            clock.advance(300)
            wrapped.calls.clear()
            await socket.session.touch()
            await socket.session.touch()
            assert wrapped.calls.count("touch") == 1

    seen: list[Any] = []
    await browser.do(lambda session: seen.append(session.user_id))
    assert seen == ["alice"]


@pytest.mark.parametrize(
    ("touches", "after"), [(1, IDLE + 1), (30, ABSOLUTE / 29)], ids=["a session that was idle", "an old session"]
)
async def test_a_touch_brings_back_nothing_and_never_passes_the_absolute_limit(
    store: Store, clock: FakeClock, touches: int, after: float
) -> None:
    browser = Browser(app_with(store, clock=clock))
    await browser.do(log_in("alice"))

    async with Socket(browser) as socket:
        await socket.accept()
        for _ in range(touches):
            clock.advance(after)
            await socket.session.touch()

    seen: list[Any] = []
    await browser.do(lambda session: seen.append(session.user_id))
    assert seen == [None]


async def test_a_touch_of_nothing_asks_nothing(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)

    response = await Browser(app_with(wrapped, clock=clock)).do(lambda session: session.touch())

    assert response.status == 200
    assert wrapped.calls == []


async def test_a_touch_that_fails_is_no_error(store: Store, clock: FakeClock) -> None:
    """To lose one shortens the idle time by a minute."""
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, clock=clock))
    await browser.do(log_in("alice"))

    async with Socket(browser) as socket:
        await socket.accept()
        clock.advance(PAST_A_TOUCH)
        wrapped.fail["touch"] = StoreUnreachable("down")
        await socket.session.touch()


# ── What a front end is told ──


class Front:
    """A browser on a site with :class:`ActivityEndpoints` under ``/session``."""

    def __init__(self, store: Store, clock: FakeClock, **options: Any) -> None:
        self.sessions = Sessions(store, clock=clock, **options)
        endpoints = ActivityEndpoints()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"].startswith("/session"):
                await endpoints({**scope, "root_path": "/session"}, receive, send)
                return
            self.handler(scope["session"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        self.handler: Any = log_in("alice")
        app = SessionMiddleware(app, self.sessions, on_store_failure="anonymous")
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://testserver")

    async def ask(self, method: str = "GET", **options: Any) -> Any:
        return (await self.http.request(method, "/session/", **options)).json()


@pytest.fixture
async def front(store: Store, clock: FakeClock) -> Front:
    front = Front(store, clock)
    await front.http.post("/log-in")
    return front


async def test_asking_says_how_long_and_is_no_activity(front: Front, clock: FakeClock) -> None:
    assert await front.ask() == {"logged_in": True, "idle_in": IDLE, "absolute_in": ABSOLUTE}

    for minutes in range(1, 11):
        clock.advance(60)
        assert await front.ask() == {
            "logged_in": True,
            "idle_in": IDLE - 60 * minutes,
            "absolute_in": ABSOLUTE - 60 * minutes,
        }
    clock.advance(IDLE - 600)
    assert await front.ask() == {"logged_in": False, "idle_in": None, "absolute_in": None}


async def test_staying_logged_in_is_activity(front: Front, clock: FakeClock) -> None:
    clock.advance(IDLE - 1)

    assert (await front.ask("POST"))["idle_in"] == IDLE
    clock.advance(IDLE - 1)
    assert (await front.ask())["logged_in"]


async def test_near_the_absolute_limit_that_is_what_counts(front: Front, clock: FakeClock) -> None:
    for _ in range(47):
        clock.advance(ABSOLUTE / 48)
        await front.ask("POST")

    said = await front.ask()
    assert said["idle_in"] == said["absolute_in"] == pytest.approx(ABSOLUTE / 48, abs=1)


async def test_a_visitor_is_told_that_nobody_is_logged_in(store: Store, clock: FakeClock) -> None:
    front = Front(store, clock)
    nobody = {"logged_in": False, "idle_in": None, "absolute_in": None}

    assert await front.ask() == nobody
    assert await front.ask("POST") == nobody
    front.handler = put(a=1)
    await front.http.post("/visit")
    assert await front.ask() == {"logged_in": False, "idle_in": IDLE, "absolute_in": ABSOLUTE}
    front.handler = log_in("alice")
    await front.http.post("/log-in")
    front.handler = destroy
    await front.http.post("/log-out")
    assert await front.ask() == nobody


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_during_an_outage_nobody_is_told_that_the_session_has_ended(
    store: Store, clock: FakeClock, method: str
) -> None:
    """The script would leave the page in every tab, and what the user has typed there would be lost."""
    wrapped: Any = Wrapped(store)
    front = Front(wrapped, clock)
    await front.http.post("/log-in")

    wrapped.fail["load"] = StoreUnreachable("down")
    answer = await front.http.request(method, "/session/")
    del wrapped.fail["load"]

    assert (answer.status_code, answer.headers["cache-control"]) == (503, "no-store")
    assert (await front.ask())["logged_in"]


async def test_the_answer_is_for_this_browser_alone(front: Front) -> None:
    answer = await front.http.get("/session/")

    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/session/", 405),
        ("DELETE", "/session/activity.js", 405),
        ("GET", "/session/other", 404),
        ("HEAD", "/session/", 200),
    ],
)
async def test_other_questions(front: Front, method: str, path: str, status: int) -> None:
    answer = await front.http.request(method, path)

    assert answer.status_code == status
    if status == 405:
        assert "GET" in answer.headers["allow"]


async def test_another_site_keeps_nobody_logged_in(front: Front) -> None:
    answer = await front.http.post("/session/", headers={"sec-fetch-site": "cross-site"})

    assert answer.status_code == 403


async def test_without_a_session_it_says_what_is_missing() -> None:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(ActivityEndpoints()), base_url="https://testserver")

    with pytest.raises(ConfigurationError, match="mount it inside of SessionMiddleware"):
        await client.get("/")


# ── The script ──


async def test_the_script_is_small_and_may_be_kept(front: Front) -> None:
    answer = await front.http.get("/session/activity.js")

    assert answer.content == SCRIPT
    assert len(SCRIPT) < 2048
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "max-age" in answer.headers["cache-control"]
    assert "set-cookie" not in answer.headers
