"""Every store, against the one contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asgi_sessions.testing import StoreContract, UserStoreContract
from examples.file_store import FileStore


class TestEveryStore(UserStoreContract):
    """Runs once per store: the fixture ``store`` is parametrized."""


class TestTheStoreOfTheExample(StoreContract):
    """Somebody's own, which knows no users."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Any:
        return FileStore(tmp_path / "sessions")
