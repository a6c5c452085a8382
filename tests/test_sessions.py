"""One Sessions for all components of a store: one set of rules. What knows no rules of the app applies none of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from asgi_sessions import (
    ConfigurationError,
    CookieConfig,
    Devices,
    MemoryStore,
    SessionMiddleware,
    Sessions,
    StoreError,
    Timeouts,
    UserSessions,
)
from asgi_sessions.frameworks.litestar import SessionPlugin
from asgi_sessions.rekey import rekey
from asgi_sessions.testing import FakeClock, session_cookie
from asgi_sessions.testing import log_in as client_log_in
from asgi_sessions.tokens import Claims, SigningKey, TokenExpired, Tokens
from tests.support import Browser, app_with, inner_app, log_in, put, read

SECRET = "an excellent secret of at least 32 bytes"
TOKENS: dict[str, Any] = {
    "keys": [SigningKey.generate("EdDSA")],
    "issuer": "https://api.example.org",
    "audience": "https://api.example.org",
}


def shared(sessions: Sessions, clock: FakeClock) -> tuple[Sessions, Tokens]:
    """Components that are given the app's Sessions."""
    return sessions, Tokens(sessions, **TOKENS)


def apart(sessions: Sessions, clock: FakeClock) -> tuple[Sessions, Tokens]:
    """Components that are given the app's store and secrets, and know nothing else of the app."""
    known: dict[str, Any] = {"secret_keys": [SECRET], "clock": clock}
    return UserSessions(sessions.store, **known), Tokens(sessions.store, **known, **TOKENS)


KINDS = [pytest.param(shared, id="of the app's Sessions"), pytest.param(apart, id="of the app's store")]
Components = Callable[[Sessions, FakeClock], tuple[Sessions, Tokens]]


async def lives_by(tokens: Tokens, id: str) -> bool:
    """Whether a strict look at an access token finds its session."""
    try:
        await tokens.living(Claims("alice", id, 0.0, 60.0, 0.0, "jti", {}))
    except TokenExpired:
        return False
    return True


minutes = st.integers(1, 3000).map(lambda many: timedelta(minutes=many))


@pytest.mark.parametrize("components", KINDS)
@given(idle=minutes, absolute=minutes, remember=st.booleans(), steps=st.lists(minutes, max_size=5), last=minutes)
def test_every_component_agrees_with_the_app_whether_a_session_lives(
    components: Components,
    idle: timedelta,
    absolute: timedelta,
    remember: bool,
    steps: list[timedelta],
    last: timedelta,
) -> None:
    async def play() -> set[bool]:
        clock = FakeClock()
        timeouts = Timeouts(idle=idle, absolute=absolute, remember_idle=absolute, remember_absolute=idle)
        app = app_with(MemoryStore(), secret_keys=[SECRET], timeouts=timeouts, clock=clock)
        sessions, tokens = components(app.sessions, clock)
        alice = Browser(app)
        await alice.do(log_in("alice", remember=remember))
        (session,) = await sessions.list("alice")
        for step in steps:
            clock.advance(step)
            await alice.do()
        clock.advance(last)
        lives = await app.sessions.count("alice") == 1  # first: a wrong look may end it
        looks = {await lives_by(tokens, session.id), await sessions.count("alice") == 1}
        return {lives, (await read(alice))["user_id"] == "alice"} | looks

    assert len(asyncio.run(play())) == 1


@pytest.mark.parametrize("components", KINDS)
async def test_a_session_whose_record_was_given_more_time_ends_at_its_absolute_limit(
    components: Components, memory: MemoryStore, clock: FakeClock
) -> None:
    """The time in the record is not sealed, the limit is."""
    app = app_with(memory, secret_keys=[SECRET], clock=clock)
    sessions, tokens = components(app.sessions, clock)
    alice = Browser(app)
    await alice.do(log_in("alice"))
    (session,) = await sessions.list("alice")
    far = clock() + 365 * 86400
    memory._records[alice.key] = replace(memory._records[alice.key], seen_at=far, expires_at=far)

    clock.advance(timedelta(hours=24))

    assert not await lives_by(tokens, session.id)
    assert await sessions.count("alice") == 0


@pytest.mark.parametrize(("components", "ends"), [(shared, True), (apart, False)], ids=["Sessions", "store"])
async def test_only_what_knows_the_rules_of_the_app_ends_its_sessions(
    components: Components, ends: bool, memory: MemoryStore, clock: FakeClock
) -> None:
    app = app_with(memory, secret_keys=[SECRET], clock=clock)
    sessions, tokens = components(app.sessions, clock)
    alice = Browser(app)
    await alice.do(log_in("alice"))
    (session,) = await sessions.list("alice")

    clock.advance(timedelta(hours=2))

    assert not await lives_by(tokens, session.id)
    assert (alice.key not in memory._records) is ends


@pytest.mark.parametrize("components", KINDS)
async def test_a_log_in_with_tokens_ends_no_session_that_the_apps_limit_allows(
    components: Components, memory: MemoryStore, clock: FakeClock
) -> None:
    app = app_with(memory, secret_keys=[SECRET], clock=clock, devices=Devices(max_sessions=40))
    sessions, tokens = components(app.sessions, clock)
    for _ in range(30):
        await Browser(app).do(log_in("alice"))

    await tokens.log_in("alice")

    assert await sessions.count("alice") == 31


@pytest.mark.parametrize("components", KINDS)
async def test_no_component_cuts_the_apps_history(
    components: Components, memory: MemoryStore, clock: FakeClock
) -> None:
    app = app_with(memory, secret_keys=[SECRET], clock=clock, devices=Devices(history=timedelta(days=365)))
    sessions, tokens = components(app.sessions, clock)
    await Browser(app).do(log_in("alice"))
    clock.advance(timedelta(days=200))

    await tokens.log_in("alice")
    await sessions.revoke_all("alice")

    assert [entry.event for entry in await app.sessions.history("alice")][-1] == "logged_in"
    assert len(await sessions.history("alice")) == 4


# ── What exists once ──


class Down(MemoryStore):
    """Fails when it is down, and counts how often it was asked then."""

    is_down = False
    asked = 0

    async def load(self, key: str) -> Any:
        if self.is_down:
            self.asked += 1
            raise StoreError("it is down")
        return await super().load(key)


async def test_all_components_leave_a_dead_store_alone_together() -> None:
    store = Down()
    sessions = Sessions(store, secret_keys=[SECRET])
    apps = [app_with(sessions), app_with(sessions, cookie=CookieConfig("__Host-Http-other"))]
    tokens, browsers = Tokens(sessions, **TOKENS), [Browser(app) for app in apps]
    pair = await tokens.log_in("alice")
    for browser in browsers:
        await browser.do(put(a=1))
    store.is_down = True

    statuses = [(await browser.do()).status for browser in browsers * 10]
    with pytest.raises(StoreError, match="is not called"):
        await tokens.refresh(pair.refresh_token)

    assert statuses == [503] * 20
    assert store.asked == 5


async def test_two_cookies_of_one_sessions_are_two_sessions(memory: MemoryStore) -> None:
    """What is shared ends at the token: that of one cookie opens nothing under the other."""
    sessions = Sessions(memory, secret_keys=[SECRET])
    one, other = (Browser(app_with(sessions, cookie=CookieConfig(f"__Host-Http-{name}"))) for name in "ab")
    await one.do(put(a=1))

    other.token = one.token

    assert (await read(other))["data"] == {}
    assert (await read(one))["data"] == {"a": 1}


async def test_a_session_that_was_begun_for_a_test_is_the_apps(clock: FakeClock) -> None:
    sessions = Sessions(MemoryStore(), secret_keys=[SECRET], clock=clock)
    app, cookie = app_with(sessions), await session_cookie(sessions, "alice")

    assert (await read(Browser(app, cookie[1])))["user_id"] == "alice"


# ── One place for each rule ──

CALLS: dict[str, Callable[..., Any]] = {
    "SessionMiddleware": lambda sessions, **rule: SessionMiddleware(inner_app, sessions, **rule),
    "SessionMiddleware ": lambda sessions, **rule: SessionPlugin(sessions, **rule),
    "Tokens": lambda sessions, **rule: Tokens(sessions, **TOKENS, **rule),
    "session_cookie": lambda sessions, **rule: session_cookie(sessions, "alice", **rule),
    "log_in": lambda sessions, **rule: client_log_in(httpx.AsyncClient(), sessions, "alice", **rule),
}
RULES: dict[str, Any] = {
    "secret_keys": [SECRET],
    "timeouts": Timeouts(),
    "devices": Devices(),
    "on_event": print,
    "store_deadline": timedelta(seconds=1),
    "clock": FakeClock(),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CALLS)
async def test_a_rule_of_the_sessions_is_not_given_again(name: str, rule: str, memory: MemoryStore) -> None:
    sessions = Sessions(memory, secret_keys=[SECRET])

    async def build() -> None:
        made = CALLS[name](sessions, **{rule: RULES[rule]})
        if isinstance(made, Awaitable):
            await made

    with pytest.raises(ConfigurationError, match=rf"^{name.strip()}\({rule}=…\): .* give it to Sessions\({rule}=…\)$"):
        await build()


async def test_rekey_has_the_secrets_of_the_sessions(memory: MemoryStore) -> None:
    older = app_with(memory, secret_keys=[SECRET])
    await Browser(older).do(log_in("alice"))
    sessions = Sessions(memory, secret_keys=["another excellent secret of 32 bytes", SECRET])

    with pytest.raises(ConfigurationError, match=r"^rekey\(secret_keys=…\)"):
        await rekey(sessions, [SECRET])

    assert (await rekey(sessions)).sealed == 1


def test_a_middleware_wants_to_know_how_long_sessions_live(memory: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match="its Sessions has no timeouts"):
        app_with(UserSessions(memory))


async def test_a_script_has_the_methods_of_the_app(memory: MemoryStore) -> None:
    await session_cookie(memory, "alice")
    script = UserSessions(memory)
    (session,) = await script.list("alice")

    assert await script.name("alice", session.id, "laptop")
    assert [each.name for each in await script.list("alice")] == ["laptop"]
