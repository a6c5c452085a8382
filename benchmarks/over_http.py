"""Requests per second over real HTTP: ``python -m benchmarks.over_http [--quick]``.

uvicorn (uvloop, httptools, one worker) on one core; wrk with 64 connections, and Redis, on the other. All servers are up all
the time and take turns. Each of 64 sessions is somebody's. Needs ``wrk`` (Debian has it); Node.js for express.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks._http_app import PEERS
from benchmarks._work import PATHS, a_server, forge, median, options, progress, save, table

NODE = Path(__file__).parent / "node"
KINDS = ("anonymous", "read", "write", "forged")
CONNECTIONS = 64
PIN = shutil.which("taskset") is not None and (os.cpu_count() or 1) > 1

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


def on_core(number: int, command: list[str]) -> list[str]:
    return ["taskset", "-c", str(number), *command] if PIN else command


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

    def check(self) -> list[str]:
        """Cookies of 64 sessions, after a look at whether sessions work here."""
        cookies = [cookie for _ in range(CONNECTIONS) if (cookie := self.get("/fill")[1]) is not None]
        if len(cookies) < CONNECTIONS:
            raise RuntimeError(f"{self.name} sets no cookie")
        if self.get("/read", cookies[0])[0] != "alice":
            raise RuntimeError(f"{self.name} does not find its session")
        written, changed = self.get("/write", cookies[0])
        if (written, self.get("/write", changed or cookies[0])[0]) != ("1", "2"):
            raise RuntimeError(f"{self.name} loses a write")
        return cookies

    def stop(self) -> None:
        os.killpg(
            self._process.pid, signal.SIGKILL
        )  # with its workers: some servers have them in processes of their own
        self._process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def uvicorn(name: str, url: str) -> Served:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks._http_app:app", "--port", str(port), "--loop", "uvloop"]
    command += ["--http", "httptools", "--log-level", "error", "--no-access-log", "--lifespan", "off"]
    return Served(name, command, {"PEER": name, "REDIS_URL": url}, port)


def hypercorn(name: str, url: str) -> Served:
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
    return Served(name, command, {"PEER": name, "REDIS_URL": url}, port)


def granian(name: str, url: str) -> Served:
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
    return Served(name, [*command, "--loop", "uvloop", "--no-log"], {"PEER": name, "REDIS_URL": url}, port)


def express(name: str, url: str) -> Served:
    """From another world: Express with express-session and connect-redis, or Express alone."""
    if shutil.which("node") is None or not (NODE / "node_modules").exists():
        raise RuntimeError("Node.js is not there, or not its packages (npm ci in benchmarks/node)")
    port = free_port()
    environment = {
        "PORT": str(port),
        "REDIS_URL": url,
        "SESSIONS": "" if "without" in name else "1",
        "NODE_ENV": "production",
    }
    return Served(name, ["node", "server.js"], environment, port, NODE)


def load(served: Served, kind: str, cookies: list[str], seconds: float, folder: Path) -> tuple[float, float, float]:
    """Requests per second, and the 50th and 99th percentile in milliseconds."""
    mine = (
        ["-"] if kind == "anonymous" else [forge(c.encode()).decode() for c in cookies] if kind == "forged" else cookies
    )
    (folder / "cookies").write_text("\n".join(mine) + "\n")
    (folder / "script.lua").write_text(SCRIPT)
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency", "-s", str(folder / "script.lua")]
    command += [
        "-H",
        "X-Forwarded-Proto: https",
        f"http://127.0.0.1:{served.port}{PATHS[kind]}",
        "--",
        str(folder / "cookies"),
    ]
    out = subprocess.run(on_core(1, command), capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(f"{served.name}, {kind}: {out}")

    def percentile(name: str) -> float:
        found = re.search(rf"{name}%\s+([\d.]+)(us|ms|s)", out)
        assert found is not None
        return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]

    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert rate is not None
    return float(rate[1]), percentile("50"), percentile("99")


def bounds(figures: dict[str, dict[str, list[float]]]) -> list[list[Any]]:
    if not figures:
        return []
    ours, signed = figures["ours, Redis"]["read"], "Starlette's signed cookie"
    found: list[list[Any]] = []
    for what, limit, other, kind in (
        ("read, to no session at all", 0.62, "no session", "anonymous"),
        ("read, to the signed cookie's", 1.5, signed, "read"),
        ("read, to starsessions'", 4.5, "starsessions + Redis", "read"),
    ):
        if other in figures:
            reached = ours[0] / figures[other][kind][0]
            found.append([what, f"≥ {limit:g}", f"{reached:.2f}", reached >= limit])
    if signed in figures:
        slowest = figures[signed]["read"][2]
        found.append(["p99 of a read, to the signed cookie's", "≤ 1", f"{ours[2] / slowest:.2f}", ours[2] <= slowest])
    return found


def markdown(data: dict[str, Any]) -> str:
    parts = [f"Thousands of requests per second (p50 / p99 in ms), {CONNECTIONS} connections. {data['server']}."]
    parts.append(" One core for the app, another for wrk and Redis.\n" if data["pinned"] else "\n")
    for server, figures in data["servers"].items():
        rows = []
        for name, by_kind in figures.items():
            cells = []
            for kind in KINDS:
                if kind in by_kind:
                    rate, p50, p99 = by_kind[kind]
                    cells.append(f"{rate / 1000:.1f} ({p50:.1f} / {p99:.1f})")
                else:
                    cells.append("")
            rows.append([name, *cells])
        parts.append(f"\n**{server}**\n\n" + table(["", *KINDS], rows) + "\n")
    if data["left out"]:
        parts.append("\nLeft out: " + "; ".join(data["left out"]) + ".\n")
    rows = [[what, limit, reached, "yes" if good else "**no**"] for what, limit, reached, good in data["bounds"]]
    parts.append("\n**What it should reach** (uvicorn)\n\n" + table(["", "bound", "measured", "reached"], rows))
    return "".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    quick = arguments.quick
    seconds, rounds = (1.0, 1) if quick else (3.0, 5)  # wrk knows no parts of a second
    left_out: list[str] = []
    if shutil.which("wrk") is None:
        left_out.append(
            "all figures, since wrk is not installed (Debian: apt-get install wrk); servers are only checked"
        )
        progress(f"left out: {left_out[0]}")
        rounds = 0
    if not quick and shutil.which("npm") is not None and not (NODE / "node_modules").exists():
        subprocess.run(["npm", "ci", "--silent"], cwd=NODE, check=False, timeout=300)
    servers: dict[str, dict[str, dict[str, list[float]]]] = {}
    few = ["no session", "Starlette's signed cookie", "ours, Redis"]
    others = ["Express without sessions", "express-session + connect-redis"]
    plan = [("uvicorn", uvicorn, few if quick else [*PEERS]), ("Node.js", express, others)]
    plan += [
        (name, make, few[-1:] if quick else few) for name, make in (("granian", granian), ("hypercorn", hypercorn))
    ]
    with a_server() as server, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if PIN:
            subprocess.run(["taskset", "-acp", "1", str(server._process.pid)], capture_output=True, check=True)
        for title, make, names in plan:
            with ExitStack() as running:
                up: list[tuple[Served, list[str]]] = []
                for name in names:
                    try:
                        served = make(name, server.url)
                        running.callback(served.stop)
                        alone = name == "no session" or "without" in name
                        up.append((served, [] if alone else served.check()))
                    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                        left_out.append(f"{title}, {name}: {error}")
                        progress(left_out[-1])
                measured: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
                for number in range(rounds if title in ("uvicorn", "Node.js") else min(rounds, 1)):
                    for served, cookies in up:
                        for kind in KINDS[: 2 if quick else None] if cookies else KINDS[:1]:
                            got = load(served, kind, cookies, seconds, folder)
                            measured.setdefault(served.name, {}).setdefault(kind, []).append(got)
                    progress(f"  {title}: round {number + 1}")
                servers[title] = {
                    name: {kind: [median([one[i] for one in got]) for i in range(3)] for kind, got in kinds.items()}
                    for name, kinds in measured.items()
                }
        data = {
            "server": server.version,
            "pinned": PIN,
            "servers": servers,
            "left out": left_out,
            "bounds": bounds(servers["uvicorn"]),
        }
        if rounds:
            save("over_http", data, arguments.into)
    print(markdown(data))


if __name__ == "__main__":
    main()
