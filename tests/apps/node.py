"""Packages of Node.js, for tests against real programs of the other side."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def installed(folder: Path, script: str, *packages: str) -> Path:
    """A folder with these packages and a script of this one; takes a few seconds. In CI a failure is one."""
    if shutil.which("npm") is None:
        pytest.skip("no npm")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *packages]
    try:
        subprocess.run(command, check=True, timeout=50, capture_output=True)
    except (subprocess.SubprocessError, OSError) as error:
        if os.environ.get("APPS") == "required":
            raise
        pytest.skip(f"npm installs nothing here: {type(error).__name__}")
    shutil.copy(HERE / script, folder / "site.mjs")
    return folder
