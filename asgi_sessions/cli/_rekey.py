"""Sealing all records anew, from the command line."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from time import monotonic

from asgi_sessions import ConfigurationError, StoreError
from asgi_sessions.cli._stores import run as run_it
from asgi_sessions.cli._stores import store_of
from asgi_sessions.rekey import Progress, rekey

VARIABLE = "ASGI_SESSIONS_SECRET_KEYS"
"""Where the secrets are: a command line is there for all to see."""

CELLS = 24
"""Of the bar."""

BETWEEN_LOOKS = 0.1
"""Seconds between two drawings of the bar."""


def run(url: str, name: str | None, rate: float, cursor: str, environment: Mapping[str, str] = os.environ) -> int:
    """0: all are done. 1: it stopped, and says where to go on; or some do not open, or there are none, and it says why."""
    secrets = environment.get(VARIABLE, "").split()
    if not secrets:
        raise ConfigurationError(f"put the secrets into {VARIABLE}, newest first, with spaces between them")
    bar = _Bar(Progress(cursor=cursor))

    async def work() -> None:
        store = store_of(url, name)
        try:
            await rekey(store, secrets, rate=rate, cursor=cursor, report=bar.show)
        finally:
            await store.aclose()

    try:
        run_it(work())
    except (StoreError, KeyboardInterrupt) as error:
        bar.leave()
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        print(f"{said(bar.last)}; stopped: {why}", file=sys.stderr)
        print(go_on(bar.last.cursor), file=sys.stderr)
        return 1
    bar.leave()
    print(f"{said(bar.last)}; done")
    if bar.last.damaged:
        why = f"{bar.last.damaged:,} records open with none of these secrets and were left alone: put all secrets of the app "
        why += f"into {VARIABLE}, and give its prefix or table with --name"
    elif not bar.last.looked_at and not cursor:
        why = "there are no records under this name: give the app's prefix or table with --name, and its URL"
    else:
        return 0
    print(f"asgi-sessions: {why}", file=sys.stderr)
    return 1


def said(progress: Progress) -> str:
    """Its numbers in words."""
    return f"{progress.looked_at:,} looked at, {progress.sealed:,} sealed anew, {progress.damaged:,} do not open"


def drawn(progress: Progress, first: Progress, seconds: float) -> str:
    """A line that shows how far it has come, ``seconds`` after ``first``: what is left is told from what was done since then."""
    line = f"{said(progress)}, {progress.looked_at / seconds if seconds else 0:,.0f}/s"
    if progress.share is None:
        return line
    cells = int(progress.share * CELLS)
    line = f"[{'#' * cells}{'.' * (CELLS - cells)}] {progress.share:6.1%}  {line}"
    walked = progress.share - (first.share or 0.0)
    if walked <= 0 or progress.share == 1:
        return line
    return f"{line}, {_duration(seconds * (1 - progress.share) / walked)} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def go_on(cursor: str) -> str:
    """What to type after it was stopped."""
    # With "=", since a cursor may begin with a "-".
    return f"go on with {shlex.quote(f'--from={cursor}')}" if cursor else "begin again; what is done is passed over"


class _Bar:
    """Where it is, on a terminal; elsewhere nothing is said until the end."""

    def __init__(self, start: Progress) -> None:
        self.last = start
        self._first: Progress | None = None
        self._began = monotonic()
        self._drawn_at = 0.0
        self._is_seen = sys.stderr.isatty()

    def show(self, progress: Progress) -> None:
        """What ``rekey`` reports, first of all where it begins."""
        self._first = first = self._first or progress
        self.last = progress
        now = monotonic()
        is_over = not progress.cursor and progress.share == 1
        if self._is_seen and (is_over or now - self._drawn_at >= BETWEEN_LOOKS):
            self._drawn_at = now
            room = shutil.get_terminal_size().columns - 1
            line = drawn(progress, first, now - self._began)
            print(f"\r{line[:room]:<{room}}", end="", file=sys.stderr, flush=True)

    def leave(self) -> None:
        """What is printed next begins on a line of its own."""
        if self._drawn_at:
            print(file=sys.stderr)
