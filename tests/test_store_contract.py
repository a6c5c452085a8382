"""Every store, against the one contract."""

from __future__ import annotations

import contextlib
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from asgi_sessions.stores import Record, RecordChanged, StoreError
from asgi_sessions.testing import StoreContract, UserStoreContract, a_record
from examples.file_store import FileStore


class TestEveryStore(UserStoreContract):
    """Runs once per store: the fixture ``store`` is parametrized."""


class TestTheStoreOfTheExample(StoreContract):
    """Somebody's own, which knows no users."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Any:
        return FileStore(tmp_path / "sessions")

    async def test_what_was_kept_and_what_was_ended_is_so_after_a_restart(self, store: Any, tmp_path: Path) -> None:
        kept, ended = a_record(owner="alice"), a_record(owner="alice")
        for record in (kept, ended):
            await store.create(record)
        await store.delete(ended.key)

        again = FileStore(tmp_path / "sessions")

        assert await again.load(kept.key) == kept
        assert await again.load(ended.key) is None

    async def test_what_could_not_be_written_has_not_happened(self, store: Any, tmp_path: Path) -> None:
        record = a_record()
        await store.create(record)
        (tmp_path / "sessions.new").mkdir()  # in the way of the next write

        with pytest.raises(StoreError):
            await store.delete(record.key)

        assert await store.load(record.key) == record

    async def test_it_forgets_what_is_over_when_something_new_comes(self, store: Any) -> None:
        record = a_record()
        await store.create(record)

        late = replace(a_record(), seen_at=record.expires_at + 1, expires_at=record.expires_at + 2)
        await store.create(late)

        assert await store.load(record.key) is None
        assert await store.load(late.key) == late

    async def test_a_step_lets_no_other_begin_while_it_writes(self, tmp_path: Path) -> None:
        """It works in threads; the contract cannot know, and its twenty calls at once need not meet there."""
        store = Slow(tmp_path / "sessions")
        record = a_record()
        await store.create(record)
        store.meeting = Barrier(2)
        outcomes: list[str] = []

        async def update(body: bytes) -> None:
            try:
                await store.update(replace(record, rev=2, body=body), rev=1)
                outcomes.append("done")
            except RecordChanged:
                outcomes.append("changed")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(update, b"one")
            tasks.start_soon(update, b"other")

        assert sorted(outcomes) == ["changed", "done"]


class Slow(FileStore):
    """Waits in the middle of a write for another to get there too; in vain, if it is locked."""

    meeting: Barrier | None = None

    def _write(self, records: dict[str, Record]) -> None:
        if self.meeting is not None:
            with contextlib.suppress(BrokenBarrierError):
                self.meeting.wait(0.2)
        super()._write(records)
