"""What operators type: list, show, end and count sessions, and let the doctor look at a store."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from asgi_sessions import RedisStore, Session, Sessions, SessionWarning, SQLStore
from asgi_sessions._core.record import Record
from asgi_sessions._core.token import key_of, new_id
from asgi_sessions.cli import _doctor_redis as redis_doctor
from asgi_sessions.cli import _doctor_sql as sql_doctor
from asgi_sessions.cli import main
from asgi_sessions.cli._doctor import clock, installation, judge_records, latency, what_to_do
from asgi_sessions.cli._output import shown
from asgi_sessions.cli._settings import NAME, SECRET_KEYS, URL
from asgi_sessions.stores.redis._cluster import shard_of_each_slot
from asgi_sessions.testing import a_record
from tests.clusters import Cluster, until
from tests.conftest import SQL, TABLE, Server, a_store, sql_url
from tests.markdown import DOCS, agrees, blocks
from tests.support import Browser, app_with, log_in, put
from tests.test_operators import Operator, rights

PAGE = DOCS / "operators.md"
SECRET = "kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"
OLD = "Wm5Tz8Qb1Xc6Vn3Jk7Hg2Fd9Sa4Pl0Oi5Uy"
PASSWORD = "s3cret-password"
FIREFOX = b"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0"
SAFARI = (
    b"Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    b"Version/18.5 Mobile/15E148 Safari/604.1"
)

Command = Callable[..., "Ended"]


@dataclass
class Ended:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def finding(self, check: str) -> dict[str, str]:
        """What the doctor says under this name."""
        (found,) = [each for each in self.json["findings"] if each["check"] == check]
        return dict(found)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (URL, NAME, SECRET_KEYS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Command:
    """Type a command; argparse's own way to leave is an exit status too."""

    def run(*words: str) -> Ended:
        capsys.readouterr()
        try:
            status = main(words)
        except SystemExit as left:
            status = int(left.code or 0)
        said = capsys.readouterr()
        return Ended(status, said.out, said.err)

    return run


@dataclass
class Place:
    """A store, and the options by which a command finds it."""

    store: Any
    url: str
    options: list[str]

    async def type(self, typed: Command, *words: str) -> Ended:
        return await asyncio.to_thread(typed, *words, "--url", self.url, *self.options)

    async def doctor(self, typed: Command, *words: str) -> Ended:
        return await asyncio.to_thread(typed, "doctor", self.url, "--json", *self.options, *words)


@pytest.fixture(params=["valkey", *SQL])
async def place(
    request: pytest.FixtureRequest, anyio_backend: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    """A Valkey, then each database; the secret is in the environment, as an operator has it."""
    monkeypatch.setenv(SECRET_KEYS, SECRET)
    async with a_store(request, request.param) as store:
        if request.param in SQL:
            yield Place(store, sql_url(request, request.param), ["--name", TABLE])
        else:
            yield Place(store, request.getfixturevalue("valkey_url"), ["--name", str(store.namespace)])


def browser_of(store: Any, user_agent: bytes, address: str = "203.0.113.9") -> Browser:
    """A browser behind an address."""
    browser = Browser(app_with(store, secret_keys=[SECRET]))
    inner: Any = browser.app

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["client"] = (address, 50000)
        scope["headers"] = [*scope["headers"], (b"user-agent", user_agent)]
        await inner(scope, receive, send)

    browser.app = app  # type: ignore[assignment]
    return browser


async def ids_of(store: Any, user: str) -> list[str]:
    return [each.id for each in await Sessions(store, secret_keys=[SECRET]).list(user)]


# ── Sessions ──


async def test_a_user_is_listed_shown_counted_and_ended(place: Place, typed: Command) -> None:
    firefox, phone = browser_of(place.store, FIREFOX), browser_of(place.store, SAFARI)
    await firefox.do(log_in("alice"))
    await phone.do(log_in("alice"))
    await browser_of(place.store, SAFARI).do(log_in("bob"))
    visitor = browser_of(place.store, FIREFOX)
    await visitor.do(put(basket=1))

    listed = (await place.type(typed, "list", "alice", "--json")).json
    (of_firefox,) = [each["id"] for each in listed if each["device"]["browser"] == "Firefox"]
    shown = (await place.type(typed, "show", of_firefox, "--json")).json
    of_alice = (await place.type(typed, "show", of_firefox, "--user", "alice", "--json")).json
    of_bob = await place.type(typed, "show", of_firefox, "--user", "bob")
    counted = (await place.type(typed, "count", "--json")).json
    revoked = await place.type(typed, "revoke", of_firefox)
    again = await place.type(typed, "revoke", of_firefox, "--user", "alice")
    history = (await place.type(typed, "history", "alice", "--json")).json
    rest = await place.type(typed, "revoke-all", "alice", "--json")

    assert len(listed) == 2
    assert shown == of_alice
    assert (shown["user_id"], shown["location"]["network"]) == ("alice", "203.0.113.0/24")
    assert (of_bob.status, of_bob.err) == (1, "asgi-sessions: no session with this id is alive\n")
    assert counted == {
        "sessions": 4, "of_users": 3, "of_visitors": 1, "users": 2, "is_estimate": False, "looked_at": 4, "unopened": 0,
    }  # fmt: skip
    assert (revoked.status, revoked.out) == (0, "ended\n")
    assert (again.status, again.out) == (1, "")
    assert (history[0]["event"], history[0]["reason"]) == ("ended", "revoked")
    assert rest.json == {"ended": 1}
    assert await ids_of(place.store, "alice") == []
    assert (await firefox.do(lambda session: session.user_id)).body == b"None"
    assert len(await ids_of(place.store, "bob")) == 1


async def test_a_visitor_is_found_and_ended_by_id(place: Place, typed: Command) -> None:
    """Log lines hold ids. A visitor has no user to look under, so the store is walked through."""
    visitor, other = browser_of(place.store, FIREFOX), browser_of(place.store, FIREFOX)
    await visitor.do(put(basket=1))
    await other.do(put(basket=2))
    record = await place.store.load(visitor.key)

    seen = await place.type(typed, "show", record.id, "--json")
    ended = await place.type(typed, "revoke", record.id)

    assert seen.json["user_id"] is None
    assert ended.status == 0
    assert await place.store.load(visitor.key) is None
    assert await place.store.load(other.key) is not None


async def test_everyone_is_logged_out(place: Place, typed: Command) -> None:
    alice, visitor = browser_of(place.store, FIREFOX), browser_of(place.store, FIREFOX)
    await alice.do(log_in("alice"))
    await visitor.do(put(basket=1))

    ended = await place.type(typed, "revoke-all", "--everyone", "--json")

    assert ended.json == {"ended": 2}
    assert await place.store.load(alice.key) is None
    assert await place.store.load(visitor.key) is None


async def test_one_session_is_kept(place: Place, typed: Command) -> None:
    for _ in range(3):
        await browser_of(place.store, FIREFOX).do(log_in("alice"))
    keep, *_ = await ids_of(place.store, "alice")

    ended = await place.type(typed, "revoke-all", "alice", "--keep", keep)

    assert ended.out == "2 sessions ended\n"
    assert await ids_of(place.store, "alice") == [keep]
    assert (await place.type(typed, "revoke-all", "alice")).out == "1 session ended\n"


async def test_no_command_prints_a_token_a_key_or_data(place: Place, typed: Command) -> None:
    def handler(session: Session) -> None:
        session.log_in("alice")
        session["diary"] = "a-private-line"

    browser = browser_of(place.store, FIREFOX)
    await browser.do(handler)
    (id,) = await ids_of(place.store, "alice")
    said = ""

    for words in (
        ["list", "alice"], ["show", id], ["show", id, "--user", "alice"], ["history", "alice"], ["count"],
        ["revoke", id], ["revoke-all", "alice"],
    ):  # fmt: skip
        for form in ([], ["--json"]):
            ended = await place.type(typed, *words, *form)
            said += ended.out + ended.err
    doctor = await place.doctor(typed)
    said += doctor.out + doctor.err

    assert browser.token is not None
    for secret in (browser.token, browser.token[3:], browser.key, browser.key[3:], "a-private-line", "diary", SECRET):
        assert secret not in said


async def test_records_that_do_not_open_are_no_empty_answer(
    place: Place, typed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator without the secrets must not read "no sessions"."""
    await browser_of(place.store, FIREFOX).do(log_in("alice"))
    (id,) = await ids_of(place.store, "alice")
    monkeypatch.delenv(SECRET_KEYS)

    listed = await place.type(typed, "list", "alice")
    found = await place.type(typed, "show", id)
    counted = await place.type(typed, "count", "--json")

    for ended in (listed, found):
        assert (ended.status, ended.out) == (1, "")
        assert "1 records do not open" in ended.err
        assert SECRET_KEYS in ended.err
    assert (counted.json["sessions"], counted.json["unopened"]) == (1, 1)


async def test_expired_sessions_aliases_locks_and_links_are_not_counted(place: Place, typed: Command) -> None:
    browser = browser_of(place.store, FIREFOX)
    await browser.do(log_in("alice", provider=("https://id.example.org", "a1", "s1")))
    now = time.time()
    for number, record in enumerate(
        [
            Record("Zk3", 1, now - 90, now - 30, new_id(), None, b"Sexpired"),
            Record("Zk3", 0, now, now + 30, new_id(), None, b"Salias"),
        ]
    ):
        await place.store.create(Record(key_of(f"Zk3{number:043d}"), *list(_fields(record))[1:]))

    async def with_lock(session: Session) -> None:
        async with session.once("work"):
            counted.append(await place.type(typed, "count", "--json"))

    counted: list[Ended] = []
    await browser.do(with_lock)

    assert counted[0].json["sessions"] == 1


def _fields(record: Record) -> Iterator[Any]:
    for name in record.__struct_fields__:
        yield getattr(record, name)


@pytest.mark.parametrize("kind", ["valkey", "sqlite"])
async def test_a_large_store_is_counted_by_a_sample(
    kind: str, request: pytest.FixtureRequest, typed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user with 60 sessions is met 60 times as often, and is one user all the same. The bounds are four standard errors."""
    monkeypatch.setattr("asgi_sessions.cli._walk.BATCH", 20)
    request.getfixturevalue("patience")
    async with a_store(request, kind) as store:
        url = sql_url(request, kind) if kind in SQL else request.getfixturevalue("valkey_url")
        place = Place(store, url, ["--name", TABLE if kind in SQL else str(store.namespace)])
        now = time.time()
        for user in range(140):
            for _ in range(60 if user < 40 else 1):
                made = a_record(owner=f"user {user}", number=user)
                await store.create(Record(made.key, 1, now, now + 900, made.id, made.owner, b"S"))

        sampled = (await place.type(typed, "count", "--sample", "600", "--json")).json
        exact = (await place.type(typed, "count", "--all", "--json")).json

    assert sampled["is_estimate"]
    assert 600 <= sampled["looked_at"] < 1000
    assert 1800 < sampled["sessions"] < 3200
    assert 70 < sampled["users"] < 210
    assert (exact["sessions"], exact["users"], exact["is_estimate"]) == (2500, 140, False)


async def test_settings_come_from_variables(
    valkey_url: str, request: pytest.FixtureRequest, typed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(request, "valkey") as store:
        await browser_of(store, FIREFOX).do(log_in("alice"))
        monkeypatch.setenv(SECRET_KEYS, f"{SECRET} {OLD}")
        monkeypatch.setenv(URL, valkey_url)
        monkeypatch.setenv(NAME, str(store.namespace))

        listed = await asyncio.to_thread(typed, "list", "alice", "--json")
        doctor = await asyncio.to_thread(typed, "doctor", "--json")
        done = await asyncio.to_thread(typed, "rekey", "--json")

    assert len(listed.json) == 1
    assert doctor.finding("secrets")["level"] == "ok"
    assert done.json == {"looked_at": 1, "sealed": 0, "damaged": 0}


def test_the_id_of_a_session_may_begin_with_a_dash(
    valkey_url: str, typed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL, valkey_url)
    monkeypatch.setenv(NAME, f"test-{secrets.token_hex(6)}")

    for words in (["show", "-bcdefghijklmnop"], ["revoke", "--user", "alice", "-bcdefghijklmno-"]):
        assert typed(*words).err == "asgi-sessions: no session with this id is alive\n"
    assert typed("revoke-all", "alice", "--keep", "--cdefghijklmno-").out == "0 sessions ended\n"


BAD = {
    "no URL": (["list", "alice"], URL),
    "an id that is none": (["show", "abc", "--url", "redis://127.0.0.1:9/0"], "16 letters"),
    "a token in the place of an id": (["revoke", "Zk3" + "x" * 43, "--url", "redis://127.0.0.1:9/0"], "16 letters"),
    "no user": (["list", "", "--url", "redis://127.0.0.1:9/0"], "empty"),
    "a user that is no text": (["history", "\udcff", "--url", "redis://127.0.0.1:9/0"], "user"),
    "neither a user nor everyone": (["revoke-all", "--url", "redis://127.0.0.1:9/0"], "--everyone"),
    "a user and everyone": (["revoke-all", "alice", "--everyone", "--url", "redis://127.0.0.1:9/0"], "--everyone"),
    "everyone but one": (
        ["revoke-all", "--everyone", "--keep", "abcdefghijklmnop", "--url", "redis://127.0.0.1:9/0"],
        "--keep",
    ),
    "no number": (["history", "alice", "--limit", "many"], "number"),
    "a sample of nothing": (["count", "--sample", "0"], "number"),
    "another scheme": (["list", "alice", "--url", f"http://alice:{PASSWORD}@localhost"], "use redis://"),
    "the scheme of another client": (["doctor", f"valkey://:{PASSWORD}@localhost"], "use redis://"),
    "a scheme with one slash": (["sweep", f"redis:/:{PASSWORD}@localhost"], "use redis://"),
    "a prefix that is none": (["list", "alice", "--url", "redis://127.0.0.1:9/0", "--name", "{a}"], "prefix"),
    "a file that does not exist": (["count", "--url", "sqlite+aiosqlite:////no/such/file.db"], "no file"),
    "a short secret": (["doctor", "redis://127.0.0.1:9/0"], "secret"),
}


@pytest.mark.parametrize(("words", "said"), [pytest.param(*case, id=what) for what, case in BAD.items()])
def test_bad_input_is_one_clear_line(
    words: list[str], said: str, typed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said == "secret":
        monkeypatch.setenv(SECRET_KEYS, "short")

    ended = typed(*words)

    assert (ended.status, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert PASSWORD not in ended.err
    assert "x" * 43 not in ended.err


@pytest.mark.parametrize(
    "words",
    [["list", "alice"], ["show", "a" * 16], ["history", "alice"], ["count"], ["revoke", "a" * 16, "--user", "b"]],
)
@pytest.mark.parametrize("url", ["redis://:{}@127.0.0.1:9/0", "postgresql+asyncpg://alice:{}@127.0.0.1:9/app"])
def test_a_store_that_does_not_answer_is_one_clear_line(words: list[str], url: str, typed: Command) -> None:
    ended = typed(*words, "--url", url.format(PASSWORD))

    assert (ended.status, ended.out) == (1, "")
    assert len(ended.err.splitlines()) == 1
    assert PASSWORD not in ended.err


def test_what_users_name_cannot_rewrite_the_terminal() -> None:
    assert shown("my\x1b[2Jphone\r\u202e") == "my�[2Jphone��"


# ── The doctor ──


async def test_the_doctor_finds_nothing_wrong_and_leaves_nothing_behind(place: Place, typed: Command) -> None:
    await browser_of(place.store, FIREFOX).do(log_in("alice"))
    before = await everything(place)

    ended = await place.doctor(typed)

    assert ended.status == 0, ended.out
    assert {each["level"] for each in ended.json["findings"]} <= {"ok", "note"}
    assert {"installed", "reachable", "version", "latency", "writes", "secrets"} <= {
        each["check"] for each in ended.json["findings"]
    }
    assert await everything(place) == before


async def everything(place: Place) -> set[str]:
    """The names of all keys, or the key of each row."""
    if isinstance(place.store, RedisStore):
        with redis.Redis.from_url(place.url) as client:
            return {name.decode() for name in client.scan_iter(f"{place.store.namespace}:*", count=1000)}
    async with place.store._connections().statement() as connection:
        rows = [*await connection.execute(text(f"SELECT id FROM {TABLE}"))]
        return {*map(str, rows), *map(str, await connection.execute(text(f"SELECT owner, seq FROM {TABLE}_history")))}


async def test_read_only_means_that(own_server: Server, typed: Command) -> None:
    own_server.start()

    ended = await asyncio.to_thread(typed, "doctor", own_server.url, "--read-only", "--json")

    assert "writes" not in {each["check"] for each in ended.json["findings"]}
    with redis.Redis.from_url(own_server.url) as client:
        sent = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    assert not {name for name in sent if name.startswith(("eval", "set", "publish", "spublish"))}


async def test_secrets_that_do_not_open_records_are_a_problem(
    place: Place, typed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    await browser_of(place.store, FIREFOX).do(log_in("alice"))

    monkeypatch.setenv(SECRET_KEYS, OLD)
    other = await place.doctor(typed)
    monkeypatch.setenv(SECRET_KEYS, f"{OLD} {SECRET}")
    rotated = await place.doctor(typed)
    monkeypatch.delenv(SECRET_KEYS)
    none = await place.doctor(typed)

    assert other.status == 2
    assert "1 of 1 records do not open" in other.finding("secrets")["message"]
    assert (rotated.status, rotated.finding("secrets")["level"]) == (0, "note")
    assert "rekey" in rotated.finding("secrets")["advice"]
    assert (none.status, none.finding("secrets")["level"]) == (1, "warning")


@pytest.mark.parametrize("url", ["redis://:{}@127.0.0.1:9/0", "redis+cluster://:{}@127.0.0.1:9",
                                 "postgresql+asyncpg://alice:{}@127.0.0.1:9/app"])  # fmt: skip
def test_a_store_that_cannot_be_reached_is_a_problem(url: str, typed: Command) -> None:
    ended = typed("doctor", url.format(PASSWORD))

    assert ended.status == 2
    assert re.search(r"^problem  reachable ", ended.out, re.MULTILINE)
    assert ended.out.endswith("\n1 problem, 0 warnings\n")
    assert PASSWORD not in ended.out + ended.err


def test_the_settings_of_a_server_that_lose_sessions_are_found(own_server: Server, typed: Command) -> None:
    own_server.options = ("--maxmemory-policy", "allkeys-lru", "--maxmemory", "100mb", "--save", "3600", "1")
    own_server.start()

    ended = typed("doctor", own_server.url, "--json")
    with redis.Redis.from_url(own_server.url) as client:
        client.config_set("maxmemory", 1)
        client.config_set("maxmemory-policy", "noeviction")
    full = typed("doctor", own_server.url, "--json")

    assert ended.status == 1
    assert ended.finding("eviction")["level"] == "warning"
    assert "allkeys-lru" in ended.finding("eviction")["message"]
    assert ended.finding("persistence")["level"] == "warning"
    assert ended.finding("persistence")["advice"].startswith("set appendonly yes")
    assert full.status == 2
    assert full.finding("memory")["level"] == "warning"
    assert "OOM" in full.finding("writes")["message"]
    assert "maxmemory" in full.finding("writes")["advice"]


@pytest.mark.parametrize("command", ["list alice --url", "count --url", "revoke-all alice --url", "rekey"])
async def test_the_settings_of_a_server_are_the_business_of_the_doctor(
    command: str, own_server: Server, typed: Command, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Other commands print their own report: no line of the log, and no Python warning with a path."""
    own_server.options = ("--maxmemory-policy", "allkeys-lru", "--save", "3600", "1")
    own_server.start()
    monkeypatch.setenv(SECRET_KEYS, SECRET)
    store = RedisStore.from_url(own_server.url)
    with pytest.warns(SessionWarning):
        await store.create(a_record(owner="alice"))
    await store.aclose()
    caplog.clear()

    ended = await asyncio.to_thread(typed, *command.split(), own_server.url)

    assert [line for line in ended.err.splitlines() if not line.startswith("asgi-sessions: ")] == caplog.messages == []


def test_a_replica_and_a_password_are_found(own_server: Server, valkey_url: str, typed: Command) -> None:
    port = valkey_url.rpartition(":")[2].removesuffix("/0")
    own_server.options = ("--replicaof", f"127.0.0.1 {port}", "--requirepass", PASSWORD)
    own_server.start()
    url = own_server.url.replace("//", f"//:{PASSWORD}@")

    let_in, kept_out = typed("doctor", url, "--json"), typed("doctor", own_server.url, "--json")

    assert let_in.status == kept_out.status == 2
    assert let_in.finding("role")["level"] == "problem"
    assert "primary" in let_in.finding("writes")["advice"]
    assert let_in.finding("user")["level"] == "note"
    assert "Authentication" in kept_out.finding("reachable")["message"]
    assert PASSWORD not in let_in.out


def test_a_right_that_an_acl_lacks_is_named(valkey_url: str, typed: Command) -> None:
    operator = Operator(valkey_url)
    try:
        store = operator.let_in([*rights(), "+scan"])
        host = valkey_url.partition("//")[2]
        url = f"redis://{operator.name}:s3cret@{host}"
        enough = typed("doctor", url, "--name", operator.name, "--json")
        operator.let_in([word for word in [*rights(), "+scan"] if word != "+hset"])
        lacking = typed("doctor", url, "--name", operator.name, "--json")
        operator.let_in([word for word in rights() if word not in ("+ssubscribe", "+subscribe")])
        deaf = typed("doctor", url, "--name", operator.name, "--json")
        other = typed("doctor", url, "--name", "other", "--json")
    finally:
        operator.leave()

    assert store.namespace == operator.name
    assert enough.status == 0, enough.out
    assert enough.finding("user")["level"] == "ok"
    assert lacking.status == 2
    assert "hset" in lacking.finding("writes")["message"]
    assert "Least privilege" in lacking.finding("writes")["advice"]
    assert deaf.finding("live ends")["level"] == "warning"
    assert deaf.finding("records")["level"] == "warning"
    assert other.finding("read")["level"] == "problem"


def test_a_cluster_is_looked_at_node_by_node(cluster: Cluster, typed: Command) -> None:
    url = cluster.url.replace("redis://", "redis+cluster://")
    node = cluster.url
    for primary in cluster.nodes[:3]:
        # CLUSTER SLOTS leaves out a replica that has replicated nothing yet.
        slot = next(row[0] for row in primary.ask("CLUSTER", "SLOTS") if int(row[2][1]) == primary.port)
        primary.ask("SET", f"{{{shard_of_each_slot()[slot]}}}", "", "PX", 1000)
    until(lambda: all(len(row) > 3 for row in cluster.nodes[0].ask("CLUSTER", "SLOTS")))

    ended, as_one = typed("doctor", url, "--json"), typed("doctor", node, "--json")

    assert ended.status == 0, ended.out
    assert ended.finding("cluster")["message"] == "3 primaries have all slots"
    assert sum(each["check"] == "version" for each in ended.json["findings"]) == 3
    assert as_one.status == 2
    assert "redis+cluster" in as_one.finding("cluster")["advice"]


def test_a_single_server_is_no_cluster(valkey_url: str, typed: Command) -> None:
    ended = typed("doctor", valkey_url.replace("redis://", "redis+cluster://"), "--json")

    assert ended.status == 2


async def test_a_database_without_tables_or_with_half_of_them(tmp_path: Path, typed: Command) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/a.db"
    (tmp_path / "a.db").touch()
    bare = await asyncio.to_thread(typed, "doctor", url, "--json")
    store = SQLStore.from_url(url)
    await store.create_tables()
    async with store._connections().statement() as connection:
        await connection.execute(text("DROP INDEX ix_asgi_sessions_owner"))
        await connection.execute(text("ALTER TABLE asgi_sessions_history DROP COLUMN fingerprint"))
    await store.aclose()
    half = await asyncio.to_thread(typed, "doctor", url, "--json")

    assert bare.status == half.status == 2
    assert [each["message"] for each in bare.json["findings"] if each["check"] == "tables"] == [
        "there is no table asgi_sessions",
        "there is no table asgi_sessions_history",
    ]
    assert "read" not in {each["check"] for each in bare.json["findings"]}
    assert {each["message"] for each in half.json["findings"] if each["check"] == "tables"} == {
        "the table asgi_sessions has no index on owner: the server reads the whole table instead",
        "the table asgi_sessions_history has no column fingerprint",
    }


@pytest.mark.parametrize("kind", SQL)
async def test_the_doctor_names_the_command_for_the_missing_tables(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, typed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.db").touch()
    url = f"sqlite+aiosqlite:///{tmp_path}/a.db" if kind == "sqlite" else sql_url(request, kind)
    monkeypatch.setenv(URL, url)
    monkeypatch.setenv(NAME, f"{TABLE}_d")
    store = SQLStore.from_url(url, table=f"{TABLE}_d")

    bare = await asyncio.to_thread(typed, "doctor", "--json")
    (advice,) = {each["advice"] for each in bare.json["findings"] if each["check"] == "tables"}
    words = advice.split("`")[1].split()
    printed = typed(*words[1:])
    async with store._connections().transaction() as connection:
        for statement in filter(str.strip, printed.out.split(";")):
            await connection.execute(text(statement))
    made = await asyncio.to_thread(typed, "doctor", "--json")
    async with store._connections().transaction() as connection:
        await connection.run_sync(store.metadata.drop_all)
    await store.aclose()

    assert words[:2] == ["asgi-sessions", "schema"]
    assert made.finding("tables")["level"] == "ok"
    assert typed(*words[1:4]).out == printed.out  # the variable names the table, too


async def test_a_database_that_no_process_sweeps(place: Place, typed: Command) -> None:
    if not isinstance(place.store, SQLStore):
        return
    now = time.time()
    await place.store.create(Record(key_of(f"Zk3{0:043d}"), 1, now - 9000, now - 8000, new_id(), None, b"S"))

    overdue = await place.doctor(typed)
    swept = await asyncio.to_thread(typed, "sweep", place.url, "--table", TABLE, "--json")
    after = await place.doctor(typed)

    assert (overdue.status, overdue.finding("sweeper")["level"]) == (1, "warning")
    assert swept.json == {"removed": 1}
    assert after.finding("sweeper")["level"] == "ok"


def test_what_databases_say_of_missing_rights_has_a_remedy() -> None:
    """A standby, or a read-only server, refuses writes with words of its own."""
    assert "primary" in what_to_do("the database failed: cannot execute INSERT in a read-only transaction")
    assert "grant" in what_to_do("the database failed: permission denied for table asgi_sessions")


def test_the_other_distribution_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package has our name, and each installation overwrites files of the other."""
    assert installation().level == "ok"
    folder = tmp_path / "asgi_sessions-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: asgi-sessions\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)

    found = installation()

    assert (found.level, "1.0" in found.message) == ("problem", True)
    assert found.advice == "pip uninstall asgi-sessions; pip install --force-reinstall asgi-server-sessions"


A_RECORD = Record("k", 1, 0.0, 0.0, "i", None, b"Plain")
SAID: dict[str, tuple[Any, str, str]] = {
    "clocks agree": (clock(1.0), "ok", "agree"),
    "a clock is behind": (clock(-30.0), "warning", "30 s behind"),
    "a clock is an hour ahead": (clock(3600.0), "problem", "3,600 s ahead"),
    "near": (latency([0.001] * 20), "ok", "1.0 ms"),
    "far": (latency([0.03] * 20), "warning", "30.0 ms"),
    "one slow answer": (latency([0.001] * 19 + [0.4]), "ok", "400.0 ms"),
    "too far": (latency([0.3] * 20), "problem", "gives up after 450 ms"),
    "an old Redis": (redis_doctor.version({"redis_version": "5.0.7"}), "problem", "Redis 5.0.7 is too old"),
    "the oldest Redis": (redis_doctor.version({"redis_version": "6.2.0"}), "ok", "6.2.0"),
    "Valkey": (redis_doctor.version({"redis_version": "7.2.4", "valkey_version": "8.1.1"}), "ok", "Valkey 8.1.1"),
    "no version": (redis_doctor.version({}), "problem", "Redis ? is too old"),
    "evicted already": (
        redis_doctor.eviction({"maxmemory_policy": "volatile-lru", "evicted_keys": "1200"})[0], "problem", "1,200 keys",
    ),
    "a disk that is full": (
        redis_doctor.persistence({"rdb_last_bgsave_status": "err"}, "")[0], "problem", "rdb_last_bgsave_status",
    ),
    "a log": (redis_doctor.persistence({"aof_enabled": "1", "aof_last_write_status": "ok"}, "")[0], "ok", "append-only"),
    "replicas": (redis_doctor.role({"role": "master", "connected_slaves": "2"})[0], "note", "2 replicas"),
    "slots without a primary": (
        redis_doctor.cluster_state({"cluster_state": "fail"}, [[0, 8191, ["h", 1]]])[0], "problem", "8,192 of 16,384",
    ),
    "a primary without a replica": (
        redis_doctor.cluster_state({}, [[0, 8191, ["h", 1], ["h", 2]], [8192, 16383, ["h", 3]]])[0], "warning", "1 of them",
    ),
    "an old PostgreSQL": (sql_doctor.version("PostgreSQL", (13, 4)), "note", "PostgreSQL 13.4"),
    "a new MariaDB": (sql_doctor.version("MariaDB", (11, 4, 2)), "ok", "MariaDB 11.4.2"),
    "a database that keeps its word": (sql_doctor.persistence({"fsync": "on"})[0], "ok", "on the disk"),
    "late commits": (sql_doctor.persistence({"synchronous_commit": "off"})[0], "warning", "undoes the latest log-outs"),
    "late commits of MariaDB": (
        sql_doctor.persistence({"innodb_flush_log_at_trx_commit": "0"})[0], "warning", "undoes the latest log-outs",
    ),
    "nothing stored": (judge_records(0, [], 0, 0, are_given=True)[0], "note", "no sessions"),
    "records in the clear": (judge_records(9, [A_RECORD], 0, 0, are_given=True)[0], "problem", "1 are not sealed at all"),
    "records without secrets": (judge_records(9, [], 0, 0, are_given=False)[0], "note", "not sealed"),
    "values of another program": (judge_records(9, [], 0, 3, are_given=True)[0], "problem", "3 values"),
}  # fmt: skip


@pytest.mark.parametrize("what", SAID)
def test_what_a_figure_means(what: str) -> None:
    found, level, said = SAID[what]

    assert found.level == level
    assert said in found.message
    assert found.advice or level == "ok"


# ── The page ──


def test_the_page_shows_what_the_commands_print(
    own_server: Server, typed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_server.start()
    monkeypatch.setenv(URL, own_server.url)
    monkeypatch.setenv(SECRET_KEYS, SECRET)
    id = asyncio.run(a_shop(own_server.url))
    shown_id = "NFaT2hPZSv5yYVTk"
    played = set[str]()

    for block in blocks(PAGE):
        if block.language != "console":
            continue
        said = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)[1:]
        for command, claimed in zip(said[::2], said[1::2], strict=True):
            words = shlex.split(command.replace(shown_id, id).replace("redis://localhost:6379/0", own_server.url))
            if words[0] != "asgi-sessions":
                continue
            ended = typed(*words[1:])
            played.add(words[1])
            expected, real = (unlike(text.replace(own_server.url[8:-2], "localhost:6379").replace(id, shown_id))
                              for text in (claimed, ended.out + ended.err))  # fmt: skip
            assert agrees(expected, real), f"{block.where}: {command}\n{real}"

    assert {"doctor", "list", "show", "history", "count", "revoke", "revoke-all", "rekey"} <= played


async def a_shop(url: str) -> str:
    """Two sessions of alice and one of a visitor; the id of the session on her phone."""
    store = RedisStore.from_url(url)
    await browser_of(store, FIREFOX).do(log_in("alice"))
    await browser_of(store, SAFARI, "198.51.100.7").do(log_in("alice"))
    await browser_of(store, FIREFOX).do(put(basket=1))
    found = await Sessions(store, secret_keys=[SECRET]).list("alice")
    await store.aclose()
    return next(each.id for each in found if each.device.kind == "phone")


def unlike(said: str) -> str:
    """What differs from run to run, made alike."""
    said = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "2026-01-01 00:00:00 UTC", said)
    said = re.sub(r"(?<![\w-])(?!NFaT2hPZSv5yYVTk)[\w-]{16}(?=  )", "i" * 16, said)
    return re.sub(r"\d+\.\d ms", "0.1 ms", said)


def test_the_page_names_each_command_and_variable() -> None:
    from asgi_sessions.cli import _COMMANDS

    page = PAGE.read_text(encoding="utf-8")

    assert all(
        re.search(rf"`(asgi-sessions )?{name}\b|^\$ asgi-sessions {name}\b", page, re.MULTILINE) for name in _COMMANDS
    )
    assert all(f"`{name}`" in page for name in (URL, NAME, SECRET_KEYS))
