"""CPU per request in process, by interpreter: ``python -m benchmarks.interpreters [--quick]``; 64 in flight, uvloop.

A build without PGO and LTO is slower throughout, and not everybody by the same share. So the ratios belong to an interpreter. The
interpreters are this one, and those of the environments ``.venv-bench*``; ``make bench`` makes one with Debian's where that is
here. They take turns, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from benchmarks._work import KINDS, a_server, median, parsed, parser, progress, run, save
from benchmarks.in_process import FEW, Figures, figures_table, makers, measure

ROOT = Path(__file__).parent.parent
IN_FLIGHT = 64


def described() -> str:
    """This interpreter, and how it was built as far as it knows."""
    if Path(sys.base_prefix) == Path("/usr") and Path("/etc/debian_version").exists():
        return (
            f"Debian's Python {platform.python_version()}"  # by its rules, not by its configuration, with PGO and LTO
        )
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    has = [name for name, flag in (("PGO", "--enable-optimizations"), ("LTO", "--with-lto")) if flag in options]
    return f"Python {platform.python_version()}, built {'with ' + ' and '.join(has) if has else 'without PGO and LTO'}"


def interpreters(*, quick: bool) -> list[str]:
    """Each once, by the file that is behind its links."""
    found = {os.path.realpath(sys.executable): sys.executable}
    for python in [] if quick else sorted(ROOT.glob(".venv-bench*/bin/python")):
        found.setdefault(os.path.realpath(python), str(python))
    return list(found.values())


def ask(python: str, url: str, requests: int) -> tuple[str, Figures]:
    """What that interpreter calls itself, and a round of its figures."""
    command = [python, "-m", "benchmarks.interpreters", "--turn", url, str(requests)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        where = Path(python).parent.parent.name
        raise RuntimeError(f"{where}: {ended.stderr.strip().splitlines()[-1]}")
    name, figures = json.loads(ended.stdout)
    return name, figures


def turn(url: str, requests: int) -> None:
    """The program of :func:`ask`."""
    made = {name: make for name, make in makers(url, None).items() if name in FEW}
    print(json.dumps([described(), run(measure(made, IN_FLIGHT, requests, 1))]))


def medians(turns: list[Figures]) -> Figures:
    return {
        name: {kind: median([each[name][kind] for each in turns]) for kind in KINDS if kind in by_kind}
        for name, by_kind in turns[0].items()
    }


def markdown(data: dict[str, Any]) -> str:
    parts = [
        f"µs of CPU per request, {IN_FLIGHT} in flight, uvloop; in brackets the ratio to Starlette's signed cookie.\n"
    ]
    for name, figures in data["interpreters"].items():
        parts.append(f"\n**{name}**\n\n{figures_table(figures)}\n")
    if data["left out"]:
        parts.append("\nLeft out: " + "; ".join(data["left out"]) + ".\n")
    return "".join(parts)


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--turn", nargs=2, metavar=("URL", "REQUESTS"), help="for the program itself")
    arguments = parsed(made, argv)
    if arguments.turn:
        turn(arguments.turn[0], int(arguments.turn[1]))
        return
    requests, rounds = (64, 1) if arguments.quick else (3200, 5)
    turns: dict[str, list[Figures]] = {}
    left_out: dict[str, None] = {}
    with a_server() as server:
        for number in range(rounds):
            for python in interpreters(quick=arguments.quick):
                try:
                    name, figures = ask(python, server.url, requests)
                except RuntimeError as error:
                    left_out[str(error)] = None
                    progress(f"left out: {error}")
                else:
                    turns.setdefault(name, []).append(figures)
            progress(f"  round {number + 1} of {rounds}")
        data = {
            "server": server.version,
            "interpreters": {name: medians(each) for name, each in turns.items()},
            "left out": list(left_out),
        }
        save("interpreters", data, arguments.into)
    print(markdown(data))


if __name__ == "__main__":
    main()
