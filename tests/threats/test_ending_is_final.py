"""A session that was ended comes back: through a slow request, a late response, a socket left open, a replay."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asgi_sessions import Session, SessionMiddleware, Timeouts
from asgi_sessions._core.token import owner_of
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate
from tests.threats.hostile import (
    CONNECT,
    Between,
    Events,
    Held,
    WriteAccess,
    cookie_header,
    exchange,
    hanging,
    http_scope,
    websocket_scope,
)

Handler = Callable[[Session], Any]


def nested(session: Session) -> None:
    session["cart"].append("more")


async def save_at_once(session: Session) -> None:
    session["late"] = True
    await session.save()


def clear_and_write(session: Session) -> None:
    session.clear()
    session["late"] = True


SLOW: list[Any] = [
    pytest.param(lambda session: session.get("cart"), id="only reads"),
    pytest.param(put(late=True), id="writes"),
    pytest.param(nested, id="changes something nested"),
    pytest.param(clear_and_write, id="clears and writes"),
    pytest.param(save_at_once, id="saves at once"),
    pytest.param(regenerate, id="regenerates"),
    pytest.param(lambda session: session.confirm(), id="confirms"),
    pytest.param(destroy, id="logs out too"),
]


@pytest.mark.parametrize("slow", SLOW)
async def test_a_slow_request_does_not_bring_a_logged_out_session_back(
    store: Store, alice: Browser, clock: FakeClock, slow: Handler
) -> None:
    """CVE-2025-46336 (rack-session), express-session #632, connect-redis #328: the slow one saved what it had loaded."""
    await alice.do(put(cart=["tea"]))
    clock.advance(120)  # so that a touch is due as well
    tab = alice.another()

    async with tab.paused(slow) as late:
        await alice.do(destroy)

    assert alice.token is None
    assert late.response.status == 200
    assert late.response.set_cookie is None
    assert await store.load(tab.key) is None
    assert await store.index(owner_of("alice")) == {}
    assert (await read(tab))["user_id"] is None


@pytest.mark.filterwarnings("ignore:an anonymous session was changed")  # what is lost is warned of: test_races.py
@pytest.mark.parametrize("slow", [param for param in SLOW if param.id != "confirms"])
async def test_a_slow_request_does_not_bring_an_anonymous_session_back(
    store: Store, browser: Browser, clock: FakeClock, slow: Handler
) -> None:
    """CVE-2025-46336 without a user, whose index could help."""
    await browser.do(put(cart=["tea"]))
    clock.advance(120)
    tab = browser.another()

    async with tab.paused(slow) as late:
        await browser.do(destroy)

    assert late.response.status == 200
    assert late.response.set_cookie is None
    assert await store.load(tab.key) is None


async def test_the_innocent_loser_of_the_race_sees_no_error_page(alice: Browser, events: Events) -> None:
    """Some answer the request that lost with 400 (Django's ``SessionInterrupted``); its user did nothing wrong."""
    tab = alice.another()

    async with tab.paused(put(late=True)) as late:
        await alice.do(destroy)

    assert (late.response.status, late.response.set_cookie) == (200, None)
    assert "session.lost" in events.names


@pytest.mark.filterwarnings("ignore:an anonymous session was changed")  # what is lost is warned of: test_races.py
async def test_a_request_that_was_under_way_does_not_hang_on_after_a_log_in(store: Store, browser: Browser) -> None:
    """CVE-2025-46336 with the log-in as the end: the anonymous record must not be written again under the old token."""
    await browser.do(put(cart=["tea"]))
    tab = browser.another()

    async with tab.paused(put(late=True)) as late:
        await browser.do(log_in("alice"))

    assert late.response.set_cookie is None
    assert await store.load(tab.key) is None
    assert (await read(tab))["data"] == {}


# ── A late response puts the old cookie over a fresh one ──


@pytest.mark.filterwarnings("ignore:an anonymous session was changed")  # what is lost is warned of: test_races.py
@pytest.mark.parametrize("fast", [log_in("alice"), regenerate, destroy], ids=["logs in", "regenerates", "logs out"])
@pytest.mark.parametrize("slow", [lambda session: dict(session), put(late=True)], ids=["reads", "writes"])
async def test_a_late_response_does_not_put_the_old_cookie_over_a_fresh_one(
    browser: Browser, clock: FakeClock, fast: Handler, slow: Handler
) -> None:
    """nextjs-auth0 #544: every response repeated the cookie it had come with, and the last one to arrive won."""
    await browser.do(put(cart=["tea"]))
    clock.advance(120)

    async with browser.another().paused(slow) as late:
        await browser.do(fast)
        fresh = browser.token
        assert late is not None
    browser.hear(late.response)

    assert late.response.set_cookie is None
    assert browser.token == fresh


# ── Replay ──


@pytest.mark.parametrize("verb", [log_in("alice"), regenerate, destroy], ids=["log_in", "regenerate", "destroy"])
async def test_a_stolen_token_is_worthless_after(alice: Browser, clock: FakeClock, verb: Handler) -> None:
    """Replayed at once, and again later; nothing it does is seen by the owner, and it never finds a way back in."""
    await alice.do(put(cart=["tea"]))
    thief = alice.another()

    await alice.do(verb)

    for _ in range(2):
        assert (await read(thief.another()))["user_id"] is None
        response = await thief.another().do(put(evil=1))
        assert response.set_cookie is not None  # a session of its own, anonymous
        clock.advance(31)
    assert "evil" not in (await read(alice))["data"]


@pytest.mark.parametrize("fast", [regenerate, lambda session: session.confirm()], ids=["regenerated", "confirmed"])
async def test_a_log_out_finds_the_session_though_its_token_was_changed_meanwhile(
    store: Store, alice: Browser, fast: Handler
) -> None:
    """The log-out meant the session, and not the token that happened to stand for it."""
    async with alice.another().paused(destroy) as late:
        await alice.do(fast)

    assert "Max-Age=0" in str(late.response.set_cookie)
    assert (await read(alice))["user_id"] is None
    assert await store.index(owner_of("alice")) == {}


async def test_a_log_out_that_cannot_catch_the_session_does_not_say_that_it_has(
    store: Store, options: dict[str, Any]
) -> None:
    """A thief who changes the token over and over runs away from the log-out. It may fail; it may not look as if it had not."""
    watched = Between(store)
    alice = Browser(app_with(watched, **options))
    await alice.do(log_in("alice"))
    thief = Browser(app_with(store, **options), alice.token)

    async def just_too_late(real: Any, key: str, *, rev: int | None = None) -> Any:
        await thief.do(regenerate)
        return await real(key, rev=rev)

    watched.instead["delete"] = just_too_late
    response = await alice.do(destroy)

    assert (await read(thief))["user_id"] == "alice"  # so it was no log-out
    assert response.status == 503


async def test_setting_the_clock_back_does_not_revive_what_was_found_expired(alice: Browser, clock: FakeClock) -> None:
    """An NTP mistake of a minute must not undo an expiry that somebody has already been told of."""
    clock.advance(3600)
    assert (await read(alice))["user_id"] is None

    clock.advance(-3600)

    assert (await read(alice))["user_id"] is None


@pytest.mark.parametrize("back", [1, 59, 3_600, 10 * 365 * 86_400, 1_800_000_000.0], ids=str)
async def test_a_clock_that_goes_backwards_breaks_nothing(
    store: Store, options: dict[str, Any], clock: FakeClock, back: float
) -> None:
    """A virtual machine that was moved, a leap second, a wrong NTP server: no error, no lost session, no longer life."""
    alice = Browser(app_with(store, **options))
    await alice.do(log_in("alice", remember=True))
    record = await store.load(alice.key)
    assert record is not None

    clock.advance(-back)
    for handler in (put(a=1), regenerate, lambda session: session.confirm(), put(b=2)):
        response = await alice.do(handler)
        assert response.status == 200
    clock.advance(back)

    assert (await read(alice))["data"] == {"a": 1, "b": 2}
    later = await store.load(alice.key)
    assert later is not None
    assert later.seen_at >= record.seen_at
    clock.advance(timedelta(days=30))
    assert (await read(alice))["user_id"] is None


# ── What is still open when the session ends ──


async def test_an_open_websocket_cannot_write_to_a_session_that_was_logged_out(
    store: Store, alice: Browser, options: dict[str, Any]
) -> None:
    """An open WebSocket outlives the log-out: whatever it saves, the session stays ended."""
    opened, go_on = anyio.Event(), anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        opened.set()
        await go_on.wait()
        scope["session"]["typed"] = "after the log-out"
        await scope["session"].save()
        scope["session"]["typed"] = "and again"
        await send({"type": "websocket.close"})

    tab = alice.another()
    socket = SessionMiddleware(app, store, **options)
    sent: list[Any] = []

    async def run() -> None:
        cookie = cookie_header(socket, str(tab.token))[0][1]
        sent.extend(await exchange(socket, websocket_scope(cookie), [CONNECT]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await opened.wait()
        await alice.do(destroy)
        go_on.set()

    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    assert await store.load(tab.key) is None
    assert await store.index(owner_of("alice")) == {}


async def test_a_background_task_cannot_write_to_a_session_that_was_logged_out(store: Store, alice: Browser) -> None:
    """CVE-2025-46336 after the response: streams and background tasks save late, and must lose too."""
    tab = alice.another()

    async def after(session: Session) -> None:
        await alice.do(destroy)
        session["late"] = True

    response = await tab.do(after=after)

    assert response.status == 200
    assert await store.load(tab.key) is None


@pytest.fixture
async def renewed(store: Store, options: dict[str, Any], clock: FakeClock) -> tuple[Browser, Browser]:
    """Alice, whose token was renewed a moment ago, and a browser with the token of before."""
    alice = Browser(app_with(store, timeouts=Timeouts(renew=timedelta(minutes=5)), **options))
    await alice.do(log_in("alice"))
    old = alice.another()
    clock.advance(301)
    await alice.do()
    assert alice.token != old.token
    return alice, old


async def test_a_renewed_token_leads_nowhere_once_its_session_has_ended(
    store: Store, renewed: tuple[Browser, Browser]
) -> None:
    """The alias that a renewal leaves for 30 seconds is a second way in; logging out closes both."""
    alice, old = renewed
    assert (await read(old.another()))["user_id"] == "alice"

    await alice.do(destroy)

    assert (await read(old))["user_id"] is None
    assert await store.index(owner_of("alice")) == {}


@pytest.mark.parametrize("verb", [log_in("alice"), regenerate, destroy], ids=["log_in", "regenerate", "destroy"])
async def test_a_renewed_tokens_grace_ends_with_the_next_verb(renewed: tuple[Browser, Browser], verb: Handler) -> None:
    """``regenerate()`` and ``log_in()`` give no grace, and end the one that a renewal gave a moment ago."""
    alice, thief = renewed

    await alice.do(verb)

    assert (await read(thief))["user_id"] is None


async def test_an_alias_put_back_after_its_grace_leads_nowhere(
    store: Store, renewed: tuple[Browser, Browser], clock: FakeClock
) -> None:
    """A replica that lags, or somebody with write access, may show an alias again that is long over."""
    alice, old = renewed
    access = WriteAccess(store)
    alias = access.take(old.key)
    clock.advance(31)

    access.put(old.key, alias)

    assert (await read(old))["user_id"] is None
    assert (await read(alice))["user_id"] == "alice"


# ── One request against itself ──


@pytest.mark.parametrize(("verb", "user"), [(destroy, None), (log_in("alice"), "alice")], ids=["log-out", "log-in"])
async def test_a_save_under_way_does_not_undo_a_verb_of_the_same_request(
    store: Store, options: dict[str, Any], verb: Handler, user: str | None
) -> None:
    """CVE-2025-46336 within one request: a socket saves in one task and logs out in another.

    The user before must not come back, least of all with the data of the one after.
    """
    watched = Between(store)
    browser = Browser(app_with(watched, **options))
    await browser.do(log_in("bob"))
    old = browser.another()
    watched.instead["update"] = held = Held()

    async def handler(session: Session) -> None:
        session["typed"] = "bob's"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.save)
            await held.asked.wait()
            verb(session)
            held.go_on.set()

    response = await browser.do(handler)

    assert response.status == 200
    assert await store.load(old.key) is None
    assert (await read(browser))["user_id"] == user


async def test_saves_at_the_same_time_in_one_request_lose_nothing(browser: Browser) -> None:
    """Tasks of one request share one session object and may all save it."""
    await browser.do(put(start=1))

    async def handler(session: Session) -> None:
        async def one(number: int) -> None:
            session[f"k{number}"] = number
            await session.save()

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(one, number)

    await browser.do(handler)

    assert (await read(browser))["data"] == {"start": 1, **{f"k{number}": number for number in range(8)}}


# ── A log-out holds, whatever happens to its request ──


async def test_a_log_out_holds_though_its_request_is_cancelled_while_it_is_being_carried_out(
    store: Store, options: dict[str, Any]
) -> None:
    """The client hangs up at the very moment, and the server cancels: half a log-out would be none."""
    watched = Between(store)
    alice = Browser(app_with(watched, **options))
    await alice.do(log_in("alice"))
    old = alice.another()
    watched.instead["delete"] = held = Held()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alice.do, destroy)
            await held.asked.wait()
            scope.cancel()
            held.go_on.set()

    assert await store.load(old.key) is None


async def test_a_log_out_holds_though_its_handler_is_cancelled(store: Store, alice: Browser) -> None:
    """``destroy()`` takes effect even when the handler ends by cancellation afterwards."""
    old = alice.another()
    destroyed = anyio.Event()

    async def handler(session: Session) -> None:
        session.destroy()
        destroyed.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(alice.do, handler)
        await destroyed.wait()
        tasks.cancel_scope.cancel()

    assert await store.load(old.key) is None


async def test_closing_a_request_that_never_ended_is_no_error(memory: Any, clock: FakeClock) -> None:
    """A loop that shuts down closes the coroutines left over (``GeneratorExit``); they cannot wait for a store then."""
    go_on = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"].destroy()
        await go_on.wait()

    alice = Browser(app_with(memory, clock=clock))
    await alice.do(log_in("alice"))
    watched = Between(memory)
    watched.instead["delete"] = hanging
    middleware = SessionMiddleware(app, watched, clock=clock)
    request = middleware(http_scope(cookie_header(middleware, str(alice.token))), *_unused())
    assert inspect.iscoroutine(request)
    request.send(None)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        request.close()


def _unused() -> tuple[Any, Any]:
    async def never(*message: Any) -> Any:
        raise AssertionError("nothing is sent or received here")

    return never, never
