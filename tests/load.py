"""A steady load of users, and a journal of what they were told, which is held against what is there."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from itertools import count
from typing import Any

from asgi_sessions import SessionMiddleware
from tests.support import Browser, destroy, log_in, put, read

LATER = 6
"""Sessions that a user has begun and not yet ended. Those that a snapshot holds end after it."""


class Load:
    """Users who log in, write, read and log out, until told to stop; and what they were told."""

    def __init__(self, app: SessionMiddleware, users: int = 8) -> None:
        self.app = app
        self.answers: Counter[int] = Counter()
        self.refused_at: list[float] = []
        self.wrong: list[str] = []
        self.kept: dict[str, tuple[Browser, int]] = {}
        self.ended: list[Browser] = []
        self._stop = False
        self._tasks = [asyncio.ensure_future(self._user(f"user {number}")) for number in range(users)]

    async def _ask(self, browser: Browser, handler: Any) -> Any:
        response = await browser.do(handler)
        self.answers[response.status] += 1
        if response.status != 200:
            self.refused_at.append(time.monotonic())
        return response

    async def _user(self, name: str) -> None:
        turns = count(1)
        to_end: deque[tuple[int, Browser]] = deque()
        while not self._stop:
            turn = next(turns)
            browser = Browser(self.app)
            if (await self._ask(browser, log_in(name))).status != 200 or browser.token is None:
                await asyncio.sleep(0.02)
                continue
            for number in range(1, 5):
                if (await self._ask(browser, put(whose=name, number=number))).status == 200:
                    self.kept[f"{name} {turn}"] = (browser, number)
                seen = await read(browser)
                if (whose := seen.get("data", {}).get("whose", name)) != name:
                    self.wrong.append(f"{name} saw what is {whose}'s")
                await asyncio.sleep(0.01)
            if turn % 2:
                to_end.append((turn, browser))
            if len(to_end) > LATER:
                turn, browser = to_end.popleft()
                token = browser.token
                ended = (await self._ask(browser, destroy)).status == 200
                self.kept.pop(f"{name} {turn}", None)  # of a log-out that was refused nobody knows
                if ended:
                    self.ended.append(Browser(self.app, token))

    async def stop(self) -> dict[str, Any]:
        """Stop, look at everything that was acknowledged, and say what was refused, lost and revived."""
        self._stop = True
        await asyncio.gather(*self._tasks)
        lost = revived = 0
        for name, (browser, number) in self.kept.items():
            seen = await surely_read(browser)
            data = seen.get("data", {})
            lost += data.get("number", 0) < number
            if data and data["whose"] != name.rpartition(" ")[0]:
                self.wrong.append(f"{name} holds {data}")
        for browser in self.ended:
            seen = await surely_read(browser)
            revived += bool(seen.get("data") or seen.get("user_id"))
        gap = max(self.refused_at, default=0.0) - min(self.refused_at, default=0.0)
        return {
            "answers": dict(self.answers),
            "ended": len(self.ended),
            "lost": lost,
            "revived": revived,
            "wrong": self.wrong,
            "seconds": gap,
        }


async def surely_read(browser: Browser) -> dict[str, Any]:
    """What is in the session, however long it takes until the store says so."""
    give_up = time.monotonic() + 30
    while not (seen := await read(browser)):
        assert time.monotonic() < give_up, "it did not recover"
        await asyncio.sleep(0.05)
    return seen


async def recovered(app: SessionMiddleware, *, shards: int = 1) -> None:
    """Wait until log-ins of several shards are answered again."""
    give_up = time.monotonic() + 30
    for number in range(shards):
        while (await Browser(app).do(log_in(f"probe {number}"))).status != 200:
            assert time.monotonic() < give_up, "it did not recover"
            await asyncio.sleep(0.05)
