"""A store of your own: a dict of records in one file, for a small app of one process.

``docs/own-store.md`` explains it, and ``tests/test_store_contract.py`` holds it against the contract. Each method is one step:
in a thread and under a lock, it changes a copy of the dict and writes it to a new file. The new file takes the place of the old
one, and only then the copy counts. A second process would have a dict of its own and undo the writes of the first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import TypeVar

from anyio import to_thread
from msgspec import msgpack
from msgspec.structs import replace

from asgi_sessions.stores import Record, RecordChanged, RecordExists, RecordGone, StoreRefused

T = TypeVar("T")
Records = dict[str, Record]


class FileStore:
    namespace = "file"
    is_of_one_process = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._records = msgpack.decode(self._path.read_bytes(), type=Records) if self._path.exists() else {}
        # None of the event loop's: a caller that is cancelled lets go of that, and its thread goes on writing.
        self._lock = Lock()

    def _step(self, change: Callable[[Records], T]) -> T:
        with self._lock:
            records = dict(self._records)
            answer = change(records)
            if records != self._records:
                self._write(records)
                self._records = records
            return answer

    def _write(self, records: Records) -> None:
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(msgpack.encode(records))
            os.replace(new, self._path)
        except OSError as error:
            raise StoreRefused(f"the file of sessions cannot be written: {type(error).__name__}") from error

    async def load(self, key: str) -> Record | None:
        return self._records.get(key)

    async def create(self, record: Record) -> None:
        def change(records: Records) -> None:
            # Nobody else forgets what is over. What time it is, the new record says: the app's clock rules.
            for over in [one.key for one in records.values() if one.expires_at < record.seen_at]:
                del records[over]
            if records.setdefault(record.key, record) != record:  # the very same is a repeated call
                raise RecordExists("there is another record under this key")

        await to_thread.run_sync(self._step, change)

    async def update(self, record: Record, *, rev: int) -> None:
        def change(records: Records) -> None:
            there = records.get(record.key)
            if there is None:
                raise RecordGone("there is no record under this key")
            if there.rev != rev and there != _later(record, there):  # the very same is a repeated call
                raise RecordChanged(there)
            records[record.key] = _later(record, there)

        await to_thread.run_sync(self._step, change)

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        def change(records: Records) -> bool:
            there = records.get(key)
            if there is None or there.rev == 0:  # an alias
                return False
            if seen_at > there.seen_at:
                records[key] = replace(there, seen_at=seen_at, expires_at=expires_at)
            return True

        return await to_thread.run_sync(self._step, change)

    async def rename(self, key: str, record: Record, *, rev: int, alias: Record | None = None) -> None:
        def change(records: Records) -> None:
            there, target = records.get(key), records.get(record.key)
            if target is not None and target == _later(record, target) and there in (None, alias):
                return  # a repeated call
            if there is None:
                raise RecordGone("there is no record under this key")
            if there.rev != rev:
                raise RecordChanged(there)
            if target is not None:
                raise RecordExists("there is a record under the new key already")
            del records[key]
            records[record.key] = _later(record, there)
            if alias is not None:
                records[key] = alias

        await to_thread.run_sync(self._step, change)

    async def delete(self, key: str, *, rev: int | None = None) -> Record | None:
        def change(records: Records) -> Record | None:
            there = records.get(key)
            if there is not None and rev not in (None, there.rev):
                raise RecordChanged(there)
            return records.pop(key, None)

        return await to_thread.run_sync(self._step, change)

    async def index(self, owner: str) -> Mapping[str, str]:
        return {one.id: one.key for one in self._records.values() if one.owner == owner}

    async def aclose(self) -> None:
        """Nothing is kept open."""


def _later(record: Record, there: Record) -> Record:
    """The clocks never move backwards."""
    seen_at, expires_at = max(record.seen_at, there.seen_at), max(record.expires_at, there.expires_at)
    return replace(record, seen_at=seen_at, expires_at=expires_at)
