"""A replica: what it costs, how far it is behind under load, and how it comes back after it was away."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from contextlib import suppress
from typing import Any, Self

import redis
import redis.asyncio

from asgi_sessions import RedisStore
from benchmarks._kinds import KINDS, Effort, Load, per_request
from benchmarks._work import Server, a_server

PER_SECOND = 1000
"""Writes while we look how far the replica is behind."""


def follow(primary: Server) -> tuple[str, ...]:
    return ("--replicaof", "127.0.0.1", str(primary.port))


async def until_up(admin: Any) -> float:
    """Seconds until the replica says that it has all."""
    began = time.perf_counter()
    while (await admin.info("replication")).get("master_link_status") != "up":  # noqa: ASYNC110 - of another process
        await asyncio.sleep(0.005)
    return time.perf_counter() - began


async def until_caught_up(primary: Any) -> float:
    """Seconds until the replica has what the primary had when this was called."""
    began = time.perf_counter()
    offset = (await primary.info("replication"))["master_repl_offset"]
    while True:
        info = await primary.info("replication")
        if info["connected_slaves"] and info["slave0"]["state"] == "online" and info["slave0"]["offset"] >= offset:
            return time.perf_counter() - began
        # An acknowledgement comes once a second by itself, at once when it is asked for.
        with suppress(redis.RedisError):
            await primary.execute_command("WAIT", 1, 20)


async def steady(load: Load, until: asyncio.Event) -> int:
    """Writes at a steady rate until then; how many."""
    began, sent = time.perf_counter(), 0
    while not until.is_set():
        await load.send("write", 20, 20)
        sent += 20
        await asyncio.sleep(max(sent / PER_SECOND - (time.perf_counter() - began), 0))
    return sent


class Loaded:
    """Writes go on in the background while the block runs."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._enough = asyncio.Event()
        self.per_second = 0.0

    async def __aenter__(self) -> Self:
        self._began = time.perf_counter()
        self._task = asyncio.ensure_future(steady(self._load, self._enough))
        await asyncio.sleep(0.5)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._enough.set()
        sent = await self._task
        self.per_second = sent / (time.perf_counter() - self._began)


async def costs(requests: int, rounds: int) -> dict[str, Any]:
    """Bytes to the replica for a request of each kind, and CPU of a write: with a replica, without, and of the replica."""
    with a_server() as alone, a_server() as primary, a_server(*follow(primary)) as replica:
        clients = {server: redis.Redis.from_url(server.url) for server in (alone, primary, replica)}
        loads = {server: Load(RedisStore.from_url(server.url)) for server in (alone, primary)}
        for load in loads.values():
            await load.fill(requests)
        stream = {kind: [0.0] for kind in KINDS}
        cpu: dict[str, list[float]] = {"alone": [], "with a replica": [], "of the replica": []}
        for _ in range(rounds):
            cpu["alone"].append((await per_request(clients[alone], loads[alone], "write", requests))["cpu"])
            for kind in KINDS:
                before = clients[replica].info("cpu")
                cost = await per_request(clients[primary], loads[primary], kind, requests)
                stream[kind].append(cost["replicated"])
                if kind == "write":
                    clients[primary].wait(1, 1000)
                    after = clients[replica].info("cpu")
                    cpu["with a replica"].append(cost["cpu"])
                    used = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
                    cpu["of the replica"].append(used / requests)
        for load in loads.values():
            await load.store.aclose()
        for client in clients.values():
            client.close()
    return {
        "bytes": {kind: statistics.median(seen[1:]) for kind, seen in stream.items()},
        "cpu": {name: statistics.median(seen) for name, seen in cpu.items()},
    }


async def lag(load: Load, primary: Any, replica: Any, looks: int) -> dict[str, float]:
    """Under load: bytes that the replica is behind, and ms until it has what was just written."""
    behind, waited = [], []
    async with Loaded(load) as loaded:
        for _ in range(looks):
            # In this order it is at most so much: what is written between the two questions counts as missing.
            has = (await replica.info("replication"))["master_repl_offset"]
            offset = (await primary.info("replication"))["master_repl_offset"]
            behind.append(max(offset - has, 0))
            began = time.perf_counter()
            await primary.execute_command("SET", "benchmark-mark", "1")
            await primary.execute_command("WAIT", 1, 1000)
            waited.append(time.perf_counter() - began)
            await asyncio.sleep(0.02)
    behind.sort()
    waited.sort()
    return {
        "writes per second": loaded.per_second,
        "bytes median": behind[looks // 2],
        "bytes most": behind[-1],
        "wait median": waited[looks // 2],
        "wait p99": waited[looks * 99 // 100],
        "wait most": waited[-1],
    }


async def stopped(load: Load, primary: Any, replica: Server, seconds: float) -> dict[str, float]:
    """The replica's process stops for a while, its connection stays: the primary keeps for it what it misses."""
    before = (await primary.info())["mem_total_replication_buffers"]
    async with Loaded(load):
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            start = (await primary.info("replication"))["master_repl_offset"]
            await asyncio.sleep(seconds)
            info = await primary.info()
        finally:
            os.kill(replica.pid, signal.SIGCONT)
        took = await until_caught_up(primary)
    return {
        "away": seconds,
        "missed": info["master_repl_offset"] - start,
        "held for it": info["mem_total_replication_buffers"] - before,
        "caught up after": took,
    }


async def cut_off(load: Load, primary: Any, replica: Server, away: float, backlog: int) -> dict[str, Any]:
    """The same, and the connection is lost: what it missed must lie in the backlog, or all is copied anew."""
    await primary.config_set("repl-backlog-size", backlog)
    before = await primary.info("stats")
    async with Loaded(load):
        start = (await primary.info("replication"))["master_repl_offset"]
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            await primary.execute_command("CLIENT", "KILL", "TYPE", "replica")
            await asyncio.sleep(away)
            missed = (await primary.info("replication"))["master_repl_offset"] - start
        finally:
            os.kill(replica.pid, signal.SIGCONT)
        took = await until_caught_up(primary)
    after = await primary.info("stats")
    return {
        "away": away,
        "missed": missed,
        "backlog": backlog,
        "copied anew": after["sync_full"] > before["sync_full"],
        "caught up after": took,
    }


async def behaviour(effort: Effort) -> dict[str, Any]:
    with a_server("--repl-diskless-sync-delay", "0") as primary, a_server(*follow(primary)) as replica:
        load = Load(RedisStore.from_url(primary.url))
        await load.fill(effort.requests)
        async with redis.asyncio.Redis.from_url(primary.url) as one, redis.asyncio.Redis.from_url(replica.url) as two:
            await until_up(two)
            found: dict[str, Any] = {"lag": await lag(load, one, two, effort.looks)}
            found["stopped"] = [await stopped(load, one, replica, seconds) for seconds in effort.away]
            missed = int(found["stopped"][-1]["missed"])
            found["cut off"] = [
                await cut_off(load, one, replica, effort.away[-1], size) for size in (missed // 4, missed * 2)
            ]
        await load.store.aclose()
    return found


async def copy(primary: Server) -> dict[str, float]:
    """A new replica of a full server: seconds until it has all, and what that was."""
    with redis.Redis.from_url(primary.url) as client:
        client.config_set("repl-diskless-sync-delay", 0)
        before: Any = client.info()
        with a_server(*follow(primary)) as replica:
            began = time.perf_counter()
            async with redis.asyncio.Redis.from_url(replica.url) as admin:
                await until_up(admin)
            took = time.perf_counter() - began
        after: Any = client.info()
    return {
        "seconds": took,
        "keys": before["db0"]["keys"],
        "memory": before["used_memory"],
        "sent": after["total_net_repl_output_bytes"] - before["total_net_repl_output_bytes"],
        "copied on write": after["rdb_last_cow_size"],
    }


async def measure(effort: Effort) -> dict[str, Any]:
    return {"costs": await costs(effort.requests, effort.rounds), **await behaviour(effort)}
