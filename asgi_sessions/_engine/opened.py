"""Opened records: what was opened a moment ago need not be opened again.

The store is asked with every request all the same. Only if it answers with the very bytes that were opened before, the record and
its body are taken from here. So an ended session is gone at once, as ever. The payload is decoded anew each time: no two requests
share an object.

The memory is the price: what is sealed in the store lies here opened, for as long as there is room.
"""

from __future__ import annotations

from typing import Final

from asgi_sessions._core.record import Body, Record

DEFAULT_BYTES: Final = 8 * 1024 * 1024

OVERHEAD: Final = 700
"""Bytes of the objects that an entry is made of, besides the bytes of the record, which it holds three times."""

Entry = tuple[bytes, Record, Body]


class OpenedRecords:
    """A bounded cache: key → (bytes as they lie in the store, record, body). Mostly, who was used last stays.

    Two halves: when the new one is full, it becomes the old one, and what was the old one is forgotten. What is found in the old
    one moves to the new one. A hit in the new one is one look-up.
    """

    __slots__ = ("_half", "_new", "_old", "_size")

    def __init__(self, most: int = DEFAULT_BYTES) -> None:
        """``most``: bytes; 0: nothing is kept."""
        self._half = most // 2
        self._new: dict[str, Entry] = {}
        self._old: dict[str, Entry] = {}
        self._size = 0

    @property
    def is_on(self) -> bool:
        """Whether anything may be kept."""
        return self._half > 0

    def get(self, key: str, value: bytes) -> Entry | None:
        """What these bytes under this key are."""
        entry = self._new.get(key)
        if entry is None:
            entry = self._old.pop(key, None)
            if entry is not None:
                self.put(key, *entry)
        return entry if entry is not None and entry[0] == value else None

    def put(self, key: str, value: bytes, record: Record, body: Body) -> None:
        """These bytes are this record, and this is its body."""
        size = 3 * len(value) + OVERHEAD
        if self._size + size > self._half:
            if size > self._half:
                return
            self._old, self._new, self._size = self._new, {}, 0
        # A record that is replaced counts twice until the halves change: less is kept than might be, never more.
        self._new[key] = (value, record, body)
        self._size += size

    def drop(self, key: str) -> None:
        """Nothing lies under this key any more."""
        self._new.pop(key, None)
        self._old.pop(key, None)

    def __len__(self) -> int:
        return len(self._new) + len(self._old)
