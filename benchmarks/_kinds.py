"""Requests of each kind against one store, for the capacity plan: a store is filled, and asked."""

from __future__ import annotations

import asyncio
import itertools
import random
import resource
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from asgi_sessions import SessionMiddleware
from asgi_sessions.stores import Store
from benchmarks._work import DATA, answer, ask

KINDS = ("read", "touch", "write", "log-in")
"""A touch is a read that is the first in a minute of its session, so that the activity is noted."""
CHANGES = KINDS[1:]
"""What the store has to write down."""
IN_FLIGHT = 100
MINUTE = 61.0
"""Seconds after which the next touch is due."""


@dataclass(frozen=True)
class Effort:
    """How much of the capacity plan is measured, and for how long."""

    sessions: int = 10**6
    """At most."""
    in_sql: int = 100_000
    """The same for databases."""
    requests: int = 5000
    """Of each kind."""
    rounds: int = 3
    count_for: float = 5.0
    """Seconds for which fsyncs are counted."""
    histories: tuple[int, int] = (50, 100)
    """Users, and how often each of them logs in and out."""
    looks: int = 200
    """How often the lag of a replica is looked at."""
    away: tuple[float, float] = (5.0, 30.0)
    """Seconds for which a replica is stopped; what it misses in a few, the kernel's buffers hold."""


QUICK = Effort(sessions=100, requests=50, rounds=1, count_for=0.1, histories=(2, 10), looks=10, away=(0.1, 0.3))

PATIENCE = timedelta(seconds=20)
"""For a database on a busy machine: a request that is given up would not be measured."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    session, path = scope["session"], scope["path"]
    if path.startswith("/log-in/"):
        session.log_in(path[8:])
        session.update(DATA)
    elif path == "/log-out":
        session.destroy()
    elif path == "/fill":
        session.update(DATA)
    elif path == "/write":
        session["n"] = session.get("n", 0) + 1
    else:
        session.get("user")
    await answer(send, b"ok")


def progress(done: int, of: int, what: str) -> None:
    """A bar, on a terminal; elsewhere nothing."""
    if sys.stderr.isatty():
        bar = "█" * (30 * done // of)
        print(f"\r{bar:30} {done:>9,} of {of:,} {what}   ", end="" if done < of else "\n", file=sys.stderr, flush=True)


def stage(what: str) -> None:
    """What comes now; on a terminal, likewise."""
    if sys.stderr.isatty():
        print(f"── {what}", file=sys.stderr, flush=True)


def spent() -> float:
    """Seconds of CPU of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Load:
    """An app before a store, and its clients."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.cookies: list[bytes] = []
        # Clocks that stand still: however long the filling takes, no touch is due before it is wanted.
        self._now = time.time()
        self._ahead = 0.0
        self._app = SessionMiddleware(app, store, store_deadline=PATIENCE, clock=lambda: self._now)
        self._later = SessionMiddleware(
            app,
            store,
            store_deadline=PATIENCE,
            clock=lambda: self._now + self._ahead,
            devices=self._app._manager.devices,
        )
        self._names = itertools.count()
        self._late: list[str] = []

    async def fill(self, many: int, in_flight: int = IN_FLIGHT) -> None:
        """So many sessions, every other one logged in, each user with one."""
        paths = [f"/log-in/user {next(self._names)}" if n % 2 else "/fill" for n in range(many)]
        for start in range(0, many, in_flight):
            answers = await asyncio.gather(*(ask(self._app, path) for path in paths[start : start + in_flight]))
            self.cookies += [cookie for _, cookie in answers if cookie is not None]
            if start // in_flight % 50 == 0:
                progress(start, many, "sessions")
        progress(many, many, "sessions")

    async def send(self, kind: str, many: int, in_flight: int = IN_FLIGHT) -> list[float]:
        """So many requests of one kind, so many at a time; the seconds that each took."""
        if kind == "touch":
            self._ahead += MINUTE
        middleware = self._later if kind == "touch" else self._app
        # Distinct sessions, or the second touch of one would be none.
        cookies = random.sample(self.cookies, many) if kind != "log-in" else [None] * many
        paths = [f"/{kind}"] * many
        if kind == "log-in":
            late = [f"late {next(self._names)}" for _ in range(many)]
            self._late += late
            paths = [f"/log-in/{user}" for user in late]
        took: list[float] = []

        async def client(mine: list[tuple[str, bytes | None]]) -> None:
            for path, cookie in mine:
                began = time.perf_counter()
                await ask(middleware, path, cookie)
                took.append(time.perf_counter() - began)

        asked = list(zip(paths, cookies, strict=True))
        await asyncio.gather(*(client(asked[number::in_flight]) for number in range(in_flight)))
        return took

    async def forget_late(self) -> None:
        """Remove those whose log-in was measured, with all that is kept of them: the half of the others stays a half."""
        sessions = self._app.sessions
        for start in range(0, len(self._late), IN_FLIGHT):
            await asyncio.gather(*(sessions.erase(user) for user in self._late[start : start + IN_FLIGHT]))
        self._late.clear()

    async def histories(self, users: int, log_ins: int) -> int:
        """Users who log in and out again and again; how many history entries that left, and no session."""
        for user in range(users):
            for _ in range(log_ins):
                _, cookie = await ask(self._app, f"/log-in/often {user}")
                await ask(self._app, "/log-out", cookie)
        return users * log_ins * 2


def counted(client: Any) -> dict[str, float]:
    """What a server has done so far, and what it holds."""
    info = client.info()
    return {
        "commands": info["total_commands_processed"],
        "in": info["total_net_input_bytes"],
        "out": info["total_net_output_bytes"],
        "cpu": info["used_cpu_user"] + info["used_cpu_sys"],
        "memory": info["used_memory"],
        "resident": info["used_memory_rss"],
        "replicated": info["master_repl_offset"],
        "log": info.get("aof_current_size", 0),
    }


async def per_request(client: Any, load: Load, kind: str, many: int, in_flight: int = IN_FLIGHT) -> dict[str, float]:
    """What one request of that kind costs the server, and in ``app`` this process; seconds and bytes."""
    before, cpu = counted(client), spent()
    await load.send(kind, many, in_flight)
    cpu, after = spent() - cpu, counted(client)
    names = ("commands", "in", "out", "cpu", "replicated", "log")
    return {**{name: (after[name] - before[name]) / many for name in names}, "app": cpu / many}
