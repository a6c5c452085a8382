"""The seam between the store and redis-py, with two kinds of clients.

:class:`OwnClient` has one :class:`Connection` per event loop, opened on first use and again after a loss. :class:`GivenClient`
wraps a client of the app.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from threading import get_ident
from time import monotonic
from typing import Any, Protocol
from urllib.parse import urlsplit

import hiredis
from redis.asyncio import ConnectionPool, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    DataError,
    MasterDownError,
    MaxConnectionsError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from asgi_sessions._engine.contract import Listening
from asgi_sessions._engine.deadline import Deadlines
from asgi_sessions._engine.failures import cleaned, reason_of
from asgi_sessions._engine.loops import PerLoop, retrieve, stop
from asgi_sessions.errors import (
    ConfigurationError,
    EndUnconfirmed,
    StoreError,
    StoreRefused,
    StoreUnreachable,
    TemporarilyUnavailable,
)
from asgi_sessions.stores.redis._connection import Connection, ConnectionLost, NotSent, open_connection
from asgi_sessions.stores.redis._scripts import MOVING, Script
from asgi_sessions.stores.redis._sentinel import Address, Sentinels
from asgi_sessions.stores.redis._server import DurableEnds
from asgi_sessions.stores.redis._subscriber import NullSubscriber, Subscriber

# RESP2 has no push messages, so every reply belongs to a command. The driver does not retry: this file does.
_OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "decode_responses": False,
    "socket_connect_timeout": 0.4,
    "socket_timeout": 0.4,  # of the handshake; later timeouts are those of Connection
}

TIME_TO_OPEN = 0.45
"""Seconds that a command waits for a connection, or for room on it."""

FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.25
"""Seconds between two attempts to connect: doubled each time, with jitter. Requests meanwhile wait for the next attempt, so the
first of them notices that the server is back."""


TRY_AGAIN = "TRYAGAIN"
"""The code of an error of a cluster: the slot is moving and its keys are on two nodes. Nothing was done, and it passes."""

PAUSE = 0.02
"""Seconds until the next try."""

PATIENCE = 0.35
"""Seconds of trying again. Less than the deadline of a commit, so that the error names the moving slot, not a slow store."""


WAIT_FOR_REPLICAS = 250
"""Milliseconds. A server checks its clock ten times a second, so it may take 100 more. The deadline of a commit is 450."""

TIME_TO_CONFIRM = 0.4
"""Seconds for an end and the WAIT after it, which may queue behind other WAITs on the same connection."""

MARK_TTL = 1000
"""Milliseconds until the key expires that is written so that WAIT has a write to wait for."""

_MARK = "redis.call('DEL', KEYS[1]) return redis.call('SET', KEYS[1], '', 'PX', ARGV[1])"
"""A full server refuses SET, except in a script that has written before. DEL counts as a write and is never refused."""


WRONG_SERVER = ("READONLY", "LOADING", "MASTERDOWN", "UNBLOCKED")
"""Codes of a server that is not a primary now. After a failover the connection leads to the wrong server."""

UNREACHABLE = frozenset({"LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "NOAUTH", "WRONGPASS"})
"""Codes of a server that refuses every command for now. Every other error reply concerns one command."""

TRUST_AGAIN = 1.0
"""Seconds for which the next connection is kept although it gives such a code too: a third would not help."""

_NO_CONNECTION_LEFT = ("Too many connections", "No connection available", "max number of clients")
"""In errors of redis-py's pools and of the server."""

_IN_SCRIPT = re.compile(r"@user_script: ?\d+: -([A-Z]+) ")
"""The code of a command's error within the error of its script, on Redis 6.2. Newer servers put it first."""

_CODES = {
    NoScriptError: "NOSCRIPT",
    ReadOnlyError: "READONLY",
    BusyLoadingError: "LOADING",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    ClusterCrossSlotError: "CROSSSLOT",
    TryAgainError: TRY_AGAIN,
    OutOfMemoryError: "OOM",
    NoPermissionError: "NOPERM",
}
"""redis-py replaces the code in the text by a class."""


class Refused(Exception):
    """The server answered with an error."""

    @property
    def code(self) -> str:
        """The first word of the error: OOM, READONLY, NOPERM …"""
        text = str(self)
        if MOVING in text:
            return TRY_AGAIN
        if found := _IN_SCRIPT.search(text):
            return found[1]
        words = text.split(None, 1)
        return words[0] if words and words[0].isupper() else "ERR"

    def as_store_error(self) -> StoreError:
        text, code = cleaned(str(self)), self.code
        if code == TRY_AGAIN:
            # An error of our own scripts does not begin with the code.
            return TemporarilyUnavailable(
                f"Redis refused: {text if text.startswith(TRY_AGAIN) else f'{TRY_AGAIN} {text}'}"
            )
        return (StoreUnreachable if code in UNREACHABLE else StoreRefused)(f"Redis refused: {text}")


UNANSWERED = (RedisError, OSError, TimeoutError)
"""The errors of a command without a reply."""


REQUESTS = "requests"
"""The purpose of the connection that all requests share. Large records and ends that wait for replicas use others."""


def unanswered(error: BaseException, purpose: str = REQUESTS) -> StoreError:
    """The error to raise when there was no reply on a connection for this purpose."""
    why = f"Redis is unreachable: {reason_of(error)}"
    if isinstance(error, MaxConnectionsError) or any(each in str(error) for each in _NO_CONNECTION_LEFT):
        return StoreRefused(why)
    failure = StoreUnreachable(why)
    failure.is_guess = purpose != REQUESTS
    return failure


def address_of(client: Any) -> str:
    """The address that a pool or a client of redis-py connects to, without a password."""
    given: Mapping[str, Any] = getattr(getattr(client, "connection_pool", client), "connection_kwargs", {})
    if isinstance(client, RedisCluster):
        return ",".join(f"{node.host}:{node.port}" for node in client.get_nodes()) or "a cluster"
    if "path" in given:
        return f"unix:{given['path']}"
    host = str(given.get("host", "localhost"))
    return f"[{host}]:{given.get('port', 6379)}" if ":" in host else f"{host}:{given.get('port', 6379)}"


def checked(reply: Any) -> Any:
    """Return the reply, or raise an error reply as Refused."""
    if isinstance(reply, hiredis.ReplyError):
        raise Refused(str(reply))
    return reply


OnOpen = Callable[[Connection], None]


def nothing(connection: Connection) -> None:
    """Do nothing with a new connection: the default ``on_open``."""


class OwnClient:
    """Our own connections: one per event loop."""

    def __init__(
        self, make_pool: Callable[[], ConnectionPool], purpose: str = REQUESTS, on_open: OnOpen = nothing
    ) -> None:
        """``make_pool`` is called once per event loop. The pool only configures connections and opens none."""
        self.purpose = purpose
        self._connections: PerLoop[ReconnectingConnection] = PerLoop(
            lambda: ReconnectingConnection(make_pool(), on_open)
        )
        self._last: tuple[int, Any, ReconnectingConnection | None] = (0, None, None)
        """A thread, its event loop, and the connection there."""
        after_fork.add(self)

    def at_once(self, command: tuple[Any, ...]) -> asyncio.Future[Any] | None:
        """Send a command at once if there is a connection with room for it. Returns None otherwise: use :meth:`call`.

        The future holds the reply or an error reply. It raises ConnectionLost (use :meth:`again`) or another RedisError.
        """
        thread, loop, reconnecting = self._last
        # Most processes have one loop, and asking asyncio for the running one takes a system call.
        if reconnecting is None or thread != get_ident() or not loop.is_running():
            return None
        connection = reconnecting.current
        return connection.ask(command) if connection is not None and connection.has_room else None

    async def call(self, command: tuple[Any, ...]) -> Any:
        """Send one command and return its reply. If the connection breaks, send it once more.

        Raises:
            StoreError: there was no reply. Refused: the server answered with an error.
        """
        try:
            connection = await self._here().ready_in_time()
            return checked(await connection.ask(command))
        except ConnectionLost:
            return await self.again(command)
        except UNANSWERED as error:
            raise unanswered(error, self.purpose) from error

    async def again(self, command: tuple[Any, ...]) -> Any:
        """Repeat a command after its connection broke. Every command of ours may be sent twice, see the scripts.

        Raises:
            StoreError, Refused: as for :meth:`call`.
        """
        try:
            connection = await self._here_again().ready_in_time()
            return checked(await connection.ask(command))
        except UNANSWERED as error:
            raise unanswered(error, self.purpose) from error

    def listen(
        self, stem: Callable[[str], str], on_end: Callable[[str], None], on_gap: Callable[[str], None]
    ) -> Subscriber:
        here = self._here()
        subscriber = Subscriber(here.new_connection, stem, on_end, on_gap)
        here.subscribers.add(subscriber)
        return subscriber

    async def call_durably(self, command: tuple[Any, ...], mark: str, replicas: Replicas) -> Any:
        """As :meth:`call`, but return when enough replicas have the write.

        Args:
            mark: the name of a key that may be written, in the slot of the command.
        Raises:
            StoreError: as :meth:`call`, or too few replicas have the write in time. Refused.
        """
        try:
            try:
                return await ask_durably(await self._here().ready_in_time(), command, lambda: mark, replicas)
            except ConnectionLost:
                return await ask_durably(await self._here_again().ready_in_time(), command, lambda: mark, replicas)
        except UNANSWERED as error:
            raise unanswered(error, self.purpose) from error

    def lead_to(self, names: Collection[Address]) -> None:
        """Drop the connections of this loop unless they lead to one of these addresses, which are the primary's."""
        reconnecting = self._connections.found()
        if reconnecting is None:
            return
        current = reconnecting.current
        if current is not None and current.lost is None and current.names.isdisjoint(names):
            current.abort(ConnectionLost("another server is the primary now"))
        for subscriber in reconnecting.subscribers:
            subscriber.lead_to(names)

    async def distrust(self) -> None:
        """Drop the connection, since its server is not a primary now. The next one looks the address up again."""
        reconnecting = self._connections.found()
        if reconnecting is not None and reconnecting.current is not None and reconnecting.distrusts.may():
            reconnecting.current.abort(ConnectionLost("the server is not a primary now"))

    def _here(self) -> ReconnectingConnection:
        reconnecting = self._connections.here()
        self._last = (get_ident(), asyncio.get_running_loop(), reconnecting)
        return reconnecting

    def _here_again(self) -> ReconnectingConnection:
        """For a repeated command: fail if the client was closed meanwhile, since a new connection would never be closed."""
        if self._connections.found() is None:
            raise ConnectionLost("the connection was closed")
        return self._here()

    async def aclose(self) -> None:
        """Close the connection of this loop."""
        self._last = (0, None, None)
        reconnecting = self._connections.taken()
        if reconnecting is not None:
            await reconnecting.aclose()

    def forget(self) -> None:
        """Drop all connections in a forked child. The sockets belong to the parent."""
        self._connections.forget()
        self._last = (0, None, None)


def say_asking(connection: Connection) -> None:
    """Send ASKING: the next command is for a slot on its way to this node."""
    connection.ask(("ASKING",)).add_done_callback(retrieve)


class Replicas:
    """The number of replicas that must have the end of a session: fixed, or ``"all"`` that this process has seen at the primary.

    With ``"all"`` a lost replica still counts, since a failover may promote it.
    """

    def __init__(self, wanted: DurableEnds) -> None:
        self.wanted = wanted
        self._most: dict[Any, int] = {}
        self._asked: set[Any] = set()

    async def of(self, connection: Connection) -> int:
        """The number for the server of this connection.

        Raises:
            RedisError: the server does not answer. Refused: the ACL forbids INFO.
        """
        if self.wanted != "all":
            return self.wanted
        answer, peer = connection.ask(("INFO", "replication")), connection.peer
        if peer in self._asked:
            answer.add_done_callback(partial(self._note_answer, peer))  # for the next end
        else:
            self.note(peer, checked(await answer))
            self._asked.add(peer)
        return self._most[peer]

    def _note_answer(self, peer: Any, answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self.note(peer, answer.result())

    def note(self, peer: Any, reply: object) -> None:
        """Note a reply to INFO, from an end or a new connection."""
        found = re.search(rb"^connected_slaves:(\d+)", reply, re.MULTILINE) if isinstance(reply, bytes) else None
        self._most[peer] = max(self._most.get(peer, 1), int(found[1]) if found is not None else 1)


async def ask_durably(
    connection: Connection,
    command: tuple[Any, ...],
    mark: Callable[[], str],
    wanted: Replicas,
    *,
    is_asking: bool = False,
) -> Any:
    """Send a command and return its reply when the replicas have its effect. All on one connection.

    WAIT covers the writes of its own connection. A repeated command may find its work done and write nothing. So a marker is
    written between the two: replicas with the marker have everything before it.

    Args:
        mark: returns the name of a key that may be written. Called again if a node of a cluster no longer has that key's slot.
    Raises:
        EndUnconfirmed: too few replicas have it in time. TimeoutError: no reply, though no other WAIT was in the queue.
        Refused: the server answered with an error.
    """

    def ask(one: tuple[Any, ...]) -> asyncio.Future[Any]:
        if is_asking:
            say_asking(connection)
        return connection.ask(one)

    replicas = await wanted.of(connection)
    is_first, asked = not connection.is_held_up, ask(command)
    try:
        async with asyncio.timeout(TIME_TO_CONFIRM):
            while True:
                marked = ask(("EVAL", _MARK, 1, mark(), MARK_TTL))
                waited = connection.share(("WAIT", replicas, WAIT_FOR_REPLICAS))
                reply, noted, reached = await asyncio.gather(asked, marked, waited)
                checked(reply)  # after this the session has ended, so later errors must not deny it
                if not (isinstance(noted, hiredis.ReplyError) and Refused(str(noted)).code in ("MOVED", "ASK")):
                    break
                await asyncio.sleep(PAUSE)
    except TimeoutError as error:
        if is_first and asked.cancelled():
            raise  # the server does not answer, so the session may not have ended
        raise EndUnconfirmed(f"{replicas} replicas did not acknowledge the end of a session in time") from error
    for answer in (noted, reached):
        if isinstance(answer, hiredis.ReplyError):
            raise EndUnconfirmed(
                f"replicas did not acknowledge the end of a session: Redis refused: {cleaned(str(answer))}"
            )
    if reached < replicas:
        raise EndUnconfirmed(f"the end of a session reached {reached} of {replicas} replicas (durable_ends)")
    return reply


def pool_from_url(url: str, options: dict[str, Any], method: str = "from_url") -> ConnectionPool:
    """Return a pool for a URL. Raises ConfigurationError if the URL or an option is not understood."""
    if not isinstance(url, str):
        raise ConfigurationError(
            f"RedisStore.{method}({type(url).__name__}): give a str such as 'redis://localhost:6379'"
        )
    try:
        _check_path(url, method)
        pool: ConnectionPool = ConnectionPool.from_url(url, **{**_OPTIONS, **options, "retry": Retry(NoBackoff(), 0)})
        new_connection(pool)
    except (ValueError, TypeError, RedisError) as error:
        # The URL may hold a password, so the message does not contain it.
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.\-]{0,30}://", url)
        raise ConfigurationError(
            f"RedisStore.{method}(): the URL{f' ({scheme[0]}…)' if scheme else ''} or an option is not understood "
            f"({type(error).__name__}); use redis://host:6379/0, rediss://… for TLS, or unix:///path. For sentinels or a cluster "
            "use from_sentinel() or from_cluster(), and for a database SQLStore.from_url()"
        ) from None
    _check_protocol(pool, method)
    return pool


def _check_path(url: str, method: str) -> None:
    """Refuse a path that redis-py ignores: it would use database 0, or a socket without a name."""
    parts = urlsplit(url)
    path = parts.path.strip("/")
    if parts.scheme == "unix" and not path:
        raise ConfigurationError(f"RedisStore.{method}('unix://…'): there is no path; use unix:///path/of/the/socket")
    if parts.scheme in ("redis", "rediss") and path and not (path.isascii() and path.isdecimal()):
        raise ConfigurationError(
            f"RedisStore.{method}('{parts.scheme}://…'): the path is the number of the database, such as redis://host:6379/0"
        )


def pool_from_sentinels(
    sentinels: Sequence[tuple[str, int]], service: str, options: dict[str, Any], sentinel_options: dict[str, Any]
) -> ConnectionPool:
    """A pool whose connections ask the sentinels for the primary, each time one is opened."""
    common = {**_OPTIONS, "retry": Retry(NoBackoff(), 0)}
    try:
        watchers = sentinels_of(sentinels, sentinel_options)
        pool = SentinelConnectionPool(service, watchers, **{**common, **options})  # type: ignore[no-untyped-call]
        new_connection(pool)
    except (ValueError, TypeError, RedisError) as error:
        raise ConfigurationError(
            f"RedisStore.from_sentinel(): an option is not understood ({type(error).__name__})"
        ) from None
    _check_protocol(pool, "from_sentinel")
    return pool


def sentinels_of(sentinels: Sequence[tuple[str, int]], options: dict[str, Any]) -> Sentinels:
    # Dead sentinels are asked too, so they get less time than the connection to the primary.
    quick = {**_OPTIONS, "retry": Retry(NoBackoff(), 0), "socket_connect_timeout": 0.1, "socket_timeout": 0.1}
    return Sentinels(list(sentinels), sentinel_kwargs={**quick, **options})  # type: ignore[no-untyped-call]


def _check_protocol(pool: ConnectionPool, method: str) -> None:
    """Refuse RESP3 because of its push messages: our connections match replies by their order."""
    if str(protocol := pool.connection_kwargs.get("protocol")) != "2":
        raise ConfigurationError(
            f"RedisStore.{method}(): protocol={protocol}, but these connections use RESP2; leave the option out"
        )


async def _leave_sentinels(pool: ConnectionPool) -> None:
    if isinstance(pool, SentinelConnectionPool):
        await pool.sentinel_manager.leave()


def new_connection(pool: ConnectionPool) -> AbstractConnection:
    """A connection with the pool's settings, not yet opened and unknown to the pool."""
    connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]  # of redis-py
    return connection


class Distrusts:
    """Limits how often connections are dropped because their server is not a primary."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = 0.0

    def may(self) -> bool:
        if (now := monotonic()) < self._until:
            return False
        self._until = now + TRUST_AGAIN
        return True


class ReconnectingConnection:
    """A connection for one event loop, opened on first use and again after it broke."""

    __slots__ = (
        "_is_closed",
        "_limits",
        "_on_open",
        "_opening",
        "_pause",
        "_pool",
        "_retry_at",
        "current",
        "distrusts",
        "subscribers",
    )

    def __init__(self, pool: ConnectionPool, on_open: OnOpen = nothing) -> None:
        """``on_open`` is called with each new connection before any command."""
        self._pool = pool
        self._on_open = on_open
        self.distrusts = Distrusts()
        self._is_closed = False
        self._limits = Deadlines(TIME_TO_OPEN)
        self._opening: asyncio.Task[Connection] | None = None
        self._pause = 0.0
        self._retry_at = 0.0
        self.current: Connection | None = None
        self.subscribers: weakref.WeakSet[Subscriber] = weakref.WeakSet()

    def new_connection(self) -> AbstractConnection:
        return new_connection(self._pool)

    async def ready_in_time(self) -> Connection:
        """:meth:`ready`, with a time limit. Raises TimeoutError."""
        with self._limits.limit():
            return await self.ready()

    async def ready(self) -> Connection:
        """A connection with room for a command. Concurrent callers wait for the same one.

        Raises:
            RedisError, OSError: the server cannot be reached. ConnectionLost: this object was closed meanwhile.
        """
        connection = self.current
        while connection is None or not connection.has_room:
            if connection is not None and connection.lost is None:
                await connection.room()
                continue
            if self._is_closed:
                raise ConnectionLost("the connection was closed")  # a new one would never be closed
            if self._opening is None or self._opening.done():
                # A task of its own: the first caller may be cancelled while others wait for the connection.
                self._opening = asyncio.ensure_future(self._open())
                self._opening.add_done_callback(retrieve)
            opening = self._opening
            await asyncio.wait({opening})
            if opening.cancelled():
                raise ConnectionLost("the connection was closed")
            connection = opening.result()
        return connection

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            if (wait := self._retry_at - loop.time()) > 0:
                await asyncio.sleep(wait)
            try:
                connection = await open_connection(self.new_connection())
            finally:
                await _leave_sentinels(self._pool)
        except BaseException:
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
            self._retry_at = loop.time() + pause
            raise
        else:
            self._pause = 0.0
            self._on_open(connection)
            self.current = connection
            return connection

    async def aclose(self) -> None:
        self._is_closed = True
        try:
            if self._opening is not None:
                await stop(self._opening)
        finally:
            await _leave_sentinels(self._pool)  # subscribers ask them, too
            if self.current is not None:
                await self.current.aclose()


class _Forgetful(Protocol):
    def forget(self) -> None: ...


after_fork: weakref.WeakSet[_Forgetful] = weakref.WeakSet()


def _forget_all() -> None:
    for client in list(after_fork):
        client.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class GivenClient:
    """A ``redis.asyncio`` client of the app, with its own pool and retries. The app closes it."""

    purpose = REQUESTS

    def __init__(self, client: Any) -> None:
        self._client = client
        self._distrusts = Distrusts()
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._looking: PerLoop[asyncio.Lock] = PerLoop(asyncio.Lock)

    def at_once(self, command: tuple[Any, ...]) -> None:
        """Return None: only our own connections can."""

    async def call(self, command: tuple[Any, ...]) -> Any:
        return await self._execute(self._client, command)

    async def _execute(self, client: Any, command: tuple[Any, ...]) -> Any:
        try:
            if isinstance(client, RedisCluster) and client not in self._known:
                # Without this, concurrent first commands would each initialize the client and close each other's connections.
                async with self._looking.here():
                    await client.initialize()
                    self._known.add(client)
            return await client.execute_command(*command)
        except (ResponseError, BusyLoadingError) as error:
            code = _CODES.get(type(error))
            raise Refused(str(error) if code is None else f"{code} {error}") from error
        except (UnicodeEncodeError, DataError):
            raise NotSent from None
        except UNANSWERED as error:
            raise unanswered(error) from error
        except AttributeError as error:
            # redis-py closed the connection with a command in flight. The server may have executed it.
            raise unanswered(error) from error

    again = call

    async def call_durably(self, command: tuple[Any, ...], mark: str, replicas: Replicas) -> Any:
        """Not available: redis-py cannot keep a command and the WAIT after it on one connection."""
        raise NotImplementedError

    async def distrust(self) -> None:
        """Close the idle connections, or the only one (``single_connection_client``), so that the client opens new ones."""
        pool, only = (getattr(self._client, name, None) for name in ("connection_pool", "connection"))
        if pool is not None and self._distrusts.may():
            await (pool.disconnect(inuse_connections=False) if only is None else only.disconnect())

    def listen(
        self, stem: Callable[[str], str], on_end: Callable[[str], None], on_gap: Callable[[str], None]
    ) -> Subscriber | NullSubscriber:
        """Return a Subscriber, or a :class:`NullSubscriber` for a client with several servers."""
        pool = getattr(self._client, "connection_pool", None)
        return NullSubscriber() if pool is None else Subscriber(lambda: new_connection(pool), stem, on_end, on_gap)

    async def aclose(self) -> None:
        """Do nothing: the app closes its client."""


class Client(Protocol):
    """Sends commands to the servers. :class:`OwnClient` documents each method."""

    @property
    def purpose(self) -> str: ...

    def at_once(self, command: tuple[Any, ...]) -> asyncio.Future[Any] | None: ...
    async def call(self, command: tuple[Any, ...]) -> Any: ...
    async def again(self, command: tuple[Any, ...]) -> Any: ...
    async def call_durably(self, command: tuple[Any, ...], mark: str, replicas: Replicas) -> Any: ...
    def listen(
        self, stem: Callable[[str], str], on_end: Callable[[str], None], on_gap: Callable[[str], None]
    ) -> Listening: ...
    async def distrust(self) -> None: ...
    async def aclose(self) -> None: ...


async def run(client: Client, script: Script, keys: tuple[str, ...], *args: Any) -> Any:
    """Run a script by its SHA-1, or with its text if the server does not have it cached.

    Raises:
        StoreError: there was no reply, or an error.
    """
    command = ("EVALSHA", script.sha, len(keys), *keys, *args)
    return await finish(client, script, command, client.at_once(command))


async def finish(client: Client, script: Script, command: tuple[Any, ...], asked: asyncio.Future[Any] | None) -> Any:
    """The reply of a script. ``asked`` is its future if it was sent already.

    Raises:
        StoreError: there was no reply, or an error.
    """
    try:
        try:
            try:
                return await client.call(command) if asked is None else checked(await asked)
            except ConnectionLost:
                return await client.again(command)
        except Refused as refused:  # the second try too: the server may have restarted meanwhile
            if refused.code not in ("NOSCRIPT", TRY_AGAIN):
                raise
            return await _with_text(client, script, command)
    except Refused as refused:
        raise await refusal(refused, client) from refused
    except UNANSWERED as error:
        raise unanswered(error, client.purpose) from error


async def _with_text(client: Client, script: Script, command: tuple[Any, ...]) -> Any:
    return await _patiently(lambda: client.call(("EVAL", script.text, *command[2:])))


async def run_durably(
    client: Client, script: Script, keys: tuple[str, ...], *args: Any, mark: str, replicas: Replicas
) -> Any:
    """As :func:`run`, but return when enough replicas have the write.

    It sends the text at once, since a NOSCRIPT reply would cost as much time as the replicas.

    Raises:
        StoreError: as :func:`run`, or too few replicas have the write in time.
    """
    command = ("EVAL", script.text, len(keys), *keys, *args)
    try:
        return await _patiently(lambda: client.call_durably(command, mark, replicas))
    except Refused as refused:
        raise await refusal(refused, client) from refused


async def refusal(refused: Refused, *clients: Client) -> StoreError:
    """Return the error to raise, and drop connections to a wrong server."""
    if refused.code in WRONG_SERVER:
        for client in set(clients):
            await client.distrust()
    return refused.as_store_error()


async def _patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask again while the slot is moving, for ``PATIENCE`` seconds.

    Raises:
        Refused: the slot is still moving, or the error is another one.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + PATIENCE
    while True:
        try:
            return await ask()
        except Refused as refused:
            if refused.code != TRY_AGAIN or loop.time() > give_up:
                raise
        await asyncio.sleep(PAUSE)
