"""An app whose sessions are in a file, killed with SIGKILL in the middle of its writes, again and again, on the same file.

Against its journal: the file is whole, every acknowledged write is in it, no ended session answers, and the list of a user's
sessions shows those that answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from asgi_sessions import SQLStore
from tests.chaos.test_chaos import SECONDS, SEED
from tests.support import Browser, app_with, read

pytestmark = pytest.mark.timeout(120 + 3 * SECONDS)


Line = tuple[str, str, str, str | None]
"""What it did: a verb, a user, a token, and the key if it wrote one."""


def let_it_write_and_kill_it(file: Path, round_: int, seconds: float) -> list[Line]:
    command = [sys.executable, "-m", "tests.chaos.writer", str(file), str(round_)]
    lines: list[Line] = []
    kill_at = None
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:  # to the last that it wrote
                verb, user, token, *key = json.loads(line)
                lines.append((verb, user, token, key[0] if key else None))
                kill_at = kill_at or time.monotonic() + seconds  # it has begun
                if time.monotonic() > kill_at:
                    child.kill()
        finally:
            child.kill()
    assert child.returncode == -signal.SIGKILL, "it ended by itself"
    return lines


async def test_a_killed_app_has_lost_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    file, dice, until = tmp_path / "sessions.db", random.Random(SEED), time.monotonic() + SECONDS
    wrong: list[str] = []
    kills, ended, journal = 0, 0, list[Line]()
    while time.monotonic() < until or ended <= 5:  # however slow the machine is, some have ended
        lines = await asyncio.to_thread(let_it_write_and_kill_it, file, kills, dice.uniform(0.2, 1.5))
        kills += 1
        with sqlite3.connect(file) as connection:
            whole = connection.execute("PRAGMA integrity_check").fetchall()
        connection.close()
        if whole != [("ok",)]:
            wrong.append(f"the file is damaged: {whole}")
        wrong += await what_is_wrong(file, lines)
        journal += lines
        ended += sum(verb == "ended" for verb, *_ in lines)

    print(f"\nseed {SEED}: {kills} kills, {len(journal)} lines, {ended} ended")
    assert wrong == [], f"CHAOS_SEED={SEED}"
    assert ended > 5


async def what_is_wrong(file: Path, lines: list[Line]) -> list[str]:
    store = SQLStore.from_url(f"sqlite+aiosqlite:///{file}")
    app = app_with(store)
    sessions = app.sessions
    wrong: list[str] = []
    written: dict[str, set[str]] = defaultdict(set)
    state: dict[str, tuple[str, str]] = {}
    for verb, user, token, key in lines:
        state[token] = (verb, user)
        if key is not None:
            written[token].add(key)

    answering: dict[str, set[str]] = defaultdict(set)
    for token, (verb, user) in state.items():
        found: dict[str, Any] = await read(Browser(app, token))
        if found["user_id"] == user:
            answering[user].add(found["id"])
        if verb == "ended" and (found["user_id"], found["data"]) != (None, {}):
            wrong.append(f"a session of {user} that had ended answered {found}")
        if verb in ("logged in", "wrote") and (found["user_id"] != user or not written[token] <= found["data"].keys()):
            wrong.append(f"{user} misses {written[token]}, and finds {found}")
    for user in {user for _, user in state.values()}:
        listed = {info.id for info in await sessions.list(user)}
        if not answering[user] <= listed:
            wrong.append(f"{user} has sessions that are not listed")
        await sessions.revoke_all(user)
        if await sessions.list(user):
            wrong.append(f"{user} ended all sessions, and has some")
    for token, (_, user) in state.items():
        if (await read(Browser(app, token)))["user_id"] is not None:
            wrong.append(f"{user} ended all sessions, and one answers")
    await store.aclose()
    return wrong
