"""Two servers of one app whose clocks differ by five minutes: what ends early, what ends late, and what stays as it is.

The table in ``docs/timeouts.md`` says the same.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from asgi_sessions import MemoryStore, Session, Sessions, Timeouts
from asgi_sessions._engine.clock import clock_for
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import SigningKey, TokenInvalid, Tokens
from tests.properties.faults import Faulty
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate

SECRET = "an excellent secret of at least 32 bytes"
APART = 300.0
"""Seconds."""
LIMITS = Timeouts(idle=timedelta(minutes=20), absolute=timedelta(hours=3), renew=timedelta(hours=1))


class Servers:
    """The same app on a server whose clock is right, and on one whose clock is fast."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self.right, self.fast = (
            Sessions(store, timeouts=LIMITS, clock=now, secret_keys=[SECRET])
            for now in (clock, lambda: clock() + APART)
        )
        self.apps = {sessions: app_with(sessions) for sessions in (self.right, self.fast)}

    def browser(self, sessions: Sessions, like: Browser | None = None) -> Browser:
        return Browser(self.apps[sessions], None if like is None else like.token)


@pytest.fixture
def servers(store: Store, clock: FakeClock) -> Servers:
    return Servers(store, clock)


@pytest.fixture(params=["right", "fast"])
def pair(request: pytest.FixtureRequest, servers: Servers) -> tuple[Sessions, Sessions]:
    """The server that a session begins on, and the other one."""
    both = (servers.right, servers.fast)
    return both if request.param == "right" else both[::-1]


async def test_data_a_new_token_and_a_log_out_of_one_server_count_on_the_other(
    servers: Servers, pair: tuple[Sessions, Sessions]
) -> None:
    first, other = pair
    begun = servers.browser(first)
    await begun.do(log_in("alice"))
    await begun.do(put(a=1))
    there = servers.browser(other, begun)
    await there.do(put(b=2))
    await there.do(regenerate)
    back = servers.browser(first, there)

    assert (await read(back))["data"] == {"a": 1, "b": 2}
    assert [len(await sessions.list("alice")) for sessions in pair] == [1, 1]

    await back.do(destroy)

    assert (await read(servers.browser(other, there)))["user_id"] is None
    assert [await sessions.list("alice") for sessions in pair] == [[], []]


async def test_a_session_in_use_lives_until_its_absolute_limit_give_or_take_five_minutes(
    servers: Servers, clock: FakeClock, pair: tuple[Sessions, Sessions]
) -> None:
    browser, rng, passed = servers.browser(pair[0]), random.Random(7), 0.0
    await browser.do(log_in("alice"))
    longest = LIMITS.absolute.total_seconds()

    while True:
        step = rng.uniform(10, LIMITS.idle.total_seconds() - APART - 60)
        clock.advance(step)
        passed += step
        browser = servers.browser(rng.choice(pair), browser)
        if (await read(browser))["user_id"] is None:
            break

    assert longest - APART <= passed <= longest + APART + LIMITS.idle.total_seconds()


async def test_an_idle_session_ends_give_or_take_five_minutes(
    servers: Servers, clock: FakeClock, pair: tuple[Sessions, Sessions]
) -> None:
    first, other = pair
    browser = servers.browser(first)
    await browser.do(log_in("alice"))

    clock.advance(LIMITS.idle.total_seconds() - APART - 1)
    assert (await read(servers.browser(other, browser)))["user_id"] == "alice"
    clock.advance(LIMITS.idle.total_seconds() + APART + 1)
    assert (await read(servers.browser(other, browser)))["user_id"] is None


async def test_a_token_renewed_elsewhere_may_be_over_at_once_but_the_new_cookie_stays(
    servers: Servers, clock: FakeClock
) -> None:
    """On the fast server the thirty seconds of the old token are over. It answers as to nobody, and deletes no cookie."""
    browser = servers.browser(servers.right)
    await browser.do(log_in("alice"))
    old = browser.another()
    while old.token == browser.token:
        clock.advance(900)
        await browser.do()

    response = await servers.browser(servers.fast, old).do(lambda session: session.user_id)

    assert (response.body, response.set_cookie) == (b"None", None)
    assert (await read(old))["user_id"] == "alice"
    assert (await read(browser))["user_id"] == "alice"


@pytest.mark.parametrize("store", ["memory"], indirect=True)
async def test_the_proof_of_who_it_is_gets_old_early_or_late(
    servers: Servers, clock: FakeClock, pair: tuple[Sessions, Sessions]
) -> None:
    first, other = pair
    is_fresh: Callable[[Session], Any] = lambda session: session.is_fresh(timedelta(minutes=10))  # noqa: E731
    browser = servers.browser(first)
    await browser.do(log_in("alice"))

    clock.advance(301)
    soon = await servers.browser(other, browser).do(is_fresh)
    clock.advance(300)
    late = await servers.browser(other, browser).do(is_fresh)

    assert (soon.body, late.body) == ((b"True", b"True") if other is servers.right else (b"False", b"False"))


@pytest.mark.parametrize("store", ["memory"], indirect=True)
async def test_an_access_token_of_a_fast_server_does_not_count_yet(servers: Servers, clock: FakeClock) -> None:
    """RFC 7519, section 4.1.6, leaves it to us what to do with a token from the future."""
    options: dict[str, Any] = {"keys": [SigningKey.generate("EdDSA")], "issuer": "https://a", "audience": "https://a"}
    right, fast = (Tokens(sessions, **options) for sessions in (servers.right, servers.fast))
    pair = await fast.log_in("alice")

    with pytest.raises(TokenInvalid):
        right.verify(pair.access_token)
    clock.advance(APART - 10)

    assert right.verify(pair.access_token).user_id == "alice"


# ── Where the store's server says what time it is ──

SERVERS = ["valkey", "redis", "postgresql", "mariadb"]


def fast_by(seconds: float) -> Callable[[], float]:
    return lambda: time.time() + seconds


@pytest.mark.parametrize("store", SERVERS, indirect=True)
@pytest.mark.parametrize("seconds", [-APART, APART], ids=["slow", "fast"])
async def test_a_server_whose_clock_differs_goes_by_that_of_the_store(
    store: Store, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it, an idle timeout of five minutes ends a session at once on a fast server, with its very first request."""
    timeouts = Timeouts.owasp_high_value()
    right, other = (Sessions(store, timeouts=timeouts, clock=fast_by(by)) for by in (0.0, seconds))
    browser = Browser(app_with(right))
    await browser.do(log_in("alice"))

    there = Browser(app_with(other), browser.token)

    assert (await read(there))["user_id"] == "alice"
    assert other._manager.clock() == pytest.approx(time.time(), abs=2)
    assert len([each for each in caplog.records if each.message.startswith("clock.differs:")]) == 1
    await there.do(log_in("bob"))
    assert (await read(Browser(app_with(right), there.token)))["user_id"] == "bob"


async def by_a_browser(sessions: Sessions) -> None:
    await Browser(app_with(sessions)).do(log_in("alice"))


async def by_tokens(sessions: Sessions) -> None:
    tokens = Tokens(sessions, keys=[SigningKey.generate("EdDSA")], issuer="https://a", audience="https://a")
    await tokens.log_in("alice")


@pytest.mark.parametrize("store", SERVERS, indirect=True)
@pytest.mark.parametrize("enter", [by_a_browser, by_tokens])
async def test_the_first_log_in_of_a_process_knows_the_time_of_the_store(
    store: Store, enter: Callable[[Sessions], Any]
) -> None:
    """Nothing has asked the store before: the app has no lifespan."""
    sessions = Sessions(store, clock=fast_by(APART), secret_keys=[SECRET])
    await store.aclose()
    store.server_time = None  # type: ignore[attr-defined]  # the fixture has asked it

    await enter(sessions)

    (begun,) = await sessions.list("alice")
    assert begun.created_at.timestamp() == pytest.approx(time.time(), abs=2)


@pytest.mark.parametrize("store", ["valkey"], indirect=True)
async def test_a_store_that_fails_before_the_first_log_in_is_asked_for_its_time_again(store: Any) -> None:
    faulty: Any = Faulty(store)
    app = app_with(sessions := Sessions(faulty, clock=fast_by(APART)))
    store.server_time = None
    await store.aclose()
    faulty.arm(0)

    assert (await Browser(app).do(lambda session: None)).status == 200  # no cookie, so no need of the store
    faulty.arm()
    await Browser(app).do(log_in("alice"))
    await Browser(app).do(lambda session: None)

    (begun,) = await sessions.list("alice")
    assert begun.created_at.timestamp() == pytest.approx(time.time(), abs=2)
    assert faulty.calls == ["load", "create", "records"]


@pytest.mark.parametrize("store", SERVERS, indirect=True)
async def test_the_old_token_counts_for_thirty_seconds_of_the_stores_time(store: Store) -> None:
    timeouts = Timeouts(renew=timedelta(seconds=30))
    object.__setattr__(timeouts, "_renew", 0.0)  # at once: nobody waits for half a minute here
    right, fast = (Sessions(store, timeouts=timeouts, clock=fast_by(by)) for by in (0.0, APART))
    browser = Browser(app_with(right))
    await browser.do(log_in("alice"))
    old = Browser(app_with(fast), browser.token)
    await browser.do()

    assert old.token != browser.token
    assert (await read(old))["user_id"] == "alice"


@pytest.mark.parametrize("store", SERVERS, indirect=True)
async def test_a_clock_of_tests_counts_whatever_the_server_says(store: Store) -> None:
    clock = FakeClock(time.time() + 60)
    sessions = Sessions(store, clock=clock)
    await Browser(app_with(sessions)).do(log_in("alice"))

    assert sessions._manager.clock() == clock()


class Heard:
    """A store that knows what time its server has."""

    server_time: tuple[float, float] | None = None

    def hear(self, server_time: float) -> None:
        self.server_time = (server_time, time.monotonic())


@pytest.mark.parametrize(
    ("ahead", "counts"),
    [(0.0, "app"), (1.9, "app"), (-1.9, "app"), (2.1, "store"), (-899.0, "store"), (901.0, "app"), (-1e9, "app")],
)
def test_it_counts_if_the_difference_is_one_of_seconds_or_minutes(ahead: float, counts: str) -> None:
    store, now = Heard(), time.time()
    clock = clock_for(lambda: now, store)
    before = clock()
    store.hear(now + ahead)

    assert before == now
    assert clock() == pytest.approx(now + ahead if counts == "store" else now, abs=0.1)


def test_a_wall_clock_that_is_set_later_moves_no_session(caplog: pytest.LogCaptureFixture) -> None:
    store, now = Heard(), [time.time()]
    clock = clock_for(lambda: now[0], store)
    store.hear(now[0] + APART)
    first = clock()
    now[0] += APART  # NTP repairs it

    assert clock() == pytest.approx(first, abs=0.1)

    store.hear(now[0])  # with the next connection

    assert clock() == now[0]
    assert len(caplog.records) == 1


def test_a_store_without_a_server_leaves_the_clock_of_the_app() -> None:
    assert clock_for(time.time, MemoryStore()) is time.time
