"""The store contract.

A store keeps records under keys. It opens no body, judges no time, and decides nothing: every rule about sessions lives
in the manager. What it must get right is written at each method, and ``asgi_sessions.testing.StoreContract`` checks it.

Four rules hold for all of it:

* **Ending is final.** ``create`` never overwrites; ``update``, ``touch`` and ``rename`` never create.
* **Each method is one atomic step**, also among processes: two callers at the same time see one order of events.
* **A repeated call is harmless.** A driver may send a command twice after a lost connection; the second time must not fail
  and must not do more.
* **Only trouble raises.** A record that is not there is an answer, not an error, save where the contract says so. Everything
  else that goes wrong is a :class:`StoreUnreachable` or a :class:`StoreRefused` with the driver's error as its cause.

What a store says of itself is in :class:`Traits`.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from asgi_sessions._core.history import Admission, Note, Rules
from asgi_sessions._core.record import Record


@runtime_checkable
class Store(Protocol):
    """What the manager asks of a store. Two imports are enough to write one: ``Record`` and the errors.

    ``namespace`` names this store's corner of a server that it shares; sealed records are bound to it. Not tied to an event
    loop: a store may be used from several, one after the other or at the same time.

    Every method may raise :class:`StoreUnreachable`, which counts against the store, and :class:`StoreRefused`, which concerns
    this call only. Any other error counts against the store.
    """

    @property
    def namespace(self) -> str: ...

    async def load(self, key: str) -> Record | None:
        """The record under ``key``, or ``None``; an expired one may be either.

        The first method that a request causes, and mostly the only one: it should be one question to the server.

        Raises:
            RecordDamaged: there is something under the key, but no record.
        """

    async def create(self, record: Record) -> object:
        """Keep a new record and, if it has an owner, enter ``record.id → record.key`` in the owner's index.

        Entries of that index whose records are gone are dropped in the same step, so that it never grows stale.

        What it returns says something only of a :class:`UserStore`.

        Raises:
            RecordExists: there is another record under the key. The very same one is a repeated call, and fine.
        """

    async def update(self, record: Record, *, rev: int) -> None:
        """Replace the record under ``record.key``, if its revision is still ``rev``.

        ``seen_at`` and ``expires_at`` never move backwards: the later of the stored and the new ones stay.

        Raises:
            RecordGone: there is none; nothing is created.
            RecordChanged: it has another revision; nothing is changed.
        """

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        """Move the two clocks of one record; leave everything else alone.

        Must not write the body: a slow reader would undo a newer write. Must not create: the session may have been revoked a
        moment ago. Must not touch an alias (revision 0): to be short-lived is its point. Never moves ``seen_at`` backwards.

        Returns:
            Whether there was such a record.
        """

    async def rename(self, key: str, record: Record, *, rev: int, alias: Record | None = None) -> None:
        """Replace the record under ``key``, if its revision is still ``rev``, by ``record`` under ``record.key``.

        Nothing remains under ``key`` unless an ``alias`` is given to stay there. The owner's index is corrected in the same
        step. Both keys are in the same shard. The clocks never move backwards, as with ``update``.

        Raises:
            RecordGone: there is none under ``key``.
            RecordChanged: it has another revision.
            RecordExists: there is one under ``record.key``.
        """

    async def delete(self, key: str, *, rev: int | None = None) -> Record | None:
        """Remove the record under ``key`` and its entry in the owner's index.

        Returns:
            The record as it was, damaged ones and missing ones as ``None``.
        Raises:
            RecordChanged: ``rev`` was given and it has another revision; nothing is removed.
        """

    async def index(self, owner: str) -> Mapping[str, str]:
        """The ids and keys of one user's records; entries whose records are gone are left out."""

    async def aclose(self) -> None:
        """Let go of connections that the store itself opened. It may be used again afterwards."""


@runtime_checkable
class UserStore(Store, Protocol):
    """What a store can do besides, so that users see their sessions and end them. All of our own stores can.

    Everything of one user is together, so each of these is one atomic step too. Where ``now`` is given, records of the user
    whose time is over by it are removed on the way, their entries in the index with them, and the history says so
    (``EXPIRED``, at their end): members whose records are gone are dropped likewise.

    A store that has these methods also takes ``note=`` in ``create``, ``rename`` and ``delete``. The note is written into the
    history of the record's owner in the same step, if that step does what was asked, and only then; once, also if the call is
    repeated. At most ``note.rules.entries`` entries are kept; with each that is added, those at the far end are dropped that are
    older than ``note.rules.keep``.
    """

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        """As :meth:`Store.create`. With a note it is a log-in, and in the same step

        * the user's session ``note.replaces`` ends, wherever its record is now, and its own note is written;
        * room is made, if the user has ``note.rules.limit`` sessions besides that one: those idle for longest are ended;
        * the history is asked whether it knows a log-in with one of ``note.fingerprints``; else the entry says NEW_DEVICE.

        Raises:
            RecordExists: as there.
            SessionLimitReached: there is no room and ``note.rules.refuses``; nothing is changed.
        """

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        """All records of one user."""

    async def end(self, owner: str, *, note: Note, id: str | None = None, keep: str | None = None) -> Sequence[str]:
        """Remove the record of the session ``id``; or all of the user's, except that of the session ``keep``.

        Each gets an entry of its own in the history; ``note.id`` says nothing here.

        Returns:
            The ids of the sessions that ended by this.
        """

    async def history(self, owner: str, *, now: float, rules: Rules) -> Sequence[bytes]:
        """The entries of one user's history, the newest first."""

    async def erase(self, owner: str, *, sessions: bool) -> Sequence[str]:
        """Forget the history of a user and, with ``sessions``, remove all records; nothing is noted.

        Returns:
            The ids of the sessions that ended by this.
        """


class Listening(Protocol):
    """A subscription to ends, for one event loop."""

    @property
    def is_live(self) -> bool:
        """Whether every end is received now; while it is not, ends are missed."""

    def add(self, shard: str) -> None:
        """Listen to this shard from now on. May be called several times for one shard."""

    def remove(self, shard: str) -> None:
        """Take back one :meth:`add`."""

    async def aclose(self) -> None:
        """Stop listening. May be called twice."""


@runtime_checkable
class NotifyingStore(Store, Protocol):
    """A store that notifies listeners of every end, whichever process or server ended the session."""

    def listen(self, on_end: Callable[[str], None], on_gap: Callable[[str], None]) -> Listening:
        """Call ``on_end(id)`` in the running event loop when a record is removed, but not for aliases and renamed records.
        Call ``on_gap(shard)`` when ends in a shard may have been missed. From then on they are received.
        """


@runtime_checkable
class SweepingStore(Store, Protocol):
    """A store that does not forget by itself what is over, and has to be asked to. While an app is up it is, by itself."""

    @property
    def sweep_every(self) -> float:
        """Seconds between two sweeps."""

    async def sweep(self, *, now: float, rules: Rules) -> int | None:
        """Remove what is over by ``now``; how many records that were, or ``None`` where somebody else is at it."""


class PromptStore(Store, Protocol):
    """A store that can also be asked without a coroutine: see :attr:`Traits.asks_at_once`. A frame less with each question.

    Each of these returns a future of the answer; ``None``: there is no connection just now, call the method. If the answer does
    not come, or is not as described, the method is called with it as ``asked``, and finds out why.
    """

    def ask_load(self, key: str) -> Future[Any] | None:
        """The bytes that ``pack()`` made of the record; none: there is none."""

    def ask_update(self, record: Record, value: bytes, *, rev: int) -> Future[Any] | None:
        """``value`` is what ``pack()`` makes of the record. The answer is 1: done."""

    async def load(self, key: str, asked: Future[Any] | None = None) -> Record | None: ...
    async def update(self, record: Record, *, rev: int, asked: Future[Any] | None = None) -> None: ...


class Traits:
    """What a store may say of itself, as attributes, with what holds where it says nothing.

    :attr:`keeps_its_own_deadline`, :attr:`asks_at_once` and :attr:`server_of` describe the methods of a store, so :func:`trait`
    believes the class that defines these methods. A class that overrides one of them loses these traits unless it declares them
    again.
    """

    keeps_its_own_deadline: bool = False
    """Every method answers or raises within half a second. No timer is set for a call that does."""

    asks_at_once: int = 0
    """The store is a :class:`PromptStore`. Answers of fewer bytes than this are whole."""

    server_of: Callable[[str], Hashable] | None = None
    """For a store of several servers: which of them has what lies under a key or an owner. Each has a breaker of its own."""

    needs_asyncio: bool = False
    """Works in asyncio's event loops only. Under trio the lifespan of its app fails with an error that says so."""

    confirms_ends: bool = False
    """``delete()`` answers when replicas have the end, also if it finds nothing. So a log-out that finds no session asks, too."""

    is_of_one_process: bool = False
    """Other processes do not see the records. The middleware warns under several worker processes."""

    address: str | None = None
    """Where the server is, for the log; without user and password."""

    server_time: tuple[float, float] | None = None
    """For a store that has this attribute: what its server's clock said last, in seconds since the epoch, and when that was by
    ``time.monotonic()``. An app whose clock differs by seconds or minutes goes by the server's."""

    emit_event: Callable[..., Awaitable[None]] | None = None
    """For a store that has this attribute: the middleware puts a function here, to report an event that is no error."""


STORE_METHODS = ("load", "create", "update", "touch", "rename", "delete", "index", "aclose")
_USER_METHODS = ("records", "end", "history", "erase")
_DESCRIBED = {*STORE_METHODS, *_USER_METHODS} - {"aclose"}
_OF_METHODS = frozenset({"keeps_its_own_deadline", "asks_at_once", "server_of"})


def trait(store: object, name: str) -> Any:
    """What a store says of itself under this name of :class:`Traits`."""
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
    """The methods that keep a store from being a :class:`UserStore`; none: it is one."""
    return [name for name in _USER_METHODS if not callable(getattr(store, name, None))]
