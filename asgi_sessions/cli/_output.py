"""The output of commands: columns for people, JSON for scripts, and a progress bar."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final

import msgspec

from asgi_sessions.rekey import Progress

CELLS: Final = 24
"""The width of the bar, in characters."""

BETWEEN_LOOKS: Final = 0.1
"""Seconds between two updates of the bar."""

Words = Callable[[Progress], str]


def shown(value: object) -> str:
    """A value as one line for a terminal. Control characters are replaced, since a user's name could rewrite the screen."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return "".join(char if char.isprintable() else "�" for char in str(value))


def counted(number: int, thing: str) -> str:
    """A number of things: ``1 session``, ``1,200 sessions``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns, each as wide as its longest cell."""
    cells = [list(heads), *([shown(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def print_fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print a name and a value on each line."""
    for name, value in pairs:
        print(f"{name:<14} {shown(value)}")


def print_json(value: object) -> None:
    """Print one JSON document, with times as ISO 8601 in UTC."""
    print(json.dumps(plain(value), indent=2))


def plain(value: object) -> Any:
    """A dataclass or a struct as JSON types."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def drawn(progress: Progress, first: Progress, seconds: float, words: Words) -> str:
    """The line of the bar, ``seconds`` after ``first``, with an estimate of the time left."""
    line = f"{words(progress)}, {progress.looked_at / seconds if seconds else 0:,.0f}/s"
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


class Bar:
    """Shows the progress of a walk on a terminal. If stderr is no terminal, it prints no bar."""

    def __init__(self, words: Words, start: Progress = Progress()) -> None:  # noqa: B008 - frozen
        self.last = start
        self._words = words
        self._first: Progress | None = None
        self._began = monotonic()
        self._drawn_at = 0.0
        self._is_seen = sys.stderr.isatty()

    def show(self, progress: Progress) -> None:
        """Draw the progress, at most once in ``BETWEEN_LOOKS``. The first call sets where the walk begins."""
        self._first = first = self._first or progress
        self.last = progress
        now = monotonic()
        is_over = not progress.cursor and progress.share == 1
        if self._is_seen and (is_over or now - self._drawn_at >= BETWEEN_LOOKS):
            self._drawn_at = now
            room = shutil.get_terminal_size().columns - 1
            line = drawn(progress, first, now - self._began, self._words)
            print(f"\r{line[:room]:<{room}}", end="", file=sys.stderr, flush=True)

    def leave(self) -> None:
        """End the line of the bar."""
        if self._drawn_at:
            print(file=sys.stderr)
            self._drawn_at = 0.0
