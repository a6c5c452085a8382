"""Rotation: honest clients are never thrown out, thieves never stay."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from datetime import timedelta
from typing import Any, get_args

import pytest
from msgspec.structs import replace

from asgi_sessions import (
    ConfigurationError,
    Devices,
    Event,
    RedisStore,
    SessionDataError,
    SessionLimitReached,
    StoreError,
)
from asgi_sessions._core.token import owner_of
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import SigningKey, TokenError, TokenExpired, TokenInvalid, TokenPair, TokenReused, Tokens
from tests.properties.faults import Faulty, Mode
from tests.support import Browser, app_with, log_in, read
from tests.tokens.conftest import KEY, SECRET, URL, some_tokens
from tests.wrapped import Wrapped

PHONE = {"headers": [(b"user-agent", b"okhttp/4.12")], "client": ("203.0.113.9", 1)}


async def outcome(tokens: Tokens, token: str) -> Any:
    try:
        return await tokens.refresh(token)
    except TokenError as error:
        return type(error)


async def test_a_refresh_gives_a_new_pair(tokens: Tokens, clock: FakeClock) -> None:
    first = await tokens.log_in("alice")

    second = await tokens.refresh(first.refresh_token)

    assert second.session_id == first.session_id
    assert len({first.refresh_token, second.refresh_token, first.access_token, second.access_token}) == 4
    assert second.expires_in == 900
    assert tokens.verify(second.access_token).user_id == "alice"


async def test_the_token_just_spent_gives_the_same_successor_three_times(tokens: Tokens, clock: FakeClock) -> None:
    first = await tokens.log_in("alice")
    second = await tokens.refresh(first.refresh_token)

    for _ in range(3):
        clock.advance(2)
        assert (await tokens.refresh(first.refresh_token)).refresh_token == second.refresh_token

    assert await outcome(tokens, first.refresh_token) is TokenInvalid
    assert isinstance(await outcome(tokens, second.refresh_token), TokenPair)


async def test_after_the_grace_it_is_theft(tokens: Tokens, store: Store, clock: FakeClock, events: list[Event]) -> None:
    first = await tokens.log_in("alice", scope=PHONE)
    second = await tokens.refresh(first.refresh_token)
    clock.advance(10)

    with pytest.raises(TokenReused):
        await tokens.refresh(first.refresh_token, scope={"client": ("198.51.100.7", 1), "headers": []})

    assert await outcome(tokens, second.refresh_token) is TokenInvalid
    assert await tokens.sessions.list("alice") == []
    assert [entry.reason for entry in await tokens.sessions.history("alice")] == ["refresh_reused", None]
    (reused,) = [event for event in events if event.name == "session.refresh_reused"]
    assert (reused.session_id, reused.user_id) == (first.session_id, "alice")
    assert reused.details["location"] == "198.51.100.0/24"


async def test_once_its_successor_was_used_it_is_theft_at_once(tokens: Tokens) -> None:
    first = await tokens.log_in("alice")
    second = await tokens.refresh(first.refresh_token)
    third = await tokens.refresh(second.refresh_token)

    assert await outcome(tokens, first.refresh_token) is TokenReused
    assert await outcome(tokens, third.refresh_token) is TokenInvalid


async def test_the_oldest_token_of_a_long_family_is_still_known(tokens: Tokens, clock: FakeClock) -> None:
    pair = first = await tokens.log_in("alice")
    for _ in range(200):
        clock.advance(600)
        pair = await tokens.refresh(pair.refresh_token)

    assert await outcome(tokens, first.refresh_token) is TokenReused
    assert await outcome(tokens, pair.refresh_token) is TokenInvalid


async def test_fifty_uses_at_once_in_two_processes_give_one_successor(store: Store, clock: FakeClock) -> None:
    processes = [some_tokens(store, clock) for _ in range(2)]
    first = await processes[0].log_in("alice")

    found = await asyncio.gather(*(outcome(processes[n % 2], first.refresh_token) for n in range(50)))

    pairs = {pair.refresh_token for pair in found if isinstance(pair, TokenPair)}
    assert len(pairs) == 1
    assert TokenReused not in found
    assert isinstance(await outcome(processes[1], pairs.pop()), TokenPair)


async def test_five_tabs_at_once_all_have_a_working_pair(store: Store, clock: FakeClock) -> None:
    processes = [some_tokens(store, clock) for _ in range(2)]
    servers = [processes[tab % 2] for tab in range(5)]
    pair = await servers[0].log_in("alice")

    for _ in range(10):
        clock.advance(900)
        pairs = await asyncio.gather(*(server.refresh(pair.refresh_token) for server in servers))
        assert len({each.refresh_token for each in pairs}) == 1
        pair = pairs[0]


@pytest.mark.parametrize("when", ["fail", "fail_after"])
async def test_a_lost_answer_of_the_store_and_a_restart_change_nothing(
    store: Store, clock: FakeClock, when: str
) -> None:
    faulty: Any = Wrapped(store)
    before = some_tokens(faulty, clock)
    first = await before.log_in("alice")
    getattr(faulty, when)["update"] = StoreError("on purpose")
    with pytest.raises(StoreError):
        await before.refresh(first.refresh_token)

    after = some_tokens(store, clock)  # another process, with nothing but the same secrets
    second = await after.refresh(first.refresh_token)

    assert isinstance(await outcome(after, second.refresh_token), TokenPair)


@pytest.mark.parametrize("mode", get_args(Mode))
async def test_a_log_in_that_failed_leaves_no_session(memory: Store, clock: FakeClock, mode: Mode) -> None:
    """No client has its tokens, and at the limit it would refuse the next log-in for days."""
    devices, provider, at, fired = Devices(max_sessions=1, at_limit="refuse"), (URL, "248289", "sid-1"), 0, "create"

    while fired:
        store = Faulty(memory)
        tokens = some_tokens(store, clock, devices=devices)
        store.arm(at, mode)
        await asyncio.gather(tokens.log_in("alice", provider=provider), return_exceptions=True)
        store.disarm()
        at, fired = at + 1, store.fired
        assert len(await tokens.sessions.list("alice")) == (not fired)

        await tokens.sessions.revoke_all("alice")
        await tokens.log_in("alice")
        await tokens.sessions.revoke_all("alice")

    assert at > 4  # the session and its two links to the provider


async def test_a_change_of_secrets_loses_nobody(store: Store, clock: FakeClock) -> None:
    newer = "another excellent secret of at least 32 bytes"
    first = await some_tokens(store, clock).log_in("alice")

    changed = some_tokens(store, clock, secret_keys=[newer, SECRET])
    second = await changed.refresh(first.refresh_token)
    again = await changed.refresh(first.refresh_token)

    assert again.refresh_token == second.refresh_token
    assert isinstance(await outcome(some_tokens(store, clock, secret_keys=[newer]), second.refresh_token), TokenPair)


BAD = ["", "x", "A" * 90, "é" * 90, "A" * 10_000, "\x00" * 90, "A" * 89 + "\n"]


@pytest.mark.parametrize("token", BAD, ids=lambda token: repr(token)[:20])
async def test_a_token_that_is_none_costs_no_question(store: Store, clock: FakeClock, token: str) -> None:
    asked: Any = Wrapped(store)

    assert await outcome(some_tokens(asked, clock), token) is TokenInvalid
    assert await some_tokens(asked, clock).revoke(token) is False
    assert asked.calls == []


async def test_a_refresh_token_works_for_its_audience_only(store: Store, clock: FakeClock) -> None:
    """RFC 9700, section 4.14.2. Both APIs have the same store and the same secrets. A new issuer logs nobody out."""
    asked: Any = Wrapped(store)
    shop = some_tokens(asked, clock)
    admin = some_tokens(asked, clock, audience="https://admin.example.org")
    pair = await shop.log_in("alice")
    asked.calls.clear()

    assert await outcome(admin, pair.refresh_token) is TokenInvalid
    assert await admin.revoke(pair.refresh_token) is False
    assert asked.calls == []
    renamed = some_tokens(asked, clock, issuer="https://id.example.org")
    assert renamed.verify((await renamed.refresh(pair.refresh_token)).access_token).user_id == "alice"


async def test_every_character_of_a_token_counts(store: Store, clock: FakeClock) -> None:
    asked: Any = Wrapped(store)
    tokens = some_tokens(asked, clock)
    token = (await tokens.log_in("alice")).refresh_token
    asked.calls.clear()

    for at, character in enumerate(token):
        other = "A" if character != "A" else "B"
        # The last character of base64url holds two spare bits.
        if at != len(token) - 1:
            assert await outcome(tokens, token[:at] + other + token[at + 1 :]) is TokenInvalid

    assert asked.calls == []
    assert isinstance(await outcome(tokens, token), TokenPair)


async def test_the_limits_of_time(tokens: Tokens, clock: FakeClock) -> None:
    idle = await tokens.log_in("alice")
    clock.advance(timedelta(days=7))
    assert await outcome(tokens, idle.refresh_token) is TokenInvalid

    busy = await tokens.log_in("alice")
    for _ in range(5):
        clock.advance(timedelta(days=6))
        last = await outcome(tokens, busy.refresh_token)
        busy = last if isinstance(last, TokenPair) else busy
    assert last is TokenInvalid  # thirty days


@pytest.mark.parametrize(
    ("lower", "reason"),
    [({"refresh_idle": timedelta(hours=12)}, "idle"), ({"refresh_absolute": timedelta(days=7)}, "absolute")],
    ids=["idle", "absolute"],
)
async def test_lower_limits_hold_for_sessions_that_began_before(
    store: Store, clock: FakeClock, lower: dict[str, Any], reason: str
) -> None:
    """As for cookies: an operator who shortens them after a theft need not wait for thirty days."""
    tokens = some_tokens(store, clock)
    pair = await tokens.log_in("alice")
    for _ in range(7):
        clock.advance(timedelta(days=1))
        pair = await tokens.refresh(pair.refresh_token)
    clock.advance(timedelta(days=0.5))
    changed = some_tokens(store, clock, **lower)

    assert await outcome(changed, pair.refresh_token) is TokenInvalid

    assert await tokens.sessions.list("alice") == []
    assert [each.reason for each in await tokens.sessions.history("alice") if each.event == "ended"] == [reason]


async def test_its_session_is_listed_and_ended_like_all_others(tokens: Tokens, store: Store, clock: FakeClock) -> None:
    sessions = tokens.sessions
    browser = Browser(app_with(sessions))
    await browser.do(log_in("alice"))
    one, other = await tokens.log_in("alice", scope=PHONE), await tokens.log_in("alice")

    assert sorted(each.kind for each in await sessions.list("alice")) == ["browser", "token", "token"]
    assert await sessions.rename("alice", one.session_id, "My phone") is True
    assert isinstance(await outcome(tokens, one.refresh_token), TokenPair)
    assert await sessions.revoke("alice", one.session_id) is True
    assert await outcome(tokens, one.refresh_token) is TokenInvalid
    await browser.do(lambda session: session.end_others())
    assert await outcome(tokens, other.refresh_token) is TokenInvalid
    assert (await read(browser))["user_id"] == "alice"


async def test_the_limit_of_sessions_holds_for_tokens_too(store: Store, clock: FakeClock) -> None:
    tokens = some_tokens(store, clock, devices=Devices(max_sessions=2, at_limit="refuse"))
    for _ in range(2):
        await tokens.log_in("alice")

    with pytest.raises(SessionLimitReached):
        await tokens.log_in("alice")


async def test_revoking_ends_the_session_also_by_a_spent_token(tokens: Tokens, clock: FakeClock) -> None:
    first = await tokens.log_in("alice")
    second = await tokens.refresh(first.refresh_token)
    clock.advance(60)

    assert await tokens.revoke(first.refresh_token) is True
    assert await tokens.revoke(first.refresh_token) is False
    assert await outcome(tokens, second.refresh_token) is TokenInvalid


async def test_a_refresh_beside_a_revocation_brings_nothing_back(store: Store, clock: FakeClock) -> None:
    barrier: Any = Wrapped(store)
    tokens = some_tokens(barrier, clock)
    pair = await tokens.log_in("alice")

    async def revoke() -> None:
        await tokens.sessions.revoke_all("alice")

    barrier.before["update"] = revoke

    assert await outcome(tokens, pair.refresh_token) is TokenInvalid
    assert await store.index(owner_of("alice")) == {}


async def test_a_refresh_token_is_no_session_cookie_and_a_cookie_no_refresh_token(
    tokens: Tokens, store: Store, clock: FakeClock
) -> None:
    pair = await tokens.log_in("alice")
    app = app_with(store, clock=clock, secret_keys=[SECRET])
    browser = Browser(app)
    await browser.do(log_in("alice"))

    for token in (pair.refresh_token, pair.access_token, pair.refresh_token[:68]):
        assert (await read(Browser(app, token)))["user_id"] is None
    assert await outcome(tokens, str(browser.token)) is TokenInvalid
    assert await outcome(tokens, pair.access_token) is TokenInvalid


async def test_no_token_is_stored_logged_or_shown(
    tokens: Tokens, store: Store, events: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    first = await tokens.log_in("alice")
    second = await tokens.refresh(first.refresh_token)
    ((_, key),) = (await store.index(owner_of("alice"))).items()

    shown = repr((await store.load(key), events, first, caplog.text))

    for pair in (first, second):
        assert pair.refresh_token[25:] not in shown
        assert pair.access_token not in shown


@pytest.mark.parametrize("seed", range(20))
async def test_honest_clients_are_never_thrown_out_and_thieves_never_stay(
    tokens: Tokens, clock: FakeClock, seed: int
) -> None:
    """An honest client retries, has tabs and loses answers; a thief copies a token once. Whoever refreshes first, within one more
    refresh of the honest client the thief has nothing."""
    dice = random.Random(seed)
    pair = await tokens.log_in("alice")
    for _ in range(30):
        clock.advance(dice.choice([1, 30, 900]))
        lost = await tokens.refresh(pair.refresh_token)
        clock.advance(dice.choice([0, 1, 5]))
        retries = [await tokens.refresh(pair.refresh_token) for _ in range(dice.randrange(3))]
        assert {each.refresh_token for each in retries} <= {lost.refresh_token}
        pair = lost
    stolen = pair
    clock.advance(900)
    thief_first = dice.random() < 0.5
    gained: list[TokenPair] = []
    if thief_first:
        gained.append(await tokens.refresh(stolen.refresh_token))
        clock.advance(dice.choice([11, 900]))
        assert await outcome(tokens, pair.refresh_token) is TokenReused
    else:
        pair = await tokens.refresh(pair.refresh_token)
        clock.advance(dice.choice([11, 900]))
        assert await outcome(tokens, stolen.refresh_token) is TokenReused
    for each in (*gained, stolen, pair):
        assert await outcome(tokens, each.refresh_token) is TokenInvalid


WRONG: list[dict[str, Any]] = [
    {"keys": []},
    {"keys": KEY},
    {"keys": ["key"]},
    {"keys": [KEY, KEY]},
    {"secret_keys": []},
    {"secret_keys": ["changeme"]},
    {"issuer": ""},
    {"audience": None},
    {"audience": "\ud800"},
    {"access": timedelta(hours=2)},
    {"access": 900},
    {"refresh_idle": timedelta(days=31)},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: repr(wrong).replace(KEY.kid[:8], "KEY"))
def test_what_does_not_fit_is_refused_when_it_is_built(memory: Any, clock: FakeClock, wrong: Any) -> None:
    with pytest.raises(ConfigurationError):
        some_tokens(memory, clock, **wrong)


@pytest.mark.parametrize("user_id", ["", None, 5, "\ud800"], ids=repr)
async def test_user_ids_that_are_none(tokens: Tokens, user_id: Any) -> None:
    with pytest.raises(SessionDataError):
        await tokens.log_in(user_id)


async def test_a_cookie_session_can_mint_access_tokens(tokens: Tokens, store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock, secret_keys=[SECRET]))
    await browser.do(log_in("alice"))
    minted: list[str] = []
    await browser.do(lambda session: minted.append(tokens.access_token(session, scope="read")))

    claims = tokens.verify(minted[0])

    assert (claims.user_id, claims.session_id) == ("alice", (await read(browser))["id"])
    assert claims.extra == {"scope": "read"}
    assert (await tokens.living(claims))[0].id == claims.session_id


async def test_an_index_that_leads_to_another_session_keeps_no_access_token_alive(
    memory: Store, clock: FakeClock
) -> None:
    """A store with a fault, or somebody who writes to it, gives the id of an ended session to one that lives."""
    store = Wrapped(memory)
    tokens = some_tokens(store, clock)
    first, second = Browser(app_with(memory, clock=clock, secret_keys=[SECRET])), await tokens.log_in("alice")
    await first.do(log_in("alice"))
    minted: list[str] = []
    await first.do(lambda session: minted.append(tokens.access_token(session)))
    claims, index = tokens.verify(minted[0]), await memory.index(owner_of("alice"))
    await tokens.end(claims)

    store.answer["index"] = {claims.session_id: index[second.session_id]}

    with pytest.raises(TokenExpired):
        await tokens.living(claims)


def test_the_names_of_things() -> None:
    assert URL in repr(URL)
    assert repr(SigningKey.secret(SECRET)).startswith("<SigningKey HS256")


async def test_the_secrets_alone_make_no_refresh_token(tokens: Tokens, store: Store) -> None:
    """The signature can be made with them; what is signed needs the key in the session's record as well."""
    pair = await tokens.log_in("alice")
    made_up = pair.refresh_token[:25] + "A" * 43
    forged = made_up + tokens._signers[0].sign(made_up.encode()).decode()

    assert await outcome(tokens, forged) is TokenInvalid
    assert await tokens.revoke(forged) is False

    assert isinstance(await outcome(tokens, pair.refresh_token), TokenPair)


async def test_the_record_of_a_refresh_token_is_no_session_of_a_cookie(
    tokens: Tokens, store: Store, clock: FakeClock
) -> None:
    """Not even for somebody who can seal records and puts it where a cookie leads."""
    app = app_with(store, clock=clock, secret_keys=[SECRET])
    browser = Browser(app)
    await browser.do(log_in("alice"))
    there = await store.load(browser.key)
    assert there is not None
    manager = tokens._manager
    body = replace(manager.records.open(there), kind="token")
    await store.update(manager.records.sealed(replace(there, rev=there.rev + 1), body), rev=there.rev)

    assert (await read(browser))["user_id"] is None


PROCESS = """
import asyncio, json, sys
from asgi_sessions import RedisStore
from asgi_sessions.tokens import SigningKey, TokenError, Tokens

url, prefix, secret, pem, issuer, token = json.loads(sys.stdin.readline())

async def main():
    # Without the task that requests of one process share: each of them asks the store.
    many = [Tokens(RedisStore.from_url(url, prefix=prefix), keys=[SigningKey.from_pem(pem)], secret_keys=[secret],
                   issuer=issuer, audience=issuer) for _ in range(5)]
    await asyncio.gather(*(tokens._manager.store.load("A" * 46) for tokens in many))
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

    async def refresh(tokens):
        try:
            return (await tokens.refresh(token)).refresh_token
        except TokenError as error:
            return type(error).__name__

    print(json.dumps(await asyncio.gather(*(refresh(many[n % 5]) for n in range(25)))), flush=True)
    for tokens in many:
        await tokens._manager.store.aclose()

asyncio.run(main())
"""


async def test_fifty_uses_at_once_in_two_real_processes_give_one_successor(valkey_url: str) -> None:
    prefix = f"test-{random.randrange(10**12)}"
    store = RedisStore.from_url(valkey_url, prefix=prefix)
    tokens = Tokens(store, keys=[KEY], secret_keys=[SECRET], issuer=URL, audience=URL)
    token = (await tokens.log_in("alice")).refresh_token
    task = json.dumps([valkey_url, prefix, SECRET, KEY.pem(), URL, token]).encode() + b"\n"
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", PROCESS, stdin=pipe, stdout=pipe) for _ in range(2)
    ]
    found: list[str] = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(task)
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    for said, _ in await asyncio.gather(*(process.communicate(b"go\n") for process in processes)):
        found += json.loads(said)

    pairs = {each for each in found if len(each) == 90}
    assert len(found) == 50
    assert len(pairs) == 1
    assert "TokenReused" not in found
    assert isinstance(await outcome(tokens, pairs.pop()), TokenPair)
    await tokens.sessions.erase("alice")
    await store.aclose()
