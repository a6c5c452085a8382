"""What each feature costs: ``python -m benchmarks.prices [--quick]``. µs of CPU per request, 64 in flight, uvloop, Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx

from asgi_sessions import DeviceBound, RedisStore, SessionMiddleware, Timeouts
from asgi_sessions.dbsc.testing import SoftwareDevice
from benchmarks._peers import KEY, a_user
from benchmarks._work import (
    a_scope,
    a_server,
    a_session,
    answer,
    ask,
    cpu,
    cpu_of,
    median,
    nowhere,
    options,
    progress,
    receive,
    run,
    save,
    table,
)

IN_FLIGHT = 64


async def app(scope: Any, receive: Any, send: Any) -> None:
    session, path = scope["session"], scope["path"]
    if path == "/read":
        session.get("user")
    elif path == "/list":
        session.get("cart")
    elif path == "/write":
        session["n"] = session.get("n", 0) + 1
    elif path == "/fill":
        session.update({"user": "alice", "cart": list(range(50)), "csrf": "x" * 40, "seen": "y" * 60})
    elif path == "/regenerate":
        session.regenerate()
    elif path == "/log-in":
        session.log_in(a_user())  # of one user, no more than 25 sessions live
    elif path == "/log-out":
        session.destroy()
    await answer(send, b"ok")


async def in_turn(middleware: Any, paths: list[str], requests: int) -> float:
    """Requests that go through these paths one after the other, each with the cookie that the one before it set."""

    async def client(_: int) -> None:
        cookie = None
        for path in paths:
            _, fresh = await ask(middleware, path, cookie)
            cookie = fresh or cookie

    return await cpu(client, 1, requests // len(paths)) / len(paths)


async def contended(middleware: Any, requests: int) -> float:
    """Two writers of one session at a time: one of them finds it changed, and merges."""
    cookies = [await a_session(middleware) for _ in range(IN_FLIGHT // 2)]
    scopes = [a_scope("/write", [(b"cookie", cookies[number // 2])]) for number in range(IN_FLIGHT)]
    return await cpu(lambda number: middleware(scopes[number].copy(), receive, nowhere), IN_FLIGHT, requests)


async def bound(middleware: Any, kind: str, requests: int) -> float:
    """Requests of sessions that a device in software has bound; each brings both cookies."""
    headers: list[Any] = []
    for _ in range(IN_FLIGHT):
        device = SoftwareDevice(httpx.ASGITransport(middleware))
        async with httpx.AsyncClient(transport=device, base_url="https://testserver") as client:
            await client.get("/fill")
            await client.get("/log-in")
            pairs = {**client.cookies, **{name: value for name, (value, _) in device.cookies.items()}}
        headers.append((b"cookie", "; ".join(f"{name}={value}" for name, value in pairs.items()).encode()))
    return await several(middleware, kind, headers, requests)


async def logged_in(middleware: Any, kind: str, requests: int) -> float:
    """The same requests of sessions that are not bound, with as many cookies."""
    headers: list[Any] = []
    for _ in range(IN_FLIGHT):
        cookie = await a_session(middleware)
        _, fresh = await ask(middleware, "/log-in", cookie)
        headers.append((b"cookie", (fresh or cookie) + b"; " + b"o" * 38 + b"=" + b"1800000000.0123456789012345678901"))
    return await several(middleware, kind, headers, requests)


async def several(middleware: Any, kind: str, headers: list[Any], requests: int) -> float:
    scopes = [a_scope(f"/{kind}", [header]) for header in headers]
    return await cpu(lambda number: middleware(scopes[number].copy(), receive, nowhere), IN_FLIGHT, requests)


Case = tuple[str, str, Callable[[int], Awaitable[float]]]
"""What is asked, a note, and the µs of so many requests."""


def cases_of(made: Callable[..., SessionMiddleware]) -> list[Case]:
    async def heard(event: Any) -> None:
        """Counts nothing."""

    always = Timeouts(touch=timedelta(0))
    plain, sealed, touching = made(), made(secret_keys=[KEY]), made(timeouts=always)
    binding = made(secret_keys=[KEY], device_bound=DeviceBound())
    new, sealed_new = made(cache_bytes=0), made(secret_keys=[KEY], cache_bytes=0)
    hooked, skipping = made(on_event=heard, timeouts=always), made(skip=lambda scope: False)
    return [
        ("no cookie", "and nothing asked of the session", lambda n: cpu_of(plain, "anonymous", IN_FLIGHT, n)),
        ("read", "one str is read, of a record that was seen", lambda n: cpu_of(plain, "read", IN_FLIGHT, n)),
        ("read, not seen before", "", lambda n: cpu_of(new, "read", IN_FLIGHT, n)),
        ("read, with skip=", "", lambda n: cpu_of(skipping, "read", IN_FLIGHT, n)),
        ("read, with secret_keys", "signed and encrypted", lambda n: cpu_of(sealed, "read", IN_FLIGHT, n)),
        ("read of a user", "with secret_keys", lambda n: logged_in(binding, "read", n)),
        ("read of a user, bound to a device", "", lambda n: bound(binding, "read", n)),
        ("read, with secret_keys, not seen before", "", lambda n: cpu_of(sealed_new, "read", IN_FLIGHT, n)),
        ("read, activity noted", "once a minute and session", lambda n: cpu_of(touching, "read", IN_FLIGHT, n)),
        ("read, activity noted, on_event=", "", lambda n: cpu_of(hooked, "read", IN_FLIGHT, n)),
        ("forged", "a load that finds nothing", lambda n: cpu_of(plain, "forged", IN_FLIGHT, n)),
        ("forged, with secret_keys", "no load", lambda n: cpu_of(sealed, "forged", IN_FLIGHT, n)),
        ("write", "one key is put in", lambda n: cpu_of(plain, "write", IN_FLIGHT, n)),
        ("write, with secret_keys", "", lambda n: cpu_of(sealed, "write", IN_FLIGHT, n)),
        ("write of a user", "with secret_keys", lambda n: logged_in(binding, "write", n)),
        ("write of a user, bound to a device", "", lambda n: bound(binding, "write", n)),
        ("write, two at once in one session", "a conflict and a merge for half of them", lambda n: contended(plain, n)),
        (
            "fill, regenerate ×3, one after another",
            "mean of the four",
            lambda n: in_turn(plain, ["/fill", *["/regenerate"] * 3], n),
        ),
        (
            "fill, log in, log out, one after another",
            "mean of the three",
            lambda n: in_turn(plain, ["/fill", "/log-in", "/log-out"], n),
        ),
    ]


async def measure(url: str, rounds: int, requests: int) -> list[list[Any]]:
    stores: list[RedisStore] = []

    def made(**options: Any) -> SessionMiddleware:
        stores.append(RedisStore.from_url(url))
        return SessionMiddleware(app, stores[-1], **options)

    cases = cases_of(made)
    spent: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, _, work in cases:
            spent.setdefault(name, []).append(await work(requests))
        progress(f"  prices: round {number + 1} of {rounds}")
    for store in stores:
        await store.aclose()
    return [[name, note, median(spent[name])] for name, note, _ in cases]


def markdown(data: dict[str, Any]) -> str:
    base = {name: cost for name, _, cost in data["prices"]}
    rows = []
    for name, note, cost in data["prices"]:
        of = name.split(",")[0]
        more = f"{cost / base[of] - 1:+.0%}" if of in base and of != name else ""
        rows.append([name, note, f"{cost:.1f}", more])
    return f"{data['server']}\n\n" + table(["request", "", "µs", "to the plain one"], rows) + "\n"


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    with a_server() as server:
        prices = run(measure(server.url, *((1, 64) if arguments.quick else (5, 6400))))
        data = {"server": server.version, "prices": prices}
        save("prices", data, arguments.into)
    print(markdown(data))


if __name__ == "__main__":
    main()
