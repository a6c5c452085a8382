"""SQLStore: records in PostgreSQL, MariaDB, MySQL or SQLite, through SQLAlchemy. Needs the extra ``[sql]`` and a driver.

:func:`session_tables` describes its two tables. How the store keeps the contract:

* The primary key keeps ``create`` from overwriting. ``update`` and ``touch`` are one ``UPDATE … WHERE key … AND rev …``.
* Each operation on all sessions of a user (log-in with its limit, ends, history) first updates one row of that user. This row is
  the lock: such operations run one after the other on every server, and no lock outlives its transaction.
* After a deadlock or a conflict a transaction is repeated.

A load is one SELECT by primary key, without BEGIN and COMMIT around it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Self

from asgi_sessions._core.extras import needs
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.history import (
    ENDED_BY_CLOCK,
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
from asgi_sessions._core.token import ID_CHARS, KEY_CHARS, owner_of
from asgi_sessions._engine.contract import Listening
from asgi_sessions._engine.loops import PerLoop
from asgi_sessions.errors import (
    ConfigurationError,
    RecordChanged,
    RecordDamaged,
    RecordExists,
    RecordGone,
    SessionLimitReached,
)
from asgi_sessions.stores._listeners import Listeners

with needs("sql", "SQLStore"):
    # SQLAlchemy before 2.1 notices at the first statement that it is missing.
    import greenlet  # type: ignore[import-untyped]  # noqa: F401
    from sqlalchemy import MetaData
    from sqlalchemy.exc import DBAPIError, IntegrityError
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from asgi_sessions.stores.sql._connections import (
        ConnectionManager,
        OutOfStep,
        address_of,
        build,
        check,
        is_conflict,
    )
    from asgi_sessions.stores.sql._server import advice
    from asgi_sessions.stores.sql._tables import BATCH, SWEEPER, Statements, session_tables

__all__ = ["SQLStore", "owner_of", "session_tables"]

_logger = logging.getLogger("asgi_sessions")

SWEEP_MARGIN: Final = 60.0
"""Seconds for which an expired record is kept, so that the app's clock ends it and not another server's."""

TURN: Final = 30.0
"""Seconds for which each batch of a sweeper keeps the others away. If it dies, another one takes over after that."""

NO_TABLES: Final = "there are no tables: await store.create_tables(), or run the statements of asgi-sessions schema"

CREATE_ATTEMPTS: Final = 8
"""Tries of ``create_tables()``. It fails when another process creates the tables at the same time."""

MEASURED_CHARS: Final = 6
"""First characters of a key from which the progress of a scan is computed: 36 bits."""

_IN_ORDER: Final = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
"""The characters of keys in the order of databases: byte by byte."""

ENDER: Final = "~ender"
"""The owner of a row that is written when the session to end is missing, so that the COMMIT has a write to wait for."""

_SWEEPER_ROW: Final = {"owner": SWEEPER, "seq": 0, "at": 0, "what": "", "id": "", "fingerprint": "", "facts": b""}


class SQLStore:
    """Keeps records in your database, beside your own tables.

    ``SQLStore.from_url("postgresql+asyncpg://…")`` opens its own connections on first use, in the caller's event loop, and closes
    them when the app's lifespan or that loop ends. ``SQLStore(engine)`` uses your ``AsyncEngine``. Dispose of it yourself.
    SQLAlchemy needs asyncio, so trio is not supported.

    Create the tables first: ``await store.create_tables()``, or your own migration with :func:`session_tables`.
    """

    needs_asyncio = True
    server_time: tuple[float, float] | None = None

    sweep_every: float = 60.0
    """Seconds between two sweeps while the app is running."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        table: str = "asgi_sessions",
        schema: str | None = None,
        durable_ends: bool = False,
    ) -> None:
        if not isinstance(engine, AsyncEngine):
            raise ConfigurationError(
                f"SQLStore({type(engine).__name__}): give an AsyncEngine of SQLAlchemy (create_async_engine), "
                "or use SQLStore.from_url('postgresql+asyncpg://…')"
            )
        check(engine)
        self._set_up(lambda: engine, engine, table, schema, is_own=False, durable_ends=durable_ends)

    @classmethod
    @forgets_arguments
    def from_url(
        cls,
        url: str,
        *,
        table: str = "asgi_sessions",
        schema: str | None = None,
        durable_ends: bool = False,
        **options: Any,
    ) -> Self:
        """Return a store with its own connections.

        Args:
            url: ``postgresql+asyncpg://…``, ``mysql+asyncmy://…`` (or ``aiomysql``) or ``sqlite+aiosqlite:///path``.
            table: the name of the table of records. The history is in a second table, named with ``_history`` at the end.
                One table per app.
            schema: the schema of the tables, if not the default one.
            durable_ends: PostgreSQL only. A session counts as ended when the synchronous standbys have applied it
                (``synchronous_commit = remote_apply``), so that a failover to one of them does not bring it back.
            options: passed to ``create_async_engine``, for example ``pool_size=20`` or ``connect_args={"ssl": …}``.
        """
        if not isinstance(url, str):
            raise ConfigurationError(
                f"SQLStore.from_url({type(url).__name__}): give a str such as 'sqlite+aiosqlite:///sessions.db'"
            )
        first = build(url, options)
        store = cls.__new__(cls)
        store._set_up(lambda: build(url, options), first, table, schema, is_own=True, durable_ends=durable_ends)
        return store

    def _set_up(
        self,
        make: Callable[[], AsyncEngine],
        first: AsyncEngine,
        table: str,
        schema: str | None,
        *,
        is_own: bool,
        durable_ends: bool,
    ) -> None:
        if not isinstance(durable_ends, bool):
            raise ConfigurationError(f"SQLStore(durable_ends={durable_ends!r}): give True or False")
        if durable_ends and first.dialect.name != "postgresql":
            raise ConfigurationError(
                f"SQLStore(durable_ends=True): {first.dialect.name} has no such setting for single transactions; set it on the "
                "server instead (docs/stores.md, Standbys of databases)"
            )
        self.confirms_ends: bool = durable_ends
        self._has_looked = False
        self._make, self._first, self._is_own = make, first, is_own
        self._unused = [first]
        """The engine that checked the URL and options. The first event loop uses it."""
        self._table = table
        self.metadata: MetaData = MetaData()
        """The metadata with the two tables. For your own migrations see :func:`session_tables`."""
        self._say = Statements(*session_tables(self.metadata, table=table, schema=schema))
        self._managers: PerLoop[ConnectionManager] = PerLoop(self._make_manager)
        self._listeners = Listeners(is_live=False)

    @property
    def namespace(self) -> str:
        return self._table

    @property
    def address(self) -> str:
        """The address of the database, without user and password, for the log."""
        return address_of(self._first)

    def __repr__(self) -> str:
        return f"<SQLStore {self._first.dialect.name} {self._table}>"

    def _connections(self) -> ConnectionManager:
        return self._managers.here()

    def _make_manager(self) -> ConnectionManager:
        try:
            engine = self._unused.pop()  # pop() is atomic, so one loop gets it
        except IndexError:
            engine = self._make()
        return ConnectionManager(
            engine,
            is_own=self._is_own,
            no_table=NO_TABLES,
            note_time=self._note_time,
            note_settings=None if self._has_looked else self._note_settings,
        )

    def _note_time(self, server_time: tuple[float, float]) -> None:
        if self.server_time is None or server_time[1] > self.server_time[1]:
            self.server_time = server_time

    def _note_settings(self, settings: Mapping[str, str]) -> None:
        if not self._has_looked:
            self._has_looked = True
            for text in advice(settings, durable_ends=self.confirms_ends):
                _logger.warning("store.settings host=%s: %s", self.address, text)

    async def create_tables(self) -> None:
        """Create missing tables. In production, use your migrations instead."""

        async def work(connections: ConnectionManager) -> None:
            for attempt in range(CREATE_ATTEMPTS):
                try:
                    async with connections.transaction() as connection:
                        await connection.run_sync(self.metadata.create_all)
                    return
                except DBAPIError as error:
                    if error.connection_invalidated or is_conflict(error) or attempt == CREATE_ATTEMPTS - 1:
                        raise
                    await asyncio.sleep(0.05)  # another process creates them at the same time

        await self._connections().run(work, writes=SWEEPER)

    # ── The contract of a store ──

    async def load(self, key: str) -> Record | None:
        """See :meth:`asgi_sessions.stores.Store.load`."""

        async def work(connections: ConnectionManager) -> Record | None:
            async with connections.statement() as connection:
                return await self._load(connection, key)

        return await self._connections().run(work)

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        """See :meth:`asgi_sessions.stores.UserStore.create`."""

        async def work(connections: ConnectionManager) -> None:
            async with connections.statement() as connection:
                try:
                    await connection.execute(self._say.create, _row(record))
                except IntegrityError:
                    if await self._load(connection, record.key) != _rounded(record):
                        raise RecordExists("there is a record under this key already") from None

        if note is None or record.owner is None:
            await self._connections().run(work, writes=record.key)
            return None
        admission, ended = await self._connections().run(self._admitting(record, record.owner, note), writes=record.key)
        self._listeners.notify(ended)
        return admission

    async def update(self, record: Record, *, rev: int) -> None:
        """See :meth:`asgi_sessions.stores.Store.update`."""
        row = _row(record)
        values = {
            "key_": row["key"], "rev_": rev, "new_rev": row["rev"],
            "seen_": row["seen_at"], "expires_": row["expires_at"], "body_": row["body"],
        }  # fmt: skip

        async def work(connections: ConnectionManager) -> None:
            async with connections.statement() as connection:
                done = await connection.execute(self._say.update, values)
                if done.rowcount == 1:
                    return
                # No row was changed: find out why.
                there = await self._load(connection, record.key)
            if there is None:
                raise RecordGone("there is no record under this key")
            if not _same(record, there):
                raise RecordChanged(there)

        await self._connections().run(work, writes=record.key)

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        """See :meth:`asgi_sessions.stores.Store.touch`."""
        values = {"key_": key, "seen_": _ms(seen_at), "expires_": _ms(expires_at)}

        async def work(connections: ConnectionManager) -> bool:
            async with connections.statement() as connection:
                return (await connection.execute(self._say.touch, values)).rowcount == 1

        return await self._connections().run(work, writes=key)

    async def rename(
        self, key: str, record: Record, *, rev: int, alias: Record | None = None, note: Note | None = None
    ) -> None:
        """See :meth:`asgi_sessions.stores.Store.rename`, and :class:`~asgi_sessions.stores.UserStore` for ``note``."""

        async def work(connections: ConnectionManager) -> None:
            async with connections.transaction() as connection:
                if record.owner is not None:
                    # With or without a note: an end of all sessions reads the rows when it begins, and would miss a row that is
                    # being replaced.
                    await self._lock(connection, record.owner, record.seen_at if note is None else note.now)
                # Always in the same order, so that two concurrent calls do not deadlock.
                found = {each: await self._load(connection, each, locked=True) for each in sorted((key, record.key))}
                there, target = found[key], found[record.key]
                if target is not None and _same(record, target) and (there is None or _are_one(there, alias)):
                    return  # a repeated call
                if there is None:
                    raise RecordGone("there is no record under this key")
                if there.rev != rev:
                    raise RecordChanged(there)
                if target is not None:
                    raise RecordExists("there is a record under the new key already")
                await connection.execute(self._say.delete, {"key_": key})
                rows = [_row(_later(record, there))] + ([] if alias is None else [_row(alias)])
                await connection.execute(self._say.create, rows)
                if note is not None and record.owner is not None:
                    await self._note(connection, record.owner, [pack_note(note)], note.now, note.rules)

        await self._connections().run(work, writes=key)

    async def delete(self, key: str, *, rev: int | None = None, note: Note | None = None) -> Record | None:
        """See :meth:`asgi_sessions.stores.Store.delete`, and :class:`~asgi_sessions.stores.UserStore` for ``note``."""

        # Expired sessions expire on a standby too.
        durably = self.confirms_ends and (note is None or note.what not in ENDED_BY_CLOCK)

        async def work(connections: ConnectionManager) -> Record | None:
            async with connections.transaction(durably=durably) as connection:
                if note is not None:
                    # Read without a lock: the owner of a record never changes. Decisions use what is read under the lock.
                    owner = await self._owner_in(connection, key)
                    if owner is not None:
                        await self._lock(connection, owner, note.now)
                try:
                    there = await self._load(connection, key, locked=True)
                except RecordDamaged:
                    await connection.execute(self._say.delete, {"key_": key})
                    return None
                if there is None:
                    if durably:  # only a COMMIT with a write waits, and then for earlier writes too
                        await self._lock(connection, ENDER, time.time())
                    return None
                if rev is not None and there.rev != rev:
                    raise RecordChanged(there)
                await connection.execute(self._say.delete, {"key_": key})
                if note is not None and there.owner is not None:
                    await self._note(connection, there.owner, [pack_note(note)], note.now, note.rules)
                return there

        gone = await self._connections().run(work, writes=key)
        if gone is not None and gone.rev != ALIAS_REV:
            self._listeners.notify((gone.id,))
        return gone

    async def index(self, owner: str) -> Mapping[str, str]:
        """See :meth:`asgi_sessions.stores.Store.index`."""

        async def work(connections: ConnectionManager) -> Mapping[str, str]:
            async with connections.statement() as connection:
                rows = await connection.execute(self._say.index, {"owner_": owner})
                return {row.id: row.key for row in rows}

        return await self._connections().run(work)

    # ── The sessions of one user ──

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        """See :meth:`asgi_sessions.stores.UserStore.records`."""

        async def work(connections: ConnectionManager) -> Sequence[Record]:
            async with connections.statement() as connection:
                rows = await connection.execute(self._say.of_owner, {"owner_": owner})
                found = []
                for row in rows:
                    if row.owner != owner:
                        raise OutOfStep
                    try:
                        found.append(_record(row))
                    except RecordDamaged:
                        continue  # cannot be listed, but can be ended
                return found

        await self._prune_if_due(owner, now, rules)
        return await self._connections().run(work)

    async def end(self, owner: str, *, note: Note, id: str | None = None, keep: str | None = None) -> Sequence[str]:
        """See :meth:`asgi_sessions.stores.UserStore.end`."""

        async def work(connections: ConnectionManager) -> tuple[list[str], list[str]]:
            async with connections.transaction(durably=self.confirms_ends) as connection:
                await self._lock(connection, owner, note.now)
                alive, entries, over = await self._alive(connection, owner, note.now)
                out = [one for one in alive if id in (None, one.id) and one.id != keep]
                await self._remove(connection, [*(one.key for one in over), *(one.key for one in out)])
                entries += [pack_entry(note.what, note.now, one.id) for one in out]
                await self._note(connection, owner, entries, note.now, note.rules)
                return [one.id for one in out], [one.id for one in (*over, *out)]

        ids, gone = await self._connections().run(work, writes=owner)
        self._listeners.notify(gone)
        return ids

    async def history(self, owner: str, *, now: float, rules: Rules) -> Sequence[bytes]:
        """See :meth:`asgi_sessions.stores.UserStore.history`."""

        async def work(connections: ConnectionManager) -> Sequence[bytes]:
            async with connections.statement() as connection:
                rows = await connection.execute(self._say.entries, {"owner_": owner})
                return [f"{row.at:013d}{row.what}{row.id}{row.fingerprint}".encode() + bytes(row.facts) for row in rows]

        await self._prune_if_due(owner, now, rules)
        return await self._connections().run(work)

    async def erase(self, owner: str, *, sessions: bool) -> Sequence[str]:
        """See :meth:`asgi_sessions.stores.UserStore.erase`."""

        async def work(connections: ConnectionManager) -> list[str]:
            async with connections.transaction(durably=self.confirms_ends) as connection:
                await self._lock(connection, owner, 0.0)
                ids: list[str] = []
                if sessions:
                    rows = await connection.execute(self._say.heads_locked, {"owner_": owner})
                    ids = [row.id for row in rows]
                    await connection.execute(self._say.delete_all, {"owner_": owner})
                await connection.execute(self._say.forget, {"owner_": owner})
                return ids

        ids = await self._connections().run(work, writes=owner)
        self._listeners.notify(ids)
        return ids

    def listen(self, on_end: Callable[[str], None], on_gap: Callable[[str], None]) -> Listening:
        """Notify of ends by this process, at once. Ends by other processes are missed, so ``is_live`` is False."""
        return self._listeners.listen(on_end)

    # ── Housekeeping ──

    async def sweep(self, *, now: float, rules: Rules = Rules()) -> int | None:  # noqa: B008 - frozen
        """Remove expired records, old history entries and unused locks of users, in small batches.

        One process sweeps at a time. The history gets an entry for each expired session, with the time of expiry.

        Args:
            now: by the app's clock, in seconds since the epoch.
            rules: those of the app. The history is kept for ``rules.keep`` seconds.
        Returns:
            The number of removed records, or None while another process sweeps.
        Raises:
            StoreError: the database failed. Rows that were removed stay removed.
        """
        connections, removed, cut, began = self._connections(), 0, now - SWEEP_MARGIN, time.monotonic()

        async def keep_turn() -> None:
            await self._keep_turn(connections, now + time.monotonic() - began)

        if not await connections.run(lambda connections: self._take_turn(connections, now), writes=SWEEPER):
            return None
        while batch := await self._sweep_users(connections, cut, now, rules):
            removed += batch
            await keep_turn()
        while batch := await connections.run(
            lambda connections: self._sweep_anonymous(connections, cut), writes=SWEEPER
        ):
            removed += batch
            await keep_turn()
        horizon = _ms(now - rules.keep)
        while await connections.run(lambda connections: self._sweep_history(connections, horizon), writes=SWEEPER):
            await keep_turn()
        return removed

    async def scan(self, cursor: str, some: int) -> tuple[Sequence[str], str]:
        """See :class:`asgi_sessions.rekey.ScannableStore`. The cursor is a key."""
        after = cursor if len(cursor) == KEY_CHARS and not set(cursor) - set(_IN_ORDER) else ""

        async def work(connections: ConnectionManager) -> list[str]:
            async with connections.statement() as connection:
                rows = await connection.execute(self._say.keys_after, {"key_": after, "some": some})
                return [row.key for row in rows]

        keys = await self._connections().run(work)
        return keys, keys[-1] if len(keys) == some else ""

    def walked(self, cursor: str) -> float | None:
        """See :class:`asgi_sessions.rekey.MeasuredStore`.

        Computed from the key, since keys are evenly spread hashes. Counting the rows of a large table would exceed the deadline.
        """
        if not all(char in _IN_ORDER for char in cursor):
            return None
        share, weight = 0.0, 1.0
        for char in cursor[:MEASURED_CHARS]:
            weight /= len(_IN_ORDER)
            share += weight * _IN_ORDER.index(char)
        return share

    async def _take_turn(self, connections: ConnectionManager, now: float) -> bool:
        values = {"now_": _ms(now), "until_": _ms(now + TURN)}
        async with connections.statement() as connection:
            if (await connection.execute(self._say.take_turn, values)).rowcount:
                return True
            try:
                await connection.execute(self._say.add_entry, {**_SWEEPER_ROW, "at": values["until_"]})
            except IntegrityError:
                return False
            return True

    async def _keep_turn(self, connections: ConnectionManager, now: float) -> None:
        async def work(connections: ConnectionManager) -> None:
            async with connections.statement() as connection:
                # Unconditional: the turn is its own, and one that ended long ago does no harm.
                await connection.execute(self._say.lock, {"owner_": SWEEPER, "now_": _ms(now + TURN)})

        await connections.run(work, writes=SWEEPER)

    async def _sweep_users(self, connections: ConnectionManager, cut: float, now: float, rules: Rules) -> int:
        async def work(connections: ConnectionManager) -> list[str]:
            async with connections.statement() as connection:
                rows = await connection.execute(self._say.owners_over, {"now_": _ms(cut), "some": BATCH // 10})
                return [row.owner for row in rows]

        removed = 0
        for owner in await connections.run(work):
            removed += await self._prune(connections, owner, cut, rules, now)
        return removed

    async def _sweep_anonymous(self, connections: ConnectionManager, cut: float) -> int:
        async with connections.statement() as connection:
            rows = await connection.execute(self._say.keys_over, {"now_": _ms(cut), "some": BATCH})
            keys = [row.key for row in rows]
            if keys:
                await connection.execute(self._say.delete_over, {"keys_": keys, "now_": _ms(cut)})
            return len(keys)

    async def _sweep_history(self, connections: ConnectionManager, horizon: int) -> int:
        async with connections.transaction() as connection:
            rows = (await connection.execute(self._say.old_entries, {"horizon": horizon, "some": BATCH})).all()
            if rows:
                entries = [{"owner_": row.owner, "seq_": row.seq} for row in rows]
                await connection.execute(self._say.delete_entry, entries)
                return len(rows)
            rows = (await connection.execute(self._say.old_locks, {"horizon": horizon, "some": BATCH})).all()
            if rows:
                await connection.execute(
                    self._say.delete_lock, [{"owner_": row.owner, "horizon": horizon} for row in rows]
                )
            return len(rows)

    # ── Steps within a transaction ──

    def _admitting(
        self, record: Record, owner: str, note: Note
    ) -> Callable[[ConnectionManager], Awaitable[tuple[Admission, list[str]]]]:
        rules = note.rules

        async def work(connections: ConnectionManager) -> tuple[Admission, list[str]]:
            async with connections.transaction(durably=self.confirms_ends and note.replaces is not None) as connection:
                await self._lock(connection, owner, note.now)
                alive, entries, over = await self._alive(connection, owner, note.now)
                past = await self._past(connection, owner)
                log_ins = [row for row in past if row.what in (LOGGED_IN, NEW_DEVICE)]
                if any(one.key == record.key for one in (*alive, *over)):
                    if await self._load(connection, record.key) != _rounded(record):
                        raise RecordExists("there is a record under this key already")
                    return Admission(any(row.id == note.id and row.what == NEW_DEVICE for row in log_ins)), []
                replaces = note.replaces.record.id if note.replaces is not None else None
                replaced = [one for one in alive if one.id == replaces]
                alive = [one for one in alive if one.id != replaces]
                surplus = len(alive) - rules.limit + 1 if rules.limit else 0
                if surplus > 0 and rules.refuses:
                    raise SessionLimitReached(f"the user has reached the limit of sessions (active: {len(alive)})")
                out = sorted(alive, key=lambda one: one.seen_at)[: max(surplus, 0)]
                gone = await self._readable(connection, replaced[0].key) if replaced else None
                await self._remove(connection, [one.key for one in (*over, *out, *replaced)])
                try:
                    await connection.execute(self._say.create, _row(record))
                except IntegrityError as error:  # another user's record: keys are random, so this is no accident
                    raise RecordExists("there is a record under this key already") from error.orig
                known = {row.fingerprint for row in log_ins}
                new = bool(rules.entries) and note.what == LOGGED_IN and known.isdisjoint(note.fingerprints)
                text = pack_note(note)
                entries += [pack_entry(LIMIT_LETTER, note.now, one.id) for one in out]
                entries.append(text[:13] + NEW_DEVICE.encode() + text[14:] if new else text)
                if replaced and note.replaces is not None:
                    entries.append(pack_note(note.replaces.note))
                await self._note(connection, owner, entries, note.now, rules, past)
                ended = [one.id for one in out]
                admission = Admission(new, not log_ins, tuple(ended), gone)
                return admission, [*(one.id for one in (*over, *replaced)), *ended]

        return work

    async def _load(self, connection: AsyncConnection, key: str, *, locked: bool = False) -> Record | None:
        found = await connection.execute(self._say.load_locked if locked else self._say.load, {"key_": key})
        row = found.one_or_none()
        if row is not None and row.key != key:
            raise OutOfStep
        return None if row is None else _record(row)

    async def _readable(self, connection: AsyncConnection, key: str) -> Record | None:
        try:
            return await self._load(connection, key, locked=True)
        except RecordDamaged:
            return None

    async def _owner_in(self, connection: AsyncConnection, key: str) -> str | None:
        row = (await connection.execute(self._say.load, {"key_": key})).one_or_none()
        return row.owner if row is not None and isinstance(row.owner, str) else None

    async def _lock(self, connection: AsyncConnection, owner: str, now: float) -> None:
        """Lock the rows of this user until the end of the transaction."""
        if not (await connection.execute(self._say.lock, {"owner_": owner, "now_": _ms(now)})).rowcount:
            # Of two concurrent inserts, one fails by the primary key and is repeated.
            await connection.execute(self._say.add_entry, {**_SWEEPER_ROW, "owner": owner, "at": _ms(now)})

    async def _alive(
        self, connection: AsyncConnection, owner: str, now: float
    ) -> tuple[list[Any], list[bytes], list[Any]]:
        """A user's live records, history entries for the expired ones, and the expired ones, which the caller removes."""
        rows = (await connection.execute(self._say.heads_locked, {"owner_": owner})).all()
        at = _ms(now)
        over = [row for row in rows if row.expires_at <= at]
        entries = [pack_entry(EXPIRED, row.expires_at / 1000, row.id) for row in over]
        return [row for row in rows if row.expires_at > at], entries, over

    async def _remove(self, connection: AsyncConnection, keys: Iterable[str]) -> None:
        if keys := list(keys):
            await connection.execute(self._say.delete_these, {"keys_": keys})

    async def _past(self, connection: AsyncConnection, owner: str) -> Sequence[Any]:
        """The current history entries, without facts."""
        return (await connection.execute(self._say.past, {"owner_": owner})).all()

    async def _note(
        self,
        connection: AsyncConnection,
        owner: str,
        entries: Sequence[bytes],
        now: float,
        rules: Rules,
        past: Sequence[Any] | None = None,
    ) -> None:
        if not rules.entries or not entries:
            return
        if past is None:
            past = await self._past(connection, owner)
        last = max((row.seq for row in past), default=0)
        rows = [{"owner": owner, "seq": last + n, **_columns(text)} for n, text in enumerate(entries, 1)]
        await connection.execute(self._say.add_entry, rows)
        far_end, horizon = last + len(entries) - rules.entries, _ms(now - rules.keep)
        if any(row["seq"] <= far_end or row["at"] < horizon for row in (*(one._mapping for one in past), *rows)):
            await connection.execute(self._say.trim, {"owner_": owner, "far_end": far_end, "horizon": horizon})

    async def _prune_if_due(self, owner: str, now: float, rules: Rules) -> None:
        async def work(connections: ConnectionManager) -> bool:
            async with connections.statement() as connection:
                found = await connection.execute(self._say.any_over, {"owner_": owner, "now_": _ms(now)})
                return found.first() is not None

        connections = self._connections()
        if await connections.run(work):
            await self._prune(connections, owner, now, rules, now)

    async def _prune(self, connections: ConnectionManager, owner: str, cut: float, rules: Rules, now: float) -> int:
        async def work(connections: ConnectionManager) -> list[Any]:
            async with connections.transaction() as connection:
                await self._lock(connection, owner, now)
                _, entries, over = await self._alive(connection, owner, cut)
                await self._remove(connection, [one.key for one in over])
                await self._note(connection, owner, entries, now, rules)
                return over

        over = await connections.run(work, writes=owner)
        self._listeners.notify(one.id for one in over)
        return len(over)

    async def aclose(self) -> None:
        """Wait for operations in flight, and close the store's own connections of this event loop."""
        connections = self._managers.taken()
        if connections is not None:
            await connections.aclose()


_LAST_TIME = 10**13 - 1


def _ms(seconds: float) -> int:
    """Milliseconds, clamped to the range that the columns hold."""
    return round(min(max(seconds * 1000, 0), _LAST_TIME))


def _row(record: Record) -> dict[str, Any]:
    return {
        "key": record.key,
        "rev": record.rev,
        "seen_at": _ms(record.seen_at),
        "expires_at": _ms(record.expires_at),
        "id": record.id,
        "owner": record.owner,
        "body": record.body,
    }


def _record(row: Any) -> Record:
    """Convert a row to a record.

    Raises:
        RecordDamaged: a column has a value of another type. SQLite does not check types.
    """
    key, rev, seen_at, expires_at, id, owner, body = row
    if not (
        isinstance(rev, int)
        and isinstance(seen_at, int)
        and isinstance(expires_at, int)
        and isinstance(id, str)
        and (owner is None or isinstance(owner, str))
        and isinstance(body, bytes | bytearray | memoryview)
    ):
        raise RecordDamaged("a row has a value of the wrong type")
    return Record(key, rev, seen_at / 1000, expires_at / 1000, id, owner, bytes(body))


def _rounded(record: Record) -> Record:
    """``record`` as the database returns it: clocks in whole milliseconds."""
    return _record(tuple(_row(record).values()))


def _later(record: Record, there: Record) -> Record:
    seen_at, expires_at = max(record.seen_at, there.seen_at), max(record.expires_at, there.expires_at)
    return Record(record.key, record.rev, seen_at, expires_at, record.id, record.owner, record.body)


def _same(record: Record, there: Record) -> bool:
    """Whether ``record`` is stored already, except for clocks that were moved on."""
    return (record.rev, record.id, record.owner, record.body) == (there.rev, there.id, there.owner, there.body)


def _are_one(there: Record, alias: Record | None) -> bool:
    return alias is not None and there == _rounded(alias)


def _columns(text: bytes) -> dict[str, Any]:
    """The columns of a history entry that :func:`pack_note` made."""
    header = text[:ENTRY_HEADER].decode("ascii")
    fingerprint = ENTRY_HEADER - FINGERPRINT_CHARS
    return {
        "at": int(header[:13]),
        "what": header[13],
        "id": header[14 : 14 + ID_CHARS],
        "fingerprint": header[fingerprint:],
        "facts": text[ENTRY_HEADER:],
    }
