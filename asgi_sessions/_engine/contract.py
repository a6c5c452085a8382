"""The store contract.

A store keeps records under keys. It decrypts no body, applies no timeout, and decides nothing: all rules about sessions are in
the manager. Each method states its duties, and ``asgi_sessions.testing.StoreContract`` checks them.

Four rules hold for every method:

* **Ending is final.** ``create`` never overwrites. ``update``, ``touch`` and ``rename`` never create.
* **Each method is one atomic step**, also across processes: two callers at the same time see one order of events.
* **A repeated call is harmless.** A driver may send a command twice after a lost connection. The second command must not fail
  and must have no further effect.
* **Only failures raise.** A missing record is an answer and no error, unless a method says otherwise. Every other failure is a
  :class:`StoreUnreachable` or a :class:`StoreRefused` with the driver's error as its cause.

A store can declare its :class:`Traits`.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from asgi_sessions._core.history import Admission, Note, Rules
from asgi_sessions._core.record import Record


@runtime_checkable
class Store(Protocol):
    """The methods of every store. Two imports are enough to write one: ``Record`` and the errors.

    ``namespace`` separates stores on one server. Encrypted records are bound to it. A store is not tied to an event loop:
    several loops may use it, one after the other or at the same time.

    Every method may raise :class:`StoreUnreachable`, which counts against the store, and :class:`StoreRefused`, which concerns
    this call only. Any other error counts against the store.
    """

    @property
    def namespace(self) -> str: ...

    async def load(self, key: str) -> Record | None:
        """Return the record under ``key``, or ``None`` if there is none. For an expired record, both answers are allowed.

        A request calls this first, and mostly nothing else, so it should be one command to the server.

        Raises:
            RecordDamaged: the data under the key is not a record.
        """

    async def create(self, record: Record) -> object:
        """Store a new record and, if it has an owner, enter ``record.id → record.key`` in the owner's index.

        The same step drops entries of that index without a record, so that stale entries do not pile up. The result has a
        meaning only for a :class:`UserStore`.

        Raises:
            RecordExists: another record is under the key. If it is the very same record, the call is a repeated one and succeeds.
        """

    async def update(self, record: Record, *, rev: int) -> None:
        """Replace the record under ``record.key``, if its revision is still ``rev``.

        ``seen_at`` and ``expires_at`` never move backwards: the later of the stored and the new value stays.

        Raises:
            RecordGone: no record is under the key. None is created.
            RecordChanged: the record has another revision. It stays unchanged.
        """

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        """Set ``seen_at`` and ``expires_at`` of one record, and change nothing else.

        It must not write the body, because a slow reader would undo a newer write. It must not create a record, because the
        session may just have been revoked. It must not touch an alias (revision 0), because aliases are short-lived by design.
        It never moves ``seen_at`` backwards.

        Returns:
            Whether there was such a record.
        """

    async def rename(self, key: str, record: Record, *, rev: int, alias: Record | None = None) -> None:
        """Replace the record under ``key``, if its revision is still ``rev``, by ``record`` under ``record.key``.

        Only the ``alias``, if given, remains under ``key``. The same step corrects the owner's index. Both keys are in the same
        shard. ``seen_at`` and ``expires_at`` never move backwards, as with ``update``.

        Raises:
            RecordGone: no record is under ``key``.
            RecordChanged: the record has another revision.
            RecordExists: a record is under ``record.key``.
        """

    async def delete(self, key: str, *, rev: int | None = None) -> Record | None:
        """Remove the record under ``key`` and its entry in the owner's index.

        Returns:
            The record as it was, or ``None`` if it was missing or damaged.
        Raises:
            RecordChanged: ``rev`` was given and the record has another revision. It stays.
        """

    async def index(self, owner: str) -> Mapping[str, str]:
        """Return the ids and keys of one user's records. Leave out entries without a record."""

    async def aclose(self) -> None:
        """Close the connections that the store itself opened. The store may be used again afterwards."""


@runtime_checkable
class UserStore(Store, Protocol):
    """A store that can list and end the sessions of a user, and keeps a history. All of our own stores are one.

    All data of one user is in one place, so each method is one atomic step too. Methods with ``now`` also remove records of the
    user that have expired by ``now``, with their index entries, and add ``EXPIRED`` to the history, at the time of expiry. They
    also drop index entries without a record.

    Such a store also takes ``note=`` in ``create``, ``rename`` and ``delete``. The note goes into the history of the record's
    owner in the same step, and only if that step succeeds. A repeated call adds it only once. The history keeps at most
    ``note.rules.entries`` entries. With each new entry, the oldest ones are dropped if they are older than ``note.rules.keep``.
    """

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        """Store a new record, as :meth:`Store.create`. With a note it is a log-in, which in the same step

        * ends the user's session ``note.replaces``, even if its record has moved, and writes the note of this end;
        * ends the sessions idle for longest, if the user has ``note.rules.limit`` sessions without the replaced one;
        * marks the history entry as NEW_DEVICE, unless the history has a log-in with one of ``note.fingerprints``.

        Raises:
            RecordExists: as in :meth:`Store.create`.
            SessionLimitReached: the limit is reached and ``note.rules.refuses`` is set. The store changes nothing.
        """

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        """Return all records of one user."""

    async def end(self, owner: str, *, note: Note, id: str | None = None, keep: str | None = None) -> Sequence[str]:
        """Remove the record of the session ``id``, or without ``id`` all records of the user except that of session ``keep``.

        Each removed session gets its own entry in the history. ``note.id`` is ignored.

        Returns:
            The ids of the sessions that this call ended.
        """

    async def history(self, owner: str, *, now: float, rules: Rules) -> Sequence[bytes]:
        """Return the entries of one user's history, the newest first."""

    async def erase(self, owner: str, *, sessions: bool) -> Sequence[str]:
        """Delete the history of a user and, with ``sessions``, all records. Write no history entry.

        Returns:
            The ids of the sessions that this call ended.
        """


class Listening(Protocol):
    """A subscription to ends, for one event loop."""

    @property
    def is_live(self) -> bool:
        """Whether the subscription receives every end now. While it is ``False``, ends are missed."""

    def add(self, shard: str) -> None:
        """Listen to this shard from now on. May be called several times for one shard."""

    def remove(self, shard: str) -> None:
        """Undo one :meth:`add`."""

    async def aclose(self) -> None:
        """Stop listening. May be called twice."""


@runtime_checkable
class NotifyingStore(Store, Protocol):
    """A store that notifies listeners when any process or server ends a session."""

    def listen(self, on_end: Callable[[str], None], on_gap: Callable[[str], None]) -> Listening:
        """Call ``on_end(id)`` in the running event loop when a record is removed, but not for aliases and renamed records.
        Call ``on_gap(shard)`` when ends in a shard may have been missed. From then on the listener receives them again.
        """


@runtime_checkable
class SweepingStore(Store, Protocol):
    """A store whose server does not delete expired records by itself. The middleware calls ``sweep`` periodically."""

    @property
    def sweep_every(self) -> float:
        """Seconds between two sweeps."""

    async def sweep(self, *, now: float, rules: Rules) -> int | None:
        """Remove records that expired by ``now``. Return their number, or ``None`` if another process is sweeping now."""


class PromptStore(Store, Protocol):
    """A store that can also send commands without a coroutine: see :attr:`Traits.asks_at_once`. This saves a frame each time.

    Each method returns a future of the answer, or ``None`` without a connection. Then the manager calls the normal method.
    If the future fails, or its answer is not as described, the manager calls the normal method with the future as ``asked``.
    That method then finds the reason.
    """

    def ask_load(self, key: str) -> Future[Any] | None:
        """Ask for the packed record (see ``pack()``). The answer is ``b""`` if there is none."""

    def ask_update(self, record: Record, value: bytes, *, rev: int) -> Future[Any] | None:
        """Write ``value``, the packed record. The answer 1 means success."""

    async def load(self, key: str, asked: Future[Any] | None = None) -> Record | None: ...
    async def update(self, record: Record, *, rev: int, asked: Future[Any] | None = None) -> None: ...


class Traits:
    """Attributes that a store may declare. The values here are the defaults.

    :attr:`keeps_its_own_deadline`, :attr:`asks_at_once` and :attr:`server_of` describe the methods of a store, so :func:`trait`
    reads them from the class that defines these methods. A class that overrides such a method loses these traits unless it
    declares them again.
    """

    keeps_its_own_deadline: bool = False
    """Every method, or with :attr:`asks_at_once` each future, is done within half a second. The manager sets no timer for it."""

    asks_at_once: int = 0
    """The store is a :class:`PromptStore`. An answer with fewer bytes than this is complete."""

    server_of: Callable[[str], Hashable] | None = None
    """For a store with several servers: returns the server of a key or an owner. Each server has its own circuit breaker."""

    needs_asyncio: bool = False
    """The store works only in asyncio's event loops. Under trio the lifespan of the app fails with a clear error."""

    confirms_ends: bool = False
    """``delete()`` waits until replicas have it and all earlier changes in its shard, even if it finds no record. So an end that
    finds no session also calls it."""

    is_of_one_process: bool = False
    """Other processes do not see the records. The middleware warns if there are several worker processes."""

    address: str | None = None
    """The address of the server, for the log. Without user and password."""

    server_time: tuple[float, float] | None = None
    """For a store that has this attribute: the last reading of the server's clock, in seconds since the epoch, and the time of
    the reading by ``time.monotonic()``. If the app's clock differs by seconds or minutes, the app uses the server's."""

    emit_event: Callable[..., Awaitable[None]] | None = None
    """For a store that has this attribute: the middleware sets it to a function for reporting events other than errors."""


STORE_METHODS = ("load", "create", "update", "touch", "rename", "delete", "index", "aclose")
_USER_METHODS = ("records", "end", "history", "erase")
_DESCRIBED = {*STORE_METHODS, *_USER_METHODS} - {"aclose"}
_OF_METHODS = frozenset({"keeps_its_own_deadline", "asks_at_once", "server_of"})


def trait(store: object, name: str) -> Any:
    """Return the value of one of the :class:`Traits` of a store, or its default."""
    silent = getattr(Traits, name)
    if name not in _OF_METHODS:
        return getattr(store, name, silent)
    for space in (getattr(store, "__dict__", {}), *map(vars, type(store).__mro__)):
        if name in space:
            return getattr(store, name)
        if not _DESCRIBED.isdisjoint(space):
            break
    return silent


def lacking_for_users(store: object) -> list[str]:
    """Return the methods of :class:`UserStore` that a store lacks."""
    return [name for name in _USER_METHODS if not callable(getattr(store, name, None))]
