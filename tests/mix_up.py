"""Does anybody ever get what is somebody else's? Many users at once, many of them leaving in the middle, on a bad road.

The middle of promise 20, for the suite and for ``benchmarks/mix_up.py``: everybody has one session with their name in it and a
number that they count up. What is checked is checked from outside, against what was acknowledged:

* an answer holds the asker's name, whoever else was answered, delayed or cancelled at that moment;
* the number in it is one that the asker wrote, and not older than the last write that was acknowledged;
* no answer sets a cookie, since nobody's token changes;
* other than that there is ``503``, and only while the server is away.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from asgi_sessions import SessionMiddleware
from asgi_sessions.stores import Store


@dataclass
class Outcome:
    """What happened: how often each kind of answer was given, and every one that was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return sum(self.counts.values())


@dataclass
class User:
    name: str
    cookie: bytes = b""
    written: int = 0
    """The highest number that was sent."""
    acknowledged: int = 0
    """The highest number of which the app said that it is saved."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    session, path = scope["session"], scope["path"]
    if path.startswith("/name/"):
        session.update(name=path[6:], n=0)
    elif path.startswith("/write/"):
        session["n"] = int(path[7:])
    body = json.dumps(dict(session)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def ask(middleware: Any, path: str, cookie: bytes) -> tuple[int, Any, bytes | None]:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"cookie", cookie)] if cookie else []
    await middleware({"type": "http", "method": "GET", "path": path, "headers": headers}, receive, send)
    start = messages[0]
    cookies = [value for name, value in start["headers"] if name == b"set-cookie"]
    body = b"".join(message.get("body", b"") for message in messages[1:])
    found = json.loads(body) if start["status"] == 200 else None
    return start["status"], found, cookies[0].split(b";")[0] if cookies else None


async def mix_up(
    store: Store,
    *,
    users: int,
    requests: int,
    cancelled: float = 0.4,
    longest: float = 0.01,
    seed: int = 0,
    halfway: Callable[[], Any] | None = None,
    close: Callable[[], Any],
    progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Let so many users make so many requests together.

    Args:
        cancelled: the share of requests that are cancelled, at a random moment within ``longest`` seconds.
        halfway: called in a thread after half of the requests: a server may be restarted there.
        close: what to wait for in the end.
    """
    dice = random.Random(seed)
    middleware = SessionMiddleware(app, store)
    outcome = Outcome()
    everybody = [User(f"user {number}") for number in range(users)]
    away = False
    left = requests

    async def enter(user: User) -> None:
        _, _, cookie = await ask(middleware, f"/name/{user.name}", b"")
        assert cookie is not None
        user.cookie = cookie

    def judge(user: User, path: str, status: int, found: Any, cookie: bytes | None, floor: int) -> None:
        if status != 200:
            outcome.counts["503"] += 1
            if not away:
                outcome.faults.append(f"{user.name}: {status} on {path} while the server is there")
            return
        outcome.counts["answered"] += 1
        if found.get("name") != user.name or cookie is not None:
            outcome.faults.append(f"{user.name} got {found} and the cookie {cookie is not None} on {path}")
        elif not floor <= found["n"] <= user.written:
            outcome.faults.append(f"{user.name} got n={found['n']} on {path}, not from {floor} to {user.written}")

    async def go(user: User) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            if left % 1000 == 0:
                progress(requests - left)
            floor = user.acknowledged
            path = "/read"
            if dice.random() < 0.4:
                user.written += 1
                path = f"/write/{user.written}"
            task = asyncio.ensure_future(ask(middleware, path, user.cookie))
            if dice.random() < cancelled:
                await asyncio.sleep(dice.uniform(0, longest) if dice.random() < 0.8 else 0)
                task.cancel()
            try:
                status, found, cookie = await task
            except asyncio.CancelledError:
                outcome.counts["cancelled"] += 1
                continue
            judge(user, path, status, found, cookie, floor)
            if status == 200 and path != "/read":
                user.acknowledged = user.written
            if status != 200:
                left += 1  # asked again: the second half of it all is to happen after the trouble
                await asyncio.sleep(0.05)

    async def disturb() -> None:
        nonlocal away
        while left > requests // 2:  # noqa: ASYNC110 - a look now and then is enough
            await asyncio.sleep(0.01)
        if halfway is not None:
            away = True
            await asyncio.to_thread(halfway)
            for _ in range(5):  # until the breaker has found out, and everybody's last 503 is through
                while (await ask(middleware, "/read", everybody[0].cookie))[0] != 200:  # noqa: ASYNC110 - likewise
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.1)
            away = False

    await asyncio.gather(*(enter(user) for user in everybody))
    disturbing = asyncio.ensure_future(disturb())
    await asyncio.gather(*(go(user) for user in everybody))
    await disturbing
    # And at the end: what was acknowledged is there.
    for user in everybody:
        status, found, cookie = await ask(middleware, "/read", user.cookie)
        judge(user, "/read, at the end", status, found, cookie, user.acknowledged)
    await close()
    return outcome
