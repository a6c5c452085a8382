"""The multiplexed connection: order, cancellation, loss, bounds. Against a real server, or one that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import pytest
from redis.asyncio import ConnectionPool

from asgi_sessions import RedisStore, StoreError
from asgi_sessions.errors import StoreUnreachable
from asgi_sessions.stores.redis import _connection
from asgi_sessions.stores.redis._client import OwnClient, ReconnectingConnection, Refused, new_connection, pool_from_url
from asgi_sessions.stores.redis._connection import Connection, ConnectionLost, open_connection
from asgi_sessions.testing import a_record
from tests.conftest import Server


@pytest.fixture
async def client(valkey_url: str, anyio_backend: Any) -> AsyncIterator[OwnClient]:
    client = OwnClient(partial(pool_from_url, valkey_url, {}))
    yield client
    await client.aclose()


FIRST = (
    (b"*1\r\n$4\r\nTIME\r\n", b"*2\r\n:1\r\n:2\r\n"),
    (b"*2\r\n$4\r\nINFO\r\n$7\r\ndefault\r\n", b"-NOPERM\r\n"),
)
"""The first commands on each connection of a store, and what this server says to them."""


@asynccontextmanager
async def a_server_that(answers: Callable[[bytes], bytes | None]) -> AsyncIterator[str]:
    """A TCP server on loopback: ``answers`` is given what arrives; ``None`` closes the connection, b"" says nothing."""
    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with suppress(ConnectionResetError):
            while data := await reader.read(65536):
                if b"SETINFO" in data:  # the handshake of redis-py
                    answer: bytes | None = b"+OK\r\n" * data.count(b"SETINFO")
                else:
                    before = b""
                    for command, reply in FIRST:
                        before += reply * data.count(command)
                        data = data.replace(command, b"")
                    answer = answers(data) if data else b""
                    answer = None if answer is None else before + answer
                if answer is None:
                    break
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for connection in connections:
            connection.close()
        await asyncio.sleep(0)


async def test_what_redis_py_keeps_private_and_we_take_is_still_there(valkey_url: str) -> None:
    """Pinned over the supported versions: a connection has its streams in ``_reader`` and ``_writer``."""
    connection = new_connection(ConnectionPool.from_url(valkey_url, protocol=2))
    await connection.connect()  # type: ignore[no-untyped-call]  # of redis-py

    assert isinstance(connection._reader, asyncio.StreamReader)
    assert isinstance(connection._writer, asyncio.StreamWriter)
    assert isinstance(connection._writer.transport, asyncio.Transport)
    await connection.disconnect()


async def test_replies_come_to_those_who_asked(client: OwnClient) -> None:
    async def one(number: int) -> None:
        assert await client.call(("ECHO", f"{number}")) == f"{number}".encode()

    await client.call(("PING",))  # it is open: what is asked is who gets what, not how fast
    async with anyio.create_task_group() as tasks:
        for number in range(1000):
            tasks.start_soon(one, number)


async def test_what_is_asked_in_one_turn_leaves_as_one_write(
    client: OwnClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.call(("PING",))
    (reconnecting,) = client._connections.values()
    assert reconnecting.current is not None
    flushes: list[int] = []
    flush = Connection._flush

    def counted(self: Connection) -> None:
        flushes.append(len(self._out))
        flush(self)

    monkeypatch.setattr(Connection, "_flush", counted)
    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(client.call, ("PING",))

    assert flushes == [100]


async def test_a_cancelled_caller_abandons_its_reply_and_nothing_else(client: OwnClient) -> None:
    await client.call(("PING",))
    for round_ in range(50):
        async with anyio.create_task_group() as tasks:
            doomed = [asyncio.ensure_future(client.call(("ECHO", f"doomed {round_} {n}"))) for n in range(10)]
            await asyncio.sleep(0)
            for task in doomed:
                task.cancel()

            async def survivor(n: int) -> None:
                assert await client.call(("ECHO", f"{n}")) == f"{n}".encode()

            for n in range(10):
                tasks.start_soon(survivor, n)
        await asyncio.gather(*doomed, return_exceptions=True)


async def test_an_error_reply_is_its_askers_alone(client: OwnClient) -> None:
    outcomes = await asyncio.gather(
        client.call(("ECHO", "a")),
        client.call(("NO-SUCH-COMMAND",)),
        client.call(("ECHO", "b")),
        return_exceptions=True,
    )

    assert [outcomes[0], outcomes[2]] == [b"a", b"b"]
    assert isinstance(outcomes[1], Refused)


async def test_a_lost_connection_is_opened_again_and_the_command_repeated() -> None:
    seen: list[bytes] = []

    def answers(data: bytes) -> bytes | None:
        seen.append(data)
        return None if len(seen) == 1 else b"+PONG\r\n"

    async with a_server_that(answers) as url:
        client = OwnClient(partial(pool_from_url, url, {}))
        assert await client.call(("PING",)) == b"PONG"
        await client.aclose()

    assert len(seen) == 2


@pytest.mark.parametrize(
    "answer",
    [None, b"garbage\r\n", b"+PONG\r\n+STRAY\r\n+STRAY\r\n", b"$999999999999999999999999\r\n"],
    ids=["closes", "garbage", "replies to no question", "absurd length"],
)
async def test_a_server_that_misbehaves_is_a_store_error_and_never_somebody_elses_answer(answer: bytes | None) -> None:
    async with a_server_that(lambda data: answer) as url:
        store = RedisStore.from_url(url)
        outcomes: list[object] = []

        async def one() -> None:
            try:
                outcomes.append(await store.load(a_record().key))
            except StoreError as error:
                outcomes.append(type(error))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(one)
        await store.aclose()

    assert len(outcomes) == 5
    assert not [outcome for outcome in outcomes if not isinstance(outcome, type)]


async def test_a_server_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connection, "TICK", 0.01)
    async with a_server_that(lambda data: b"") as url:
        client = OwnClient(partial(pool_from_url, url, {}))
        with pytest.raises(StoreError, match="TimeoutError"):
            await client.call(("PING",))
        await client.aclose()


async def test_in_flight_commands_are_bounded_and_the_rest_waits(
    client: OwnClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "MAX_IN_FLIGHT", 8)
    most = 0
    ask = Connection.ask

    def counted(self: Connection, command: tuple[Any, ...]) -> Any:
        nonlocal most
        future = ask(self, command)
        most = max(most, len(self._waiting))
        return future

    monkeypatch.setattr(Connection, "ask", counted)
    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(client.call, ("PING",))

    assert 1 <= most <= 8


async def test_those_who_wait_for_room_hear_of_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connection, "MAX_IN_FLIGHT", 2)
    monkeypatch.setattr(_connection, "TICK", 0.01)
    async with a_server_that(lambda data: b"") as url:
        client = OwnClient(partial(pool_from_url, url, {}))
        outcomes = await asyncio.gather(*(client.call(("PING",)) for _ in range(10)), return_exceptions=True)
        await client.aclose()

    assert {type(outcome) for outcome in outcomes} == {StoreUnreachable}


async def test_who_waits_for_room_on_a_closed_connection_opens_no_other(valkey_url: str) -> None:
    """Nobody would close that one: a cluster drops the connection to a node that is gone, and asks elsewhere."""
    reconnecting = ReconnectingConnection(pool_from_url(valkey_url, {}))
    connection = await reconnecting.ready()
    connection.pause_writing()
    waiting = asyncio.ensure_future(reconnecting.ready())
    await asyncio.sleep(0)

    await reconnecting.aclose()

    with pytest.raises(ConnectionLost, match="closed"):
        await waiting
    assert reconnecting.current is connection


async def test_a_server_that_is_not_there_is_tried_by_one_and_left_alone_for_a_moment(own_server: Server) -> None:
    client = OwnClient(partial(pool_from_url, own_server.url, {}))  # not started

    outcomes = await asyncio.gather(*(client.call(("PING",)) for _ in range(100)), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {StoreUnreachable}
    await client.aclose()


async def test_a_caller_cancelled_while_the_connection_opens_does_not_take_it_from_the_others(valkey_url: str) -> None:
    client = OwnClient(partial(pool_from_url, valkey_url, {}))
    first = asyncio.ensure_future(client.call(("PING",)))
    second = asyncio.ensure_future(client.call(("PING",)))
    await asyncio.sleep(0)
    first.cancel()

    assert await second == b"PONG"
    await client.aclose()


async def test_asking_a_lost_connection_fails_at_once(valkey_url: str) -> None:
    connection = await open_connection(new_connection(ConnectionPool.from_url(valkey_url, protocol=2)))
    connection.abort(ConnectionLost("test"))

    with pytest.raises(ConnectionLost):
        await connection.ask(("PING",))
    await connection.aclose()


def _in_child(client: OwnClient, answers: Any) -> None:
    async def ask() -> None:
        answers.put(await client.call(("CLIENT", "ID")))
        await client.aclose()

    asyncio.run(ask())


def test_a_forked_worker_has_its_own_connection(valkey_url: str) -> None:
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    client = OwnClient(partial(pool_from_url, valkey_url, {}))

    async def parent() -> None:
        mine = await client.call(("CLIENT", "ID"))
        child = fork.Process(target=_in_child_of_loop, args=(client, answers))
        child.start()
        theirs = await asyncio.to_thread(answers.get, timeout=10)
        await asyncio.to_thread(child.join)
        assert mine != theirs
        assert await client.call(("CLIENT", "ID")) == mine
        await client.aclose()

    asyncio.run(parent())


def _in_child_of_loop(client: OwnClient, answers: Any) -> None:
    asyncio.events._set_running_loop(None)  # we were forked from inside the parent's
    _in_child(client, answers)


async def test_a_restart_between_two_tries_of_a_script_is_no_error() -> None:
    """The connection breaks, the server that answers next has forgotten its scripts: then the text is sent."""
    replies = [b":1\r\n", None, b"-NOSCRIPT No matching script.\r\n", b":1\r\n"]
    sent: list[bytes] = []

    def answers(data: bytes) -> bytes | None:
        sent.append(data[:40])
        return replies[len(sent) - 1]

    async with a_server_that(answers) as url:
        store = RedisStore.from_url(url)
        key = a_record().key

        assert await store.touch(key, seen_at=1.0, expires_at=2.0) is True
        assert await store.touch(key, seen_at=1.0, expires_at=2.0) is True

        await store.aclose()
    assert [b"EVALSHA" in data for data in sent] == [True, True, True, False]


async def test_what_is_under_way_when_the_client_is_closed_opens_no_connection_afterwards() -> None:
    """Its connection is gone like one that broke, which would be a reason to open another: one that nobody would close."""
    replies = [b"+PONG\r\n"]

    async with a_server_that(lambda _: replies.pop() if replies else b"") as url:
        client = OwnClient(partial(pool_from_url, url, {}))
        await client.call(("PING",))
        asking = asyncio.ensure_future(client.call(("PING",)))
        await asyncio.sleep(0.05)

        await client.aclose()
        with pytest.raises(StoreError):
            await asking

        assert len(client._connections) == 0


async def test_what_is_no_message_does_not_end_the_listening() -> None:
    """A channel that is no text cannot be looked up; the connection is given up, and there is another one."""
    asked = 0

    def answers(data: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return b"*3\r\n$9\r\nsubscribe\r\n*0\r\n:1\r\n"

    async with a_server_that(answers) as url:
        client = OwnClient(partial(pool_from_url, url, {}))
        subscriber = client.listen(lambda shard: shard, lambda _: None, lambda _: None)
        subscriber.add("Zk3")
        async with asyncio.timeout(5):
            while asked < 2:  # noqa: ASYNC110 - a look now and then is enough
                await asyncio.sleep(0.01)

        await subscriber.aclose()
        await client.aclose()
