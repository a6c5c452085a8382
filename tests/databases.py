"""A PostgreSQL and a MariaDB of our own, which a test may kill, freeze and start again. For tests.

They are durable as they come: what was committed is there after a SIGKILL. Neither runs as root; where the suite does, they are
somebody else's processes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from tests.ports import free_port, give_back

NOBODY = "nobody"
"""Whose process and folder it is where the suite runs as root: neither server starts as root."""

PATIENCE = 60.0
"""Seconds for a server to start on a busy machine, the recovery of what was killed included."""


class DatabaseServer(ABC):
    """A server on loopback with a folder of its own. Not started yet."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        self._programs = self.find()
        if self._programs is None:
            raise FileNotFoundError(f"no {self.kind} on this machine")
        self.directory = Path(tempfile.mkdtemp(prefix="asgi-sessions-"))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(self.directory, NOBODY)
            self._user = {"user": NOBODY, "group": self.directory.stat().st_gid, "extra_groups": []}
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_made = False

    @staticmethod
    @abstractmethod
    def find() -> tuple[str, str] | None:
        """The program that makes a data folder and the one that serves it, if they are here."""

    @property
    @abstractmethod
    def url(self) -> str:
        """As an app has it: a user who may do anything in one database, and nothing else."""

    @property
    @abstractmethod
    def admin_url(self) -> str:
        """Of somebody who may do everything."""

    @property
    @abstractmethod
    def _users(self) -> tuple[str, ...]:
        """Statements that make that app's user and database."""

    @abstractmethod
    def _to_make(self, program: str) -> list[str]: ...

    @abstractmethod
    def _to_serve(self, program: str) -> list[str]: ...

    @asynccontextmanager
    async def connection(self, url: str | None = None) -> AsyncIterator[AsyncConnection]:
        """Somebody else's, past the store and its proxy, in autocommit: it says BEGIN where it means it."""
        engine = create_async_engine(url or self.admin_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            yield connection

    async def say(self, *statements: str) -> None:
        async with self.connection() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)

    def start(self) -> None:
        """Returns when it answers. Not where a loop runs."""
        assert self._programs is not None
        make, serve = self._programs
        if not self._is_made:
            self._run(self._to_make(make))
        give_up = time.monotonic() + PATIENCE
        while not self._answers():
            if time.monotonic() > give_up:
                raise RuntimeError(f"{self.kind} did not start: {self._said()}")
            time.sleep(0.05)
            if not self._all():  # not begun, or PostgreSQL has ended: a process of a killed one still had its memory
                with self._log.open("ab") as out:
                    command = self._to_serve(serve)
                    self._process = subprocess.Popen(command, cwd=self.directory, stdout=out, stderr=out, **self._user)
        if not self._is_made:
            asyncio.run(self.say(*self._users))
            self._is_made = True

    def _answers(self) -> bool:
        if self._process is None:
            return False
        try:
            asyncio.run(self.say("SELECT 1"))
        except Exception:  # it is on its way, and each driver says so in its own words
            return False
        return True

    def _run(self, command: list[str]) -> None:
        with self._log.open("ab") as out:
            done = subprocess.run(command, cwd=self.directory, stdout=out, stderr=out, check=False, **self._user)
        if done.returncode:
            raise RuntimeError(f"{self.kind} was not made: {self._said()}")

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    @property
    def is_up(self) -> bool:
        return self._process is not None

    def _all(self) -> list[int]:
        """The server and its children, for it may have one for each connection."""
        if self._process is None or self._process.poll() is not None:
            return []
        pid = self._process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def freeze(self) -> None:
        """It stands still; the kernel goes on accepting connections for it."""
        everybody = self._all()
        for pid in everybody:
            _signal(pid, signal.SIGSTOP)
        while any(_is_running(pid) for pid in everybody):  # a thread on another core may go on for a moment
            time.sleep(0.001)

    def thaw(self) -> None:
        for pid in reversed(self._all()):
            _signal(pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to all of it, in the middle of whatever it does."""
        if self._process is None:
            return
        _signal(self._process.pid, signal.SIGSTOP)  # so that it has no more children than those
        for pid in reversed(self._all()):
            _signal(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def remove(self) -> None:
        self.kill()
        give_back(self.port)
        shutil.rmtree(self.directory, ignore_errors=True)


class PostgreSQL(DatabaseServer):
    kind = "postgresql"

    @staticmethod
    def find() -> tuple[str, str] | None:
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        return _both("initdb", "postgres", *map(str, folders))

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://app@127.0.0.1:{self.port}/test"

    @property
    def admin_url(self) -> str:
        return f"postgresql+asyncpg://admin@127.0.0.1:{self.port}/{'test' if self._is_made else 'postgres'}"

    _users: tuple[str, ...] = ("CREATE ROLE app LOGIN", "CREATE DATABASE test OWNER app")

    def _to_make(self, program: str) -> list[str]:
        return [program, "-D", f"{self.directory}/data", "-U", "admin", "-A", "trust", "--no-sync", "-E", "UTF8"]

    def _to_serve(self, program: str) -> list[str]:
        return [
            *(program, "-D", f"{self.directory}/data", "-p", str(self.port), "-k", str(self.directory)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=40", "-c", "shared_buffers=16MB"),
        ]


class MariaDB(DatabaseServer):
    kind = "mariadb"

    @staticmethod
    def find() -> tuple[str, str] | None:
        return _both("mariadb-install-db", "mariadbd", "/usr/bin", "/usr/sbin", "/usr/local/bin")

    @property
    def url(self) -> str:
        return f"mysql+asyncmy://app@127.0.0.1:{self.port}/test"

    @property
    def admin_url(self) -> str:
        return f"mysql+asyncmy://root@127.0.0.1:{self.port}/{'test' if self._is_made else 'mysql'}"

    _users = ("CREATE DATABASE test", "CREATE USER app@'127.0.0.1'", "GRANT ALL ON test.* TO app@'127.0.0.1'")

    def _to_make(self, program: str) -> list[str]:
        return [
            *(program, "--no-defaults", f"--datadir={self.directory}/data", "--auth-root-authentication-method=normal"),
            "--innodb-log-file-size=16M",
            "--skip-test-db",
        ]

    def _to_serve(self, program: str) -> list[str]:
        return [
            *(program, "--no-defaults", f"--datadir={self.directory}/data", f"--port={self.port}"),
            *(f"--socket={self.directory}/socket", f"--pid-file={self.directory}/pid", "--bind-address=127.0.0.1"),
            "--skip-name-resolve",
            *("--innodb-buffer-pool-size=24M", "--innodb-log-file-size=16M", "--max-connections=40"),
        ]


SERVERS: dict[str, type[DatabaseServer]] = {"postgresql": PostgreSQL, "mariadb": MariaDB}


def _both(make: str, serve: str, *folders: str) -> tuple[str, str] | None:
    path = os.pathsep.join((*reversed(folders), os.environ.get("PATH", "")))
    found = shutil.which(make, path=path), shutil.which(serve, path=path)
    return found if found[0] and found[1] else None  # type: ignore[return-value]  # it cannot see that both are there


def _is_running(pid: int) -> bool:
    states = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    return any(state not in "TtZX" for state in states)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has ended meanwhile
