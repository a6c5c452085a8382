"""CPU of the server's process per request, and requests per second, over HTTP: ``python -m benchmarks.over_http [--quick]``.

uvicorn (uvloop, httptools, one worker) on one core; wrk with 64 connections, and Redis, on the other. All servers are up all
the time and take turns. Each of 64 sessions is somebody's. The requests per second depend on what else the machine does; the CPU
of the server's process hardly does. Needs ``wrk`` (Debian has it); Node.js for Express.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from benchmarks._http_app import PEERS
from benchmarks._work import (
    PATHS,
    PIN,
    a_newer_server,
    a_server,
    both,
    forge,
    median,
    on_core,
    on_its_core,
    options,
    progress,
    save,
    table,
)

NODE = Path(__file__).parent / "node"
KINDS = ("anonymous", "read", "write", "forged")
CONNECTIONS = 64
SECONDS = 1
"""Of one load. Short, so that who takes turns does so under the same conditions; wrk knows no parts of a second."""
NOTHING, SIGNED, OURS = "no session", "Starlette's signed cookie", "ours, Redis"
NEW = f"{OURS}, not seen before"
FEW = [NOTHING, SIGNED, OURS, NEW]
"""Those that are measured on other servers, too."""
BETTER_AUTH = "better-auth + Redis"
IN_NODE = ["Express without sessions", "express-session + connect-redis", BETTER_AUTH]
Figures = dict[str, dict[str, list[float]]]
"""By peer and kind: requests per second, 50th and 99th percentile in milliseconds, µs of CPU of the server per request."""

SCRIPT = """
local cookies, at = {}, 0
function init(args)
  for line in io.lines(args[1]) do cookies[#cookies + 1] = line end
end
function request()
  at = at % #cookies + 1
  if cookies[at] == '-' then return wrk.format('GET') end
  return wrk.format('GET', nil, {['Cookie'] = 'a=b; c=d; ' .. cookies[at]})
end
"""


def kinds_of(name: str) -> tuple[str, ...]:
    if name == NOTHING or "without" in name:
        return ("anonymous",)
    if name.endswith("not seen before"):
        return ("read",)
    if name == BETTER_AUTH:  # its sessions hold nothing of the app
        return ("anonymous", "read", "forged")
    return KINDS


class Served:
    """A server process, until it is stopped."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], port: int, cwd: Path | None = None
    ) -> None:
        self.name, self.port = name, port
        self._process = subprocess.Popen(
            on_core(0, command),
            env={**os.environ, **environment},
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        give_up = time.monotonic() + 20
        while True:
            try:
                self.get("/hello")
                return
            except OSError:
                if time.monotonic() > give_up or self._process.poll() is not None:
                    self.stop()
                    raise RuntimeError(f"{name} did not start") from None
                time.sleep(0.1)

    def get(self, path: str, cookie: str | None = None) -> tuple[str, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        # Behind a proxy that speaks https, as a session's cookie demands.
        headers = {"X-Forwarded-Proto": "https", **({"Cookie": cookie} if cookie else {})}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body, line = response.read().decode(), response.getheader("set-cookie")
        connection.close()
        return body, line.split(";")[0] if line else None

    def cpu(self) -> float:
        """Seconds of CPU so far, of all processes of the server; user and system, as the kernel counts them."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            if int(fields[2]) == self._process.pid:  # the process group
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def check(self) -> list[str]:
        """Cookies of 64 sessions, after a look at whether sessions work here."""
        if kinds_of(self.name) == ("anonymous",):
            return []
        cookies = [cookie for _ in range(CONNECTIONS) if (cookie := self.get("/fill")[1]) is not None]
        if len(cookies) < CONNECTIONS:
            raise RuntimeError(f"{self.name} sets no cookie")
        if self.get("/read", cookies[0])[0] != "alice":
            raise RuntimeError(f"{self.name} does not find its session")
        if "write" not in kinds_of(self.name):
            return cookies
        written, changed = self.get("/write", cookies[0])
        if (written, self.get("/write", changed or cookies[0])[0]) != ("1", "2"):
            raise RuntimeError(f"{self.name} loses a write")
        return cookies

    def stop(self) -> None:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)  # with its workers: some have them in processes of their own
        self._process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def uvicorn(name: str, url: str, newer: str) -> Served:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks._http_app:app", "--port", str(port), "--loop", "uvloop"]
    command += ["--http", "httptools", "--log-level", "error", "--no-access-log", "--lifespan", "off"]
    return Served(name, command, {"PEER": name, "REDIS_URL": url, "NEWER_URL": newer}, port)


def hypercorn(name: str, url: str, newer: str) -> Served:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "hypercorn",
        "benchmarks._http_app:app",
        "--bind",
        f"127.0.0.1:{port}",
        "-k",
        "uvloop",
    ]
    return Served(name, command, {"PEER": name, "REDIS_URL": url, "NEWER_URL": newer}, port)


def granian(name: str, url: str, newer: str) -> Served:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "granian",
        "benchmarks._http_app:app",
        "--interface",
        "asginl",
        "--port",
        str(port),
    ]
    return Served(
        name, [*command, "--loop", "uvloop", "--no-log"], {"PEER": name, "REDIS_URL": url, "NEWER_URL": newer}, port
    )


def has_node() -> bool:
    """Whether Node.js is here, and all packages of the peers under it."""
    wanted = json.loads((NODE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    return shutil.which("node") is not None and all((NODE / "node_modules" / name).exists() for name in wanted)


def express(name: str, url: str, newer: str) -> Served:
    """From another world: Express with express-session and connect-redis, with better-auth, or alone."""
    if not has_node():
        raise RuntimeError("Node.js is not there, or not its packages (npm ci in benchmarks/node)")
    port = free_port()
    environment = {
        "PORT": str(port),
        "REDIS_URL": url,
        "SESSIONS": "" if "without" in name else "1",
        "NODE_ENV": "production",
    }
    return Served(name, ["node", "better_auth.mjs" if name == BETTER_AUTH else "server.js"], environment, port, NODE)


def load(served: Served, kind: str, cookies: list[str], folder: Path) -> list[float]:
    """What :data:`Figures` has of a peer and kind."""
    mine = (
        ["-"] if kind == "anonymous" else [forge(c.encode()).decode() for c in cookies] if kind == "forged" else cookies
    )
    (folder / "cookies").write_text("\n".join(mine) + "\n")
    (folder / "script.lua").write_text(SCRIPT)
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency", "-s", str(folder / "script.lua")]
    command += [
        "-H",
        "X-Forwarded-Proto: https",
        f"http://127.0.0.1:{served.port}{PATHS[kind]}",
        "--",
        str(folder / "cookies"),
    ]
    before = served.cpu()
    out = subprocess.run(on_core(1, command), capture_output=True, text=True, check=True, timeout=SECONDS + 30).stdout
    spent = served.cpu() - before
    if failed := re.search(r"(Non-2xx|Socket errors).*", out):
        raise RuntimeError(f"{served.name}, {kind}: {failed[0]}")

    def figure(pattern: str) -> re.Match[str]:
        found = re.search(pattern, out)
        assert found is not None, out
        return found

    def percentile(name: str) -> float:
        found = figure(rf"{name}%\s+([\d.]+)(us|ms|s)")
        return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]

    answered = int(figure(r"(\d+) requests in")[1])
    rate = float(figure(r"Requests/sec:\s+([\d.]+)")[1])
    return [rate, percentile("50"), percentile("99"), spent / answered * 1e6]


def bounds(figures: Figures) -> list[list[Any]]:
    if OURS not in figures:
        return []
    ours = figures[OURS]["read"]
    found: list[list[Any]] = []
    if NOTHING in figures:
        reached = figures[NOTHING]["anonymous"][3] / ours[3]
        what = "by CPU of the server's process: share of no session, records that it has seen"
        found.append([what, "≥ 0.66", f"{reached:.2f}", reached >= 0.66])
    for what, limit, other, kind in (
        ("requests per second: a read, to no session at all", 0.62, NOTHING, "anonymous"),
        ("a read, to the signed cookie's", 1.5, SIGNED, "read"),
        ("a read, to starsessions'", 4.5, "starsessions + Redis", "read"),
    ):
        if other in figures:
            reached = ours[0] / figures[other][kind][0]
            found.append([what, f"≥ {limit:g}", f"{reached:.2f}", reached >= limit])
    if SIGNED in figures:
        slowest = figures[SIGNED]["read"][2]
        found.append(["p99 of a read, to the signed cookie's", "≤ 1", f"{ours[2] / slowest:.2f}", ours[2] <= slowest])
    return found


def cpu_table(figures: Figures) -> str:
    """µs of CPU; in brackets the ratio to the signed cookie on the same server, and at last the share of no session."""
    signed, first = figures.get(SIGNED, {}), next(iter(figures))
    alone = figures[first]["anonymous"][3] if kinds_of(first) == ("anonymous",) else None
    rows = []
    for name, by_kind in figures.items():
        cells = []
        for kind in KINDS:
            cell = f"{by_kind[kind][3]:.1f}" if kind in by_kind else ""
            cells.append(f"{cell} ({by_kind[kind][3] / signed[kind][3]:.2f})" if cell and kind in signed else cell)
        rows.append([name, *cells, f"{alone / by_kind['read'][3]:.2f}" if alone and "read" in by_kind else ""])
    return table(["", *KINDS, "share of no session: read"], rows)


def rate_table(figures: Figures) -> str:
    rows = []
    for name, by_kind in figures.items():
        told = {kind: f"{rate / 1000:.1f} ({p50:.1f} / {p99:.1f})" for kind, (rate, p50, p99, _) in by_kind.items()}
        rows.append([name, *(told.get(kind, "") for kind in KINDS)])
    return table(["", *KINDS], rows)


def markdown(data: dict[str, Any]) -> str:
    servers = {name: figures for name, figures in data["servers"].items() if figures}
    parts = [f"{CONNECTIONS} connections. {data['server']}."]
    parts.append(" One core for the app, another for wrk and Redis.\n" if data["pinned"] else "\n")
    parts.append(
        f"\nµs of CPU of the server's process per request, user and system; in brackets the ratio to {SIGNED}. The share of no "
        "session is the CPU of the first row in that of a read: 1 would be a session for nothing.\n"
    )
    for server, figures in servers.items():
        parts.append(f"\n**{server}: CPU**\n\n{cpu_table(figures)}\n")
    parts.append("\nThousands of requests per second (p50 / p99 in ms).\n")
    for server, figures in servers.items():
        parts.append(f"\n**{server}: requests per second**\n\n{rate_table(figures)}\n")
    if data["left out"]:
        parts.append("\nLeft out: " + "; ".join(data["left out"]) + ".\n")
    rows = [[what, limit, reached, "yes" if good else "**no**"] for what, limit, reached, good in data["bounds"]]
    parts.append("\n**What it should reach** (uvicorn)\n\n" + table(["", "bound", "measured", "reached"], rows))
    return "".join(parts) + "\n"


class Run:
    """All servers in turn, each kind of server by itself."""

    def __init__(self, urls: tuple[str, str], folder: Path, *, quick: bool) -> None:
        self._urls, self._folder, self._quick = urls, folder, quick
        self._rounds = 1 if quick else 3
        self.left_out: list[str] = []
        if shutil.which("wrk") is None:
            self._leave_out(
                "all figures, since wrk is not installed (Debian: apt-get install wrk); servers are only checked"
            )
            self._rounds = 0

    @property
    def measures(self) -> bool:
        return self._rounds > 0

    def _leave_out(self, what: str) -> None:
        self.left_out.append(what)
        progress(f"left out: {what}")

    def _load(self, served: Served, kind: str, cookies: list[str]) -> list[float]:
        """A load that failed, as on a machine that does too much else, is said and repeated."""
        for _ in range(2):
            try:
                return load(served, kind, cookies, self._folder)
            except RuntimeError as error:
                self._leave_out(f"a load that was repeated: {error}")
        return load(served, kind, cookies, self._folder)

    def of(self, title: str, make: Callable[..., Served], names: list[str]) -> Figures:
        with ExitStack() as running:
            up: list[tuple[Served, list[str]]] = []
            for name in names:
                try:
                    served = make(name, *self._urls)
                    running.callback(served.stop)
                    up.append((served, served.check()))
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    self._leave_out(f"{title}, {name}: {error}")
            got: dict[str, dict[str, list[list[float]]]] = {}
            for number in range(self._rounds if title in ("uvicorn", "Node.js") else min(self._rounds, 1)):
                for served, cookies in up:
                    kinds = kinds_of(served.name)
                    for kind in set(kinds[:2]) - {"anonymous"} or kinds[:1] if self._quick else kinds:
                        one = self._load(served, kind, cookies)
                        got.setdefault(served.name, {}).setdefault(kind, []).append(one)
                progress(f"  {title}: round {number + 1}")
        return {
            name: {kind: [median([*each]) for each in zip(*values, strict=True)] for kind, values in kinds.items()}
            for name, kinds in got.items()
        }


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    quick = arguments.quick
    if not quick and shutil.which("npm") is not None and not has_node():
        subprocess.run(["npm", "ci", "--silent"], cwd=NODE, check=False, timeout=300)
    plan: list[tuple[str, Callable[..., Served], list[str]]] = [
        ("uvicorn", uvicorn, FEW if quick else [*PEERS]),
        ("Node.js", express, IN_NODE),
        ("granian", granian, FEW[-2:-1] if quick else FEW),
        ("hypercorn", hypercorn, FEW[-2:-1] if quick else FEW),
    ]
    with a_server() as server, a_newer_server() as newer, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for each in (server, newer):
            if each is not None:
                on_its_core(1, each.pid)
        all_of_them = Run((server.url, (newer or server).url), folder, quick=quick)
        servers = {title: all_of_them.of(title, make, names) for title, make, names in plan}
        data = {
            "server": both(server, newer),
            "pinned": PIN,
            "servers": servers,
            "left out": all_of_them.left_out,
            "bounds": bounds(servers["uvicorn"]),
        }
        if all_of_them.measures:
            save("over_http", data, arguments.into)
    print(markdown(data))


if __name__ == "__main__":
    main()
