"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

Level = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of one check, and what to do about it."""

    level: Level
    check: str
    message: str
    advice: str = ""


ok: Final = partial(Finding, "ok")
note: Final = partial(Finding, "note")
warning: Final = partial(Finding, "warning")
problem: Final = partial(Finding, "problem")
