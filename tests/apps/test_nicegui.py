"""NiceGUI, mounted by ``ui.run_with()`` into an app with our middleware."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.apps import needs

needs("nicegui", "socketio")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mode", ["its own session", "on our session"])
def test_nicegui(valkey_url: str, tmp_path: Path, mode: str) -> None:
    """In a process of its own, since NiceGUI has one app for each process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "REDIS_URL": valkey_url,
        "NICEGUI_STORAGE_PATH": str(tmp_path),
    }
    program = [sys.executable, "-m", "tests.apps.nicegui_site", mode]

    ended = subprocess.run(
        program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50, check=False
    )

    assert ended.returncode == 0, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert said["page"] == 200
    assert said["first"] == "alice 1"
    assert said["second"] == "alice 2"
    assert said["me"] == {"user": "alice", "basket": ["tea"]}
    assert said["after log-out"] is None
    assert "Error" not in ended.stderr, ended.stderr
