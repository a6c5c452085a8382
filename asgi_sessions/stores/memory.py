"""MemoryStore: records in this process. For development, tests and single-process apps that may forget on restart."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from heapq import nsmallest

from msgspec.structs import replace

from asgi_sessions._core.history import (
    ENTRY_HEADER,
    EXPIRED,
    FINGERPRINT_CHARS,
    LIMIT_LETTER,
    LOGGED_IN,
    NEW_DEVICE,
    Admission,
    Note,
    Rules,
    pack_entry,
    pack_note,
)
from asgi_sessions._core.record import ALIAS_REV, Record
from asgi_sessions._engine.contract import Listening
from asgi_sessions.errors import ConfigurationError, RecordChanged, RecordExists, RecordGone, SessionLimitReached
from asgi_sessions.stores._listeners import Listeners

SWEEP_EVERY = 60.0
"""Seconds of the app's clock between two sweeps."""


class MemoryStore:
    """Keeps at most ``max_records`` records. Beyond that, it drops the ones idle for longest.

    Works under asyncio and trio, and from several event loops and threads. It has no clock of its own: it takes the time from the
    records, and so from the app's clock.
    """

    namespace = "memory"
    keeps_its_own_deadline = True
    is_of_one_process = True

    def __init__(self, max_records: int = 100_000) -> None:
        if not isinstance(max_records, int) or max_records < 1:
            raise ConfigurationError(f"MemoryStore(max_records={max_records!r}): give a whole number, at least 1")
        self._max_records = max_records
        # In the order of last activity: the first was idle for longest.
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._index: dict[str, dict[str, str]] = {}
        self._histories: dict[str, deque[bytes]] = {}  # newest first
        self._rules = Rules(0)  # of the last note; for the entries of expired records
        self._listeners = Listeners(is_live=True)
        self._latest = 0.0
        self._swept_at = 0.0
        # No method awaits, so tasks cannot interleave. Threads with their own event loops can.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of records, including aliases and expired ones before the next sweep."""
        return len(self._records)

    def __bool__(self) -> bool:
        return True

    async def load(self, key: str) -> Record | None:
        """See :meth:`asgi_sessions.stores.Store.load`."""
        return self._records.get(key)

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        """See :meth:`asgi_sessions.stores.UserStore.create`."""
        with self._lock:
            there = self._records.get(record.key)
            if there is not None and there != record:
                raise RecordExists("there is a record under this key already")
            admission = None
            if note is not None and record.owner is not None:
                admission = self._admit(record.owner, note, repeated=there is not None)
            self._put(record)
            self._sweep()
            while len(self._records) > self._max_records:
                self._drop(next(iter(self._records)))
            return admission

    async def update(self, record: Record, *, rev: int) -> None:
        """See :meth:`asgi_sessions.stores.Store.update`."""
        with self._lock:
            there = self._records.get(record.key)
            if there is None:
                raise RecordGone("there is no record under this key")
            if there.rev != rev and there != _later(record, there):
                raise RecordChanged(there)
            self._put(_later(record, there))

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        """See :meth:`asgi_sessions.stores.Store.touch`."""
        with self._lock:
            there = self._records.get(key)
            if there is None or there.rev == ALIAS_REV:
                return False
            if seen_at > there.seen_at:
                self._put(replace(there, seen_at=seen_at, expires_at=expires_at))
            return True

    async def rename(
        self, key: str, record: Record, *, rev: int, alias: Record | None = None, note: Note | None = None
    ) -> None:
        """See :meth:`asgi_sessions.stores.Store.rename`, and :class:`~asgi_sessions.stores.UserStore` for ``note``."""
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
            self._drop(key, moved=True)
            self._put(_later(record, there))
            if alias is not None:
                self._put(alias)
            if note is not None and record.owner is not None:
                self._note(record.owner, pack_note(note), note.now, note.rules)

    async def delete(self, key: str, *, rev: int | None = None, note: Note | None = None) -> Record | None:
        """See :meth:`asgi_sessions.stores.Store.delete`, and :class:`~asgi_sessions.stores.UserStore` for ``note``."""
        with self._lock:
            there = self._records.get(key)
            if there is not None:
                if rev is not None and there.rev != rev:
                    raise RecordChanged(there)
                self._drop(key)
                if note is not None and there.owner is not None:
                    self._note(there.owner, pack_note(note), note.now, note.rules)
            return there

    async def index(self, owner: str) -> Mapping[str, str]:
        """See :meth:`asgi_sessions.stores.Store.index`."""
        return dict(self._index.get(owner, ()))

    async def scan(self, cursor: str, some: int) -> tuple[Sequence[str], str]:
        """See :class:`asgi_sessions.rekey.ScannableStore`."""
        with self._lock:
            keys = nsmallest(some, (key for key in self._records if key > cursor))
        return keys, keys[-1] if len(keys) == some else ""

    # ── The sessions of one user ──

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        """See :meth:`asgi_sessions.stores.UserStore.records`."""
        with self._lock:
            self._prune(owner, now, rules)
            return [self._records[key] for key in self._index.get(owner, {}).values()]

    async def end(self, owner: str, *, note: Note, id: str | None = None, keep: str | None = None) -> Sequence[str]:
        """See :meth:`asgi_sessions.stores.UserStore.end`."""
        with self._lock:
            self._prune(owner, note.now, note.rules)
            ids = [each for each in self._index.get(owner, {}) if id in (None, each) and each != keep]
            for each in ids:
                self._end(owner, each, note.what, note.now, note.rules)
            return ids

    async def history(self, owner: str, *, now: float, rules: Rules) -> Sequence[bytes]:
        """See :meth:`asgi_sessions.stores.UserStore.history`."""
        with self._lock:
            self._prune(owner, now, rules)
            return list(self._histories.get(owner, ()))

    async def erase(self, owner: str, *, sessions: bool) -> Sequence[str]:
        """See :meth:`asgi_sessions.stores.UserStore.erase`."""
        with self._lock:
            self._histories.pop(owner, None)
            ids = list(self._index.get(owner, ())) if sessions else []
            for id in ids:
                self._drop(self._index[owner][id])
            return ids

    def listen(self, on_end: Callable[[str], None], on_gap: Callable[[str], None]) -> Listening:
        """See :meth:`asgi_sessions.stores.NotifyingStore.listen`."""
        return self._listeners.listen(on_end)

    def _admit(self, owner: str, note: Note, *, repeated: bool) -> Admission:
        self._rules = note.rules
        known = [
            entry[13:14]
            for entry in self._histories.get(owner, ())
            if entry[14 : ENTRY_HEADER - FINGERPRINT_CHARS] == note.id.encode()
        ]
        if repeated:
            return Admission(NEW_DEVICE.encode() in known)
        self._prune(owner, note.now, note.rules)
        sessions = dict(self._index.get(owner, ()))
        replaced = sessions.pop(note.replaces.record.id, None) if note.replaces is not None else None
        surplus = len(sessions) - note.rules.limit + 1 if note.rules.limit else 0
        if surplus > 0 and note.rules.refuses:
            raise SessionLimitReached(f"the user has reached the limit of sessions (active: {len(sessions)})")
        idle_first = sorted(sessions, key=lambda each: self._records[sessions[each]].seen_at)
        out = tuple(idle_first[: max(surplus, 0)])
        for id in out:
            self._end(owner, id, LIMIT_LETTER, note.now, note.rules)
        fingerprints = [
            entry[ENTRY_HEADER - FINGERPRINT_CHARS : ENTRY_HEADER].decode()
            for entry in self._histories.get(owner, ())
            if entry[13:14].decode() in (LOGGED_IN, NEW_DEVICE)
        ]
        new = note.what == LOGGED_IN and not any(each in fingerprints for each in note.fingerprints)
        self._note(owner, pack_note(replace(note, what=NEW_DEVICE) if new else note), note.now, note.rules)
        gone = None
        if replaced is not None and note.replaces is not None:
            gone = self._records[replaced]
            self._drop(replaced)
            self._note(owner, pack_note(note.replaces.note), note.now, note.rules)
        return Admission(new and note.rules.entries > 0, not fingerprints, out, gone)

    def _prune(self, owner: str, now: float, rules: Rules) -> None:
        for id, key in list(self._index.get(owner, {}).items()):
            ends_at = self._records[key].expires_at
            if ends_at <= now:
                self._drop(key)
                self._note(owner, pack_entry(EXPIRED, ends_at, id), now, rules)

    def _end(self, owner: str, id: str, what: str, now: float, rules: Rules) -> None:
        self._drop(self._index[owner][id])
        self._note(owner, pack_entry(what, now, id), now, rules)

    def _note(self, owner: str, text: bytes, now: float, rules: Rules) -> None:
        if not rules.entries:
            return
        history = self._histories.setdefault(owner, deque())
        history.appendleft(text)
        while len(history) > rules.entries or int(history[-1][:13]) < (now - rules.keep) * 1000:
            history.pop()
            if not history:
                del self._histories[owner]
                return

    async def aclose(self) -> None:
        """Do nothing. The records stay."""

    def _put(self, record: Record) -> None:
        self._records[record.key] = record
        self._records.move_to_end(record.key)
        self._latest = max(self._latest, record.seen_at)
        if record.owner is not None:
            self._index.setdefault(record.owner, {})[record.id] = record.key

    def _drop(self, key: str, *, moved: bool = False) -> None:
        record = self._records.pop(key)
        if not moved and record.rev != ALIAS_REV:
            self._listeners.notify((record.id,))
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
        for key, record in [item for item in self._records.items() if item[1].expires_at < self._latest]:
            self._drop(key)
            if record.owner is not None:
                self._note(record.owner, pack_entry(EXPIRED, record.expires_at, record.id), self._latest, self._rules)
        horizon = (self._latest - self._rules.keep) * 1000
        for owner in [owner for owner, history in self._histories.items() if int(history[0][:13]) < horizon]:
            del self._histories[owner]


def _later(record: Record, there: Record) -> Record:
    """``record`` with the later clocks of both."""
    if record.seen_at >= there.seen_at and record.expires_at >= there.expires_at:
        return record
    return replace(
        record, seen_at=max(record.seen_at, there.seen_at), expires_at=max(record.expires_at, there.expires_at)
    )
