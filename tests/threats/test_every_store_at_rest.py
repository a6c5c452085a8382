"""The disk of every store, databases included: what a dump shows, and what comes of records that were moved, cut or put back.

``test_at_rest.py`` goes deeper, on the stores whose records can be anything; this is what must be so on all of them.
"""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace
from sqlalchemy import delete, func, insert, select, update

from asgi_sessions import MemoryStore, RedisStore, SQLStore, Timeouts
from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.history import ENTRY_HEADER
from asgi_sessions._core.record import Record, pack, seal, unpack, unseal
from asgi_sessions._core.token import owner_of
from asgi_sessions.rekey import rekey
from asgi_sessions.stores.sql import _record, _row
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import SigningKey, TokenInvalid, TokenPair, Tokens
from tests.conftest import SQL, STORES, a_store
from tests.support import Browser, Handler, app_with, destroy, log_in, put, read, regenerate
from tests.threats.hostile import OTHER_SECRET, SECRET, Events

DAY = 24 * 3600
FAR = 9_000_000_000.0
"""A time long after the test, and one that every store can hold."""

AGENT = b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
ADDRESS = "203.0.113.77"


class Disk:
    """Somebody who reads and writes what a store keeps, past the store's own methods."""

    def __init__(self, store: Any, client: Any) -> None:
        self.store, self._client = store, client

    async def everything(self) -> bytes:
        """All that is there, as bytes in which text can be looked for."""
        if isinstance(self.store, MemoryStore):
            return pickle.dumps((self.store._records, self.store._index, self.store._histories))
        if isinstance(self.store, RedisStore):
            return pickle.dumps([(name, self._value(name)) for name in self._client.keys(f"{self.store.namespace}:*")])
        tables = self.store.metadata.sorted_tables
        async with self.store._connections().statement() as connection:
            rows = [tuple(row) for table in tables for row in await connection.execute(select(table))]
        shown = pickle.dumps(rows)
        if self.store._first.dialect.name == "sqlite":  # the file itself, with what was deleted in it, and what waits
            shown += _file(self.store._first.url.database)
        return shown

    def _value(self, name: bytes) -> Any:
        kind = self._client.type(name)
        if kind == b"string":
            return self._client.get(name)
        return self._client.hgetall(name) if kind == b"hash" else self._client.lrange(name, 0, -1)

    async def take(self, key: str) -> Record:
        if isinstance(self.store, MemoryStore):
            return self.store._records[key]
        if isinstance(self.store, RedisStore):
            return unpack(key, self._client.get(self.store._name(key)))
        async with self.store._connections().statement() as connection:
            table = self.store.metadata.sorted_tables[0]
            return _record((await connection.execute(select(table).where(table.c.key == key))).one())

    async def put(self, record: Record) -> None:
        """Under its key, whatever was there."""
        if isinstance(self.store, MemoryStore):
            self.store._records[record.key] = record
        elif isinstance(self.store, RedisStore):
            self._client.set(self.store._name(record.key), pack(record))
        else:
            table = self.store.metadata.sorted_tables[0]
            async with self.store._connections().statement() as connection:
                await connection.execute(delete(table).where(table.c.key == record.key))
                await connection.execute(insert(table), _row(record))

    async def newest_entry(self, user: str) -> bytes:
        """The newest of a user's history."""
        owner = owner_of(user)
        if isinstance(self.store, MemoryStore):
            return self.store._histories[owner][0]
        if isinstance(self.store, RedisStore):
            entry: bytes = self._client.lindex(f"{self.store._stem(owner)}h:{owner}", 0)
            return entry
        table = self.store.metadata.sorted_tables[1]
        async with self.store._connections().statement() as connection:
            chosen = select(table.c.facts).where(table.c.owner == owner).order_by(table.c.seq.desc()).limit(1)
            return bytes(ENTRY_HEADER) + bytes((await connection.execute(chosen)).scalar_one())

    async def write_facts(self, user: str, facts: bytes) -> None:
        """In the place of those in the newest entry."""
        owner, entry = owner_of(user), (await self.newest_entry(user))[:ENTRY_HEADER] + facts
        if isinstance(self.store, MemoryStore):
            self.store._histories[owner][0] = entry
        elif isinstance(self.store, RedisStore):
            self._client.lset(f"{self.store._stem(owner)}h:{owner}", 0, entry)
        else:
            table = self.store.metadata.sorted_tables[1]
            async with self.store._connections().statement() as connection:
                of_them = (
                    await connection.execute(select(func.max(table.c.seq)).where(table.c.owner == owner))
                ).scalar_one()
                newest = update(table).where(table.c.owner == owner, table.c.seq == of_them)
                await connection.execute(newest.values(facts=facts))

    def hide(self, user: str, id: str) -> bool:
        """Take a session out of its user's index; whether that can be: in a database the record itself says whose it is."""
        owner = owner_of(user)
        if isinstance(self.store, MemoryStore):
            del self.store._index[owner][id]
        elif isinstance(self.store, RedisStore):
            self._client.hdel(self.store._index(owner), id)
        return not isinstance(self.store, SQLStore)


def _file(path: str) -> bytes:
    return Path(path).read_bytes() + Path(f"{path}-wal").read_bytes()


@pytest.fixture(params=[*STORES, *SQL])
async def disk(
    request: pytest.FixtureRequest, anyio_backend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Disk]:
    """Of each store in turn."""
    if request.param in SQL:
        monkeypatch.setattr("asgi_sessions._engine.guard.DEADLINE", 20.0)
    if request.param == "sqlite":  # a file of its own: in that of the suite lies what other tests have deleted
        own = SQLStore.from_url(f"sqlite+aiosqlite:///{tmp_path}/sessions.db")
        await own.create_tables()
        yield Disk(own, None)
        await own.aclose()
        return
    kept = a_store(request, request.param)
    async with kept as store:
        client = None if kept.url is None else redis.Redis.from_url(kept.url)
        yield Disk(store, client)
        if client is not None:
            client.close()


@pytest.fixture
def app(disk: Disk, sealed: dict[str, Any]) -> Any:
    return app_with(disk.store, **sealed)


async def a_user(app: Any, name: str = "alice", *more: Handler) -> Browser:
    browser = Browser(app)
    await browser.do(log_in(name))
    for handler in (put(who=f"{name}'s"), *more):
        await browser.do(handler)
    return browser


async def user_in(browser: Browser) -> Any:
    """Whose session the browser's token opens; ``None``: it opens none."""
    found = await read(browser.another())
    if found["user_id"] is None:
        assert found["data"] == {}
    return found["user_id"]


def some_tokens(disk: Disk, clock: FakeClock) -> Tokens:
    url = "https://api.example.org"
    return Tokens(
        disk.store, keys=[SigningKey.generate("EdDSA")], secret_keys=[SECRET], issuer=url, audience=url, clock=clock
    )


# ── What a dump shows ──


class From:
    """An app as it is asked by somebody with a browser and an address."""

    def __init__(self, app: Any) -> None:
        self.app, self.cookie = app, app.cookie

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [*scope["headers"], (b"user-agent", AGENT)]
        await self.app({**scope, "client": (ADDRESS, 4711), "headers": headers}, receive, send)


@pytest.mark.parametrize("sealing", [pytest.param(True, id="sealed"), pytest.param(False, id="plain")])
async def test_a_dump_shows_no_token_and_with_secrets_nothing_that_was_kept(
    disk: Disk, clock: FakeClock, sealing: bool
) -> None:
    """Records of every kind, the index, the history and an alias. Without secrets: no token, no address, no User-Agent."""
    options: dict[str, Any] = {"secret_keys": [SECRET]} if sealing else {}
    app: Any = From(app_with(disk.store, clock=clock, timeouts=Timeouts(renew=timedelta(minutes=5)), **options))
    sessions, tokens = app.app.sessions, list[str]()
    anonymous, alice, another = Browser(app), Browser(app), Browser(app)
    await anonymous.do(put(diary="dear diary"))
    for browser in (alice, another):
        await browser.do(log_in("alice@example.org"))
        tokens.append(str(browser.token))
        await browser.do(put(diary="dear diary", card=b"4711-0815"))
        await browser.do(regenerate)
        tokens.append(str(browser.token))
    alice_id, another_id = [session.id for session in await sessions.list("alice@example.org")]
    await sessions.rename("alice@example.org", alice_id, "the kitchen laptop")
    await sessions.revoke("alice@example.org", another_id)
    clock.advance(301)
    for browser in (alice, anonymous):
        await browser.do(put(more=1))  # renews: an alias stays behind
        tokens.append(str(browser.token))
    if sealing:
        pair = await (theirs := some_tokens(disk, clock)).log_in("alice@example.org")
        next_pair = await theirs.refresh(pair.refresh_token)
        tokens += [one.refresh_token[19:] for one in (pair, next_pair)]  # the shard and the id are no secrets

    shown = await disk.everything()

    for token in tokens:
        assert token.encode() not in shown
        assert token[3:46].encode() not in shown  # without the shard, which is no secret, and the signature
    assert ADDRESS.encode() not in shown
    assert AGENT not in shown
    kept = [b"alice", b"example.org", b"dear diary", b"diary", b"4711", b"card", b"203.0.113", b"Firefox", b"kitchen"]
    assert [text for text in kept if text in shown] == ([] if sealing else kept)
    assert SECRET.encode() not in shown


# ── Moved and cut ──


def of_another_key(hers: Record, his: Record) -> Record:
    return replace(hers, key=his.key)


def of_another_key_under_his_id(hers: Record, his: Record) -> Record:
    return replace(his, body=hers.body)


def of_another_owner(hers: Record, his: Record) -> Record:
    return replace(his, owner=hers.owner)


def of_another_id(hers: Record, his: Record) -> Record:
    return replace(his, id=hers.id)


def of_another_namespace(hers: Record, his: Record) -> Record:
    """As another app with the same secret has it, under a prefix or in a table of its own."""
    secrets = Secrets([SECRET])
    body = unseal(his, secrets, NAMESPACES[0])
    return replace(his, body=seal(his.key, his.id, his.owner, body, secrets, "another-shop"))


NAMESPACES: list[str] = []


@pytest.mark.parametrize(
    "moved",
    [of_another_key, of_another_key_under_his_id, of_another_owner, of_another_id, of_another_namespace],
    ids=lambda function: function.__name__.replace("_", " "),
)
async def test_what_was_moved_opens_for_nobody(
    disk: Disk, app: Any, events: Events, moved: Callable[[Record, Record], Record]
) -> None:
    alice, mallory = await a_user(app), await a_user(app, "mallory")
    hers, his = await disk.take(alice.key), await disk.take(mallory.key)
    NAMESPACES[:] = [disk.store.namespace]
    events.clear()

    await disk.put(moved(hers, his))

    assert await user_in(mallory) is None
    assert events.names == ["session.damaged"]
    await disk.put(his)
    assert await user_in(mallory) == "mallory"


async def test_an_entry_of_the_history_that_was_moved_to_another_user_tells_nothing(
    disk: Disk, app: Any, clock: FakeClock
) -> None:
    alice, mallory = Browser(app), Browser(app)
    await alice.do(log_in("alice"), request_headers=[(b"user-agent", AGENT)])
    await mallory.do(log_in("mallory"))
    sessions = app.sessions
    assert (await sessions.history("alice"))[0].device.browser == "Firefox"

    await disk.write_facts("mallory", (await disk.newest_entry("alice"))[ENTRY_HEADER:])

    (entry,) = await sessions.history("mallory")
    assert entry.event == "logged_in"
    assert entry.device.browser is None


async def test_an_entry_of_the_history_that_was_moved_to_another_session_tells_nothing(
    disk: Disk, app: Any, clock: FakeClock
) -> None:
    await Browser(app).do(log_in("alice"), request_headers=[(b"user-agent", AGENT)])
    first = await disk.newest_entry("alice")
    await Browser(app).do(log_in("alice"))

    await disk.write_facts("alice", first[ENTRY_HEADER:])

    newest, oldest = await app.sessions.history("alice")
    assert (newest.device.browser, oldest.device.browser) == (None, "Firefox")


async def test_a_body_that_was_cut_at_any_byte_or_made_longer_opens_for_nobody(
    disk: Disk, app: Any, events: Events
) -> None:
    alice = await a_user(app)
    record = await disk.take(alice.key)
    body, events[:] = record.body, []
    longer = [body + b"\0", body + body[-16:], body + body, b"S" + body, body[:17] + b"\0" + body[17:]]
    changed = [body[:length] for length in range(len(body))] + longer

    for other in changed:
        await disk.put(replace(record, body=other))
        assert await user_in(alice) is None, len(other)

    assert events.names == ["session.damaged"] * len(changed)
    await disk.put(record)
    assert await user_in(alice) == "alice"


# ── Put back: what an old copy of a record is good for, and where that ends ──


async def test_a_record_put_back_is_the_whole_of_an_older_state(disk: Disk, app: Any, clock: FakeClock) -> None:
    """All of it as it was, and nothing of anybody else; also the proof of identity and the end are as they were."""
    alice = await a_user(app, "alice", put(cart=["tea"], role="admin"))
    old = await disk.take(alice.key)
    await alice.do(put(cart=[], role="none"))
    clock.advance(360)

    await disk.put(old)

    assert await user_in(alice) == "alice"
    assert (await read(alice))["data"] == {"who": "alice's", "cart": ["tea"], "role": "admin"}
    fresh: list[bool] = []
    await alice.do(lambda session: fresh.append(session.is_fresh(timedelta(minutes=5))))
    assert fresh == [False]
    clock.advance(DAY - 360)
    assert await user_in(alice) is None


async def test_a_record_put_back_with_other_clocks_ends_at_the_absolute_limit(
    disk: Disk, app: Any, clock: FakeClock
) -> None:
    """The clocks stand outside of the seal, and when the session began stands inside."""
    alice = await a_user(app)
    old = await disk.take(alice.key)
    clock.advance(3601)
    assert await user_in(alice) is None  # idle, and removed

    await disk.put(old)
    assert await user_in(alice) is None  # by its own clocks it is over
    await disk.put(replace(old, seen_at=FAR, expires_at=FAR))
    assert await user_in(alice) == "alice"
    clock.advance(DAY - 3602)
    assert await user_in(alice) == "alice"
    clock.advance(1)
    assert await user_in(alice) is None
    await disk.put(replace(old, seen_at=FAR, expires_at=FAR))
    assert await user_in(alice) is None  # and not once more


async def test_an_ended_session_that_is_put_back_lives_until_a_limit_or_until_it_is_ended_again(
    disk: Disk, app: Any, clock: FakeClock
) -> None:
    """A limit of ours, and its bounds: only for who has the token, and everywhere once it was used for a minute."""
    alice = await a_user(app)
    thief, old = alice.another(), await disk.take(alice.key)
    await alice.do(destroy)
    assert await user_in(thief) is None

    await disk.put(old)

    assert await user_in(thief) == "alice"
    clock.advance(61)
    await thief.do()  # which is noted: from here on the user's index knows it again
    sessions = app.sessions
    assert [session.id for session in await sessions.list("alice")] == [old.id]
    assert await sessions.revoke_all("alice") == 1
    assert await user_in(thief) is None


async def test_a_token_that_was_replaced_does_not_outlive_its_session_when_its_record_is_put_back(
    disk: Disk, app: Any, clock: FakeClock
) -> None:
    alice = await a_user(app)
    thief, old = alice.another(), await disk.take(alice.key)
    await alice.do(regenerate)
    assert await user_in(thief) is None

    await disk.put(replace(old, seen_at=FAR, expires_at=FAR))

    assert await user_in(thief) == "alice"
    assert await user_in(alice) == "alice"
    clock.advance(DAY)
    assert await user_in(thief) is None


async def test_an_old_copy_opens_nothing_once_its_secret_is_gone(disk: Disk, app: Any, clock: FakeClock) -> None:
    """Not even to a token that is signed anew; only the seal is asked about."""
    alice = await a_user(app)
    old = await disk.take(alice.key)
    await rekey(disk.store, [OTHER_SECRET, SECRET])
    rotated = app_with(disk.store, clock=clock, secret_keys=[OTHER_SECRET])
    bare = str(alice.token)[:46]
    signed = Browser(rotated, bare + rotated._manager._mint._signers[0].sign(bare.encode()).decode())
    assert await user_in(signed) == "alice"

    await disk.put(old)

    assert await user_in(signed) is None


async def test_a_session_that_was_hidden_from_its_users_index_is_found_once_it_was_used(
    disk: Disk, app: Any, clock: FakeClock
) -> None:
    alice = await a_user(app)
    sessions = app.sessions
    (session,) = await sessions.list("alice")

    if disk.hide("alice", session.id):
        assert await sessions.list("alice") == []
    clock.advance(61)
    await alice.do()

    assert await sessions.revoke_all("alice") == 1
    assert await user_in(alice) is None


async def refreshed(tokens: Tokens, token: str) -> TokenPair | None:
    try:
        return await tokens.refresh(token)
    except TokenInvalid:
        return None


async def test_a_spent_refresh_token_counts_again_when_its_record_is_put_back(disk: Disk, clock: FakeClock) -> None:
    """A limit of ours, and its bounds: who has the newer token is refused, and hears that something is wrong."""
    tokens = some_tokens(disk, clock)
    first = await tokens.log_in("alice")
    (key,) = (await disk.store.index(owner_of("alice"))).values()
    old = await disk.take(key)
    second = await tokens.refresh(first.refresh_token)
    third = await tokens.refresh(second.refresh_token)
    clock.advance(11)

    await disk.put(old)

    assert await refreshed(tokens, third.refresh_token) is None
    assert await refreshed(tokens, first.refresh_token) is not None


async def test_refresh_tokens_end_at_the_absolute_limit_whatever_the_clocks_outside_of_the_seal_say(
    disk: Disk, clock: FakeClock
) -> None:
    tokens = some_tokens(disk, clock)
    pair: TokenPair | None = await tokens.log_in("alice")
    (key,) = (await disk.store.index(owner_of("alice"))).values()

    await disk.put(replace(await disk.take(key), seen_at=FAR, expires_at=FAR))

    clock.advance(timedelta(days=30) - timedelta(seconds=1))
    assert pair is not None
    pair = await refreshed(tokens, pair.refresh_token)
    assert pair is not None
    clock.advance(1)
    assert await refreshed(tokens, pair.refresh_token) is None
