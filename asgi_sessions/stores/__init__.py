"""The contracts of stores, and their errors. A store keeps the records, and implements :class:`asgi_sessions.stores.Store`.

There are optional contracts. With a :class:`UserStore` users can see and end their sessions. With a :class:`NotifyingStore`
sockets and streams close when their session ends. A :class:`SweepingStore` removes expired records when it is called.

A store of your own raises :class:`RecordExists`, :class:`RecordGone`, :class:`RecordChanged` and :class:`RecordDamaged` as the
contract says, and :class:`StoreUnreachable` or :class:`StoreRefused` for all other failures.
"""

from asgi_sessions._core.history import Admission, Note, Rules
from asgi_sessions._core.record import Record
from asgi_sessions._engine.contract import Listening, NotifyingStore, Store, SweepingStore, Traits, UserStore
from asgi_sessions.errors import (
    EndUnconfirmed,
    RecordChanged,
    RecordDamaged,
    RecordExists,
    RecordGone,
    StoreError,
    StoreRefused,
    StoreUnreachable,
    TemporarilyUnavailable,
)

__all__ = [
    "Admission",
    "EndUnconfirmed",
    "Listening",
    "Note",
    "NotifyingStore",
    "Record",
    "RecordChanged",
    "RecordDamaged",
    "RecordExists",
    "RecordGone",
    "Rules",
    "Store",
    "StoreError",
    "StoreRefused",
    "StoreUnreachable",
    "SweepingStore",
    "TemporarilyUnavailable",
    "Traits",
    "UserStore",
]
