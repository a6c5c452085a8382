"""MemoryStore: records in this process. For development, tests and single-process apps that may forget on restart."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

from msgspec.structs import replace

from asgi_sessions._errors import ConfigurationError, RecordChanged, RecordExists, RecordGone
from asgi_sessions._record import ALIAS_REV, Record

SWEEP_EVERY = 60.0
"""Seconds of the app's clock between two looks for expired records."""


class MemoryStore:
    """Keeps at most ``max_records`` records; when there are more, those idle for longest go first.

    Works under asyncio and trio, from several event loops and threads. Has no clock: how late it is it learns from the
    records it is given, so the app's clock rules here too.
    """

    namespace = "memory"
    carries_out_what_it_was_asked = True
    keeps_time = True

    def __init__(self, max_records: int = 100_000) -> None:
        if not isinstance(max_records, int) or max_records < 1:
            raise ConfigurationError(f"MemoryStore(max_records={max_records!r}): give a whole number, at least 1")
        self._max_records = max_records
        # In the order of their last sign of life: the first is the one idle for longest.
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._index: dict[str, dict[str, str]] = {}
        self._latest = 0.0
        self._swept_at = 0.0
        # No method awaits, so tasks cannot interleave; threads, each with a loop of its own, could.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many records are kept, aliases and expired ones not yet swept included."""
        return len(self._records)

    def __bool__(self) -> bool:
        return True

    async def load(self, key: str) -> Record | None:
        return self._records.get(key)

    async def create(self, record: Record) -> None:
        with self._lock:
            there = self._records.get(record.key)
            if there is not None and there != record:
                raise RecordExists("there is a record under this key already")
            self._put(record)
            self._sweep()
            while len(self._records) > self._max_records:
                self._drop(next(iter(self._records)))

    async def update(self, record: Record, *, rev: int) -> None:
        with self._lock:
            there = self._records.get(record.key)
            if there is None:
                raise RecordGone("there is no record under this key")
            if there.rev != rev and there != _later(record, there):
                raise RecordChanged(there)
            self._put(_later(record, there))

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        with self._lock:
            there = self._records.get(key)
            if there is None or there.rev == ALIAS_REV:
                return False
            if seen_at > there.seen_at:
                self._put(replace(there, seen_at=seen_at, expires_at=expires_at))
            return True

    async def rename(self, key: str, record: Record, *, rev: int, alias: Record | None = None) -> None:
        with self._lock:
            there, target = self._records.get(key), self._records.get(record.key)
            if target is not None and _later(record, target) == target and (there is None or there == alias):
                return  # a repeated call
            if there is None:
                raise RecordGone("there is no record under this key")
            if there.rev != rev:
                raise RecordChanged(there)
            if target is not None:
                raise RecordExists("there is a record under the new key already")
            self._drop(key)
            self._put(_later(record, there))
            if alias is not None:
                self._put(alias)

    async def delete(self, key: str, *, rev: int | None = None) -> Record | None:
        with self._lock:
            there = self._records.get(key)
            if there is not None:
                if rev is not None and there.rev != rev:
                    raise RecordChanged(there)
                self._drop(key)
            return there

    async def index(self, owner: str) -> Mapping[str, str]:
        return dict(self._index.get(owner, ()))

    async def aclose(self) -> None:
        """Nothing to let go of; the records stay."""

    def _put(self, record: Record) -> None:
        self._records[record.key] = record
        self._records.move_to_end(record.key)
        self._latest = max(self._latest, record.seen_at)
        if record.owner is not None:
            self._index.setdefault(record.owner, {})[record.id] = record.key

    def _drop(self, key: str) -> None:
        record = self._records.pop(key)
        if record.owner is not None:
            entries = self._index.get(record.owner, {})
            if entries.get(record.id) == key:
                del entries[record.id]
            if not entries:
                self._index.pop(record.owner, None)

    def _sweep(self) -> None:
        if self._latest - self._swept_at < SWEEP_EVERY:
            return
        self._swept_at = self._latest
        for key in [key for key, record in self._records.items() if record.expires_at < self._latest]:
            self._drop(key)


def _later(record: Record, there: Record) -> Record:
    """``record`` with the later clocks of both."""
    if record.seen_at >= there.seen_at and record.expires_at >= there.expires_at:
        return record
    return replace(
        record, seen_at=max(record.seen_at, there.seen_at), expires_at=max(record.expires_at, there.expires_at)
    )
