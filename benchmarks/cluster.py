"""What a load costs on a cluster: ``python -m benchmarks.cluster [--quick]``; half a minute.

CPU of this process per load, 64 in flight, interleaved in one run: one server; a cluster of three primaries with connections
of our own; the same cluster by redis-py's client, which takes a connection from a pool for each command. Then how long it takes
to end a session, one after the other, with and without waiting for the replica (``durable_ends``).
"""

from __future__ import annotations

import statistics
import time
from contextlib import AsyncExitStack

import redis.asyncio
import uvloop

from asgi_sessions import RedisStore
from asgi_sessions.testing import a_record
from benchmarks._work import a_server, cpu, parser
from tests.clusters import Cluster

IN_FLIGHT = 64


async def measure(server: str, cluster: str, rounds: int, loads: int) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        client = redis.asyncio.RedisCluster.from_url(cluster, protocol=2)
        stack.push_async_callback(client.aclose)
        stores = {
            "one server": RedisStore.from_url(server),
            "cluster": RedisStore.from_cluster(cluster),
            "cluster, redis-py's client": RedisStore(client, prefix="given"),
        }
        records = [a_record(owner=f"user {number}", body=b"x" * 300) for number in range(IN_FLIGHT)]
        costs: dict[str, list[float]] = {name: [] for name in stores}
        for store in stores.values():
            stack.push_async_callback(store.aclose)
            for record in records:
                await store.create(record)
        for _ in range(rounds):
            for name, store in stores.items():

                async def load(number: int, store: RedisStore = store) -> None:
                    assert await store.load(records[number].key) == records[number]

                costs[name].append(await cpu(load, IN_FLIGHT, loads))
        return {name: statistics.median(each) for name, each in costs.items()}


async def ends(cluster: str, many: int) -> dict[int, float]:
    """Microseconds until a session has ended, by how many replicas have to know of it."""
    stores = {replicas: RedisStore.from_cluster(cluster, prefix="ends", durable_ends=replicas) for replicas in (0, 1)}
    took: dict[int, list[float]] = {replicas: [] for replicas in stores}
    for number in range(many):
        for replicas, store in stores.items():
            record = a_record(owner=f"user {number}", number=number)
            await store.create(record)
            began = time.perf_counter()
            await store.delete(record.key)
            took[replicas].append((time.perf_counter() - began) * 1e6)
    for store in stores.values():
        await store.aclose()
    return {replicas: statistics.median(each) for replicas, each in took.items()}


def main(argv: list[str] | None = None) -> None:
    rounds, loads, many = (1, IN_FLIGHT, 20) if parser(__doc__, keeps=False).parse_args(argv).quick else (5, 6400, 1000)
    with a_server() as server, Cluster() as cluster:
        costs = uvloop.run(measure(server.url, cluster.url, rounds, loads))
        waits = uvloop.run(ends(cluster.url, many))
    print("| | µs of CPU per load | |\n|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {cost:.1f} | {cost / costs['one server']:.2f} |")
    print("\n| durable_ends | µs until a session has ended | |\n|---|---|---|")
    for replicas, wait in waits.items():
        print(f"| {replicas} | {wait:.0f} | {wait / waits[0]:.2f} |")


if __name__ == "__main__":
    main()
