"""An app on SQLite that is to be killed: ``python -m tests.chaos.writer FILE ROUND``.

Twenty users do one thing after the other, for ever. What they are going to do and what was acknowledged is a line of JSON each,
in one write to a pipe: what was acknowledged before the process died can be read there.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from datetime import timedelta

from asgi_sessions import SessionMiddleware, Sessions, SQLStore
from tests.support import Browser, app_with, destroy, log_in, put, regenerate

USERS = 20


def say(*line: str | None) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


async def live(name: str, app: SessionMiddleware, sessions: Sessions) -> None:
    dice = random.Random(name)
    while True:
        browser = Browser(app)
        if (await browser.do(log_in(name))).status != 200:
            continue
        say("logged in", name, browser.token)
        for number in range(dice.randrange(3, 12)):
            if (await browser.do(put(**{f"write {number}": name}))).status == 200:
                say("wrote", name, browser.token, f"write {number}")
        how = dice.choice([destroy, regenerate, None])
        token = browser.token
        say("ending", name, token)
        if how is None:
            await sessions.revoke_all(name)
        elif (await browser.do(how)).status != 200:
            continue
        say("ended", name, token)


async def main(file: str, round_: str) -> None:
    store = SQLStore.from_url(f"sqlite+aiosqlite:///{file}")
    await store.create_tables()
    app = app_with(store, store_deadline=timedelta(seconds=20))
    await asyncio.gather(*(live(f"user {number} of round {round_}", app, app.sessions) for number in range(USERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
