"""What a load costs on a cluster: ``python -m benchmarks.cluster``; half a minute.

CPU of this process per load, 64 in flight, interleaved in one run: one server; a cluster of three primaries with connections
of our own; the same cluster by redis-py's client, which takes a connection from a pool for each command.
"""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack

import redis.asyncio
import uvloop

from asgi_sessions import RedisStore
from asgi_sessions.testing import a_record
from benchmarks._work import a_server, cpu
from tests.clusters import Cluster

IN_FLIGHT = 64
LOADS = 6400
ROUNDS = 5


async def measure(server: str, cluster: str) -> dict[str, float]:
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
        for _ in range(ROUNDS):
            for name, store in stores.items():

                async def load(number: int, store: RedisStore = store) -> None:
                    assert await store.load(records[number].key) == records[number]

                costs[name].append(await cpu(load, IN_FLIGHT, LOADS))
        return {name: statistics.median(each) for name, each in costs.items()}


def main() -> None:
    with a_server() as server, Cluster() as cluster:
        costs = uvloop.run(measure(server.url, cluster.url))
    print("| | µs of CPU per load | |\n|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {cost:.1f} | {cost / costs['one server']:.2f} |")


if __name__ == "__main__":
    main()
