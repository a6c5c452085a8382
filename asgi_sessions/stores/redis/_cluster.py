"""A client for a cluster: the map of slots, and a connection to each node as to a single server.

redis-py opens the connections. The commands for a node in one turn of the event loop leave as one write (``_connection.py``).
The map comes from ``CLUSTER SLOTS``. The wrong node refuses a command:

=================================  ====================================  ================================================
reply                              meaning                               reaction
=================================  ====================================  ================================================
``MOVED slot host:port``           another node has the slot             send it there, and refresh the map
``ASK slot host:port``             the slot is moving, the key has       send it there once, after ``ASKING``
``TRYAGAIN``                       the slot is moving, keys on both      wait; see ``run`` in ``_client.py``
``CLUSTERDOWN``, ``READONLY``, …   no node has the slot for now          refresh the map, try again
none                               the node is gone, or cut off          refresh the map, try again
=================================  ====================================  ================================================

All of this happens within the time limit of the command. Source: the Redis Cluster specification, "Redirection and resharding".
"""

from __future__ import annotations

import asyncio
import random
from binascii import crc_hqx
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import cache
from itertools import product
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from asgi_sessions._core.token import ALPHABET, SHARD_CHARS
from asgi_sessions._engine.deadline import Deadlines
from asgi_sessions._engine.loops import PerLoop, retrieve, stop
from asgi_sessions.errors import ConfigurationError, EndUnconfirmed, StoreUnreachable, TemporarilyUnavailable
from asgi_sessions.stores.redis._client import (
    PAUSE,
    TIME_TO_OPEN,
    UNANSWERED,
    WRONG_SERVER,
    OnOpen,
    ReconnectingConnection,
    Refused,
    Replicas,
    after_fork,
    ask_durably,
    checked,
    new_connection,
    nothing,
    pool_from_url,
    say_asking,
    unanswered,
)
from asgi_sessions.stores.redis._connection import Connection, ConnectionLost
from asgi_sessions.stores.redis._subscriber import Subscriber

SLOTS: Final = 16384

TRIES_FOR_A_SHARD: Final = 500
"""Random shards to try. Even a node of a cluster of 100 nodes almost surely has one of so many."""

_SHARD_ALPHABET: Final = ALPHABET.decode()

QUICK: Final = 0.15
"""Seconds that a node has to send its map, if there are other nodes to ask."""

MOST_SENT_ON: Final = 2
"""Redirects followed without a pause. Two nodes may redirect to each other."""

REFRESH_PAUSE: Final = 0.1
"""Seconds between two refreshes of the map, so that a thousand failing requests cause only one."""

_PASSING: Final = ("CLUSTERDOWN", *WRONG_SERVER)


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_Rows = list[tuple[range, list[Address]]]
"""Ranges of slots and their nodes, the primary first."""


def slot_of_shard(shard: str) -> int:
    """The slot of a shard, which is the hash tag of our names: its CRC16 (XMODEM) modulo 16384."""
    return crc_hqx(shard.encode("utf-8", "replace"), 0) % SLOTS


@cache
def shard_of_each_slot() -> Sequence[str]:
    """One shard for each slot."""
    found = {slot_of_shard(shard): shard for shard in map("".join, product(_SHARD_ALPHABET, repeat=SHARD_CHARS))}
    return [found[slot] for slot in range(SLOTS)]


def slot_of(name: str) -> int:
    """The slot of one of our keys."""
    begin = name.index("{") + 1
    return slot_of_shard(name[begin : begin + SHARD_CHARS])


class Cluster:
    """The settings of the connections to a cluster, and its :class:`Map` for each event loop."""

    def __init__(self, urls: Sequence[str], options: dict[str, Any]) -> None:
        """Open no connection. Raises ConfigurationError if a URL or an option is not understood."""
        pools = [pool_from_url(url, options, "from_cluster") for url in urls]
        if not pools:
            raise ConfigurationError("RedisStore.from_cluster([]): give the URL of at least one node")
        self._pool = pools[0]
        if any(_settings_in(url) != _settings_in(urls[0]) for url in urls):
            raise ConfigurationError(
                "RedisStore.from_cluster(): the URLs differ in more than host and port; "
                "give the same scheme, user, password and options in each"
            )
        self._seeds = [_address_in(pool) for pool in pools]
        self.on_open: OnOpen = nothing
        self._maps: PerLoop[Map] = PerLoop(lambda: Map(self._pool_at, self._seeds, self.on_open))
        after_fork.add(self)

    @property
    def address(self) -> str:
        """The given addresses."""
        return ",".join(map(str, self._seeds))

    def map(self) -> Map:
        """The map of the running event loop."""
        return self._maps.here()

    def server_of(self, key: str) -> Address | None:
        """The node with one of our keys, or None if unknown. Each node may fail by itself."""
        return self.map().at[slot_of_shard(key[:SHARD_CHARS])]

    def _pool_at(self, address: Address) -> ConnectionPool:
        options = {**self._pool.connection_kwargs, "host": address.host, "port": address.port}
        return ConnectionPool(connection_class=self._pool.connection_class, **options)

    def forget(self) -> None:
        """Drop all maps in a forked child. The sockets belong to the parent."""
        self._maps.forget()

    async def aclose(self) -> None:
        known = self._maps.taken()
        if known is not None:
            await known.aclose()


def _settings_in(url: str) -> dict[str, Any]:
    """The settings in a URL that all nodes must share: TLS, user, password, options."""
    return {name: value for name, value in parse_url(url).items() if name not in ("host", "port", "db")}


def _address_in(pool: ConnectionPool) -> Address:
    given = pool.connection_kwargs
    if "path" in given or given.get("db"):
        raise ConfigurationError(
            "RedisStore.from_cluster(): give redis://host:port of a node, or rediss://…; a cluster has database 0 only"
        )
    return Address(str(given.get("host", "localhost")), int(given.get("port", 6379)))


class Map:
    """The nodes of a cluster and their slots, in one event loop."""

    def __init__(
        self, pool_at: Callable[[Address], ConnectionPool], seeds: Sequence[Address], on_open: OnOpen = nothing
    ) -> None:
        self._pool_at = pool_at
        self._on_open = on_open
        self._seeds = list(seeds)
        self._nodes: list[Address] = []
        self._shown_by = self._seeds[0]
        self._connections: dict[tuple[Address, str], ReconnectingConnection] = {}
        # Our own deadlines, so that a blocked event loop does not count against a node.
        self.limits, self._quick = Deadlines(TIME_TO_OPEN), Deadlines(QUICK)
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = 0.0
        self._closing: set[asyncio.Task[None]] = set()
        self.is_closed = False
        self.primaries: list[Address] = []
        self.suspects: set[Address] = set()
        """Nodes that failed since the last refresh, so other nodes may have their slots now."""
        self.at: list[Address | None] = [None] * SLOTS
        """The primary of each slot, or None if unknown."""
        self.listeners: set[Callable[[], None]] = set()
        """Called when a slot has moved."""

    def connection_to(self, address: Address, purpose: str) -> ReconnectingConnection:
        """The connection to a node for one purpose, such as ``map`` or ``requests``.

        Raises:
            ConnectionLost: the map was closed, so a new connection would never be closed.
        """
        if self.is_closed:
            raise ConnectionLost("the store was closed")
        reconnecting = self._connections.get((address, purpose))
        if reconnecting is None:
            pool = self._pool_at(address)
            reconnecting = self._connections[address, purpose] = ReconnectingConnection(pool, self._on_open)
        return reconnecting

    async def find(self, slot: int | None) -> Address:
        """The primary of a slot, or without a slot any node that answers.

        Raises:
            RedisError: no node sends a map, or no node has the slot.
        """
        if not self.primaries or (slot is not None and self.at[slot] in self.suspects):
            await asyncio.shield(self.refresh())
        if slot is None:
            return self._shown_by
        if self.at[slot] is None:
            await asyncio.shield(self.refresh())
        found = self.at[slot]
        if found is None:
            raise RedisError("no node of the cluster has this slot")
        return found

    def elsewhere(self, name: str, address: Address) -> str:
        """The same name in another slot of this node, or the name itself if no such slot is found."""
        slot, begin = slot_of(name), name.index("{") + 1
        for _ in range(TRIES_FOR_A_SHARD):
            shard = "".join(random.choices(_SHARD_ALPHABET, k=SHARD_CHARS))  # noqa: S311 - spreads load, guards nothing
            other = slot_of_shard(shard)
            if other != slot and self.at[other] == address:
                return f"{name[:begin]}{shard}{name[begin + SHARD_CHARS :]}"
        return name

    def moved(self, slot: int, address: Address) -> None:
        """Note a redirect for a slot, and refresh the map: other slots may have moved too."""
        if self.at[slot] != address:
            self.at[slot] = address
            self._notify()
        self.refresh()

    def suspect(self, address: Address | None) -> asyncio.Task[None]:
        """Note a node without an answer, or without the primary role, and refresh the map: other nodes may have its slots."""
        if address is not None:
            self.suspects.add(address)
        return self.refresh()

    def refresh(self) -> asyncio.Task[None]:
        """Fetch the map again, at most once per ``REFRESH_PAUSE``. Concurrent callers wait for the same refresh."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._refresh())
            self._refreshing.add_done_callback(retrieve)
        return self._refreshing

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if (wait := self._refreshed_at + REFRESH_PAUSE - loop.time()) > 0:
                await asyncio.sleep(wait)
            known = random.sample(self._nodes, len(self._nodes))
            known.sort(key=self.suspects.__contains__)
            others = [seed for seed in self._seeds if seed not in known]
            best: _Rows | None = None
            for address in [*known, *others]:
                try:
                    with (self._quick if len(known) + len(others) > 1 else self.limits).limit():
                        is_ok, rows = await self._seen_by(address)
                except UNANSWERED:
                    continue
                # A node without contact to the others sends an outdated map.
                if is_ok or best is None:
                    best, self._shown_by = rows, address
                if is_ok:
                    break
            if best is None:
                raise RedisError("no node of the cluster sends its map")
            self._adopt(best)
        finally:
            self._refreshed_at = loop.time()

    async def _seen_by(self, address: Address) -> tuple[bool, _Rows]:
        connection = await self.connection_to(address, "map").ready()
        info, rows = await asyncio.gather(connection.ask(("CLUSTER", "INFO")), connection.ask(("CLUSTER", "SLOTS")))
        shown = _rows_of(rows, address) if isinstance(rows, list) else []
        if not shown:
            raise RedisError("a node of the cluster sends no map")
        return isinstance(info, bytes) and b"cluster_state:ok" in info, shown

    def _adopt(self, rows: _Rows) -> None:
        at: list[Address | None] = [None] * SLOTS
        nodes: dict[Address, None] = {}
        for slots, addresses in rows:
            at[slots.start : slots.stop] = [addresses[0]] * len(slots)
            nodes.update(dict.fromkeys(addresses))
        self._nodes, self.primaries = list(nodes), list(dict.fromkeys(addresses[0] for _, addresses in rows))
        self.suspects.clear()
        for gone in [each for each in self._connections if each[0] not in nodes and each[0] not in self._seeds]:
            closing = asyncio.ensure_future(self._connections.pop(gone).aclose())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        if at != self.at:
            self.at = at
            self._notify()

    def _notify(self) -> None:
        for listener in tuple(self.listeners):
            listener()

    async def aclose(self) -> None:
        self.is_closed = True
        connections, self._connections = self._connections, {}
        async with AsyncExitStack() as closing:
            for reconnecting in connections.values():
                closing.push_async_callback(reconnecting.aclose)
        if self._refreshing is not None:
            # Not cancelled, since requests may wait for it. It ends by itself: no node can be asked any more.
            await asyncio.wait({self._refreshing})
        if self._closing:
            await asyncio.wait(self._closing)


def _rows_of(rows: list[Any], asked: Address) -> _Rows:
    """Parse CLUSTER SLOTS: ``[first, last, primary, replica …]``, where a node is ``[host, port, id …]``.

    Raises:
        RedisError: the reply has another shape.
    """
    try:
        return [
            (range(int(first), int(last) + 1), [_address_of(node, asked) for node in (primary, *replicas)])
            for first, last, primary, *replicas in rows
            if 0 <= int(first) <= int(last) < SLOTS
        ]
    except (TypeError, ValueError, IndexError) as error:
        raise RedisError("a node of the cluster sends a map of an unknown format") from error


def _address_of(node: Any, asked: Address) -> Address:
    host, port = node[0], int(node[1])
    # No name, or "?", means the asked address.
    name = host.decode("ascii") if isinstance(host, bytes) else ""
    return Address(asked.host if name in ("", "?") else name, port)


def _redirected(refused: Refused, asked: Address) -> tuple[int, Address]:
    """The slot and the address in ``MOVED 3999 127.0.0.1:6381`` or ``ASK …``."""
    try:
        _, slot, where = str(refused).split(None, 3)[:3]
        host, _, port = where.rpartition(":")
        return int(slot) % SLOTS, Address(asked.host if host in ("", "?") else host, int(port))
    except ValueError:
        raise StoreUnreachable("a node of the cluster sends a redirect without an address") from refused


class ClusterClient:
    """Our own connections to the nodes of a cluster: one per node, event loop and purpose. See :class:`OwnClient`."""

    def __init__(self, cluster: Cluster, purpose: str) -> None:
        self._cluster = cluster
        self.purpose = purpose

    def at_once(self, command: tuple[Any, ...]) -> None:
        """Return None: a reply may be a redirect, which only :meth:`call` follows."""

    async def call(self, command: tuple[Any, ...]) -> Any:
        """As :meth:`OwnClient.call`, at the node with the slot of the command's first key."""
        known, name = self._cluster.map(), command[3] if command[0] in ("EVALSHA", "EVAL") else command[1]
        slot = slot_of(name) if "{" in name else None
        address = None if slot is None else known.at[slot]
        began = monotonic()
        try:
            if address is not None and address not in known.suspects:
                return await self._call_at(known, address, slot, command)
            return await self._carry(known, slot, _asking(command))
        except asyncio.CancelledError:
            # The deadline of a request comes before ours. Do not refresh now: the event loop may be about to end.
            if address is not None and monotonic() - began > QUICK:
                known.suspects.add(address)
            raise

    async def _call_at(self, known: Map, address: Address, slot: int | None, command: tuple[Any, ...]) -> Any:
        """The common case: there is a connection to the node, and it has the slot."""
        connection = known.connection_to(address, self.purpose).current
        if connection is not None and connection.has_room:
            try:
                return checked(await connection.ask(command))
            except ConnectionLost:
                known.suspect(address)
            except Refused as refused:
                if refused.code not in ("MOVED", "ASK", *_PASSING):
                    raise
            except UNANSWERED as error:
                known.suspect(address)
                raise unanswered(error, self.purpose) from error
        return await self._carry(known, slot, _asking(command))

    again = call

    async def call_durably(self, command: tuple[Any, ...], mark: str, replicas: Replicas) -> Any:
        """As :meth:`OwnClient.call_durably`."""
        known, slot = self._cluster.map(), slot_of(mark)

        def ask(connection: Connection, at: Address, /, *, is_asking: bool) -> Awaitable[Any]:
            # The old node of a moving slot accepts no new key in it, so there the mark must be in another slot.
            return ask_durably(
                connection,
                command,
                lambda: mark if is_asking else known.elsewhere(mark, at),
                replicas,
                is_asking=is_asking,
            )

        return await self._carry(known, slot, ask)

    async def about_slot(self, absent: str, command: tuple[Any, ...]) -> Any:
        """As :meth:`call`, for a command about a whole slot, at the node with all of it.

        A node answers such a command with an empty reply for slots of other nodes. So it is also asked for a key of the slot,
        and then redirects.

        Args:
            absent: the name of a missing key in the slot.
        Raises:
            StoreError: as :meth:`call`, or the slot is moving to another node.
        """

        async def ask(connection: Connection, at: Address, /, *, is_asking: bool) -> Any:
            if is_asking:
                raise TemporarilyUnavailable(
                    "a slot of the cluster is moving to another node; go on when the move is finished"
                )
            reply, there = await asyncio.gather(connection.ask(command), connection.ask(("EXISTS", absent)))
            checked(there)
            return checked(reply)

        return await self._carry(self._cluster.map(), slot_of(absent), ask)

    async def _carry(self, known: Map, slot: int | None, ask: _Ask) -> Any:
        """Ask the node with the slot. Follow redirects, and try again after passing errors, within the command's time."""
        address: Address | None = None
        is_asking, sent_on = False, 0
        trouble: Exception = TimeoutError()
        try:
            with known.limits.limit():
                while True:
                    try:
                        if address is None:
                            address = await known.find(slot)
                        connection = await known.connection_to(address, self.purpose).ready()
                        return await ask(connection, address, is_asking=is_asking)
                    except Refused as refused:
                        trouble, is_asking = refused, refused.code == "ASK"
                        if refused.code in ("MOVED", "ASK") and address is not None:
                            moved_slot, address = _redirected(refused, address)
                            if not is_asking:
                                known.moved(moved_slot, address)
                            sent_on += 1
                            if sent_on > MOST_SENT_ON:
                                await asyncio.sleep(PAUSE)
                            continue
                        if refused.code not in _PASSING:
                            raise
                    except UNANSWERED as error:
                        trouble, is_asking = error, False
                        if known.is_closed:
                            raise unanswered(error, self.purpose) from error
                    await asyncio.wait({known.suspect(address)})
                    await asyncio.sleep(PAUSE)
                    address = None
        except EndUnconfirmed:
            known.suspect(address)  # this primary may be cut off
            raise
        except TimeoutError as error:
            known.suspect(address)
            if isinstance(trouble, Refused):
                raise trouble from error
            raise unanswered(trouble, self.purpose) from error

    async def distrust(self) -> None:
        """Do nothing: a primary that became a replica replies READONLY, and then it is suspected already."""

    def listen(
        self, stem: Callable[[str], str], on_end: Callable[[str], None], on_gap: Callable[[str], None]
    ) -> ClusterSubscriber:
        return ClusterSubscriber(self._cluster.map(), self._cluster._pool_at, stem, on_end, on_gap)

    async def aclose(self) -> None:
        await self._cluster.aclose()


class _Ask(Protocol):
    """Asks a node. ``is_asking``: the slot is moving to it, so send ASKING first."""

    def __call__(self, connection: Connection, at: Address, /, *, is_asking: bool) -> Awaitable[Any]: ...


def _asking(command: tuple[Any, ...]) -> _Ask:
    async def ask(connection: Connection, at: Address, /, *, is_asking: bool) -> Any:
        if is_asking:
            say_asking(connection)
        return checked(await connection.ask(command))

    return ask


class ClusterSubscriber:
    """Has a :class:`Subscriber` at each node with a watched shard, and follows moving slots."""

    def __init__(
        self,
        known: Map,
        pool_at: Callable[[Address], ConnectionPool],
        stem: Callable[[str], str],
        on_end: Callable[[str], None],
        on_gap: Callable[[str], None],
    ) -> None:
        self._map = known
        self._pool_at = pool_at
        self._callbacks = (stem, on_end, on_gap)
        self._shards: Counter[str] = Counter()
        self._at: dict[str, Address | None] = {}
        self._subscribers: dict[Address, Subscriber] = {}
        self._closing: set[asyncio.Task[None]] = set()
        known.listeners.add(self._follow)

    @property
    def is_live(self) -> bool:
        return None not in self._at.values() and all(each.is_live for each in self._subscribers.values())

    def add(self, shard: str) -> None:
        self._shards[shard] += 1
        if self._shards[shard] == 1:
            self._at[shard] = None
            self._follow_one(shard)
            if self._at[shard] is None:
                self._map.refresh()

    def remove(self, shard: str) -> None:
        self._shards[shard] -= 1
        if self._shards[shard] <= 0:
            del self._shards[shard]
            self._leave(shard, self._at.pop(shard))
            self._close_idle()

    def _follow(self) -> None:
        """Subscribe at the current nodes of the slots."""
        for shard in self._at:
            self._follow_one(shard)
        self._close_idle()

    def _follow_one(self, shard: str) -> None:
        here, there = self._at[shard], self._map.at[slot_of_shard(shard)]
        if here == there:
            return
        self._leave(shard, here)
        self._at[shard] = there
        if there is not None:
            subscriber = self._subscribers.get(there)
            if subscriber is None:
                pool = self._pool_at(there)
                subscriber = Subscriber(
                    lambda: new_connection(pool), *self._callbacks, lambda: self._map.suspect(there)
                )
                self._subscribers[there] = subscriber
            subscriber.add(shard)

    def _leave(self, shard: str, address: Address | None) -> None:
        if address is not None:
            self._subscribers[address].remove(shard)

    def _close_idle(self) -> None:
        for address in self._subscribers.keys() - set(self._at.values()):
            self._close(self._subscribers.pop(address))

    def _close(self, subscriber: Subscriber) -> None:
        closing = subscriber.leave()
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        self._map.listeners.discard(self._follow)
        subscribers, self._subscribers, self._at = self._subscribers, {}, {}
        self._shards.clear()
        for subscriber in subscribers.values():
            self._close(subscriber)
        await stop(*self._closing)
