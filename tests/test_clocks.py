"""Two servers of one app whose clocks differ by five minutes: what ends early, what ends late, and what stays as it is.

The table in ``docs/timeouts.md`` says the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from asgi_sessions import Session, Sessions, Timeouts
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import SigningKey, TokenInvalid, Tokens
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
