"""A store of your own: records in one file, for a small app on one machine. Passes the contract (tests/test_store_contract.py).

Every method takes the file's lock, reads the file, changes what it has read, and puts a new file in the place of the old one:
so each is one atomic step, among processes too. Two imports of the package are enough.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from asgi_sessions._errors import RecordChanged, RecordExists, RecordGone, StoreError
from asgi_sessions.stores import Record

T = TypeVar("T")
Records = dict[str, Record]


class FileStore:
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.namespace = "file"
        self._path = Path(path)

    def _step(self, change: Callable[[Records], T], *, writes: bool = True) -> T:
        try:
            with self._path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                data = self._path.read_bytes() if self._path.exists() else b"\x80"
                records = msgspec.msgpack.decode(data, type=Records)
                result = change(records)
                if writes:
                    new = self._path.with_suffix(".new")
                    new.write_bytes(msgspec.msgpack.encode(records))
                    new.replace(self._path)
                return result
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreError(f"the file of sessions cannot be used: {type(error).__name__}") from error

    async def load(self, key: str) -> Record | None:
        return self._step(lambda records: records.get(key), writes=False)

    async def create(self, record: Record) -> None:
        def change(records: Records) -> None:
            if records.setdefault(record.key, record) != record:
                raise RecordExists("there is another record under this key")

        self._step(change)

    async def update(self, record: Record, *, rev: int) -> None:
        def change(records: Records) -> None:
            there = _known(records, record.key)
            if there.rev != rev and there != _later(record, there):  # the very same is a repeated call
                raise RecordChanged(there)
            records[record.key] = _later(record, there)

        self._step(change)

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        def change(records: Records) -> bool:
            there = records.get(key)
            if there is None or there.rev == 0:  # an alias is left alone
                return False
            if seen_at > there.seen_at:
                records[key] = msgspec.structs.replace(there, seen_at=seen_at, expires_at=expires_at)
            return True

        return self._step(change)

    async def rename(self, key: str, record: Record, *, rev: int, alias: Record | None = None) -> None:
        def change(records: Records) -> None:
            there, target = records.get(key), records.get(record.key)
            if target is not None and _later(record, target) == target and (there is None or there == alias):
                return  # a repeated call
            there = _known(records, key)
            if there.rev != rev:
                raise RecordChanged(there)
            if target is not None:
                raise RecordExists("there is a record under the new key already")
            del records[key]
            records[record.key] = _later(record, there)
            if alias is not None:
                records[key] = alias

        self._step(change)

    async def delete(self, key: str, *, rev: int | None = None) -> Record | None:
        def change(records: Records) -> Record | None:
            there = records.get(key)
            if there is not None and rev is not None and there.rev != rev:
                raise RecordChanged(there)
            return records.pop(key, None)

        return self._step(change)

    async def index(self, owner: str) -> Mapping[str, str]:
        found = self._step(lambda records: [r for r in records.values() if r.owner == owner], writes=False)
        return {record.id: record.key for record in found}

    async def aclose(self) -> None:
        """Nothing is kept open."""


def _known(records: Records, key: str) -> Record:
    if key not in records:
        raise RecordGone("there is no record under this key")
    return records[key]


def _later(record: Record, there: Record) -> Record:
    """The clocks never move backwards."""
    seen_at, expires_at = max(record.seen_at, there.seen_at), max(record.expires_at, there.expires_at)
    return msgspec.structs.replace(record, seen_at=seen_at, expires_at=expires_at)
