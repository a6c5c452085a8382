"""Correct under speed: ``python -m benchmarks.mix_up [--quick]``.

Two hundred users, 40 % of their requests cancelled at random moments, a proxy that delays, and the server killed and started
again in the middle: at least 100,000 requests, and nobody may get what is somebody else's, nor lose what was acknowledged.
"""

from __future__ import annotations

import secrets
import sys
import time
from contextlib import ExitStack
from typing import Any

from asgi_sessions import RedisStore
from benchmarks._work import options, progress, run, save
from tests.conftest import Server
from tests.mix_up import mix_up
from tests.proxy import Proxy


def markdown(data: dict[str, Any]) -> str:
    counts = ", ".join(f"{number:,} {what}" for what, number in data["counts"].items())
    faults = len(data["faults"])
    return f"{data['requests']:,} requests of {data['users']} users in {data['seconds']:.0f} s: {counts}. Wrong: {faults}.\n"


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    seed = secrets.randbelow(10**6)
    server = Server("--appendonly", "yes", "--appendfsync", "always")
    began = time.monotonic()
    with ExitStack() as stack:
        stack.callback(server.remove)
        server.start()
        proxy = stack.enter_context(Proxy(server.port))
        proxy.delay, proxy.jitter = 0.0005, 0.002
        store = RedisStore.from_url(proxy.url(server.url))
        users, requests = (50, 1_000) if arguments.quick else (200, 120_000)

        def told(done: int) -> None:
            if done % 10_000 == 0:
                progress(f"  {done:,} of {requests:,} requests")

        work = mix_up(
            store, users=users, requests=requests, seed=seed, halfway=server.restart, progress=told, close=store.aclose
        )
        outcome = run(work)
    data = {
        "seed": seed,
        "users": users,
        "requests": outcome.requests,
        "seconds": time.monotonic() - began,
        "counts": dict(outcome.counts),
        "faults": outcome.faults,
    }
    save("mix_up", data, arguments.into)
    print(markdown(data))
    if outcome.faults:
        sys.exit("\n".join([f"seed {seed}", *outcome.faults[:20]]))


if __name__ == "__main__":
    main()
