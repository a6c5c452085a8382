"""Somebody else chooses, knows or keeps the token with which a victim will be logged in."""

from __future__ import annotations

import secrets
from typing import Any

import anyio
import pytest

from asgi_sessions import CookieConfig, RedisStore, Session
from asgi_sessions._core.token import BARE_CHARS, key_of, owner_of
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, Handler, app_with, destroy, log_in, put, read, regenerate
from tests.threats.hostile import OTHER_SECRET, SECRET, Between, Events, Held, neighbour

ANONYMOUS: dict[str, Any] = {"data": {}, "user_id": None}


async def seen(browser: Browser) -> dict[str, Any]:
    """Data and user, as an app sees them for this token."""
    found = await read(browser)
    return {"data": found["data"], "user_id": found["user_id"]}


def made_up() -> str:
    return "Zk3" + secrets.token_urlsafe(32)


# ── The server adopts an id that the client made up ──


@pytest.mark.parametrize("verb", [put(basket=["tea"]), log_in("alice")], ids=["by a write", "by a log-in"])
async def test_an_id_that_the_client_made_up_is_never_adopted(
    store: Store, options: dict[str, Any], verb: Handler
) -> None:
    """CVE-2018-1000519: the session was stored under whatever the cookie said.

    The profitable form: fix the id first, let the victim log in, walk in.
    """
    chosen = made_up()
    victim = Browser(app_with(store, **options), chosen)

    await victim.do(verb)

    assert victim.token is not None
    assert victim.token[:BARE_CHARS] != chosen
    assert await store.load(key_of(chosen)) is None
    assert await seen(Browser(victim.app, chosen)) == ANONYMOUS


@pytest.mark.parametrize("end", [destroy, log_in("bob"), regenerate], ids=["destroyed", "logged in", "regenerated"])
async def test_a_token_that_was_ours_once_is_not_adopted_again(store: Store, options: dict[str, Any], end: Any) -> None:
    """CVE-2018-1000519: of all ids that a client can send, its own old ones look the most genuine."""
    victim = Browser(app_with(store, **options))
    await victim.do(log_in("alice"))
    old = victim.another()
    await victim.do(end)

    fixed = old.another()
    await fixed.do(put(mine=1))

    assert fixed.token not in (old.token, victim.token)
    assert await store.load(old.key) is None
    assert await seen(old) == ANONYMOUS


async def test_a_made_up_id_costs_one_question_and_tells_nothing(store: Store, options: dict[str, Any]) -> None:
    """CVE-2018-1000519: neither a cookie nor a status betrays whether an id exists."""
    watched = Between(store)
    app = app_with(watched, **options)
    nobody = Browser(app)

    unknown = await nobody.raw([(b"cookie", f"{nobody.name}={made_up()}".encode())], lambda session: dict(session))
    none = await nobody.raw([], lambda session: dict(session))

    assert watched.calls == ([] if "secret_keys" in options else ["load"])
    assert (unknown.status, unknown.headers, unknown.body) == (none.status, none.headers, none.body)


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda token: token[:-1] + ("A" if token[-1] != "A" else "B"), id="its last character changed"),
        pytest.param(lambda token: ("A" if token[0] != "A" else "B") + token[1:], id="its shard changed"),
        pytest.param(lambda token: token[:-1], id="its last character cut off"),
        pytest.param(lambda token: token + "A", id="one character more"),
        pytest.param(lambda token: token[:BARE_CHARS] + "A" * 22, id="a signature of zeros"),
        pytest.param(lambda token: key_of(token), id="the key of the record instead"),
        pytest.param(lambda token: token.swapcase(), id="in the other case"),
        pytest.param(lambda token: token + "=", id="padded"),
        pytest.param(lambda token: '"' + token + '"', id="quoted"),
        pytest.param(lambda token: "".join(f"%{ord(c):02x}" for c in token), id="percent-encoded"),
    ],
)
async def test_a_token_that_was_tampered_with_opens_nothing(alice: Browser, forge: Any) -> None:
    """A thief of the store has the keys; none of them, and nothing near a token, may be one."""
    assert alice.token is not None

    assert await seen(Browser(alice.app, forge(alice.token))) == ANONYMOUS
    assert (await seen(alice))["user_id"] == "alice"


async def test_a_token_without_its_signature_opens_nothing(store: Store, sealed: dict[str, Any]) -> None:
    """Where there are secrets, 256 right bits alone are a forgery too: they might come out of a database dump."""
    alice = Browser(app_with(store, **sealed))
    await alice.do(log_in("alice"))
    assert alice.token is not None

    assert await seen(Browser(alice.app, alice.token[:BARE_CHARS])) == ANONYMOUS


# ── The id survives the log-in ──


@pytest.mark.parametrize("how", ["anonymous", "same user", "another user"])
async def test_an_id_does_not_survive_the_log_in(store: Store, options: dict[str, Any], how: str) -> None:
    """CVE-2022-25896: who knew the id before the log-in was logged in after it."""
    victim = Browser(app_with(store, **options))
    await victim.do(put(basket=["tea"]) if how == "anonymous" else log_in("alice" if how == "same user" else "bob"))
    attacker = victim.another()

    await victim.do(log_in("alice"))

    assert victim.token != attacker.token
    assert await store.load(attacker.key) is None
    assert await seen(attacker) == ANONYMOUS
    assert (await seen(victim))["user_id"] == "alice"


async def test_an_id_is_dead_before_the_response_that_replaces_it_leaves(store: Store, options: dict[str, Any]) -> None:
    """CVE-2022-25896: "at once" means before anybody hears of the new one."""
    watched = Between(store)
    victim = Browser(app_with(watched, **options))
    await victim.do(put(basket=["tea"]))
    attacker = victim.another()
    watched.instead["delete"] = held = Held()
    answered: list[bool] = []

    async def look() -> None:
        await held.asked.wait()
        answered.append(victim.token != attacker.token)
        held.go_on.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        await victim.do(log_in("alice"))

    assert answered == [False]
    assert await store.load(attacker.key) is None


async def test_an_attackers_own_session_planted_in_a_victims_browser_does_not_become_the_victims(
    store: Store, options: dict[str, Any]
) -> None:
    """CVE-2022-25896 with a real id: the attacker visits, plants the cookie, and waits for the log-in."""
    attacker = Browser(app_with(store, **options))
    await attacker.do(put(basket=["bait"]))
    victim = attacker.another()

    await victim.do(log_in("alice"))
    await victim.do(put(address="12 Secret Lane"))

    assert await seen(attacker) == ANONYMOUS
    await attacker.do(put(more="bait"))
    assert "more" not in (await seen(victim))["data"]


async def test_an_id_does_not_survive_a_change_of_privileges(alice: Browser) -> None:
    """CVE-2022-25896 for what comes after the log-in: ``confirm()`` and ``regenerate()`` leave no way back either."""
    before = alice.another()

    await alice.do(lambda session: session.confirm())
    between = alice.another()
    await alice.do(regenerate)

    assert await seen(before) == await seen(between) == ANONYMOUS
    assert (await seen(alice))["user_id"] == "alice"


async def test_nothing_of_the_user_before_is_left_for_the_next_one(browser: Browser) -> None:
    """CVE-2022-25896 the other way round: a session planted on a victim shows the attacker's data, or keeps the victim's."""
    await browser.do(log_in("mallory"))
    await browser.do(put(card="planted", nested={"a": [1]}))

    await browser.do(log_in("alice"))

    assert await seen(browser) == {"data": {}, "user_id": "alice"}


async def test_two_log_ins_in_one_request_leave_one_session_and_nothing_of_the_first(
    store: Store, browser: Browser
) -> None:
    """A log-in as a service account and then as the user must not mix the two."""

    async def twice(session: Session) -> None:
        session.log_in("mallory")
        session["planted"] = True
        await session.save()
        session.log_in("alice")

    await browser.do(twice)

    assert await seen(browser) == {"data": {}, "user_id": "alice"}
    assert await store.index(owner_of("mallory")) == {}


# ── Tokens of another deployment ──


@pytest.mark.parametrize(
    ("here", "there"),
    [
        pytest.param({"secret_keys": [SECRET]}, {"secret_keys": [OTHER_SECRET]}, id="another secret"),
        pytest.param({"secret_keys": [SECRET]}, {}, id="no secret there"),
        pytest.param({}, {"secret_keys": [SECRET]}, id="no secret here"),
        pytest.param(
            {"secret_keys": [SECRET]},
            {"secret_keys": [SECRET], "cookie": CookieConfig(name="__Host-Http-other")},
            id="another cookie name",
        ),
    ],
)
async def test_a_token_of_another_deployment_opens_nothing(
    store: Store, clock: FakeClock, here: dict[str, Any], there: dict[str, Any]
) -> None:
    """Staging and production on one server, or two apps: a session of one is no session of the other."""
    elsewhere = Browser(app_with(store, clock=clock, **there))
    await elsewhere.do(log_in("alice"))

    replayed = Browser(app_with(store, clock=clock, **here), elsewhere.token)

    assert await seen(replayed) == ANONYMOUS
    assert (await seen(elsewhere))["user_id"] == "alice"


async def test_a_token_of_another_prefix_opens_nothing(server: RedisStore, options: dict[str, Any]) -> None:
    """Two apps on one Redis, told apart by their prefix alone."""
    elsewhere = Browser(app_with(server, **options))
    await elsewhere.do(log_in("alice"))
    other = neighbour(server)

    assert await seen(Browser(app_with(other, **options), elsewhere.token)) == ANONYMOUS

    await other.aclose()


async def test_an_expired_token_opens_nothing_and_is_not_adopted(
    store: Store, alice: Browser, clock: FakeClock, events: Events
) -> None:
    """A cookie out of an old backup is as good as a made-up one."""
    expired = alice.another()
    clock.advance(24 * 3600)

    await alice.do(put(fresh=1))

    assert await store.load(expired.key) is None
    assert await seen(expired) == ANONYMOUS
    assert await seen(alice) == {"data": {"fresh": 1}, "user_id": None}
    assert "session.ended" in events.names
