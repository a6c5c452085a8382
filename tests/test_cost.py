"""The hot paths do no more work than they did. Times are noise on a shared machine; calls are not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from os import environ
from pathlib import Path

import pytest

from asgi_sessions import Session
from asgi_sessions._core.planner import Planner
from tests.cost import BASELINE, VERSION, baseline, count

TOLERANCE = 1.02
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def excess(counts: dict[str, float], recorded: dict[str, float]) -> dict[str, str]:
    return {
        path: f"{calls} calls, recorded are {recorded[path]}"
        for path, calls in counts.items()
        if calls > recorded[path] * TOLERANCE
    }


@pytest.fixture
def recorded() -> dict[str, float]:
    if sys.getprofile() is not None:
        pytest.skip("a profiler is on already")
    found = baseline()
    if found is None:
        pytest.skip(f"nothing is recorded for Python {VERSION}: python -m tests.cost --record")
    return found


def test_no_hot_path_does_more_work_than_recorded(valkey_url: str, recorded: dict[str, float]) -> None:
    # In a process of its own: coverage, and whatever the tests before have left in this one, would count too.
    clean = {name: value for name, value in environ.items() if not name.startswith("COV")}
    command = [sys.executable, "-m", "tests.cost", "--json", valkey_url]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=clean, cwd=Path(__file__).parents[1])
    counts = json.loads(said.stdout)

    assert counts.keys() == recorded.keys()
    assert excess(counts, recorded) == {}, "if that is meant: python -m tests.cost --record, and say why"


def test_the_published_figures_are_of_these_hot_paths() -> None:
    measured = json.loads((RESULTS / "in_process.json").read_text(encoding="utf-8"))["calls"]

    assert measured == json.loads(BASELINE.read_text(encoding="utf-8")), "measure again: make bench"


def test_a_few_calls_more_are_noticed(
    valkey_url: str, recorded: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = Planner.is_settled

    def twice(self: Planner, session: Session, failed: bool) -> bool:
        return settled(self, session, failed) and settled(self, session, failed)

    monkeypatch.setattr(Planner, "is_settled", twice)

    assert "memory: read" in excess(asyncio.run(count(valkey_url)), recorded)
