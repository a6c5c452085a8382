"""Secrets that everybody knows, and secrets that change."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from asgi_sessions import ConfigurationError, MemoryStore, SessionMiddleware
from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.record import Body, Record, seal, unseal
from asgi_sessions._core.token import TokenMint, key_of
from asgi_sessions.errors import RecordDamaged
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with, inner_app, log_in, put, read
from tests.threats.hostile import OTHER_SECRET, SECRET, WriteAccess

OLD, NEW, NEXT = SECRET, OTHER_SECRET, "a-third-one-that-nobody-has-guessed-yet-55"
FASTAPI_EXAMPLE = "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7"


# ── Secrets that everybody knows ──


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("", id="empty"),
        pytest.param("x" * 31, id="31 characters"),
        pytest.param(secrets.token_bytes(31), id="31 bytes"),
        pytest.param("x" * 32, id="one character repeated"),
        pytest.param("x" * 4096, id="one character repeated for long"),
        pytest.param(bytes(32), id="zeros"),
        pytest.param(b"\xff" * 64, id="ones"),
        pytest.param("ab" * 32, id="two characters"),
        pytest.param("changeme" * 4, id="changeme"),
        pytest.param("CHANGE_ME_TO_A_COMPLEX_RANDOM_SECRET", id="in capitals"),
        pytest.param("Ch4ng3-M3! Ch4ng3-M3! Ch4ng3-M3! Ch4ng3-M3!", id="in leet"),
        pytest.param("ch@nge me please, ch@nge me please!", id="with signs"),
        pytest.param("c.h.a.n.g.e.m.e.c.h.a.n.g.e.m.e.", id="dotted"),
        pytest.param("c\u200bh\u200ba\u200bn\u200bg\u200be\u200bm\u200be" * 4, id="with invisible spaces"),
        pytest.param(b"\0change\0me\0" * 4, id="with NULs"),
        pytest.param("prefix-that-is-quite-long-changeme-and-a-suffix", id="somewhere inside"),
        pytest.param(FASTAPI_EXAMPLE, id="the example of FastAPI's documentation"),
        pytest.param(FASTAPI_EXAMPLE.upper(), id="the same in capitals"),
        pytest.param(FASTAPI_EXAMPLE.encode(), id="the same as bytes"),
        pytest.param('"' + FASTAPI_EXAMPLE + '"\n', id="the same, quoted by a shell"),
        pytest.param("\2\1thisismyscretkey\1\2\\e\\y\\y\\h" * 2, id="Superset's first default"),
        pytest.param("YOUR_OWN_RANDOM_GENERATED_SECRET_KEY", id="Superset's documentation"),
        pytest.param("thisISaSECRET_1234" * 2, id="Superset's template"),
        pytest.param("TEST_NON_DEV_SECRET" * 2, id="Superset's containers"),
        pytest.param("x" * 31 + "\ud800", id="no Unicode"),
        pytest.param(None, id="None"),
        pytest.param(12345678901234567890123456789012, id="a number"),
        pytest.param(bytearray(range(40)), id="a bytearray"),
        pytest.param(["nested" * 8], id="a list in the list"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_secret_that_is_none_is_refused_when_the_app_is_built(bad: Any, place: int) -> None:
    """CVE-2023-27524 (Superset): with the key of the documentation anybody could sign a session. Also as an old key."""
    keys: list[Any] = [SECRET]
    keys.insert(place, bad)

    with pytest.raises(ConfigurationError, match=f"number {place + 1} "):
        SessionMiddleware(inner_app, MemoryStore(), secret_keys=keys)


def test_a_published_secret_is_refused_in_binary_too() -> None:
    """CVE-2023-27524: ``bytes.fromhex(SECRET_KEY)`` is 32 bytes, looks random, and is known to everybody."""
    with pytest.raises(ConfigurationError):
        Secrets([bytes.fromhex(FASTAPI_EXAMPLE)])


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("ｃｈａｎｇｅｍｅ" * 4, id="full-width letters"),
        pytest.param("Y2hhbmdlbWU=" * 4, id="base64"),
        pytest.param(b"changeme".hex() * 4, id="hex"),
    ],
)
def test_changeme_is_refused_in_disguise_too(bad: str) -> None:
    """In any dress, the design says."""
    with pytest.raises(ConfigurationError):
        Secrets([bad])


@pytest.mark.parametrize("bad", [SECRET, SECRET.encode()], ids=["str", "bytes"])
def test_a_string_in_place_of_a_list_is_refused(bad: Any) -> None:
    """Taken as a list it would be 39 secrets of one character each."""
    with pytest.raises(ConfigurationError, match="single string"):
        SessionMiddleware(inner_app, MemoryStore(), secret_keys=bad)


def test_the_same_secret_twice_is_refused() -> None:
    """A rotation that forgot to make a new one."""
    with pytest.raises(ConfigurationError, match="number 2 repeats an earlier one"):
        Secrets([SECRET, SECRET.encode()])


def test_secrets_as_they_should_be_are_taken() -> None:
    """Whatever makes random bytes: no false alarm in two thousand."""
    for _ in range(500):
        Secrets([secrets.token_urlsafe(32), secrets.token_hex(32), secrets.token_bytes(32), secrets.token_urlsafe(64)])


def test_purposes_never_share_a_subkey() -> None:
    """A signature that were also a key would give one away through the other."""
    labels = ["token signature", "secret id", "seal records", "another room"]
    subkeys = [key for label in labels for key in Secrets([OLD, NEW]).subkeys(label)]

    assert len(set(subkeys)) == len(labels) * 2
    assert all(len(key) == 32 for key in subkeys)


# ── Secrets that change ──


async def a_visit(store: Store, clock: FakeClock, keys: list[str], user: str) -> Browser:
    browser = Browser(app_with(store, clock=clock, secret_keys=keys))
    await browser.do(log_in(user))
    await browser.do(put(whose=user))
    return browser


async def user_with(store: Store, clock: FakeClock, keys: list[str], browser: Browser) -> Any:
    return (await read(Browser(app_with(store, clock=clock, secret_keys=keys), browser.token)))["user_id"]


async def test_changing_the_secret_loses_nobody(store: Store, clock: FakeClock) -> None:
    """The first one writes, all of them read: at every step of a rotation everybody is still there."""
    early = await a_visit(store, clock, [OLD], "early")
    middle = await a_visit(store, clock, [NEW, OLD], "middle")

    for keys in ([NEW, OLD], [OLD, NEW], [NEXT, NEW, OLD]):
        assert await user_with(store, clock, keys, early) == "early"
        assert await user_with(store, clock, keys, middle) == "middle"


async def test_servers_that_have_not_heard_of_the_new_secret_yet_lose_nobody_if_they_read_it_first(
    store: Store, clock: FakeClock
) -> None:
    """A rolling deployment: first everywhere as the second one, then as the first."""
    one, other = [OLD, NEW], [NEW, OLD]
    alice = await a_visit(store, clock, one, "alice")
    for turn in range(6):
        keys = one if turn % 2 else other
        browser = Browser(app_with(store, clock=clock, secret_keys=keys), alice.token)
        await browser.do(put(turn=turn))
        assert browser.token == alice.token

    assert await user_with(store, clock, one, alice) == "alice"


async def test_removing_the_old_secret_loses_exactly_its_sessions(store: Store, clock: FakeClock) -> None:
    """Nobody whose token was signed with one that is still there, and everybody whose was not."""
    early = await a_visit(store, clock, [OLD], "early")
    late = await a_visit(store, clock, [NEW, OLD], "late")

    assert await user_with(store, clock, [NEW], late) == "late"
    assert await user_with(store, clock, [NEW], early) is None
    assert await user_with(store, clock, [OLD], early) == "early"
    assert await user_with(store, clock, [OLD], late) is None


async def test_a_session_moves_to_the_new_secret_as_soon_as_its_token_changes(store: Store, clock: FakeClock) -> None:
    """So a rotation is over when the longest session is: nothing has to be converted."""
    alice = await a_visit(store, clock, [OLD], "alice")
    alice = Browser(app_with(store, clock=clock, secret_keys=[NEW, OLD]), alice.token)

    await alice.do(lambda session: session.regenerate())

    assert await user_with(store, clock, [NEW], alice) == "alice"


async def test_a_record_is_sealed_anew_with_the_first_secret_at_every_write(store: Store, clock: FakeClock) -> None:
    """And touched by no read."""
    alice = await a_visit(store, clock, [OLD], "alice")
    access = WriteAccess(store)
    sealed_with = {access.take(alice.key).body[1:5]}
    rotated = Browser(app_with(store, clock=clock, secret_keys=[NEW, OLD]), alice.token)

    await rotated.do(lambda session: dict(session))
    sealed_with.add(access.take(alice.key).body[1:5])
    assert len(sealed_with) == 1
    await rotated.do(put(more=1))
    sealed_with.add(access.take(alice.key).body[1:5])

    assert len(sealed_with) == 2


async def test_a_parallel_write_during_a_rotation_is_merged(store: Store, clock: FakeClock) -> None:
    """One server has the new secret first, the other second; both write at once."""
    alice = await a_visit(store, clock, [OLD, NEW], "alice")
    other = Browser(app_with(store, clock=clock, secret_keys=[NEW, OLD]), alice.token)

    async with alice.paused(put(slow=1)):
        await other.do(put(fast=1))

    assert (await read(alice))["data"] == {"whose": "alice", "slow": 1, "fast": 1}


# ── Signatures ──


@pytest.mark.parametrize("keys", [1, 3])
def test_no_signature_but_the_right_one_is_accepted(keys: int) -> None:
    """Each character in turn, each other secret, each other purpose."""
    roots = [secrets.token_bytes(32) for _ in range(keys)]
    mint = TokenMint(Secrets(roots).subkeys("token signature"), "session")
    token = mint.mint()
    assert mint.key_in(token.encode()) == key_of(token)

    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for at, right in enumerate(token):
        wrong = alphabet[(alphabet.index(right) + 1) % 64]
        assert mint.key_in((token[:at] + wrong + token[at + 1 :]).encode()) is None
    elsewhere = (
        TokenMint(Secrets(roots).subkeys("token signature"), "another"),
        TokenMint(Secrets(roots).subkeys("another label"), "session"),
        TokenMint(Secrets([SECRET]).subkeys("token signature"), "session"),
        TokenMint((), "session"),
    )
    for other in elsewhere:
        assert other.key_in(token.encode()) is None
        assert mint.key_in(other.mint().encode()) is None


def test_a_seal_opens_only_where_it_was_made() -> None:
    """Key, id, owner and namespace are all part of it; and their borders cannot be shifted."""
    mine = Secrets([SECRET])
    body = Body("session", None, 1.0, None, 1.0, False, b"payload")
    sealed = seal("k" * 46, "i" * 16, None, body, mine, "ns")
    right: dict[str, Any] = {"key": "k" * 46, "id": "i" * 16, "owner": None, "namespace": "ns"}

    def opens(**changed: Any) -> bool:
        facts = {**right, **changed}
        record = Record(facts["key"], 1, 1.0, 2.0, facts["id"], facts["owner"], sealed)
        try:
            return unseal(record, mine, facts["namespace"]) == body
        except RecordDamaged:
            return False

    assert opens()
    others: list[dict[str, Any]] = [
        {"key": "k" * 45 + "l"},
        {"id": "i" * 15 + "j"},
        {"owner": "o" * 22},
        {"namespace": ""},
        {"namespace": "ns2"},
        {"key": "k" * 46 + "\0" + "i" * 16, "id": ""},
        {"id": "i" * 16 + "\0", "namespace": "ns"},
        {"owner": "\0ns", "namespace": ""},
    ]
    assert [changed for changed in others if opens(**changed)] == []
