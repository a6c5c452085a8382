"""Every command with every mistake: one clear line on stderr, exit status 1 or 2, no traceback, no password.

Real processes: a traceback at the interpreter's end, a closed pipe and Ctrl-C are seen in those only.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from asgi_sessions import ConfigurationError, SQLStore
from asgi_sessions.cli import main
from asgi_sessions.cli._settings import SECRET_KEYS as VARIABLE
from asgi_sessions.stores.sql import session_tables
from asgi_sessions.testing import session_cookie
from tests.conftest import DATABASES, Server
from tests.ports import free_port, give_back

ROOT = Path(__file__).parent.parent
SECRET = "kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"
PASSWORD = "s3cret-password"


FORKS = """
import json, os, signal, sys
from importlib import import_module
import aiosqlite, asyncmy, asyncpg
from asgi_sessions.cli import main

for module in ("_doctor", "_rekey", "_serve", "_sessions", "_sql", "_tour"):
    import_module(f"asgi_sessions.cli.{module}")
for line in sys.stdin:
    asked = json.loads(line)
    if not (child := os.fork()):
        signal.alarm(50)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        for number, name in enumerate((os.devnull, asked["out"], asked["err"])):
            if name == "a pipe that nobody reads":
                unread, pipe = os.pipe()
                os.close(unread)
            else:
                pipe = os.open(name, os.O_RDWR)
            os.dup2(pipe, number)
        sys.exit(main(asked["words"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks a process for each command. Each ends as any other, but the package is imported once."""


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Runs a command as :func:`command` does."""
    folder = tmp_path_factory.mktemp("forked")
    with subprocess.Popen([sys.executable, "-c", FORKS], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as forks:
        assert forks.stdin is not None
        assert forks.stdout is not None

        def run(
            *words: str, folder: Path, output: str | None = None, **environment: str
        ) -> subprocess.CompletedProcess[str]:
            asked = {"words": words, "folder": str(folder), "environment": environment_with(environment), **written}
            asked["out"] = output or written["out"]
            for name in written.values():
                Path(name).write_text("")
            print(json.dumps(asked), file=forks.stdin, flush=True)
            code = int(forks.stdout.readline())  # type: ignore[union-attr]
            return subprocess.CompletedProcess(words, code, *(Path(name).read_text() for name in written.values()))

        written = {name: str(folder / name) for name in ("out", "err")}
        yield run
        forks.stdin.close()


def command(*words: str, folder: Path, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of ours as a process in ``folder``; ``shell``: what the shell does with it."""
    line = ["bash", "-c", f'set -o pipefail; "$@" {shell}', "-", sys.executable, "-m", "asgi_sessions", *words]
    given = environment_with(environment)
    return subprocess.run(line, cwd=folder, env=given, capture_output=True, text=True, timeout=50, check=False)


def environment_with(given: dict[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", VARIABLE)}
    return {**clean, VARIABLE: SECRET, "PYTHONPATH": str(ROOT), **given}


def is_one_clear_line(ended: subprocess.CompletedProcess[str]) -> None:
    assert ended.returncode in (1, 2), (ended.stdout, ended.stderr)
    lines = ended.stderr.strip().splitlines()
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert PASSWORD not in ended.stderr + ended.stdout
    said = [line for line in lines if line.startswith("asgi-sessions")]
    assert len(said) == 1 or "; stopped: " in ended.stderr, ended.stderr


@pytest.fixture(scope="module")
def dead() -> Any:
    port = free_port()
    yield port
    give_back(port)


URLS = {
    "another scheme": "postgres://alice:{password}@localhost/app",
    "no driver": "postgresql://alice:{password}@localhost/app",
    "a driver that is not for asyncio": "mysql+pymysql://alice:{password}@localhost/app",
    "a scheme of nothing": "http://alice:{password}@localhost/app",
    "no scheme": "alice:{password}@localhost/app",
    "a port that is none": "postgresql+asyncpg://alice:{password}@localhost:{password}/app",
    "a port that is none, for Redis": "redis://localhost:{password}/0",
    "nobody listens, PostgreSQL": "postgresql+asyncpg://alice:{password}@127.0.0.1:{dead}/app",
    "nobody listens, MariaDB": "mysql+asyncmy://alice:{password}@127.0.0.1:{dead}/app",
    "nobody listens, Redis": "redis://:{password}@127.0.0.1:{dead}/0",
    "no such host": "postgresql+asyncpg://alice:{password}@no-such-host.invalid/app",
    "a file that does not exist": "sqlite+aiosqlite:///mistyped.db",
    "a file that does not exist, as a URI": "sqlite+aiosqlite:///file:mistyped.db?uri=true",
    "a folder that does not exist": "sqlite+aiosqlite:////no/such/folder/sessions.db",
    "a file that is no database": "sqlite+aiosqlite:///README",
    "nothing": "",
}


@pytest.mark.parametrize("name", ["rekey", "sweep"])
@pytest.mark.parametrize("url", [pytest.param(url, id=what) for what, url in URLS.items()])
def test_a_wrong_url(name: str, url: str, dead: int, forked: Command, tmp_path: Path) -> None:
    (tmp_path / "README").write_text("no database\n" * 200)

    ended = forked(name, url.format(password=PASSWORD, dead=dead), folder=tmp_path)

    is_one_clear_line(ended)
    assert [path.name for path in tmp_path.iterdir()] == ["README"]


@pytest.mark.parametrize("words", [["demo", "--port", "0"], ["demo", "--tour"]], ids=["demo", "tour"])
@pytest.mark.parametrize(
    "url", ["http://localhost", "redis://:{password}@127.0.0.1:{dead}/0", "redis://h:{password}/0"]
)
def test_a_demo_with_a_wrong_url(words: list[str], url: str, dead: int, forked: Command, tmp_path: Path) -> None:
    ended = forked(*words, folder=tmp_path, REDIS_URL=url.format(password=PASSWORD, dead=dead))

    assert ended.returncode in (1, 2)
    assert "Traceback" not in ended.stderr
    assert PASSWORD not in ended.stderr + ended.stdout


@pytest.mark.parametrize("name", ["rekey", "sweep"])
@pytest.mark.parametrize("kind", ["redis", "postgresql", "mariadb"])
def test_a_wrong_password(name: str, kind: str, own_server: Server, forked: Command, tmp_path: Path) -> None:
    if kind == "redis":
        own_server.options = ("--requirepass", "the right one")
        own_server.start()
        url = own_server.url.replace("//", f"//:{PASSWORD}@")
    else:
        url = re.sub(r"//[^@]*@", f"//nobody-{os.getpid()}:{PASSWORD}@", DATABASES[kind])

    ended = forked(name, url, folder=tmp_path)

    is_one_clear_line(ended)


OPTIONS = {
    "more days than a calendar has": ["sweep", "sqlite+aiosqlite:///README", "--history-days", "999999999999"],
    "days with an underscore": ["sweep", "sqlite+aiosqlite:///README", "--history-days", "1_0"],
    "no days": ["sweep", "sqlite+aiosqlite:///README", "--history-days", "0"],
    "days of 5,000 digits": ["sweep", "sqlite+aiosqlite:///README", "--history-days", "9" * 5000],
    "a port of 5,000 digits": ["demo", "--port", "9" * 5000],
    "a port beyond the last": ["demo", "--port", "65536"],
    "a port that is in no digits of ours": ["demo", "--port", "٨٠"],
    "a host that is none": ["demo", "--host", "no such host"],
    "a host too long for a name": ["demo", "--host", "x" * 300],
    "a host that is no text": ["demo", "--host", "\udcff"],
    "a table that SQLStore refuses": ["schema", "--table", "a; DROP TABLE users"],
    "a table with a long name": ["schema", "--table", "x" * 42],
    "no table": ["schema", "--table", ""],
    "a prefix that RedisStore refuses": ["rekey", "redis://127.0.0.1:9/0", "--name", "{a}"],
    "no rate": ["rekey", "redis://127.0.0.1:9/0", "--rate", "nan"],
    "a key in no folder": ["keygen", "--out", "/no/such/folder/key.pem"],
    "a key in a folder's place": ["keygen", "--out", "."],
    "a command that is none": ["no-such-command"],
}


@pytest.mark.parametrize("words", [pytest.param(words, id=what) for what, words in OPTIONS.items()])
def test_a_wrong_option(words: list[str], forked: Command, tmp_path: Path) -> None:
    (tmp_path / "README").write_text("no database\n" * 200)

    ended = forked(*words, folder=tmp_path)

    is_one_clear_line(ended)
    assert len(ended.stderr) < 2000


WORKING: dict[str, list[str]] = {
    "schema": ["schema"],
    "keygen": ["keygen"],
    "sweep": ["sweep", "sqlite+aiosqlite:///sessions.db"],
    "rekey": ["rekey", "sqlite+aiosqlite:///sessions.db"],
    "list": ["list", "alice", "--url", "sqlite+aiosqlite:///sessions.db"],
    "count": ["count", "--json", "--url", "sqlite+aiosqlite:///sessions.db"],
    "doctor": ["doctor", "sqlite+aiosqlite:///sessions.db"],
    "demo": ["demo", "--port", "0"],
    "tour": ["demo", "--tour"],
}


async def a_database(folder: Path, secret: str = SECRET) -> None:
    store = SQLStore.from_url(f"sqlite+aiosqlite:///{folder}/sessions.db")
    await store.create_tables()
    await session_cookie(store, "alice", secret_keys=[secret])
    await store.aclose()


@pytest.mark.parametrize("words", [pytest.param(words, id=what) for what, words in WORKING.items()])
@pytest.mark.parametrize("output", ["a pipe that nobody reads", "closed", "/dev/full"])
async def test_a_closed_output(words: list[str], output: str, forked: Command, tmp_path: Path) -> None:
    await a_database(tmp_path)
    if output == "closed":  # before the interpreter begins
        ended = command(*words, folder=tmp_path, shell=">&-")
    else:
        ended = forked(*words, folder=tmp_path, output=output)

    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert ended.returncode in (1, 2)
    assert ended.stderr.startswith(("asgi-sessions: ", '{"crv"'))


@pytest.mark.parametrize("words", [["--help"], ["sweep", "--help"], ["--version"]], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_help_that_cannot_be_written_is_a_failure(words: list[str], unbuffered: str, tmp_path: Path) -> None:
    """By itself, argparse ignores a write that fails."""
    ended = command(*words, folder=tmp_path, shell=">/dev/full", PYTHONUNBUFFERED=unbuffered)

    assert (ended.returncode, ended.stderr) == (1, "asgi-sessions: cannot write: No space left on device\n")


@pytest.mark.parametrize("name", ["rekey", "sweep"])
def test_ctrl_c(name: str, tmp_path: Path) -> None:
    """While it waits for a server that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+asyncpg://alice:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/app"
        process = subprocess.Popen(
            [sys.executable, "-m", "asgi_sessions", name, url],
            env={**os.environ, VARIABLE: SECRET, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        silent.settimeout(40)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)

    is_one_clear_line(subprocess.CompletedProcess([], process.returncode, out, err))
    assert "interrupted" in err


def test_a_demo_in_a_folder_that_cannot_be_written() -> None:
    """Root may write everywhere, except where the kernel has no files."""
    ended = command("demo", "--port", "0", folder=Path("/proc"))

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("asgi-sessions: sessions cannot be kept in asgi-sessions-demo.db: ")
    assert ended.stderr.endswith("Start the demo in a folder where you may write, or set REDIS_URL.\n")


def test_a_demo_on_a_redis_that_is_not_there(tmp_path: Path) -> None:
    ended = command("demo", "--port", "0", folder=tmp_path, REDIS_URL="redis://127.0.0.1:9/0")

    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "asgi-sessions: sessions cannot be kept in Redis at 127.0.0.1:9: Redis is unreachable"
    )
    assert ended.stderr.endswith("\nStart that server, correct REDIS_URL, or leave it out.\n")


@pytest.mark.parametrize(
    ("secret", "words", "why"),
    [
        (SECRET[::-1], [], "1 records open with none of these secrets"),
        (SECRET, ["--name", "another"], "no tables"),
    ],
    ids=["a wrong secret", "a wrong table"],
)
async def test_rekey_that_did_nothing_does_not_look_like_success(
    secret: str, words: list[str], why: str, tmp_path: Path
) -> None:
    await a_database(tmp_path)

    ended = command("rekey", "sqlite+aiosqlite:///sessions.db", *words, folder=tmp_path, **{VARIABLE: secret})

    assert ended.returncode == 1
    assert why in ended.stderr


def test_rekey_under_another_prefix_does_not_look_like_success(valkey_url: str, tmp_path: Path) -> None:
    ended = command("rekey", valkey_url, "--name", "never-used", folder=tmp_path)

    assert ended.returncode == 1
    assert "there are no records under this name" in ended.stderr


@pytest.mark.parametrize("table", ["a b", "", "1a", "x" * 42, "a;b", "ä", "a\n", "a-b"])
def test_the_schema_has_the_names_that_the_store_has(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    for make in (
        lambda: session_tables(table=table),
        lambda: session_tables(table="a", schema=table),
        lambda: SQLStore.from_url("sqlite+aiosqlite:///a.db", table=table),
    ):
        with pytest.raises(ConfigurationError, match="at most 41 letters"):
            make()

    assert main(["schema", "--table", table]) == 2
    assert capsys.readouterr().out == ""


def test_sweep_leaves_a_file_without_tables_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("CREATE TABLE users (id TEXT)")
    connection.close()

    ended = command("sweep", "sqlite+aiosqlite:///a.db", folder=tmp_path)

    is_one_clear_line(ended)
    assert "there are no tables" in ended.stderr
