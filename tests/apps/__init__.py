"""Real packages on our sessions: admin panels, UI frameworks, OAuth, forms, sockets. Run by ``make test-apps``.

They live in an environment of their own, ``.venv-apps``. Elsewhere these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest


def needs(*packages: str) -> None:
    """Skip the test file where a package is not installed; in CI, under ``make test-apps``, fail.

    Imports nothing: some packages change things in the whole process.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing and os.environ.get("APPS") == "required":
        raise ModuleNotFoundError(f"not installed in {sys.prefix}: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; run `make test-apps`", allow_module_level=True)
