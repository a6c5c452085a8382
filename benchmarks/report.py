"""Runs all benchmarks, writes ``RESULTS.md`` and the plots: ``python -m benchmarks.report [--quick] [--only-write]``."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._work import RESULTS, progress

IMAGES = Path(__file__).parent.parent / "docs" / "images"
PAGE = Path(__file__).parent / "RESULTS.md"
PARTS = {
    "in_process": "CPU per request, in process",
    "over_http": "Requests per second, over HTTP",
    "latency": "Latency",
    "prices": "What each feature costs",
    "growth": "How cost grows",
    "memory": "Memory",
    "mix_up": "Nobody gets what is somebody else's",
}

INK, OURS, OTHERS = "#7d8590", "#2f81f7", "#8b949e"  # legible on white and on black


def plot_in_process(data: dict[str, Any]) -> None:
    """Bars: µs of CPU per read and per write, by peer."""
    import matplotlib.pyplot as plt

    figures = data["cases"]["64 in flight, uvloop"]
    names = [
        name for name in figures if "read" in figures[name] and "raw" not in name and name != "a bare GET, decoded"
    ]
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
    fig.savefig(IMAGES / "benchmark.svg", transparent=True)
    plt.close(fig)


def plot_growth(data: dict[str, Any]) -> None:
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
    fig.savefig(IMAGES / "growth.svg", transparent=True)
    plt.close(fig)


def write() -> None:
    parts = [
        "# Results\n\nWritten by `make bench`; [README.md](README.md) says what is measured and how. Look at the ratios: "
        "absolute figures are one machine's.\n"
    ]
    for name, title in PARTS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        data = json.loads(path.read_text(encoding="utf-8"))
        about = data["about"]
        parts.append(f"\n## {title}\n\n{importlib.import_module(f'benchmarks.{name}').markdown(data)}")
        parts.append(
            f"\n<sub>`python -m benchmarks.{name}`, {about['date']}, {about['machine']}, Python {about['python']}, "
            f"{about['versions']}</sub>\n"
        )
        IMAGES.mkdir(exist_ok=True)
        if name == "in_process":
            plot_in_process(data)
        elif name == "growth":
            plot_growth(data)
            parts.append("\n![](../docs/images/growth.svg)\n")
    PAGE.write_text("".join(parts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short runs, to see that it all works")
    parser.add_argument("--only-write", action="store_true", help="from the results that are there")
    arguments = parser.parse_args()
    failed = []
    for name in PARTS if not arguments.only_write else ():
        progress(f"── {name}")
        # Each in a process of its own: what one leaves behind in memory is no matter of the next.
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if arguments.quick else [])]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            failed.append(name)
    write()
    if failed:
        sys.exit(f"did not run to its end: {', '.join(failed)}")


if __name__ == "__main__":
    main()
