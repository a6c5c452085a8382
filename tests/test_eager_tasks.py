"""Under an eager task factory (Python 3.12) a task may be done before its maker has noted that it runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from redis import RedisError
from redis.asyncio import ConnectionPool

from asgi_sessions import MemoryStore, RedisStore, Session
from asgi_sessions.stores.redis._client import ReconnectingConnection, pool_from_url
from asgi_sessions.stores.redis._cluster import Address, Map
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import TokenInvalid
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate
from tests.threats.hostile import Between, within
from tests.tokens.conftest import some_tokens

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")


def eagerly(test: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
    async def run() -> None:
        factory: Any = getattr(asyncio, "eager_task_factory")  # noqa: B009 - not known to type checkers of 3.11
        asyncio.get_running_loop().set_task_factory(factory)
        await test(*args)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_finished_refresh_is_not_in_the_table_of_running_ones() -> None:
    async def test() -> None:
        tokens = some_tokens(MemoryStore(), FakeClock())
        pair = await tokens.log_in("alice")

        newer = await tokens.refresh(pair.refresh_token)

        assert tokens._refreshing.here() == {}
        assert await tokens.revoke(newer.refresh_token)
        with pytest.raises(TokenInvalid):
            await tokens.refresh(pair.refresh_token)

    eagerly(test)


class Failing(ReconnectingConnection):
    """A way to the server that cannot even begin to connect, once."""

    __slots__ = ("left",)

    def __init__(self, pool: ConnectionPool) -> None:
        super().__init__(pool)
        self.left = 1

    def new_connection(self) -> Any:
        if self.left:
            self.left -= 1
            raise RedisError("on purpose")
        return super().new_connection()


def test_a_connection_that_fails_at_once_is_tried_again(valkey_url: str) -> None:
    async def test() -> None:
        reconnecting = Failing(pool_from_url(valkey_url, {}))
        with pytest.raises(RedisError, match="on purpose"):
            await reconnecting.ready()

        connection = await reconnecting.ready()

        assert await connection.ask(("PING",)) == b"PONG"
        await reconnecting.aclose()

    eagerly(test)


def test_a_look_at_a_cluster_that_fails_at_once_is_repeated() -> None:
    asked: list[Address] = []

    def pool_at(address: Address) -> ConnectionPool:
        asked.append(address)
        raise RedisError("on purpose")

    async def test() -> None:
        known = Map(pool_at, [Address("127.0.0.1", 1)])
        for _ in range(2):
            known._refreshed_at = 0.0
            with pytest.raises(RedisError):
                await known.refresh()

        assert len(asked) == 2

    eagerly(test)


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_requests_hooks_and_sockets_work(kind: str, valkey_url: str) -> None:
    async def test() -> None:
        store = MemoryStore() if kind == "memory" else RedisStore.from_url(valkey_url, prefix="eager")
        names: list[str] = []

        async def hook(event: Any) -> None:
            names.append(event.name)

        browser = Browser(app_with(store, on_event=hook))
        for handler in (log_in("alice"), put(a=1), regenerate):
            await browser.do(handler)
        assert (await read(browser))["user_id"] == "alice"
        await asyncio.gather(*(browser.another().do(put(**{f"n{number}": number})) for number in range(5)))
        assert len((await read(browser))["data"]) == 6
        await browser.do(destroy)

        assert names == ["session.logged_in", "session.regenerated", "session.ended"]
        assert browser.app._manager.events._running == set()
        await store.aclose()

    eagerly(test)


def test_after_a_commit_that_was_finished_at_once_the_next_one_begins() -> None:
    """A caller is cancelled in the middle of its commit, and the store answers the repeated call without a pause."""

    async def test() -> None:
        store, reached = Between(MemoryStore()), asyncio.Event()
        browser = Browser(app_with(store))
        await browser.do(put(a=1))

        async def hanging_once(real: Any, *args: Any, **kwargs: Any) -> None:
            store.instead.clear()
            reached.set()
            await asyncio.sleep(3600)

        async def handler(session: Session) -> None:
            session["b"] = 2
            saving = asyncio.ensure_future(session.save())
            await reached.wait()
            await asyncio.sleep(0)
            saving.cancel()
            await asyncio.wait({saving})
            session["c"] = 3

        store.instead["update"] = hanging_once
        async with within():
            await browser.do(handler)

        assert (await read(browser))["data"] == {"a": 1, "b": 2, "c": 3}

    eagerly(test)
