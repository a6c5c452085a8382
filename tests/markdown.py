"""The documents of this project, as the tests see them: blocks of code, tables and links."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

ANYTHING = "…"
"""In what a document says is printed: whatever comes here on this line."""


def pages() -> list[Path]:
    """Every document; those that a source distribution leaves out are looked for and not missed."""
    papers = [ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "RELEASING.md")]
    found = [*papers, *sorted(DOCS.rglob("*.md")), ROOT / "benchmarks" / "README.md"]
    return [page for page in found if page.exists()]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block: three backticks, a language, perhaps some marks, then the text."""

    page: Path
    line: int
    """Where its first line of text stands, counted from 1."""
    language: str
    marks: frozenset[str]
    text: str

    @property
    def where(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    opened: tuple[int, list[str]] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if opened is None:
            if line.startswith("```"):
                opened, lines = (number + 1, line[3:].split()), []
        elif line == "```":
            first, words = opened
            language, *marks = words or [""]
            found.append(Block(page, first, language, frozenset(marks), "".join(f"{text}\n" for text in lines)))
            opened = None
        else:
            lines.append(line)
    assert opened is None, f"{name_of(page)}: a block begun in line {opened and opened[0] - 1} does not end"
    return found


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of all tables under one heading, without their head lines."""
    found: list[list[str]] = []
    under = False
    head = True
    for line in prose(page).splitlines():
        if line.startswith("#"):
            under = line.lstrip("#").strip() == heading
        elif under and line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            if set(line) <= set("|-: "):
                head = False
            elif not head:
                found.append([cell.strip("| ") for cell in cells])
        else:
            head = True
    assert found, f"{name_of(page)} has no table under {heading!r}"
    return found


def links(page: Path) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """What ``#…`` may point to: headings as slugs."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def agrees(claimed: str, real: str) -> bool:
    """Whether ``real`` is what ``claimed`` says, with ``…`` standing for anything on one line."""
    pattern = "[^\n]*".join(re.escape(part) for part in claimed.strip("\n").split(ANYTHING))
    return re.fullmatch(pattern, real.strip("\n")) is not None


# ── Programs ──


def compiled(block: Block) -> Any:
    """The code of a block, which may await at its top level, with the line numbers of its page."""
    return compile(
        "\n" * (block.line - 1) + block.text,
        name_of(block.page),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )


async def run(block: Block, names: dict[str, Any]) -> str:
    """Execute a block among ``names``; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        waiting = eval(compiled(block), names)
        if inspect.iscoroutine(waiting):
            await waiting
    return printed.getvalue()
