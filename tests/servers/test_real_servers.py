"""The same behaviour behind every server, over TLS and real sockets, each server a process of its own."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from os import environ
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import redis
from websockets.asyncio.client import ClientConnection, connect

from asgi_sessions.cli._serve import certificate
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
COOKIE = "__Host-Http-session"
APP = "tests.servers.app:app"

SERVERS: dict[str, list[str]] = {
    "uvicorn-h11": ["uvicorn", APP, "--http=h11", "--loop=asyncio", "--port={port}", "--log-level=warning"],
    "uvicorn-httptools": [
        *["uvicorn", APP, "--http=httptools", "--loop=uvloop", "--ws=websockets-sansio"],
        *["--port={port}", "--log-level=warning"],
    ],
    "hypercorn": ["hypercorn", APP, "--bind=127.0.0.1:{port}", "--graceful-timeout=2"],
    "granian": ["granian", APP, "--interface=asgi", "--port={port}"],
}
TLS: dict[str, list[str]] = {
    "uvicorn": ["--ssl-certfile={certificate}", "--ssl-keyfile={key}"],
    "hypercorn": ["--certfile={certificate}", "--keyfile={key}"],
    "granian": ["--ssl-certificate={certificate}", "--ssl-keyfile={key}"],
}
WAYS = [
    ("uvicorn-h11", "HTTP/1.1"),
    ("uvicorn-httptools", "HTTP/1.1"),
    ("hypercorn", "HTTP/1.1"),
    ("hypercorn", "HTTP/2"),
    ("granian", "HTTP/1.1"),
    ("granian", "HTTP/2"),
]


class Server:
    """One server process."""

    def __init__(self, name: str, farm: Farm) -> None:
        self.farm = farm
        self.port = free_port()
        module = SERVERS[name][0]
        words = [*SERVERS[name], *TLS[module]]
        paths = {"certificate": farm.certificate, "key": farm.key}
        self.errors = farm.directory / f"{name}-{self.port}.txt"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(word.format(port=self.port, **paths) for word in words)],
                cwd=ROOT,
                # For its children too: what is left open, or is never awaited, is said on stderr.
                env={**environ, **farm.environment, "PYTHONDEVMODE": "1"},
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        # With a whole handshake: a connection closed in the middle of one is an error to some servers, and they say so.
        anyone = ssl._create_unverified_context()
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up and self.process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as plain:
                    anyone.wrap_socket(plain).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"{self.process.args!r} did not start:\n{self.errors.read_text()}")

    def stop(self) -> tuple[int, str]:
        """As by Ctrl-C. Its exit code, and all it said."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=20)
        return code, self.errors.read_text()

    def browser(self, version: str = "HTTP/1.1", jar: httpx.Cookies | None = None) -> httpx.AsyncClient:
        http2 = version == "HTTP/2"
        return httpx.AsyncClient(
            base_url=self.url,
            http1=not http2,
            http2=http2,
            verify=self.farm.trust,
            cookies=jar,
            trust_env=False,
            timeout=20,
        )

    def socket(self, token: str | None = None) -> connect:
        headers = {} if token is None else {"Cookie": f"{COOKIE}={token}"}
        url = f"wss://127.0.0.1:{self.port}/socket"
        return connect(url, ssl=self.farm.trust, additional_headers=headers, proxy=None)


class Farm:
    """Servers of one store, started when first asked for, all of them killed at the end."""

    def __init__(self, directory: Path, redis_url: str) -> None:
        self.directory = directory
        self.environment = {"SESSIONS_REDIS_URL": redis_url, "SESSIONS_PREFIX": f"test-{secrets.token_hex(6)}"}
        self.certificate, self.key = directory / "certificate.pem", directory / "key.pem"
        for path, text in zip((self.certificate, self.key), certificate(), strict=True):
            path.write_bytes(text)
        self.trust = ssl.create_default_context(cafile=str(self.certificate))
        self.all: list[Server] = []
        self.kept: dict[str, Server] = {}

    def start(self, name: str) -> Server:
        server = Server(name, self)
        self.all.append(server)
        server.wait_until_ready()
        return server

    def get(self, name: str) -> Server:
        if name not in self.kept:
            self.kept[name] = self.start(name)
        return self.kept[name]

    def take(self, name: str) -> Server:
        """To do with it what one likes; the next one who asks gets another."""
        server = self.get(name)
        del self.kept[name]
        return server

    def kill(self) -> None:
        for server in self.all:
            with suppress(ProcessLookupError):  # stopped by its test
                os.killpg(server.process.pid, signal.SIGKILL)  # with its workers
            server.process.wait()


@pytest.fixture(scope="module")
def farm(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    farm = Farm(tmp_path_factory.mktemp("servers"), valkey_url)
    yield farm
    farm.kill()
    with redis.Redis.from_url(valkey_url) as client:
        if keys := list(client.scan_iter(f"{farm.environment['SESSIONS_PREFIX']}:*", count=1000)):
            client.delete(*keys)


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0]}-{way[1]}")
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
async def browser(farm: Farm, way: tuple[str, str], anyio_backend: Any) -> AsyncIterator[httpx.AsyncClient]:
    name, version = way
    async with farm.get(name).browser(version) as client:
        yield client


async def read(browser: httpx.AsyncClient) -> tuple[str | None, dict[str, Any]]:
    """Who is logged in, and what the session holds."""
    answer = (await browser.get("/")).json()
    return answer["user_id"], answer["data"]


# ── The life of a session ──


async def test_log_in_read_and_log_out(browser: httpx.AsyncClient, way: tuple[str, str]) -> None:
    nobody = await browser.get("/")
    logged_in = await browser.post("/log-in/alice")
    token = browser.cookies[COOKIE]
    reading = await browser.get("/")
    logged_out = await browser.post("/log-out")
    browser.cookies.set(COOKIE, token)

    assert {answer.http_version for answer in (nobody, logged_in, reading, logged_out)} == {way[1]}
    assert "set-cookie" not in nobody.headers
    assert logged_in.headers.get_list("set-cookie") == [f"{COOKIE}={token}; Path=/; Secure; HttpOnly; SameSite=Lax"]
    assert logged_in.headers["cache-control"] == "no-store"
    assert (reading.json()["user_id"], reading.headers["vary"]) == ("alice", "Cookie")
    assert "set-cookie" not in reading.headers
    assert logged_out.headers["set-cookie"].startswith(f"{COOKIE}=; Max-Age=0; ")
    assert await read(browser) == (None, {})


async def test_parallel_writes_of_different_keys_both_survive(browser: httpx.AsyncClient) -> None:
    await browser.post("/log-in/alice")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(browser.post, "/put-slowly/slow")
        await browser.get("/wait-for-arrival")
        await browser.post("/put/fast")
        await browser.post("/release")

    assert await read(browser) == ("alice", {"slow": "put slowly", "fast": "put"})


@pytest.mark.parametrize(
    ("cookies", "user"),
    [(("first=1", "{ours}", "last=2"), "alice"), (("{ours}", "{ours}"), None)],
    ids=["one of several", "the same twice, an attack"],
)
async def test_every_cookie_header_is_read(
    browser: httpx.AsyncClient, cookies: tuple[str, ...], user: str | None
) -> None:
    """HTTP/2 clients may send one header per cookie (RFC 9113, section 8.2.3); proxies pass such headers on over HTTP/1.1."""
    await browser.post("/log-in/alice")
    ours = f"{COOKIE}={browser.cookies[COOKIE]}"
    browser.cookies.clear()

    found = await browser.get("/", headers=[("cookie", cookie.format(ours=ours)) for cookie in cookies])

    assert found.json()["user_id"] == user


# ── WebSockets ──


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, farm: Farm) -> Server:
    return farm.get(request.param)


def token_of(connection: ClientConnection) -> str | None:
    """The token that came with the answer to the handshake, if one did."""
    assert connection.response is not None
    said = connection.response.headers.get_all("set-cookie")
    if not said:
        return None
    name, _, rest = said[0].partition("=")
    token, _, attributes = rest.partition("; ")
    assert (len(said), name, attributes) == (1, COOKIE, "Path=/; Secure; HttpOnly; SameSite=Lax")
    return token


# The servers that pass on what an app says in the headers of ``websocket.accept``.
@pytest.mark.parametrize("name", ["uvicorn-h11", "uvicorn-httptools", "hypercorn"])
async def test_a_session_that_begins_with_a_socket_gets_its_cookie_when_accepted(name: str, farm: Farm) -> None:
    server = farm.get(name)
    async with server.socket() as connection:
        token = token_of(connection)

        async with server.browser(jar=httpx.Cookies({COOKIE: token or ""})) as browser:
            assert await read(browser) == (None, {"socket": "accepted"})


async def test_a_socket_saves_when_the_app_closes_it(server: Server) -> None:
    """Before the client hears of it: the app is still busy when the session is read."""
    async with server.browser() as browser:
        await browser.post("/log-in/alice")
        async with server.socket(browser.cookies[COOKIE]) as connection:
            token = token_of(connection)
            await connection.send("hello")
            answer = await connection.recv()
            await connection.send("bye")
            await connection.wait_closed()

        found = await read(browser)
        await browser.post(f"/let-leave/{str(answer).split()[0]}")

        assert token is None
        assert found == ("alice", {"socket": "accepted", "heard": ["hello"]})


async def test_a_socket_saves_when_the_client_leaves(server: Server) -> None:
    async with server.browser() as browser:
        await browser.post("/log-in/alice")
        async with server.socket(browser.cookies[COOKIE]) as connection:
            await connection.send("hello")
            answer = await connection.recv()
        await browser.get(f"/wait-for-leaving/{str(answer).split()[0]}")

        assert await read(browser) == ("alice", {"socket": "accepted", "heard": ["hello"]})


async def test_a_socket_closes_when_its_session_ends_on_another_server(server: Server, farm: Farm) -> None:
    elsewhere = farm.get("uvicorn-h11" if server is not farm.get("uvicorn-h11") else "uvicorn-httptools")
    async with server.browser() as browser:
        await browser.post("/log-in/alice")
        async with (
            server.socket(browser.cookies[COOKIE]) as connection,
            elsewhere.browser(jar=browser.cookies) as other,
        ):
            await connection.send("hello")
            await connection.recv()

            await other.post("/log-out")

            with anyio.fail_after(2):
                await connection.wait_closed()
            assert (connection.close_code, connection.close_reason) == (4401, "session ended")


@pytest.mark.parametrize(("name", "version"), WAYS)
async def test_a_stream_ends_when_its_session_ends_on_another_server(name: str, version: str, farm: Farm) -> None:
    server, elsewhere = farm.get(name), farm.get("hypercorn" if name == "uvicorn-h11" else "uvicorn-h11")
    async with server.browser(version) as browser, elsewhere.browser() as other:
        await other.post("/log-in/alice")
        browser.cookies.set(COOKIE, other.cookies[COOKIE])
        async with browser.stream("GET", "/stream") as response:
            lines = response.aiter_lines()
            assert (await anext(lines)).startswith("data: ")

            await other.post("/log-out")

            with anyio.fail_after(2):  # and cleanly: what is cut off would raise here
                async for _ in lines:
                    pass


# ── Processes ──


async def test_a_session_of_one_process_is_known_to_another(farm: Farm) -> None:
    here, there = farm.get("uvicorn-h11"), farm.start("uvicorn-h11")
    async with here.browser() as browser:
        await browser.post("/log-in/alice")
        await browser.post("/put/here")
        one = (await browser.get("/")).json()

        async with there.browser(jar=browser.cookies) as elsewhere:
            await elsewhere.post("/put/there")
            other = (await elsewhere.get("/")).json()
            await elsewhere.post("/log-out")

        assert other["process"] != one["process"]
        assert (other["user_id"], other["data"]) == ("alice", {"here": "put", "there": "put"})
        assert await read(browser) == (None, {})


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_that_is_stopped_has_closed_everything(name: str, farm: Farm) -> None:
    server = farm.take(name)
    async with server.browser() as browser:
        await browser.post("/log-in/alice")
        before = (await browser.get("/")).json()["connections"]

    code, said = await anyio.to_thread.run_sync(server.stop)

    assert before > 0
    assert "connections left: 0\n" in said
    assert code == 0, said
    for word in ("unclosed", "ResourceWarning", "never awaited", "was destroyed", "Traceback", "Error"):
        assert word not in said, said
