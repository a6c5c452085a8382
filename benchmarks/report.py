"""Runs all benchmarks, writes ``RESULTS.md`` and the plots: ``python -m benchmarks.report [--quick] [--only-write]``.

``--quick`` writes into a temporary folder, prints the page and removes the folder. The results of the project stay as they are.
``--only PART …`` runs these parts, and writes the pages from them and from the results of the others.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks._work import progress

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = Path("benchmarks/results"), Path("benchmarks/RESULTS.md")
CAPACITY, IMAGES = Path("docs/capacity.md"), Path("docs/images")
PARTS = {
    "in_process": "CPU per request, in process",
    "interpreters": "The same, by interpreter",
    "stores": "The same, by store",
    "over_http": "CPU and requests per second, over HTTP",
    "latency": "Latency",
    "prices": "What each feature costs",
    "growth": "How cost grows",
    "memory": "Memory",
    "mix_up": "Nobody gets what is somebody else's",
}

INK, OURS, OTHERS = "#7d8590", "#2f81f7", "#8b949e"  # legible on white and on black


def plot_in_process(data: dict[str, Any], images: Path) -> None:
    """Bars: µs of CPU per read and per write, by peer."""
    import matplotlib.pyplot as plt

    figures = data["cases"]["64 in flight, uvloop"]
    names = [name for name in figures if {"read", "write"} <= set(figures[name])]
    names.sort(key=lambda name: -figures[name]["read"])
    fig, axes = plt.subplots(1, 2, figsize=(9, 0.42 * len(names) + 1.2), sharey=True)
    for axis, kind in zip(axes, ("read", "write"), strict=True):
        values = [figures[name][kind] for name in names]
        bars = axis.barh(names, values, color=[OURS if name.startswith("ours") else OTHERS for name in names])
        axis.bar_label(bars, [f" {value:.0f}" for value in values], color=INK, fontsize=9)
        axis.set_title(f"{kind}: µs of CPU per request", color=INK, fontsize=10)
        axis.set_xlim(0, max(values) * 1.15)
        axis.tick_params(colors=INK, labelsize=9, length=0)
        axis.set_xticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    fig.tight_layout()
    fig.savefig(images / "benchmark.svg", transparent=True)
    plt.close(fig)


def plot_growth(data: dict[str, Any], images: Path) -> None:
    """Four small plots, each flat or linear, it is hoped."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 2, figsize=(9, 6))
    for axis, (title, head, points) in zip(axes.flat, data["series"], strict=True):
        for column, name in enumerate(head[1:], start=1):
            xs, ys = [point[0] for point in points], [point[column] for point in points]
            axis.plot(xs, ys, "o-", color=(OURS, OTHERS)[column - 1], label=name)
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_title(title, color=INK, fontsize=10)
        axis.set_xlabel(head[0], color=INK, fontsize=9)
        axis.set_ylabel("µs of CPU", color=INK, fontsize=9)
        axis.tick_params(colors=INK, labelsize=9)
        for spine in axis.spines.values():
            spine.set_color(INK)
        if len(head) > 2:
            axis.legend(labelcolor=INK, frameon=False, fontsize=9)
    fig.tight_layout()
    fig.savefig(images / "growth.svg", transparent=True)
    plt.close(fig)


def keep(fig: Any, file: Path) -> None:
    """As an SVG whose text is text: a third of the size."""
    import matplotlib.pyplot as plt

    fig.tight_layout()
    # The names of its parts are random otherwise, and the same figures would be another file.
    with plt.rc_context(
        {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Arial"], "svg.hashsalt": file.name}
    ):
        fig.savefig(file, transparent=True, metadata={"Date": None})
    plt.close(fig)


def dress(axis: Any, title: str, down: str, along: str) -> None:
    axis.set_title(title, color=INK, fontsize=10)
    axis.set_xlabel(along, color=INK, fontsize=9)
    axis.set_ylabel(down, color=INK, fontsize=9)
    axis.tick_params(colors=INK, labelsize=9)
    axis.minorticks_off()
    for spine in axis.spines.values():
        spine.set_color(INK)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(labelcolor=INK, frameon=False, fontsize=8, ncols=1 if len(axis.lines) < 4 else 2)


def plot_scale(data: dict[str, Any], images: Path) -> None:
    """Bytes and CPU against sessions, memory as far as the plan goes, and what an fsync adds."""
    import matplotlib.pyplot as plt

    from benchmarks.scale import HEADROOM, SESSIONS, STYLE

    fig, axes = plt.subplots(2, 2, figsize=(9, 6.4))
    (size, cpu), (memory, log) = axes
    rows = data["rows"]
    there = [row["sessions"] for row in rows]
    size.plot(there, [row["memory"] for row in rows], "o-", color=OURS, label=data["server"])
    for (name, found), style in zip(data["sql"].items(), ("s--", "^:"), strict=False):
        if "rows" in found:
            points = [(row["sessions"], row["tables"] + row["indexes"]) for row in found["rows"]]
            size.plot(*zip(*points, strict=True), style, color=OTHERS, label=name)
    for kind, style in STYLE.items():
        cpu.plot(there, [row[kind]["cpu"] * 1e6 for row in rows], style, color=OURS, label=kind)
    needed = [row["memory"] * row["sessions"] / 2**30 for row in rows]
    memory.plot(there, needed, "o-", color=OURS, label="measured")
    last = rows[-1]["memory"] / 2**30
    memory.plot(
        [there[-1], SESSIONS], [needed[-1], last * SESSIONS], "--", color=OURS, label="the same for each session"
    )
    memory.plot([SESSIONS], [last * SESSIONS * HEADROOM], "D", color=OTHERS, label="with headroom")
    for axis in (size, cpu):
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
    memory.set_xscale("log")
    memory.set_yscale("log")
    for mode, style in zip(data["log"]["costs"], ("o-", "s--", "^:"), strict=True):
        at, took = zip(*data["log"]["costs"][mode]["median"].items(), strict=True)
        log.plot([int(n) for n in at], [seconds * 1e3 for seconds in took], style, color=OURS, label=mode)
    log.set_xscale("log")
    log.set_yscale("log")
    log.set_ylim(
        *(10 ** round_(math.log10(end)) for round_, end in zip((math.floor, math.ceil), log.get_ylim(), strict=True))
    )
    cpu.set_ylim(top=cpu.get_ylim()[1] * 1.3)  # room for the legend
    dress(size, "What is kept of a session", "bytes", "sessions")
    dress(cpu, "A request, 100 in flight", "µs of the server's CPU", "sessions")
    dress(memory, "Memory", "GiB", "sessions")
    dress(log, "A write, by appendfsync", "ms, median", "in flight")
    keep(fig, images / "capacity.svg")


def by_minute(samples: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Minutes, and the mean of each."""
    minutes: dict[int, list[float]] = {}
    for one in samples:
        if name in one:
            minutes.setdefault(int(one["at"] // 60), []).append(one[name])
    return [minute + 0.5 for minute in minutes], [statistics.fmean(values) for values in minutes.values()]


def plot_soak(data: dict[str, Any], images: Path) -> None:
    """What may not grow, by the minute; the warm-up is grey."""
    import matplotlib.pyplot as plt

    from benchmarks.soak import WATCHED

    plots = (("rss", "server memory"), ("fds", "tasks", "threads"), ("keys",), ("p50", "p99"))
    titles = ("Memory", "Open in the app", "Keys of the server", "Latency")
    fig, axes = plt.subplots(2, 2, figsize=(9, 5.6))
    for axis, title, names in zip(axes.flat, titles, plots, strict=True):
        for name, style in zip(names, ("-", "--", ":"), strict=False):
            what, unit, size = WATCHED[name]
            minutes, values = by_minute(data["samples"], name)
            axis.plot(minutes, [value / size for value in values], style, color=OURS, label=what)
        axis.axvspan(0, data["warm-up"] / 60, color=OTHERS, alpha=0.2, linewidth=0)
        axis.set_ylim(bottom=0)
        dress(axis, title, unit, "minutes")
    keep(fig, images / "soak.svg")


def put(page: str, name: str, text: str) -> str:
    """The page with that text between the marks of that name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    if not found:
        raise SystemExit(f"{CAPACITY.name} has no mark {begin.strip()}")
    return f"{before}{begin}\n{text.strip()}\n\n{end}{rest.partition(end)[2]}"


def write_capacity(root: Path, plots: bool) -> None:
    """Put what ``scale`` and ``soak`` measured into the page about capacity. They take too long to be run here."""
    page = (root / CAPACITY).read_text(encoding="utf-8")
    for name, plot in (("scale", plot_scale), ("soak", plot_soak)):
        data = json.loads((root / RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for part, text in importlib.import_module(f"benchmarks.{name}").parts(data).items():
            page = put(page, part, text)
        if plots:
            plot(data, root / IMAGES)
    (root / CAPACITY).write_text(page, encoding="utf-8")


def has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write(root: Path) -> None:
    """Write the pages and the plots from the results in that folder, which is laid out like the project's."""
    parts = [
        "# Results\n\nWritten by `make bench`; [README.md](README.md) says what is measured and how. Look at the ratios: "
        "absolute figures are one machine's.\n"
    ]
    plots = has_matplotlib()
    if not plots:
        progress("left out: the plots, since matplotlib is not installed")
    for name, title in PARTS.items():
        path = root / RESULTS / f"{name}.json"
        if not path.exists():
            continue
        data = json.loads(path.read_text(encoding="utf-8"))
        about = data["about"]
        parts.append(f"\n## {title}\n\n{importlib.import_module(f'benchmarks.{name}').markdown(data)}")
        parts.append(
            f"\n<sub>`python -m benchmarks.{name}` on {about.get('commit', 'an earlier commit')}, {about['date']}, "
            f"{about['machine']}, Python {about['python']}, "
            f"{about['versions']}</sub>\n"
        )
        if name == "in_process" and plots:
            plot_in_process(data, root / IMAGES)
        elif name == "growth":
            if plots:
                plot_growth(data, root / IMAGES)
            parts.append("\n![](../docs/images/growth.svg)\n")
    (root / PAGE).write_text("".join(parts), encoding="utf-8")
    write_capacity(root, plots)


def measure(into: Path, names: Iterable[str], *, quick: bool) -> list[str]:
    """Run those parts; the names of those that failed."""
    failed = []
    for name in names:
        progress(f"── {name}")
        # Each in a process of its own: what one leaves behind in memory is no matter of the next.
        command = [sys.executable, "-m", f"benchmarks.{name}", "--into", str(into), *(["--quick"] if quick else [])]
        if subprocess.run(command, stdout=subprocess.DEVNULL, cwd=ROOT, check=False).returncode:
            failed.append(name)
    return failed


def quickly() -> list[str]:
    """All of it on a small scale, in a folder that does not stay."""
    with tempfile.TemporaryDirectory(prefix="asgi-sessions-benchmark-") as folder:
        root = Path(folder)
        for path in (RESULTS, IMAGES):
            (root / path).mkdir(parents=True)
        for path in (CAPACITY, RESULTS / "scale.json", RESULTS / "soak.json"):
            shutil.copy(ROOT / path, root / path)
        failed = measure(root / RESULTS, PARTS, quick=True)
        write(root)
        print((root / PAGE).read_text(encoding="utf-8"))
    return failed


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="runs of seconds, to see that it all works; keeps nothing")
    which.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"these parts: {', '.join(PARTS)}")
    which.add_argument("--only-write", action="store_true", help="from the results that are there")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        failed = quickly()
    else:
        failed = [] if arguments.only_write else measure(ROOT / RESULTS, arguments.only or PARTS, quick=False)
        write(ROOT)
    if failed:
        sys.exit(f"did not run to its end: {', '.join(failed)}")


if __name__ == "__main__":
    main()
