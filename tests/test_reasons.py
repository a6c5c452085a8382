"""The log says why: reasons as safe text, repeated failures summed up, and a look at the store when the app starts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError, StatementError

from asgi_sessions import Event, MemoryStore, RedisStore, Sessions, SQLStore, StoreError
from asgi_sessions._core.token import TokenMint, key_of
from asgi_sessions._engine.failures import LONGEST_REASON, MOST_KINDS, QUIET, FailureLog, cleaned, reason_of
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with, log_in, put, read
from tests.threats.hostile import Between, Events, hanging, raising

# ── Safe text ──

SAFE = {
    "an address": "Error 111 connecting to 127.0.0.1:6379. Connect call failed ('127.0.0.1', 6379).",
    "an address of IPv6": "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0)",
    "a host": "Can't connect to MySQL server on 'db.internal' ([Errno 111] Connect call failed ('10.0.0.7', 3306))",
    "a host and a port": 'PostgreSQL server at "127.0.0.1:5432" rejected SSL upgrade',
    "no such host": "Error -2 connecting to no.such.host:6379. Name or service not known.",
    "a table": 'relation "asgi_sessions" does not exist',
    "a table of MariaDB": "Table 'test.asgi_sessions' doesn't exist",
    "a database": 'database "shop" does not exist',
    "a database of MariaDB": "Unknown database 'shop'",
    "a refused password": 'password authentication failed for user "app"',
    "a refused password of MariaDB": "Access denied for user 'app'@'localhost' (using password: YES)",
    "a right": "SELECT command denied to user 'app'@'localhost' for table `test`.`asgi_sessions`",
    "a right of Redis": "NOPERM User app has no permissions to run the 'getrange' command",
    "a full server": "OOM command not allowed when used memory > 'maxmemory'.",
    "a replica": "READONLY You can't write against a read only replica.",
    "a read-only server": "The MariaDB server is running with the --read-only option so it cannot execute this statement",
    "TLS": "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)",
    "a redirection": "MOVED 3999 127.0.0.1:6381",
    "an attribute": "'NoneType' object has no attribute 'send'",
    "an option of a driver": "connect() got an unexpected keyword argument 'sslmode'",
    "the rules of PostgreSQL": 'no pg_hba.conf entry for host "127.0.0.1", user "app", database "test", no encryption',
}


@pytest.mark.parametrize("message", SAFE.values(), ids=SAFE)
def test_what_an_operator_needs_stays(message: str) -> None:
    assert cleaned(message) == message


QUOTING = {
    "a URL": "cannot connect to redis://app:{}@db.internal:6379/0",
    "a URL that ends with it": "cannot connect to redis://app:{}",
    "an option of a URL": "bad URL redis://db:6379/0?password={}",
    "an assignment": "invalid dsn: host=db password={}",
    "an assignment in prose": "login failed (Password: {})",
    "an environment": "DB_PASSWORD={}",
    "arguments of AUTH": "ERR unknown command 'AUTH', with args beginning with: 'default' '{}'",
    "a duplicate": "Duplicate entry '{}' for key 'PRIMARY'",
    "a duplicate of PostgreSQL": 'duplicate key value violates unique constraint "a"\nDETAIL:  Key (key)=({}) already exists.',
    "a duplicate on one line": "Key (key)=({}) already exists",
    "a row": "null value violates a constraint DETAIL: Failing row contains ({}, 1)",
    "an argument": "invalid input for query argument $1: '{}' (expected str, got int)",
    "an argument of bytes": "invalid input for query argument $1: b'{}'",
    "a statement": "(x.Error) failed\n[SQL: UPDATE t SET body='{}']",
    "a statement on one line": "(x.Error) failed [SQL: UPDATE t SET body={}]",
    "its parameters": "(x.Error) failed [parameters: ({})]",
    "near": "You have an error in your SQL syntax near '{}' at line 1",
    "a dict": "cannot encode {{'cart': {}}}",
    "double quotes": 'invalid input syntax for type bytea: "{}"',
    "backquotes": "no such thing: `{}`",
    "quotes of other languages": "doppelter Schlüssel »{}«",
    "a second line": "failed\n{}",
    "a second line of Unicode": "failed\u2028{}",
    "a cookie": "bad header cookie: __Host-Http-session={}",
    "an authorization": "refused: Authorization: Bearer {}",
}

ANYTHING = st.text(min_size=4).filter(lambda text: len(text.strip()) > 3 and re.search(r"\w{4}", text))


@pytest.mark.parametrize("message", QUOTING.values(), ids=QUOTING)
@given(secret=ANYTHING)
@example(secret="@0000\x1e")
def test_what_a_driver_quotes_is_cut_off_whatever_it_is(message: str, secret: str) -> None:
    assume("@" not in secret or "@" in message or "://" not in message)  # it would be the user's part of a URL
    assume("//app:{}" not in message or not re.match(r"\d{1,5}(?!\w)", secret))  # it would be a port

    said = cleaned(message.format(f"{secret}#1"))

    assert f"{secret}#1" not in said
    assert not [word for word in re.findall(r"\w{4,}", secret) if word in said and word not in message]


RANDOM = st.binary(min_size=34, max_size=34)


@given(st.text(max_size=40), RANDOM, st.sampled_from([" ", ":", "(", "/", "=", ": ", ".s:"]), st.text(max_size=40))
def test_a_token_and_a_key_are_found_wherever_they_stand(before: str, random: bytes, glue: str, after: str) -> None:
    token = TokenMint((random[:32],)).mint()
    for secret in (token, token[:46], key_of(token), key_of(token)[3:]):
        said = cleaned(f"{before}{glue}{secret} {after}")
        assert secret not in said
        assert secret[:24] not in said


@given(st.text())
def test_a_reason_is_one_printable_line_of_bounded_length(text: str) -> None:
    said = cleaned(text)

    assert said.isprintable()
    assert len(said) <= LONGEST_REASON
    assert cleaned(said) == said  # a store may have put it into its StoreError, and that is cleaned again


@given(st.recursive(st.text(max_size=20), lambda inner: st.tuples(st.text(max_size=20), inner), max_leaves=12))
def test_any_chain_of_errors_has_a_reason(chain: Any) -> None:
    error: BaseException = StoreError("the end")
    while isinstance(chain, tuple):
        text, chain = chain
        outer = ValueError(text)
        outer.__cause__ = error
        error = outer

    said = reason_of(error)

    assert said.startswith("ValueError") or said == "the end"
    assert len(said) <= LONGEST_REASON
    assert said.isprintable()


def test_an_error_of_sqlalchemy_says_what_its_driver_said() -> None:
    driver = ValueError(1062, "Duplicate entry 'a key' for key 'PRIMARY'")
    error = IntegrityError("INSERT INTO t VALUES (?)", {"key": "a key"}, driver)

    assert reason_of(error) == "ValueError: 1062 Duplicate entry …"
    assert "a key" not in reason_of(StatementError("a key", "a key", {"x": "a key"}, TypeError("not b'a key'")))


def test_causes_are_told_once_and_a_circle_ends() -> None:
    inner, outer = RuntimeError("refused"), StoreError("Redis is unreachable: RuntimeError: refused")
    outer.__cause__, inner.__cause__ = inner, outer

    assert reason_of(outer) == "Redis is unreachable: RuntimeError: refused"
    assert reason_of(ExceptionGroup("several", [inner, ValueError()])).startswith("RuntimeError: refused")


def test_an_error_that_cannot_be_shown_is_told_by_its_class() -> None:
    class Stubborn(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert reason_of(Stubborn()) == "Stubborn"


# ── One line, and the same in the event ──


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    caplog.set_level(logging.DEBUG, "asgi_sessions")
    return lambda name: [line for record in caplog.records if (line := record.getMessage()).startswith(name)]


Lines = Callable[[str], list[str]]


async def visit(store: Any, clock: FakeClock, events: Events) -> Browser:
    alice = Browser(app_with(store, clock=clock, on_event=events))
    await alice.do(log_in("alice"))
    return alice


DOWN = ConnectionError("Error 111 connecting to redis://app:hunter2@db:6379.")


@pytest.mark.parametrize(
    ("step", "method", "handler", "plan"),
    [
        pytest.param("load", "load", read, {}, id="load"),
        pytest.param("commit", "update", put(a=1), {}, id="commit"),
        pytest.param("late commit", "update", None, {"after": put(a=1)}, id="late commit"),
    ],
)
async def test_a_failure_is_one_line_and_one_event_that_say_the_same(
    memory: MemoryStore, clock: FakeClock, lines: Lines, step: str, method: str, handler: Any, plan: dict[str, Any]
) -> None:
    events: list[Event] = []
    store = Between(memory)
    alice = await visit(store, clock, events.append)  # type: ignore[arg-type]  # a hook like another
    store.instead[method] = raising(DOWN)

    await alice.do(handler or (lambda session: None), **plan)

    (event,) = [event for event in events if event.name == "store.failed"]
    expected = {
        "step": step,
        "host": "Between",
        "reason": "the store failed: ConnectionError: Error 111 connecting to redis://…@db:6379",
    }
    assert event.details == expected
    (line,) = lines("store.failed")
    assert line.startswith(f"store.failed step={step} host=Between session=")
    assert line.endswith(f"reason={expected['reason']}")


async def test_a_failed_save_that_the_app_catches_is_told_too(
    memory: MemoryStore, clock: FakeClock, lines: Lines
) -> None:
    store = Between(memory)
    alice = Browser(app_with(store, clock=clock))
    await alice.do(log_in("alice"))
    store.instead["update"] = raising(DOWN)

    async def save(session: Any) -> None:
        session["a"] = 1
        with pytest.raises(StoreError):
            await session.save()
        store.instead.clear()

    assert (await alice.do(save)).status == 200

    assert [line.partition(" host")[0] for line in lines("store.failed")] == ["store.failed step=save"]


AN_ID = "k7Q2v9Zr4Wc8Ty1N"


@pytest.mark.parametrize("step", ["list", "count", "revoke", "history", "rename", "erase"])
async def test_what_is_asked_for_a_user_is_told_by_its_step(clock: FakeClock, lines: Lines, step: str) -> None:
    class Broken(MemoryStore):
        async def records(self, *args: Any, **kwargs: Any) -> Any:
            raise DOWN

        end = history = erase = records

    sessions: Any = Sessions(Broken())
    call = getattr(sessions, step)

    with pytest.raises(StoreError):
        await call(*{"revoke": ("alice", AN_ID), "rename": ("alice", AN_ID, "y")}.get(step, ("alice",)))

    (line,) = lines("store.failed")
    assert line.startswith(
        f"store.failed step={step} host=Broken session=None reason=the store failed: ConnectionError"
    )


# ── Summed up ──


async def test_a_thousand_failures_are_few_lines_and_a_thousand_events(
    memory: MemoryStore, clock: FakeClock, lines: Lines
) -> None:
    events: list[Event] = []
    store = Between(memory)
    alice = await visit(store, clock, events.append)  # type: ignore[arg-type]
    store.instead["update"] = raising(DOWN)

    for _ in range(100):
        assert (await alice.do(put(a=1))).status == 503
        clock.advance(0.25)

    assert len([event for event in events if event.name == "store.failed"]) == 100
    failed = lines("store.failed")
    assert [re.findall("left_out=([0-9]+)", line) for line in failed] == [[], ["39"], ["39"]]  # in 25 seconds


async def test_while_the_store_is_left_alone_the_line_repeats_the_last_reason(
    memory: MemoryStore, clock: FakeClock, lines: Lines
) -> None:
    store = Between(memory)
    alice = Browser(app_with(store, clock=clock))
    await alice.do(log_in("alice"))
    store.instead["load"] = raising(DOWN)

    for _ in range(20):
        await alice.do()

    failed = lines("store.failed")
    assert len(failed) == 2
    assert "is not called" in failed[1]
    assert all(line.endswith("ConnectionError: Error 111 connecting to redis://…@db:6379") for line in failed)


async def test_recovery_says_how_long_and_how_many(memory: MemoryStore, clock: FakeClock, lines: Lines) -> None:
    store = Between(memory)
    alice = Browser(app_with(store, clock=clock))
    await alice.do(log_in("alice"))
    store.instead["update"] = raising(DOWN)
    for _ in range(3):
        await alice.do(put(a=1))
        clock.advance(2)
    store.instead.clear()

    await alice.do()
    assert lines("store.recovered") == []  # that reading works says nothing of writing
    await alice.do(put(a=1))
    await alice.do(put(a=2))

    assert lines("store.recovered") == ["store.recovered: it answers again (write) after=6.0s failures=3"]


async def test_a_store_that_fails_by_turns_does_not_fill_the_log(
    memory: MemoryStore, clock: FakeClock, lines: Lines
) -> None:
    store = Between(memory)
    alice = Browser(app_with(store, clock=clock))
    await alice.do(log_in("alice"))

    for n in range(200):
        store.instead["update"] = raising(DOWN)
        await alice.do(put(a=n))
        store.instead.clear()
        await alice.do(put(a=n))
        clock.advance(0.1)

    assert len(lines("store.failed")) + len(lines("store.recovered")) <= 6


def test_a_clock_that_is_put_back_silences_nothing() -> None:
    log = FailureLog()

    assert [log.count(("a",), now) for now in (1000.0, 1001.0, 5.0, 6.0, 5.0 + QUIET)] == [0, None, 1, None, 1]


def test_kinds_are_told_apart_without_their_figures_and_are_bounded() -> None:
    log = FailureLog()

    assert log.count(("load", "port 5001"), 0.0) == 0
    assert log.count(("load", "port 5002"), 0.0) is None
    said = [log.count(("load", "x" * length), 0.0) for length in range(10 * MOST_KINDS)]
    assert said.count(0) <= MOST_KINDS
    assert len(log._kinds) <= MOST_KINDS + 1


# ── When the app starts ──


async def start(app: Any) -> list[str]:
    """The lifespan up to the app's start; what the server hears."""
    heard: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})

    async def send(message: Any) -> None:
        heard.append(message["type"])

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    app.app = inner
    await app({"type": "lifespan"}, receive, send)
    return heard


@pytest.mark.parametrize(
    "trouble", [hanging, raising(DOWN), raising(StoreError("down"))], ids=["hangs", "refuses", "fails"]
)
async def test_a_store_that_cannot_be_asked_is_reported_when_the_app_starts_and_it_starts(
    memory: MemoryStore,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    trouble: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asgi_sessions._engine.guard.DEADLINE", 0.03)
    store = Between(memory)
    store.instead["load"] = trouble

    heard = await start(app_with(store, clock=clock))

    assert heard == ["lifespan.startup.complete"]
    (record,) = [record for record in caplog.records if record.name == "asgi_sessions"]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("store.failed step=start-up host=Between")


async def test_a_store_that_answers_is_not_mentioned_when_the_app_starts(memory: MemoryStore, lines: Lines) -> None:
    assert await start(app_with(memory)) == ["lifespan.startup.complete"]

    assert lines("store") == []


# ── Where the server is ──


@pytest.mark.parametrize(
    ("store", "address"),
    [
        pytest.param(
            lambda: RedisStore.from_url("rediss://app:hunter2@db.internal:6380/3"), "db.internal:6380", id="Redis"
        ),
        pytest.param(lambda: RedisStore.from_url("redis://[::1]:6379"), "[::1]:6379", id="IPv6"),
        pytest.param(
            lambda: RedisStore.from_url("unix:///run/redis.sock?password=hunter2"), "unix:/run/redis.sock", id="socket"
        ),
        pytest.param(
            lambda: RedisStore.from_sentinel([("a", 26379), ("b", 26379)], "shop", password="hunter2"),
            "shop(a:26379,b:26379)",
            id="Sentinel",
        ),
        pytest.param(
            lambda: RedisStore.from_cluster(["redis://:hunter2@a:7000", "redis://:hunter2@b:7000"]),
            "a:7000,b:7000",
            id="a cluster",
        ),
        pytest.param(
            lambda: SQLStore.from_url("postgresql+asyncpg://app:hunter2@db:5433/shop"), "db:5433/shop", id="PostgreSQL"
        ),
        pytest.param(lambda: SQLStore.from_url("mysql+asyncmy://app:hunter2@db/shop"), "db/shop", id="MariaDB"),
        pytest.param(lambda: SQLStore.from_url("sqlite+aiosqlite:///x.db"), "sqlite:x.db", id="SQLite"),
    ],
)
async def test_a_store_knows_its_address_and_keeps_the_password_for_itself(store: Any, address: str) -> None:
    made = store()

    assert made.address == address
    await made.aclose()


# ── The page ──


def test_the_steps_are_those_of_the_docs() -> None:
    code = "".join(path.read_text() for path in Path("asgi_sessions").rglob("*.py"))
    used = set(re.findall(r'(?:\.failed\(|\.failure\(|\.asking\(|\b(?:step|STEP)(?:: str)? ?=)\s*"([^"]+)"', code))
    section = Path("docs/errors.md").read_text().partition("- `step` says")[2].partition("\n- `host`")[0]

    assert set(re.findall(r"`([a-z -]+)`", section)) == used
