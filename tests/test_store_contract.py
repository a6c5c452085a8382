"""Every store, against the one contract."""

from __future__ import annotations

from asgi_sessions.testing import UserStoreContract


class TestEveryStore(UserStoreContract):
    """Runs once per store: the fixture ``store`` is parametrized."""
