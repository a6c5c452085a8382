"""Where records are kept. Each store fulfils :class:`asgi_sessions.stores.Store`, and nothing else knows it.

:class:`UserStore` is what it may do besides, so that users can see and end their sessions, and :class:`NotifyingStore`, so that
sockets and streams close when their session ends. :class:`SweepingStore` is one that has to be asked to forget.

What a store of your own raises is here too: :class:`RecordExists`, :class:`RecordGone`, :class:`RecordChanged` and
:class:`RecordDamaged` where the contract says so; :class:`StoreUnreachable` and :class:`StoreRefused` for everything else.
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
