"""Memory: ``python -m benchmarks.memory [--quick]``.

Bytes of the server's memory per stored session of 300 bytes, by ``used_memory`` before and after many of them; bytes of the app's
process per request that waits for the store, and per open connection that has a session.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import redis

from asgi_sessions import RedisStore, SessionMiddleware
from benchmarks import _peers
from benchmarks._peers import Peer
from benchmarks._work import (
    DATA,
    a_scope,
    a_server,
    a_session,
    answer,
    ask,
    nowhere,
    options,
    progress,
    receive,
    run,
    save,
    table,
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/fill":
        scope["session"].update(DATA)
    elif scope["path"].startswith("/log-in/"):
        scope["session"].log_in(scope["path"][8:])
        scope["session"].update(DATA)
    elif scope["path"] == "/wait":
        scope["session"].get("user")
        await asyncio.Event().wait()
    await answer(send, b"ok")


async def stored(url: str, peer: Peer, many: int, paths: list[str]) -> float:
    """Bytes of the server per session that these requests, in turn, make."""
    with redis.Redis.from_url(url) as client:
        await ask(peer.app, paths[0])  # connections and scripts are there
        await ask(peer.app, paths[0])
        before: Any = client.info("memory")
        for start in range(0, many, 50):
            await asyncio.gather(*(ask(peer.app, paths[number % len(paths)]) for number in range(start, start + 50)))
        after: Any = client.info("memory")
        client.flushdb()
    return float(after["used_memory"] - before["used_memory"]) / many


async def on_the_server(url: str, many: int) -> list[list[Any]]:
    found: list[list[Any]] = []
    users = [f"/log-in/user {number}" for number in range(many)]
    for name, options_, paths in (
        ("ours, anonymous", {}, ["/fill"]),
        ("ours, anonymous, secret_keys", {"secret_keys": [_peers.KEY]}, ["/fill"]),
        ("ours, logged in, with the user's index", {}, users),
        ("ours, logged in, one user's 25 sessions", {}, [f"/log-in/user {number // 25}" for number in range(many)]),
    ):
        store = RedisStore.from_url(url)
        peer = Peer(name, SessionMiddleware(app, store, **options_), store.aclose)  # type: ignore[arg-type]  # names fit
        found.append([name, await stored(url, peer, many, paths)])
        await store.aclose()
        progress(f"  {name}")
    for make in (_peers.starsessions, _peers.litestar):
        try:
            peer = make(url)
        except ImportError as error:
            progress(f"left out: {error}")
            continue
        found.append([peer.name, await stored(url, peer, many, ["/fill"])])
        assert peer.close is not None
        await peer.close()
        progress(f"  {peer.name}")
    return found


async def in_the_process(url: str, many: int) -> list[list[Any]]:
    """Bytes that Python holds while so many requests wait: for the store, and in the app with their session."""
    store = RedisStore.from_url(url)
    middleware = SessionMiddleware(app, store)
    bare: list[list[Any]] = []
    cookie = await a_session(middleware)
    assert isinstance(store._bulk, object)
    for name, target in (("no session", app_that_waits), ("ours, session in hand", middleware)):
        scopes = [a_scope("/wait", [(b"cookie", cookie)]) for _ in range(many)]
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        tasks = [asyncio.ensure_future(target(scope, receive, nowhere)) for scope in scopes]
        await asyncio.sleep(0.5)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        bare.append([name, (after - before) / many])
    await store.aclose()
    return bare


async def app_that_waits(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


def markdown(data: dict[str, Any]) -> str:
    rows = [[name, f"{size:.0f}"] for name, size in data["on the server"]]
    parts = [
        f"{data['server']}, {data['sessions']:,} sessions of 300 bytes.\n\n",
        table(["per stored session", "bytes"], rows),
    ]
    rows = [[name, f"{size:.0f}"] for name, size in data["in the process"]]
    parts += ["\n\n", table(["per request or socket that is open, in the app's process", "bytes"], rows)]
    rows = [[what, limit, reached, "yes" if good else "**no**"] for what, limit, reached, good in data["bounds"]]
    parts += ["\n\n**What it should reach**\n\n", table(["", "bound", "measured", "reached"], rows)]
    return "".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    many, waiting = (500, 100) if arguments.quick else (20_000, 2_000)
    with a_server() as server:
        on_server = run(on_the_server(server.url, many))
        sizes = dict(on_server)
        bounds = [
            [f"bytes, {name}", f"≤ {limit}", f"{sizes[name]:.0f}", sizes[name] <= limit]
            for name, limit in (("ours, anonymous", 450), ("ours, logged in, with the user's index", 750))
        ]
        data = {
            "server": server.version,
            "sessions": many,
            "on the server": on_server,
            "in the process": run(in_the_process(server.url, waiting)),
            "bounds": bounds,
        }
        save("memory", data, arguments.into)
    print(markdown(data))


if __name__ == "__main__":
    main()
