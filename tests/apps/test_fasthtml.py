"""FastHTML, in a process of its own: it changes Starlette for the whole process. The tests are in ``fasthtml_pages.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.apps import needs

needs("fasthtml")


def test_fasthtml() -> None:
    pages = Path(__file__).with_name("fasthtml_pages.py")

    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", str(pages)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 passed" in ended.stdout
