"""Every store, against the one contract."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import anyio
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from asgi_sessions import MemoryStore, RedisStore, SQLStore
from asgi_sessions.stores import Record, RecordChanged, Store, StoreError
from asgi_sessions.testing import StoreContract, UserStoreContract, a_record
from examples.file_store import FileStore


class TestEveryStore(UserStoreContract):
    """Runs once per store: the fixture ``store`` is parametrized."""


SERVERS: dict[str, Callable[[int], Store]] = {
    "Redis": lambda port: RedisStore.from_url(f"redis://127.0.0.1:{port}"),
    # Without the client's own retries: ten for each call take 40 s, and say nothing more.
    "Redis, a client of the app": lambda port: RedisStore(Redis(port=port, retry=Retry(NoBackoff(), 0))),
    "Redis, durable ends": lambda port: RedisStore.from_url(f"redis://127.0.0.1:{port}", durable_ends=1),
    "Redis Cluster": lambda port: RedisStore.from_cluster(f"redis://127.0.0.1:{port}"),
    "PostgreSQL": lambda port: SQLStore.from_url(f"postgresql+asyncpg://app:hunter2@127.0.0.1:{port}/none"),
    "MariaDB": lambda port: SQLStore.from_url(f"mysql+asyncmy://app:hunter2@127.0.0.1:{port}/none"),
}


@pytest.mark.parametrize("at", SERVERS.values(), ids=SERVERS)
@pytest.mark.parametrize(
    "test",
    [
        StoreContract.test_a_server_that_is_not_there_is_unreachable,
        StoreContract.test_a_server_that_says_nothing_keeps_nobody_waiting,
    ],
    ids=["not there", "says nothing"],
)
async def test_every_store_without_its_server(at: Callable[[int], Store], test: Any, memory: MemoryStore) -> None:
    contract: Any = UserStoreContract()
    contract.at = at

    await test(contract, memory)


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
