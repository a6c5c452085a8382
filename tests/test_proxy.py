"""The trouble that the proxy makes is the trouble that was asked for."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
import redis

from tests.conftest import Server
from tests.proxy import Proxy


@pytest.fixture
def client(proxy: Proxy, own_server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), 2) as client:
        yield client


def ask(client: socket.socket) -> bytes:
    client.sendall(b"PING\r\n")
    return client.recv(100)


def closed(client: socket.socket) -> bool:
    try:
        return client.recv(100) == b""
    except ConnectionResetError:
        return True


def test_it_passes_on_what_it_gets(proxy: Proxy, own_server: Server) -> None:
    with redis.Redis.from_url(proxy.url(own_server.url)) as through:
        through.set("large", "x" * 1_000_000)
        assert through.get("large") == b"x" * 1_000_000


def test_it_delays_each_way(proxy: Proxy, client: socket.socket) -> None:
    proxy.delay = 0.05
    began = time.monotonic()

    assert ask(client) == b"+PONG\r\n"

    assert time.monotonic() - began >= 0.1  # at least; how much more is the machine's affair


def test_it_hangs_and_goes_on(proxy: Proxy, client: socket.socket) -> None:
    proxy.hanging = True
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        ask(client)
    proxy.hanging = False
    client.settimeout(2)

    assert client.recv(100) == b"+PONG\r\n"


def test_it_cuts(proxy: Proxy, client: socket.socket) -> None:
    assert ask(client) == b"+PONG\r\n"

    proxy.cut()

    assert closed(client)


def test_it_refuses(proxy: Proxy) -> None:
    proxy.refusing = True

    try:
        with socket.create_connection(("127.0.0.1", proxy.port), 2) as client:
            answer = ask(client)
    except ConnectionError:
        answer = b""

    assert answer == b""


def test_it_answers_garbage_once(proxy: Proxy, client: socket.socket) -> None:
    proxy.garbage = b"hello"

    assert ask(client) == b"hello"
    assert client.recv(100) == b""


def test_it_cuts_in_the_middle_of_a_reply(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut_after = 3

    assert ask(client) == b"+PO"
    assert client.recv(100) == b""


def test_it_swallows_a_reply_after_the_command_got_through(
    proxy: Proxy, client: socket.socket, own_server: Server
) -> None:
    proxy.swallowing = True
    client.sendall(b"SET key value\r\n")

    assert client.recv(100) == b""
    with redis.Redis.from_url(own_server.url) as direct:
        assert direct.get("key") == b"value"
