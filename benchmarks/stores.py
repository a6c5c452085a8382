"""CPU per request in the app's process, by store: ``python -m benchmarks.stores [--quick]``; about a minute.

One Redis, a cluster of three primaries with a replica each, PostgreSQL and SQLite, all servers our own, beside Starlette's signed
cookie and Django's database sessions on the same PostgreSQL and on SQLite, used async (``aget()``, ``asave()``). A read is of a
record that the process has seen, or has not. Everybody takes turns in every round.

Databases are asked by 10 requests at a time, as many as there are connections in a pool; Redis by 64.
"""

from __future__ import annotations

import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from asgi_sessions import RedisStore, SQLStore
from asgi_sessions.stores import Store
from benchmarks import _peers
from benchmarks._peers import Peer
from benchmarks._work import (
    Server,
    a_server,
    an_executable,
    check,
    cpu_of,
    median,
    options,
    progress,
    run,
    save,
    table,
)
from tests.clusters import Cluster
from tests.databases import PostgreSQL

COLUMNS = ("read, seen", "read, not seen", "write", "log-in")
SIGNED = "Starlette's signed cookie"
PATIENCE = timedelta(seconds=20)
"""For a database on a busy machine: a request that is given up would not be measured."""
Figures = dict[str, dict[str, float]]
"""µs by peer and column."""


class Entrant:
    """A row: its peer, and for a read of what the process has not seen the same without the cache of opened records."""

    def __init__(self, peer: Peer, not_seen: Peer | None = None, share: int = 1) -> None:
        """``share``: of the requests it gets one in so many, since it is slow."""
        self.peer, self.not_seen, self.share = peer, not_seen, share

    def columns(self) -> list[tuple[str, Peer, str]]:
        """The name of each, who is asked, and for what."""
        found = [("read, seen", self.peer, "read"), ("write", self.peer, "write"), ("log-in", self.peer, "log-in")]
        if self.not_seen is not None:
            found.insert(1, ("read, not seen", self.not_seen, "read"))
        return found


def ours(where: str, store: Store, share: int = 1) -> Entrant:
    made = [_peers.ours_on(where, store, store_deadline=PATIENCE, cache_bytes=size) for size in (16 << 20, 0)]
    made[0].name = f"ours, {where}"
    return Entrant(made[0], made[1], share)


async def measure(entrants: list[Entrant], in_flight: int, requests: int, rounds: int) -> Figures:
    """Medians of µs of CPU per request."""
    spent: dict[tuple[str, str], list[float]] = {}
    try:
        for entrant in entrants:
            await check(entrant.peer.app)
        for number in range(rounds):
            for entrant in entrants:
                for column, peer, kind in entrant.columns():
                    figure = await cpu_of(peer.app, kind, in_flight, max(requests // entrant.share, in_flight))
                    spent.setdefault((entrant.peer.name, column), []).append(figure)
            progress(f"  {in_flight} in flight: round {number + 1} of {rounds}")
    finally:
        for entrant in entrants:
            if entrant.peer.close is not None:
                await entrant.peer.close()
    figures: Figures = {}
    for (name, column), values in spent.items():
        figures.setdefault(name, {})[column] = median(values)
    return figures


async def on_redis(server: Server, cluster: Cluster, requests: int, rounds: int) -> Figures:
    entrants = [
        Entrant(_peers.signed_cookie()),
        ours("one Redis", RedisStore.from_url(server.url)),
        ours("cluster of three Redis", RedisStore.from_cluster(cluster.url)),
    ]
    return await measure(entrants, 64, requests, rounds)


async def on_databases(urls: dict[str, str], theirs: list[Peer], requests: int, rounds: int) -> Figures:
    entrants = [Entrant(_peers.signed_cookie())]
    for name, url in urls.items():
        store = SQLStore.from_url(url)
        await store.create_tables()
        entrants.append(ours(name, store, 8))
    entrants += [Entrant(peer, share=8) for peer in theirs]
    return await measure(entrants, 10, requests, rounds)


@contextmanager
def a_postgresql() -> Iterator[PostgreSQL | None]:
    """One of our own, where its programs are here."""
    if PostgreSQL.find() is None:
        yield None
        return
    server = PostgreSQL()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def versions(server: Server) -> str:
    said = [server.version, f"SQLite {sqlite3.sqlite_version}"]
    programs = PostgreSQL.find()
    if programs is not None:
        out = subprocess.run([programs[1], "--version"], capture_output=True, text=True, check=True).stdout
        said.append("PostgreSQL " + out.split()[2])
    return ", ".join(said)


def djangos(folder: Path, postgresql: PostgreSQL | None) -> list[Peer]:
    from benchmarks import _django

    databases = _django.set_up(folder, postgresql.port if postgresql is not None else None)
    return [_django.sessions(server, database) for server, database in databases.items()]


def all_databases(requests: int, rounds: int, left_out: list[str]) -> Figures:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asgi-sessions-benchmark-")))
        urls = {"SQLite": f"sqlite+aiosqlite:///{folder}/sessions.db"}
        postgresql = stack.enter_context(a_postgresql())
        if postgresql is None:
            left_out.append("PostgreSQL, whose programs are not on this machine")
        else:
            urls["PostgreSQL"] = postgresql.url
        theirs: list[Peer] = []
        try:
            theirs = djangos(folder, postgresql)
        except ImportError as error:
            left_out.append(f"Django's database sessions: {error}")
        figures: Figures = run(on_databases(urls, theirs, requests, rounds))
        return figures


def markdown(data: dict[str, Any]) -> str:
    parts = [
        f"µs of CPU per request in the app's process, app included; in brackets the ratio to {SIGNED}. {data['server']}.\n"
    ]
    for case, figures in data["cases"].items():
        signed, rows = figures[SIGNED], []
        for name, by_column in figures.items():
            beside = {**signed, "read, not seen": signed["read, seen"]}
            told = {column: f"{figure:.1f} ({figure / beside[column]:.2f})" for column, figure in by_column.items()}
            rows.append([name, *(told.get(column, "") for column in COLUMNS)])
        parts.append(f"\n**{case}**\n\n" + table(["", *COLUMNS], rows) + "\n")
    if data["left out"]:
        parts.append("\nLeft out: " + "; ".join(data["left out"]) + ".\n")
    return "".join(parts)


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    requests, rounds = (64, 1) if arguments.quick else (6400, 5)
    left_out: list[str] = []
    with a_server() as server:
        with Cluster(an_executable()) as cluster:
            cases = {"64 in flight": run(on_redis(server, cluster, requests, rounds))}
        cases["10 in flight"] = all_databases(requests, rounds, left_out)
        for what in left_out:
            progress(f"left out: {what}")
        data = {"server": versions(server), "cases": cases, "left out": left_out}
        save("stores", data, arguments.into)
    print(markdown(data))


if __name__ == "__main__":
    main()
