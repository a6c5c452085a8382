"""A cache of opened records, so that a recently opened record need not be opened again.

Every request still asks the store. Only if it returns the same bytes as before, the record and its body come from the cache. So
an ended session is gone at once. The payload is decoded for each request, so requests share no objects.

The price is memory, and that it holds the plain contents of sealed records while there is room.
"""

from __future__ import annotations

from typing import Final

from asgi_sessions._core.record import Body, Record

DEFAULT_BYTES: Final = 8 * 1024 * 1024

OVERHEAD: Final = 700
"""Bytes of the objects in an entry, without the bytes of the record, which it holds three times."""

Entry = tuple[bytes, Record, Body]


class OpenedRecords:
    """A bounded cache: key → (stored bytes, record, body). It mostly keeps the most recently used.

    It has two halves. When the new one is full, it replaces the old one, which is dropped. A hit in the old one moves the entry
    to the new one. A hit in the new one is one look-up.
    """

    __slots__ = ("_half", "_new", "_old", "_size", "is_on")

    def __init__(self, most: int = DEFAULT_BYTES) -> None:
        """``most``: the size in bytes. 0 turns the cache off."""
        self._half = most // 2
        self.is_on: bool = self._half > 0
        self._new: dict[str, Entry] = {}
        self._old: dict[str, Entry] = {}
        self._size = 0

    def get(self, key: str, value: bytes) -> Entry | None:
        """The entry of this key, if it has these bytes."""
        entry = self._new.get(key)
        if entry is None:
            entry = self._old.pop(key, None)
            if entry is not None:
                self.put(key, *entry)
        return entry if entry is not None and entry[0] == value else None

    def put(self, key: str, value: bytes, record: Record, body: Body) -> None:
        """Add an entry: the stored bytes of a record, the record and its body."""
        size = 3 * len(value) + OVERHEAD
        if self._size + size > self._half:
            if size > self._half:
                return
            self._old, self._new, self._size = self._new, {}, 0
        # A replaced record counts twice until the halves change, so the cache is smaller than allowed, never larger.
        self._new[key] = (value, record, body)
        self._size += size

    def drop(self, key: str) -> None:
        """Remove the entry of a key."""
        self._new.pop(key, None)
        self._old.pop(key, None)

    def __len__(self) -> int:
        return len(self._new) + len(self._old)
