"""RedisStore: records in Redis (6.2 or newer) or Valkey (7.2 or newer).

The keys in the server, for operators (``docs/stores.md`` has the ACL and how to read a record)::

    asgi-sessions:{Zk3}:s:q0T4…    string   one record: a readable header, then the body
    asgi-sessions:{Zk3}:u:Xb1q…    hash     the index of one user: session id → suffix of the record's key, and its expiry
    asgi-sessions:{Zk3}:h:Xb1q…    list     the history of one user, newest first
    asgi-sessions:{Zk3}:e          channel  the ids of sessions as they end
    asgi-sessions:{Zk3}:w          string   empty, for a second: the write that ``durable_ends`` waits for

``{Zk3}`` is the shard. All records of one user share it, and so a slot of a Redis Cluster. Every key has a TTL for housekeeping
only. The app's clock decides when a session ends.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import re
import time
import warnings
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Self

from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.history import ENDED_BY_CLOCK, Admission, Note, Replaced, Rules, pack_note
from asgi_sessions._core.record import Record, pack, pack_clocks, pack_rev, unpack
from asgi_sessions._core.token import KEY_SUFFIX_CHARS, SHARD_CHARS, shard_of
from asgi_sessions._engine.contract import Listening
from asgi_sessions._engine.loops import PerLoop, running_loop
from asgi_sessions.errors import (
    ConfigurationError,
    EndUnconfirmed,
    RecordChanged,
    RecordDamaged,
    RecordExists,
    RecordGone,
    SessionLimitReached,
    SessionWarning,
    StoreError,
    StoreRefused,
    StoreUnreachable,
    TemporarilyUnavailable,
)
from asgi_sessions.stores.redis._client import (
    PATIENCE,
    REQUESTS,
    UNANSWERED,
    Client,
    GivenClient,
    OnOpen,
    OwnClient,
    Refused,
    Replicas,
    address_of,
    after_fork,
    checked,
    finish,
    pool_from_sentinels,
    pool_from_url,
    refusal,
    run,
    run_durably,
    sentinels_of,
    unanswered,
)
from asgi_sessions.stores.redis._cluster import SLOTS, Cluster, ClusterClient, shard_of_each_slot
from asgi_sessions.stores.redis._connection import Connection, ConnectionLost
from asgi_sessions.stores.redis._scripts import (
    ADMIT,
    CREATE,
    DELETE,
    END,
    ERASE,
    HISTORY,
    INDEX,
    RECORDS,
    RENAME,
    SEARCH,
    TOUCH,
    UPDATE,
    Script,
)
from asgi_sessions.stores.redis._sentinel import Address, SentinelWatch
from asgi_sessions.stores.redis._server import (
    ASK,
    ASK_SNAPSHOTS,
    DurableEnds,
    Run,
    Runs,
    advice,
    has_no_log,
    info_in,
    snapshots_in,
)

logger: logging.Logger = logging.getLogger("asgi_sessions")

TTL_MARGIN = 60.0
"""Seconds for which the server keeps an expired record, so that the app's clock ends it."""

LARGE = 16 * 1024
"""Bytes. Larger records use a connection of their own, so that small ones do not wait behind them."""

SHARD_AND_SUFFIX = SHARD_CHARS + len("}:s:") + KEY_SUFFIX_CHARS
"""Characters at the end of a record's name that hold its key."""

RUN_CHARS = 12
"""Characters of a server's run id in a cursor: enough to tell two runs apart."""

SLOTS_AT_ONCE = 256
"""Slots of a cluster that one call of ``scan`` visits at most, so that the caller can report progress."""

UNSURE = b"UNSURE"
"""The reply of a script that needs all sessions of a user whose index may have been evicted."""

_LAST_SMALL = str(LARGE - 1)

_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,99}")


class RedisStore:
    """Keeps records in Redis or Valkey, through redis-py.

    ``RedisStore.from_url("redis://localhost:6379/0")`` opens its own connections on first use, in the caller's event loop, and
    closes them when the app's lifespan ends. So do ``from_sentinel()`` and ``from_cluster()``. ``RedisStore(client)`` uses your
    ``redis.asyncio`` client. Close it yourself.
    """

    needs_asyncio = True
    emit_event: Callable[..., Awaitable[None]] | None = None
    server_time: tuple[float, float] | None = None
    _watches: PerLoop[SentinelWatch] | None = None
    _server_of: Callable[[str], Hashable] | None = None
    _address: Callable[[], str]

    @property
    def keeps_its_own_deadline(self) -> bool:
        """True with connections of our own. See :class:`asgi_sessions.stores.Traits`."""
        return isinstance(self._client, OwnClient)

    @property
    def asks_at_once(self) -> int:
        """The size of a small record, with connections of our own to one server. See :class:`asgi_sessions.stores.Traits`."""
        return LARGE if isinstance(self._client, OwnClient) else 0

    @property
    def confirms_ends(self) -> bool:
        """True with ``durable_ends``. See :class:`asgi_sessions.stores.Traits`."""
        return self._replicas is not None

    @property
    def server_of(self) -> Callable[[str], Hashable] | None:
        """Finds the node of a cluster by key; None on a single server. See :class:`asgi_sessions.stores.Traits`."""
        return self._server_of

    def __init__(self, client: Any, *, prefix: str = "asgi-sessions") -> None:
        execute = getattr(client, "execute_command", None)
        if isinstance(client, type) or not inspect.iscoroutinefunction(execute):
            raise ConfigurationError(
                f"RedisStore({type(client).__name__}): give a client from redis.asyncio, or use RedisStore.from_url('redis://…')"
            )
        if client.get_encoder().decode_responses:
            raise ConfigurationError(
                "RedisStore(client): the client has decode_responses=True, but records are bytes; create the client without it"
            )
        given = GivenClient(client)
        self._set_up(given, given, prefix)
        self._address = partial(address_of, client)

    @classmethod
    @forgets_arguments
    def from_url(
        cls, url: str, *, prefix: str = "asgi-sessions", durable_ends: DurableEnds = 0, **options: Any
    ) -> Self:
        """Return a store with its own connections.

        Args:
            url: ``redis://[[user]:password@]host[:port][/db]``, ``rediss://…`` (TLS) or ``unix:///path``.
            prefix: of every key. Letters, digits and ``_.:/-``. One prefix per app.
            durable_ends: how many replicas must acknowledge the end of a session (``WAIT``), so that a failover does not bring it
                back. If they do not within 0.35 seconds, the call raises a StoreError.
                ``"all"``: as many as the primary ever had. Only then a failover promotes no replica without the end.
            options: passed to redis-py's connections, for example ``ssl_ca_certs=…`` or ``max_connections=…``.
        """
        address = address_of(pool_from_url(url, options))
        store = cls._own(
            lambda purpose, on_open: OwnClient(lambda: pool_from_url(url, options), purpose, on_open),
            prefix,
            durable_ends,
        )
        store._address = lambda: address
        return store

    @classmethod
    @forgets_arguments
    def from_sentinel(
        cls,
        sentinels: Sequence[tuple[str, int]],
        service: str,
        *,
        prefix: str = "asgi-sessions",
        durable_ends: DurableEnds = 0,
        sentinel_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Return a store with its own connections to the primary that the sentinels name.

        Args:
            sentinels: their addresses, ``[("10.0.0.1", 26379), …]``. Silent ones are skipped.
            service: the name of the primary in the configuration of the sentinels.
            prefix: as for :meth:`from_url`.
            durable_ends: as for :meth:`from_url`. It matters here, since the promoted replica may lag behind.
            sentinel_options: passed to the connections to sentinels, for example ``{"password": …}``.
            options: passed to the connections to the primary, for example ``username=…``, ``password=…``, ``ssl=True``.
        """
        given: object = sentinels
        addresses = list(given) if isinstance(given, list | tuple) else []
        try:
            pairs = [(str(host), int(port)) for host, port in addresses]
        except (TypeError, ValueError):
            pairs = []
        if not pairs:
            raise ConfigurationError(
                f"RedisStore.from_sentinel(sentinels={sentinels!r}): give their addresses, such as [('10.0.0.1', 26379)]"
            )
        quick = dict(sentinel_options or {})
        pool_from_sentinels(pairs, service, options, quick)
        store = cls._own(
            lambda purpose, on_open: OwnClient(
                lambda: pool_from_sentinels(pairs, service, options, quick), purpose, on_open
            ),
            prefix,
            durable_ends,
        )
        store._watches = PerLoop(
            lambda: SentinelWatch(sentinels_of(pairs, quick), service, store._lead_to)  # its own: connections stay open
        )
        after_fork.add(store._watches)
        asked = ",".join(f"{host}:{port}" for host, port in pairs)
        store._address = lambda: f"{service}({asked})"
        return store

    @classmethod
    @forgets_arguments
    def from_cluster(
        cls, url: str | Sequence[str], *, prefix: str = "asgi-sessions", durable_ends: DurableEnds = 0, **options: Any
    ) -> Self:
        """Return a store on a Redis or Valkey Cluster, with its own connections: one to each node, as on a single server.

        Args:
            url: ``redis://[[user]:password@]host[:port]`` of any node, or ``rediss://…`` (TLS), or a list of them. The first node
                that answers names the others.
            prefix: as for :meth:`from_url`.
            durable_ends: as for :meth:`from_url`. It matters here, since the promoted replica may lag behind.
            options: passed to redis-py's connections to every node.
        """
        cluster = Cluster([url] if isinstance(url, str) else _several(url), options)
        store = cls._own(lambda purpose, _: ClusterClient(cluster, purpose), prefix, durable_ends)
        cluster.on_open = store._on_open
        store._server_of = cluster.server_of
        store._address = lambda: cluster.address
        return store

    @classmethod
    def _own(
        cls, client: Callable[[str, OnOpen], OwnClient | ClusterClient], prefix: str, durable_ends: DurableEnds
    ) -> Self:
        is_number = isinstance(durable_ends, int) and not isinstance(durable_ends, bool) and 0 <= durable_ends <= 10
        if durable_ends != "all" and not is_number:
            raise ConfigurationError(
                f"RedisStore(durable_ends={durable_ends!r}): give the number of replicas to wait for, 0 to 10, or 'all'"
            )
        store = cls.__new__(cls)
        store._set_up(client(REQUESTS, store._on_open), client("large", store._on_open), prefix)
        if durable_ends:
            store._replicas, store._ender = Replicas(durable_ends), client("ends", store._on_open)
        return store

    def _on_open(self, connection: Connection) -> None:
        """Ask the server for its time, run and settings. If sentinels named it, drop the connections to other servers."""
        _when_answered(connection.ask(("TIME",)), self._note_time)
        node = None if self._server_of is None else connection.peer
        _when_answered(connection.ask(ASK), partial(self._note_info, connection, node, self._runs.last(node)))
        if self._watches is not None:
            self._watches.here()
            self._lead_to(*connection.names)

    def _lead_to(self, *names: Address) -> None:
        for client in (self._client, self._bulk, self._ender):
            if isinstance(client, OwnClient):
                client.lead_to(names)

    def _note_time(self, answer: Any) -> None:
        try:
            seconds, micros = map(int, answer)
        except (TypeError, ValueError):
            return  # an ACL may forbid TIME: the app's clock is used
        self.server_time = (seconds + micros / 1e6, time.monotonic())

    def _note_info(self, connection: Connection, node: object, asked_after: Run | None, answer: Any) -> None:
        peer, info = connection.peer, info_in(answer)
        if self._replicas is not None:
            self._replicas.note(peer, answer)
        host = self.address if peer is None else "{}:{}".format(*peer)
        why = self._runs.note(node, peer, info, asked_after)
        if why is not None:
            self._emit("store.restored", host=host, reason=why)
        role = (peer, info.get("role"))
        if role in self._looked_at:
            return
        self._looked_at.add(role)
        if has_no_log(info):
            asked = connection.ask(ASK_SNAPSHOTS)
            _when_answered(asked, lambda answer: self._judge(host, info, snapshots_in(answer)))
        else:
            self._judge(host, info, None)
        self._warn_of_eviction(info)

    def _emit(self, name: str, **details: object) -> None:
        """Report an event in a task of its own, so that requests do not wait for the app's hook."""
        if self.emit_event is None:
            return
        emitting = asyncio.ensure_future(self.emit_event(name, **details))
        self._emitting.add(emitting)
        emitting.add_done_callback(self._emitting.discard)

    def _set_up(self, client: Client, bulk: Client, prefix: str) -> None:
        if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"RedisStore(prefix={prefix!r}): use letters, digits and _.:/- only; braces would break Redis Cluster"
            )
        self._client, self._bulk = client, bulk
        self._prefix = prefix
        self._is_known = not isinstance(client, GivenClient)
        self._looked_at: set[tuple[Address | None, str | None]] = set()
        self._said: set[str] = set()
        self._runs = Runs()
        self._emitting: set[asyncio.Future[None]] = set()
        self._replicas: Replicas | None = None
        # During a WAIT the server answers no other command on the connection, so ends use one of their own.
        self._ender = client

    async def _end(self, shard: str, script: Script, key: str, *args: Any, durably: bool = True) -> Any:
        """Run a script that ends sessions, and with ``durable_ends`` wait for the replicas."""
        keys = (key,)
        if self._replicas is None or not durably:
            return await run(self._client, script, keys, *args)
        try:
            return await run_durably(
                self._ender, script, keys, *args, mark=f"{self._stem(shard)}w", replicas=self._replicas
            )
        except EndUnconfirmed:
            watch = None if self._watches is None else self._watches.found()
            if watch is not None:
                watch.look()  # this primary may be cut off
            raise

    @property
    def namespace(self) -> str:
        return self._prefix

    @property
    def address(self) -> str:
        """The address of the server or of its sentinels, without a password, for the log."""
        return self._address()

    def __repr__(self) -> str:
        return f"<RedisStore {self._prefix}>"

    def ask_load(self, key: str) -> asyncio.Future[Any] | None:
        """See :class:`~asgi_sessions._engine.contract.PromptStore`."""
        # All requests share this connection, so it carries no large reply.
        return self._client.at_once(("GETRANGE", self._name(key), "0", _LAST_SMALL)) if self._is_known else None

    async def load(self, key: str, asked: asyncio.Future[Any] | None = None) -> Record | None:
        """See :meth:`asgi_sessions.stores.Store.load`."""
        if not self._is_known:
            await self._look_at_settings()
        client, name = self._client, self._name(key)
        command = ("GET", name) if client is self._bulk else ("GETRANGE", name, "0", _LAST_SMALL)
        try:
            if asked is None:
                reply = await client.call(command)
            else:
                try:
                    reply = checked(await asked)
                except ConnectionLost:
                    reply = await client.again(command)
            data = _bytes_or_none(reply)
            if len(data) == LARGE and client is not self._bulk:
                data = _bytes_or_none(await self._bulk.call(("GET", name)))
        except Refused as refused:
            if refused.code == "WRONGTYPE":
                raise RecordDamaged("the value under the key is not a string") from refused
            raise await refusal(refused, client, self._bulk) from refused
        except UNANSWERED as error:
            raise unanswered(error) from error
        return unpack(key, data) if data else None

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        """See :meth:`asgi_sessions.stores.UserStore.create`."""
        if not self._is_known:
            await self._look_at_settings()
        key = record.key
        value = pack(record)
        script, more = CREATE, tuple[str | bytes | int, ...]()
        if note is not None and record.owner is not None:
            script = ADMIT
            limits, fingerprints = (note.rules.limit, int(note.rules.refuses)), "".join(note.fingerprints)
            replaces = _NO_SESSION if note.replaces is None else _replaced(note.replaces)
            more = (_rules(note.now, note.rules), pack_note(note), fingerprints, *limits, *replaces)
        ttl, stem = _ttl(record.seen_at, record.expires_at), self._stem(key)
        args = (value, ttl, stem, _suffix(key), *more)
        if note is not None and note.replaces is not None and self._replicas is not None:
            done = await self._when_whole(record.owner, self._end, key, script, self._name(key), *args)
        else:
            done = await self._when_whole(record.owner, run, self._for(value), script, (self._name(key),), *args)
        if done == 0:
            raise RecordExists("there is a record under this key already")
        if not isinstance(done, list):
            if done < 0:
                raise SessionLimitReached(f"the user has reached the limit of sessions (active: {-done})")
            return None
        replaced = _gone(note.replaces, done[2]) if note is not None and note.replaces is not None else None
        return Admission(bool(done[0]), bool(done[1]), tuple(_texts(done[3:])), replaced)

    def ask_update(self, record: Record, value: bytes, *, rev: int) -> asyncio.Future[Any] | None:
        """See :class:`~asgi_sessions._engine.contract.PromptStore`."""
        return self._client.at_once(self._update(record, value, rev)) if len(value) < LARGE else None

    async def update(self, record: Record, *, rev: int, asked: asyncio.Future[Any] | None = None) -> None:
        """See :meth:`asgi_sessions.stores.Store.update`."""
        value = pack(record)
        answer = await finish(self._for(value), UPDATE, self._update(record, value, rev), asked)
        _raise_unless_done(answer, record.key)

    def _update(self, record: Record, value: bytes, rev: int) -> tuple[Any, ...]:
        ttl = _ttl(record.seen_at, record.expires_at)
        return ("EVALSHA", UPDATE.sha, "1", self._name(record.key), value, ttl, pack_rev(rev))

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        """See :meth:`asgi_sessions.stores.Store.touch`."""
        clocks, ttl = pack_clocks(seen_at, expires_at), _ttl(seen_at, expires_at)
        return bool(await run(self._client, TOUCH, (self._name(key),), clocks, ttl, self._stem(key)))

    async def rename(
        self, key: str, record: Record, *, rev: int, alias: Record | None = None, note: Note | None = None
    ) -> None:
        """See :meth:`asgi_sessions.stores.Store.rename`, and :class:`~asgi_sessions.stores.UserStore` for ``note``."""
        value = pack(record)
        answer = await run(
            self._for(value),
            RENAME,
            (
                self._name(key),
                self._name(record.key),
            ),
            value,
            _ttl(record.seen_at, record.expires_at),
            self._stem(key),
            pack_rev(rev),
            _suffix(record.key),
            b"" if alias is None else pack(alias),
            0 if alias is None else _ttl(alias.seen_at, alias.expires_at),
            *_noted(note),
        )
        if answer == -1:
            raise RecordExists("there is a record under the new key already")
        _raise_unless_done(answer, key)

    async def delete(self, key: str, *, rev: int | None = None, note: Note | None = None) -> Record | None:
        """See :meth:`asgi_sessions.stores.Store.delete`, and :class:`~asgi_sessions.stores.UserStore` for ``note``."""
        expected = "" if rev is None else pack_rev(rev)
        args = (expected, self._stem(key), _suffix(key), *_noted(note))
        # Expired sessions expire on replicas too.
        durably = note is None or note.what not in ENDED_BY_CLOCK
        answer = await self._end(key, DELETE, self._name(key), *args, durably=durably)
        if isinstance(answer, list):
            raise RecordChanged(unpack(key, _bytes(answer[0])))
        try:
            return None if answer is None else unpack(key, _bytes(answer))
        except RecordDamaged:
            return None

    async def index(self, owner: str) -> Mapping[str, str]:
        """See :meth:`asgi_sessions.stores.Store.index`."""
        shard = shard_of(owner)
        keys = (self._index(owner),)
        texts = _texts(await self._when_whole(owner, run, self._client, INDEX, keys, self._stem(owner)))
        return {id: shard + suffix for id, suffix in zip(texts[::2], texts[1::2], strict=True)}

    # ── The sessions of one user ──

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        """See :meth:`asgi_sessions.stores.UserStore.records`."""
        shard = shard_of(owner)
        args = (self._stem(owner), _rules(now, rules))
        flat = await self._when_whole(owner, run, self._bulk, RECORDS, (self._index(owner),), *args)
        found: list[Record] = []
        for suffix, data in zip(_texts(flat[::2]), flat[1::2], strict=True):
            try:
                found.append(unpack(shard + suffix, _bytes(data)))
            except RecordDamaged:
                continue  # cannot be listed, but can be ended
        return found

    async def end(self, owner: str, *, note: Note, id: str | None = None, keep: str | None = None) -> Sequence[str]:
        """See :meth:`asgi_sessions.stores.UserStore.end`."""
        rules = _rules(note.now, note.rules)
        args = (self._stem(owner), rules, note.what, id or "", keep or "")
        return _texts(await self._when_whole(owner, self._end, owner, END, self._index(owner), *args))

    async def history(self, owner: str, *, now: float, rules: Rules) -> Sequence[bytes]:
        """See :meth:`asgi_sessions.stores.UserStore.history`."""
        entries = await run(self._bulk, HISTORY, (self._index(owner),), self._stem(owner), _rules(now, rules))
        return [_bytes(entry) for entry in entries]

    async def erase(self, owner: str, *, sessions: bool) -> Sequence[str]:
        """See :meth:`asgi_sessions.stores.UserStore.erase`."""
        args = (self._index(owner), self._stem(owner), int(sessions))
        return _texts(await self._when_whole(owner, self._end, owner, ERASE, *args))

    async def _when_whole(self, owner: str | None, ask: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Ask about all sessions of a user. If the server may have evicted their index, search the server for them first.

        Raises:
            TemporarilyUnavailable: the search takes longer. The next call continues it.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + PATIENCE
        while (answer := await ask(*args)) == UNSURE and owner is not None:
            while not await run(self._bulk, SEARCH, (self._index(owner),), self._stem(owner)):
                if loop.time() > give_up:
                    raise TemporarilyUnavailable(
                        "Redis may have evicted the index of this user, and the search for the sessions is not finished; "
                        "try again, and set maxmemory-policy noeviction"
                    )
        return answer

    async def scan(self, cursor: str, some: int) -> tuple[Sequence[str], str]:
        """See :class:`asgi_sessions.rekey.ScannableStore`.

        A cursor of SCAN is valid for one run of one server, so ours names the run. After a restart or a failover the scan begins
        again. A cluster is scanned slot by slot. A moving slot raises a StoreError.
        """
        if isinstance(self._bulk, ClusterClient):
            return await self._scan_slots(self._bulk, cursor, some)
        begun_in, _, number = cursor.rpartition(":")
        try:
            if not number.isdecimal():
                begun_in, number = await self._run_id(), "0"
            keys, following = await self._scan_once(number, some)
            # The run is the same before and after, so this run answered.
            while (answered_in := await self._run_id()) != begun_in:
                begun_in = answered_in
                keys, following = await self._scan_once("0", some)
        except Refused as refused:
            raise await refusal(refused, self._bulk) from refused
        return keys, "" if following == "0" else f"{begun_in}:{following}"

    async def _scan_once(self, number: str, some: int) -> tuple[Sequence[str], str]:
        pattern = f"{self._prefix}:{{*}}:s:*"
        answer = await self._bulk.call(("SCAN", number, "MATCH", pattern, "COUNT", some))
        if not isinstance(answer, list | tuple) or len(answer) != 2:
            raise StoreUnreachable(f"Redis answered with the type {type(answer).__name__} instead of a list")
        following = answer[0] if isinstance(answer[0], int) else _bytes(answer[0]).decode("ascii", "replace")
        return [_key_in(name) for name in _texts(list(answer[1]))], str(following)

    async def _run_id(self) -> str:
        """The id of this run of the server. It changes with each restart."""
        run_id = info_in(await self._bulk.call(("INFO", "server"))).get("run_id")
        if not run_id:
            raise StoreRefused(
                "Redis does not show its run_id (INFO server), which a scan needs; allow INFO in the ACL"
            )
        return run_id[:RUN_CHARS]

    def walked(self, cursor: str) -> float | None:
        """See :class:`asgi_sessions.rekey.MeasuredStore`."""
        number = cursor.rpartition(":")[2] or "0"
        if not number.isdecimal():
            return None
        return min(int(number) / SLOTS, 1.0) if isinstance(self._bulk, ClusterClient) else _share_of(int(number))

    async def _scan_slots(self, client: ClusterClient, cursor: str, some: int) -> tuple[Sequence[str], str]:
        slot, keys = int(cursor) if cursor.isdecimal() else 0, list[str]()
        begin = slot
        try:
            while slot < SLOTS and slot < begin + SLOTS_AT_ONCE and len(keys) < some:
                absent = f"{self._stem(shard_of_each_slot()[slot])}-"
                many = await client.about_slot(absent, ("CLUSTER", "COUNTKEYSINSLOT", slot))
                if many:
                    names = _texts(await client.about_slot(absent, ("CLUSTER", "GETKEYSINSLOT", slot, many)))
                    keys += [_key_in(name) for name in names if self._is_record(name)]
                slot += 1
        except Refused as refused:
            raise await refusal(refused, self._bulk) from refused
        return keys, "" if slot >= SLOTS else str(slot)

    def _is_record(self, name: str) -> bool:
        return (
            name.startswith(f"{self._prefix}:{{") and name[-SHARD_AND_SUFFIX:][SHARD_CHARS : SHARD_CHARS + 4] == "}:s:"
        )

    def listen(self, on_end: Callable[[str], None], on_gap: Callable[[str], None]) -> Listening:
        """See :class:`~asgi_sessions._engine.contract.NotifyingStore`."""
        return self._client.listen(self._stem, on_end, on_gap)

    async def aclose(self) -> None:
        """Close the store's own connections of this event loop. A client of yours stays open."""
        async with AsyncExitStack() as closing:  # closes all, even if one fails
            if self._watches is not None and (watch := self._watches.taken()) is not None:
                closing.push_async_callback(watch.aclose)
            for client in (self._ender, self._bulk, self._client):
                closing.push_async_callback(client.aclose)
            loop = running_loop()
            if emitting := [task for task in tuple(self._emitting) if task.get_loop() is loop]:
                await asyncio.wait(emitting)

    def _for(self, value: bytes) -> Client:
        return self._client if len(value) < LARGE else self._bulk

    def _stem(self, key: str) -> str:
        return f"{self._prefix}:{{{key[:SHARD_CHARS]}}}:"

    def _index(self, owner: str) -> str:
        return f"{self._stem(owner)}u:{owner}"

    def _name(self, key: str) -> str:
        return f"{self._prefix}:{{{key[:SHARD_CHARS]}}}:s:{key[SHARD_CHARS:]}"

    async def _look_at_settings(self) -> None:
        """Read the time and the settings of the server, by a client of the app. Our own connections do so when they open."""
        self._is_known = True
        try:
            with suppress(Refused):
                self._note_time(await self._client.call(("TIME",)))
            info, snapshots = info_in(await self._client.call(ASK)), None
            if has_no_log(info):
                with suppress(Refused):  # redis-py wants the two words as one
                    snapshots = snapshots_in(await self._client.call((" ".join(ASK_SNAPSHOTS[:2]), *ASK_SNAPSHOTS[2:])))
        except Refused:
            return  # the ACL forbids INFO
        except (StoreError, asyncio.CancelledError):
            self._is_known = False
            raise  # the next command would wait as long
        self._judge(self.address, info, snapshots)
        self._warn_of_eviction(info)

    def _judge(self, host: str, info: Mapping[str, str], snapshots: str | None) -> None:
        """Warn of settings that may bring back ended sessions, of each once."""
        for text in advice(info, snapshots, 0 if self._replicas is None else self._replicas.wanted):
            if text not in self._said:
                self._said.add(text)
                logger.warning("store.settings host=%s: %s", host, text)

    def _warn_of_eviction(self, info: Mapping[str, str]) -> None:
        policy = info.get("maxmemory_policy")
        if policy is None or policy == "noeviction" or policy in self._said:
            return
        self._said.add(policy)
        self._emit("store.evicts", policy=policy)
        warnings.warn(
            f"Redis has maxmemory-policy {policy}: when memory runs short, it evicts sessions and so logs users out. "
            "Set 'noeviction', since every record has a TTL, and give sessions a server of their own.",
            SessionWarning,
            stacklevel=2,
        )


def _when_answered(answer: asyncio.Future[Any], note: Callable[[Any], None]) -> None:
    """Pass the reply to ``note``. Errors are ignored here: the next command meets them too."""

    def pass_on(answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            note(answer.result())

    answer.add_done_callback(pass_on)


def _share_of(number: int) -> float:
    """The visited share of a server, from a cursor of SCAN.

    The cursor is the next bucket of a hash table of 2^n, counted in reversed binary: the first bit chooses the half, the second
    the quarter, and so on for any n. Redis has always done this (dictScan in dict.c), and so does Valkey 8.1 (hashtable.c). Tests
    scan both. On a node of a cluster, Valkey 8 and Redis 7.4 put the slot into the first 14 bits, so the result is meaningless.
    """
    share, weight = 0.0, 0.5
    while number and weight:
        share += weight * (number & 1)
        number, weight = number >> 1, weight / 2
    return min(share, 1.0)


def _key_in(name: str) -> str:
    return f"{name[-SHARD_AND_SUFFIX:][:SHARD_CHARS]}{name[-KEY_SUFFIX_CHARS:]}"


def _several(urls: object) -> list[str]:
    if not isinstance(urls, list | tuple):
        raise ConfigurationError(
            f"RedisStore.from_cluster({type(urls).__name__}): give a str such as 'redis://localhost:6379', or a list of them"
        )
    return list(urls)


def _suffix(key: str) -> str:
    return key[SHARD_CHARS:]


def _ttl(seen_at: float, expires_at: float) -> int:
    """Milliseconds. A duration, not a date, because the server's clock may differ from ours."""
    return math.ceil((max(expires_at - seen_at, 0.0) + TTL_MARGIN) * 1000)


def _rules(now: float, rules: Rules) -> str:
    """The rules of the history for the scripts: now, number of entries, how long and since when to keep them (milliseconds)."""
    at, keep = round(now * 1000), round(rules.keep * 1000)
    return f"{max(at, 0)} {rules.entries} {keep} {max(at - keep, 0)}"


def _noted(note: Note | None) -> tuple[str | bytes, str | bytes]:
    return ("", "") if note is None else (_rules(note.now, note.rules), pack_note(note))


_NO_SESSION = ("", "", "", "")


def _replaced(replaces: Replaced) -> tuple[str | bytes, ...]:
    """The arguments of ADMIT for the session that a log-in replaces."""
    record = replaces.record
    return (record.id, _suffix(record.key), pack_rev(record.rev), pack_note(replaces.note))


def _gone(replaces: Replaced, answer: Any) -> Record | None:
    """The record of the replaced session, from the answer of ADMIT."""
    known, value = replaces.record, _bytes(answer)
    if not value:
        return None
    try:
        if value == b"=":
            return known
        suffix, there = value[:KEY_SUFFIX_CHARS].decode("ascii"), value[KEY_SUFFIX_CHARS:]
        return unpack(shard_of(known.key) + suffix, there)
    except RecordDamaged:
        return None


def _texts(answer: Any) -> list[str]:
    if not isinstance(answer, list):
        raise StoreUnreachable(f"Redis answered with the type {type(answer).__name__} instead of a list")
    return [_bytes(item).decode("ascii", "replace") for item in answer]


def _bytes(answer: Any) -> bytes:
    if not isinstance(answer, bytes):
        raise StoreUnreachable(f"Redis answered with the type {type(answer).__name__} instead of a string")
    return answer


def _bytes_or_none(answer: Any) -> bytes:
    return b"" if answer is None else _bytes(answer)


def _raise_unless_done(answer: Any, key: str) -> None:
    if answer == 0:
        raise RecordGone("there is no record under this key")
    if answer != 1:
        raise RecordChanged(unpack(key, _bytes(answer)))
