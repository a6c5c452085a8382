"""Real packages on our sessions: admin panels, UI frameworks, OAuth, forms, sockets. Run by ``make test-apps``.

They live in an environment of their own, ``.venv-apps``. Elsewhere these tests are skipped.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

import pytest


def needs(module: str) -> Any:
    """Import a module of a package under test. Without the package, skip the file, or fail in CI under ``make test-apps``."""
    needs_installed(module.partition(".")[0])
    return importlib.import_module(module)


def needs_installed(package: str) -> None:
    """The same without the import, for packages that change things in the whole process."""
    if importlib.util.find_spec(package) is None:
        if os.environ.get("APPS") == "required":
            raise ModuleNotFoundError(f"{package} is not installed in {sys.prefix}")
        pytest.skip(f"{package} is not installed; run `make test-apps`", allow_module_level=True)
