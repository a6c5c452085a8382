"""Sealing everything anew, while the app is up."""

from __future__ import annotations

import asyncio
import itertools
import os
import pty
import re
import secrets
import shlex
import signal
import string
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import pytest
import redis.asyncio

from asgi_sessions import ConfigurationError, MemoryStore, RedisStore, Sessions, SQLStore, StoreError
from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.record import Record, sealed_by_first
from asgi_sessions.cli import _parser, main
from asgi_sessions.cli._output import drawn
from asgi_sessions.cli._rekey import go_on, said
from asgi_sessions.cli._settings import SECRET_KEYS as VARIABLE
from asgi_sessions.cli._stores import store_of, url_of_a_node
from asgi_sessions.rekey import MeasuredStore, Progress, rekey
from asgi_sessions.testing import FakeClock, a_record, session_cookie
from tests.conftest import SQL, TABLE, Server, a_store, sql_url
from tests.support import Browser, app_with, destroy, log_in, put, read

pytestmark = pytest.mark.usefixtures("patience")

OLD, NEW = "the-old-secret-of-at-least-32-bytes!", "the-new-secret-of-at-least-32-bytes!"
BOTH = f"{NEW} {OLD}"
BASE64URL = string.ascii_letters + string.digits + "-_"


async def visitors(store: Any, clock: FakeClock, many: int) -> list[Browser]:
    app = app_with(store, clock=clock, secret_keys=[OLD])
    browsers = [Browser(app) for _ in range(many)]
    for number, browser in enumerate(browsers):
        await browser.do(log_in(f"user {number}") if number % 2 else put(anonymous=number))
        await browser.do(put(number=number))
    return browsers


async def filled(store: Any, clock: FakeClock, many: int) -> None:
    """Many sessions, quickly."""
    sessions = Sessions(store, secret_keys=[OLD], clock=clock)
    for _ in range(0, many, 25):
        await asyncio.gather(*(session_cookie(sessions, None, data={"a": 1}) for _ in range(25)))


async def everything(store: Any) -> list[Record]:
    records, cursor = dict[str, Record](), None
    while cursor != "":
        keys, cursor = await store.scan(cursor or "", 200)
        for key in keys:
            records[key] = await store.load(key)
    return list(records.values())


async def are_all_by_the_first(store: Any, many: int) -> bool:
    records = await everything(store)
    assert len(records) == many
    return all(sealed_by_first(record, Secrets([NEW])) for record in records)


# ── What it does ──


async def test_afterwards_nothing_opens_with_the_old_secret_and_nobody_is_out(store: Any, clock: FakeClock) -> None:
    browsers = await visitors(store, clock, 12)

    done = await rekey(store, [NEW, OLD])

    assert done == Progress(looked_at=12, sealed=12, damaged=0, cursor="", share=1.0)
    rotated = app_with(store, clock=clock, secret_keys=[NEW, OLD])
    for number, browser in enumerate(browsers):
        record = await store.load(browser.key)
        assert sealed_by_first(record, Secrets([NEW]))
        seen = await read(Browser(rotated, browser.token))
        assert seen["data"]["number"] == number
        assert seen["user_id"] == (f"user {number}" if number % 2 else None)
    assert len(await rotated.sessions.list("user 1")) == 1
    assert (await rekey(store, [NEW, OLD])).sealed == 0


async def test_under_load_nothing_is_lost_and_nothing_comes_back(store: Any, clock: FakeClock) -> None:
    """In the middle of a rotation: one process still writes with the old secret, one with the new one already."""
    browsers = await visitors(store, clock, 20)
    apps = [app_with(store, clock=clock, secret_keys=keys) for keys in ([OLD, NEW], [NEW, OLD])]
    counts = dict.fromkeys(range(20), 0)
    done = asyncio.Event()

    async def write(number: int) -> None:
        while not done.is_set():
            await asyncio.sleep(0)  # a store in memory lets nobody else run
            mine = Browser(apps[counts[number] % 2], browsers[number].token)
            if number >= 15:
                await mine.do(destroy)
                return
            counts[number] += 1
            assert (await mine.do(put(count=counts[number]))).status == 200

    writers = [asyncio.ensure_future(write(number)) for number in range(20)]
    for _ in range(5):
        await rekey(store, [NEW, OLD])
    done.set()
    await asyncio.gather(*writers)
    await rekey(store, [NEW, OLD])

    assert min(counts[number] for number in range(15)) > 0
    for number in range(15):
        seen = await read(Browser(apps[1], browsers[number].token))
        assert seen["data"]["count"] == counts[number]
        assert seen["user_id"] == (f"user {number}" if number % 2 else None)
    for number in range(15, 20):
        assert await store.load(browsers[number].key) is None
    assert await are_all_by_the_first(store, 15)


class Overtaken:
    """A real store in which somebody else writes to a record just before our first update of it."""

    def __init__(self, store: Any, writer: Browser) -> None:
        self._store, self._writer = store, writer
        self.updates = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def update(self, record: Record, *, rev: int) -> None:
        self.updates += 1
        if self.updates == 1:
            await self._writer.do(put(theirs=1))
        await self._store.update(record, rev=rev)


async def test_a_write_that_was_faster_stays_and_is_sealed_anew(store: Any, clock: FakeClock) -> None:
    """By a process that still writes with the old secret."""
    (visitor,) = await visitors(store, clock, 1)
    overtaken = Overtaken(store, visitor.another())

    done = await rekey(overtaken, [NEW, OLD])

    assert (done.sealed, overtaken.updates) == (1, 2)
    assert await are_all_by_the_first(store, 1)
    both = Browser(app_with(store, clock=clock, secret_keys=[NEW, OLD]), visitor.token)
    assert (await read(both))["data"] == {"anonymous": 0, "number": 0, "theirs": 1}


async def test_what_does_not_open_is_left_alone_and_counted(store: Any, clock: FakeClock) -> None:
    await visitors(store, clock, 3)
    stranger = a_record(body=b"Snot sealed by anybody here, whatever it looks like")
    await store.create(stranger)

    done = await rekey(store, [NEW, OLD])

    assert (done.looked_at, done.sealed, done.damaged) == (4, 3, 1)
    assert await store.load(stranger.key) == stranger


async def test_entries_of_the_history_stay_as_they_are_and_show_less_without_the_old_secret(
    store: Any, clock: FakeClock
) -> None:
    """What the documentation says of it: when and what is known, where from is not."""
    app = app_with(store, clock=clock, secret_keys=[OLD])
    firefox = b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    await Browser(app).do(log_in("alice"), request_headers=[(b"user-agent", firefox)])
    await rekey(store, [NEW, OLD])

    sessions = Sessions(store, secret_keys=[NEW, OLD], clock=clock)
    (with_both,) = await sessions.history("alice")
    (session,) = await Sessions(store, secret_keys=[NEW], clock=clock).list("alice")
    (with_new,) = await Sessions(store, secret_keys=[NEW], clock=clock).history("alice")

    assert with_both.device.browser == session.device.browser == "Firefox"
    assert with_new.device.browser is None
    assert (with_new.at, with_new.event) == (with_both.at, with_both.event)


@pytest.mark.parametrize(("secrets", "is_new"), [([NEW, OLD], False), ([NEW], True)], ids=["both", "the new one"])
async def test_a_device_is_known_for_as_long_as_the_secret_is_there_that_it_last_logged_in_under(
    store: Any, clock: FakeClock, secrets: list[str], is_new: bool
) -> None:
    await Browser(app_with(store, clock=clock, secret_keys=[OLD])).do(log_in("alice"))
    await rekey(store, [NEW, OLD])

    await Browser(app_with(store, clock=clock, secret_keys=secrets)).do(log_in("alice"))

    last, *_ = await Sessions(store, secret_keys=[NEW], clock=clock).history("alice")
    assert last.new_device == is_new


# ── Stopped, and gone on with ──


class Fails:
    """A real store that goes away at one load."""

    def __init__(self, store: Any, at: int) -> None:
        self._store, self._at = store, at
        self.loads = self.under_way = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def load(self, key: str) -> Any:
        self.loads += 1
        if self.loads == self._at:
            raise StoreError("it went away")
        self.under_way += 1
        try:
            return await self._store.load(key)
        finally:
            self.under_way -= 1


async def test_wherever_the_store_goes_away_it_goes_on_with_the_cursor_that_it_gave(
    store: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_sessions.rekey.BATCH", 8)
    monkeypatch.setattr("asgi_sessions.rekey.AT_ONCE", 3)
    await visitors(store, clock, 40)
    heard = [Progress()]
    stops = 0

    for at in itertools.count(5, 7):
        failing = Fails(store, at)
        try:
            done = await rekey(failing, [NEW, OLD], cursor=heard[-1].cursor, report=heard.append)
            break
        except StoreError:
            stops += 1
            assert failing.under_way == 0  # nothing goes on behind our back

    assert stops >= 2
    assert done.cursor == ""
    assert await are_all_by_the_first(store, 40)


class Run:
    """The command line in a process and on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.shown = ""

    async def __aenter__(self) -> Self:
        self._terminal, other_end = pty.openpty()
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "asgi_sessions", "rekey", *self.arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=other_end,
            env={**os.environ, VARIABLE: BOTH, "COLUMNS": "150"},
        )
        os.close(other_end)
        return self

    async def shows(self, pattern: str) -> re.Match[str]:
        """Wait until the terminal does, and say how."""
        while (found := re.search(pattern, self.shown)) is None:
            more = await asyncio.to_thread(self._look)
            assert more, self.shown
            self.shown += more
        return found

    def _look(self) -> str:
        try:
            return os.read(self._terminal, 10_000).decode()
        except OSError:  # Linux: the other end is closed
            return ""

    async def __aexit__(self, *error: object) -> None:
        if self.process.returncode is None and any(error):
            self.process.kill()
        await self.process.communicate()
        os.close(self._terminal)


FROM = r"go on with ('?--from=\S+)"


@pytest.fixture(params=["valkey", "redis", "sqlite"])
async def place(request: pytest.FixtureRequest, anyio_backend: Any) -> AsyncIterator[tuple[Any, list[str]]]:
    """A store, and the arguments that lead the command line there."""
    async with a_store(request, request.param) as store:
        url = (
            sql_url(request, request.param) if request.param in SQL else request.getfixturevalue(f"{request.param}_url")
        )
        yield store, [url, "--name", TABLE if request.param in SQL else store.namespace]


async def test_interrupted_it_says_where_to_go_on_and_goes_on_there(
    place: tuple[Any, list[str]], clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, there = place
    await filled(store, clock, 1000)

    async with Run(*there, "--rate", "250") as run:
        await run.shows(r"\[#.*[1-9]\d* looked at")
        run.process.send_signal(signal.SIGINT)
        (option,) = shlex.split((await run.shows(FROM))[1])

    assert run.process.returncode == 1
    assert "stopped: interrupted" in run.shown
    monkeypatch.setenv(VARIABLE, BOTH)
    assert await asyncio.to_thread(main, ["rekey", *there, "--rate", "1e6", option]) == 0
    said, errors = capsys.readouterr()
    assert int(said.split()[0].replace(",", "")) < 900  # and not from the beginning
    assert said.endswith("; done\n")
    assert errors == ""  # no bar where there is no terminal
    assert await are_all_by_the_first(store, 1000)


@pytest.fixture
def keeping_server() -> Iterator[Server]:
    """A server that forgets nothing when it is killed."""
    server = Server("--appendonly", "yes", "--appendfsync", "always")
    server.start()
    yield server
    server.remove()


async def test_a_server_that_was_restarted_in_the_middle_is_walked_through_to_the_last_record(
    keeping_server: Server, clock: FakeClock
) -> None:
    """A cursor of SCAN says nothing to another run of the server: its keys lie in another order then."""
    store = RedisStore.from_url(keeping_server.url)
    await filled(store, clock, 1000)

    async with Run(keeping_server.url, "--rate", "250") as run:
        await run.shows(r"[1-9]\d* looked at")
        keeping_server.stop()
        (option,) = shlex.split((await run.shows(FROM))[1])
    keeping_server.start()
    async with Run(keeping_server.url, "--rate", "1e6", option) as rest:
        await rest.shows(r"100\.0%")

    assert (run.process.returncode, rest.process.returncode) == (1, 0)
    assert "stopped: Redis is unreachable" in run.shown
    assert await are_all_by_the_first(store, 1000)
    await store.aclose()


async def test_a_rate_without_end_is_as_fast_as_it_goes(memory: MemoryStore, clock: FakeClock) -> None:
    await filled(memory, clock, 50)

    assert (await rekey(memory, [NEW, OLD], rate=float("inf"))).sealed == 50


@pytest.mark.parametrize("kind", ["valkey", *SQL])
@pytest.mark.parametrize("cursor", ["nonsense", "run:nonsense", "qqPxM7-_", "zzz", "zzzzzzzz:1234567890123456"])
async def test_a_cursor_that_means_nothing_to_the_store_begins_at_the_beginning(
    request: pytest.FixtureRequest, kind: str, clock: FakeClock, cursor: str
) -> None:
    """As that of another store does, or one that was not copied whole."""
    async with a_store(request, kind) as store:
        await filled(store, clock, 50)

        assert (await rekey(store, [NEW, OLD], rate=1e6, cursor=cursor)).sealed == 50


async def test_the_rest_of_a_run_under_a_wrong_name_is_no_success(
    place: tuple[Any, list[str]], clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was interrupted goes on with the cursor that it gave, and without its ``--name``."""
    store, there = place
    monkeypatch.setenv(VARIABLE, BOTH)
    rest = ["rekey", *there, f"--from={'z' * 25}"]

    assert await asyncio.to_thread(main, rest) == 1
    assert "there are no records under this name" in capsys.readouterr().err

    await filled(store, clock, 25)
    assert await asyncio.to_thread(main, rest) == 0  # nothing is left to do, or the cursor was not one of this store


async def test_a_server_that_is_restarted_during_the_walk_is_noticed(keeping_server: Server, clock: FakeClock) -> None:
    """Between two questions, so that nobody hears of an error."""
    store = RedisStore.from_url(keeping_server.url)
    await filled(store, clock, 1000)
    first, cursor = await store.scan("", 200)

    await asyncio.to_thread(keeping_server.restart)
    seen = set[str]()
    while cursor:
        keys, cursor = await store.scan(cursor, 200)
        seen.update(keys)

    assert len(seen) == 1000
    assert len(first) < 1000
    await store.aclose()


async def test_a_client_of_the_apps_is_walked_through_as_well(valkey_url: str, clock: FakeClock) -> None:
    """redis-py takes some answers apart before we see them."""
    async with redis.asyncio.Redis.from_url(valkey_url) as client:
        store = RedisStore(client, prefix=f"rekey-{secrets.token_hex(4)}")
        await filled(store, clock, 300)

        done = await rekey(store, [NEW, OLD], rate=1e6)

        assert done.sealed == 300
        assert await are_all_by_the_first(store, 300)
        await client.delete(*(store._name(record.key) for record in await everything(store)))


# ── How fast ──


class Stopwatch:
    """Time for rekey(), which passes while it sleeps, and while a store is slow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("asgi_sessions.rekey.monotonic", lambda: self.now)
        monkeypatch.setattr("asgi_sessions.rekey.sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Timed(Fails):
    """A real store that notes when it was asked, and is slow once: at load number ``at`` it takes five seconds."""

    def __init__(self, store: Any, watch: Stopwatch, at: int) -> None:
        super().__init__(store, 0)
        self.watch, self.slow_at = watch, at
        self.asked: list[float] = []

    async def load(self, key: str) -> Any:
        self.asked.append(self.watch.now)
        if len(self.asked) == self.slow_at:
            self.watch.now += 5
        return await super().load(key)


@pytest.mark.parametrize(("rate", "burst"), [(50.0, 20), (5.0, 5), (0.5, 1)])
async def test_in_no_second_does_it_look_at_more_than_it_may(
    memory: MemoryStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, rate: float, burst: int
) -> None:
    """Also right after a store was slow: the time that was lost is not made up for."""
    await filled(memory, clock, 200)
    watch = Stopwatch(monkeypatch)
    timed = Timed(memory, watch, at=70)
    began = watch.now

    await rekey(timed, [NEW, OLD], rate=rate)

    assert len(timed.asked) == 200
    for start in timed.asked:
        assert sum(start <= each < start + 1 for each in timed.asked) <= max(rate, 1) + burst
    assert watch.now - began >= (200 - burst) / rate
    assert watch.now - began <= 200 / rate * 1.05 + 5  # and no slower than it must


# ── How far ──


@pytest.mark.parametrize("kind", ["valkey", "redis", *SQL])
async def test_the_share_that_is_done_is_told_by_the_cursor(
    request: pytest.FixtureRequest, kind: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never beyond its ends, never backwards, and not far from the truth."""
    monkeypatch.setattr("asgi_sessions.rekey.BATCH", 20)
    heard: list[Progress] = []
    store: Any
    async with a_store(request, kind) as store:
        await filled(store, clock, 400)

        await rekey(store, [NEW, OLD], rate=1e6, report=heard.append)

        shares = [-1.0 if progress.share is None else progress.share for progress in heard]
        assert isinstance(store, MeasuredStore)
        assert (shares[0], shares[-1]) == (0.0, 1.0)
        assert shares == sorted(shares)
        assert len(set(shares)) > 10
        off = [abs(share - one.looked_at / 400) for share, one in zip(shares, heard, strict=True)]
        assert max(off) < 0.15
        assert store.walked(heard[5].cursor) == heard[5].share  # so a walk that goes on begins there


def test_of_a_database_it_is_told_by_the_order_of_keys() -> None:
    store = SQLStore.from_url("sqlite+aiosqlite:///nowhere.db")
    keys = sorted(first + second for first in BASE64URL for second in BASE64URL)

    assert [store.walked(key) for key in ["", *keys]] == [0.0, *(number / 64**2 for number in range(64**2))]
    assert store.walked("no key") is None


@pytest.mark.parametrize("kind", ["valkey", "redis"])
async def test_a_table_that_grows_in_the_middle_does_not_send_the_bar_back(
    request: pytest.FixtureRequest, kind: str, clock: FakeClock
) -> None:
    store: Any
    async with a_store(request, kind) as store:
        await filled(store, clock, 200)
        shares, (_, cursor) = [0.0], await store.scan("", 20)
        while cursor:
            shares.append(store.walked(cursor))
            if len(shares) < 10:
                await filled(store, clock, 200)
            _, cursor = await store.scan(cursor, 50)

        assert shares == sorted(shares)
        assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize(
    ("progress", "first", "line"),
    [
        (Progress(share=0.0), Progress(share=0.0),
         "[........................]   0.0%  0 looked at, 0 sealed anew, 0 do not open, 0/s"),
        (Progress(12_000, 300, 1, "c", 0.25), Progress(share=0.0),
         "[######..................]  25.0%  12,000 looked at, 300 sealed anew, 1 do not open, 1,000/s, 0:36 left"),
        (Progress(12_000, 300, 1, "c", 0.75), Progress(cursor="b", share=0.7),
         "[##################......]  75.0%  12,000 looked at, 300 sealed anew, 1 do not open, 1,000/s, 1:00 left"),
        (Progress(12, 0, 0, "c", 0.001), Progress(share=0.0),
         "[........................]   0.1%  12 looked at, 0 sealed anew, 0 do not open, 1/s, 3:19:48 left"),
        (Progress(12_000, 300, 1, "c", 0.1), Progress(cursor="b", share=0.7),
         "[##......................]  10.0%  12,000 looked at, 300 sealed anew, 1 do not open, 1,000/s"),
        (Progress(12_000, 300, 1, "c", None), Progress(), "12,000 looked at, 300 sealed anew, 1 do not open, 1,000/s"),
        (Progress(12_000, 300, 1, "", 1.0), Progress(share=0.0),
         "[########################] 100.0%  12,000 looked at, 300 sealed anew, 1 do not open, 1,000/s"),
    ],
    ids=["begun", "a quarter", "gone on with", "hours", "begun again", "of unknown length", "done"],
)  # fmt: skip
def test_the_bar(progress: Progress, first: Progress, line: str) -> None:
    """After twelve seconds."""
    assert drawn(progress, first, 12.0, said) == line


# ── The command line ──


async def test_from_the_command_line(
    place: tuple[Any, list[str]], clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, there = place
    await visitors(store, clock, 4)
    await store.create(a_record(body=b"Snot sealed by anybody here, whatever it looks like"))
    monkeypatch.setenv(VARIABLE, BOTH)

    assert await asyncio.to_thread(main, ["rekey", *there]) == 1

    said = capsys.readouterr()
    assert said.out == "5 looked at, 4 sealed anew, 1 do not open; done\n"
    assert "1 records open with none of these secrets" in said.err
    monkeypatch.delenv(VARIABLE)
    assert await asyncio.to_thread(main, ["rekey", *there]) == 2
    assert VARIABLE in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "node"),
    [
        ("redis+cluster://h:7000", "redis://h:7000"),
        ("rediss+cluster://user:word@h:7000", "rediss://user:word@h:7000"),
        ("redis://h:7000/0", None),
        ("postgresql+asyncpg://h/d", None),
    ],
)
def test_the_url_of_a_cluster_is_that_of_a_node(url: str, node: str | None) -> None:
    assert url_of_a_node(url) == node
    assert store_of(url, "shop").namespace == "shop"


def test_a_cursor_is_said_so_that_a_shell_and_argparse_take_it() -> None:
    """Of a database it is a key, and may begin with a dash."""
    *_, option = shlex.split(go_on("-a b"))

    assert _parser().parse_args(["rekey", "redis://h", option]).cursor == "-a b"


@pytest.mark.parametrize("command", ["rekey", "sweep"])
@pytest.mark.parametrize("url", ["redis:/h", "redis+sentinel://h", "nonsense", "redis+cluster://h:port", ""])
def test_a_url_that_is_not_understood_is_said(
    command: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, BOTH)

    assert main([command, url]) == 2

    assert capsys.readouterr().err.startswith("asgi-sessions: ")


def test_there_is_nothing_to_sweep_in_redis(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "redis://h"]) == 2
    assert "removes expired sessions by itself" in capsys.readouterr().err


class TooPlain(MemoryStore):
    scan = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((TooPlain(), [NEW]), {}), ((RedisStore.from_url("redis://x"), []), {}),
     ((RedisStore.from_url("redis://x"), [NEW]), {"rate": 0})],
    ids=["no scan", "no secrets", "no rate"],
)  # fmt: skip
async def test_what_does_not_fit_is_said(arguments: Any, options: Any) -> None:
    with pytest.raises(ConfigurationError):
        await rekey(*arguments, **options)
