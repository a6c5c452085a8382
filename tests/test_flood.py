"""One client floods the app. Other users' requests must not fail: not while the flood lasts, and not after it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from asgi_sessions import RedisStore
from asgi_sessions._core.token import owner_of
from asgi_sessions.stores.redis._client import OwnClient, pool_from_url
from tests.conftest import TABLE, Server, a_store, sql_url
from tests.proxy import Proxy
from tests.support import Browser, Handler, app_with, log_in, put

FLOOD = 40
"""Requests at once; a pool has 10 connections."""

DEADLINE = timedelta(seconds=3)

FLOODS: dict[str, Handler] = {
    "log-ins": log_in("mallory"),
    "writes": put(a=1),
    "large sessions": put(much="x" * 300_000),
}


@asynccontextmanager
async def somebody_holds_what_is_mallorys(url: str) -> AsyncIterator[None]:
    """A transaction of another program: her rows, or the whole file of SQLite for writing."""
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        if url.startswith("sqlite"):
            await connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            for table in (TABLE, f"{TABLE}_history"):
                rows = text(f"SELECT * FROM {table} WHERE owner = :owner FOR UPDATE")
                await connection.execute(rows, {"owner": owner_of("mallory")})
        yield
        await connection.rollback()
    await engine.dispose()


@pytest.mark.parametrize("kind", ["redis", "valkey", "postgresql", "mariadb", "sqlite"])
@pytest.mark.parametrize("flood", FLOODS)
async def test_a_client_that_floods_costs_nobody_else_an_answer(
    request: pytest.FixtureRequest, kind: str, flood: str
) -> None:
    async with a_store(request, kind) as store, AsyncExitStack() as undo:
        app = app_with(store, store_deadline=DEADLINE)
        mallory, others = Browser(app), [Browser(app) for _ in range(8)]
        await mallory.do(log_in("mallory"))
        for number, other in enumerate(others):
            await other.do(log_in(f"user {number}"))
        if kind in ("postgresql", "mariadb", "sqlite"):
            await undo.enter_async_context(somebody_holds_what_is_mallorys(sql_url(request, kind)))
        does: Any = [dict] if kind == "sqlite" else [dict, put(n=1)]  # SQLite has one lock for all who write
        statuses: Counter[int] = Counter()

        async def others_ask() -> None:
            answers = await asyncio.gather(*(each.another().do(do) for each in others for do in does))
            statuses.update(answer.status for answer in answers)

        clients = [Browser(app) if flood == "log-ins" else mallory.another() for _ in range(FLOOD)]
        flooding = asyncio.gather(*(client.do(FLOODS[flood]) for client in clients))
        while not flooding.done():
            await others_ask()
        await others_ask()

        assert set(statuses) == {200}, statuses
        await undo.aclose()


@pytest.mark.parametrize("trouble", ["hanging", "refusing"])
async def test_a_large_session_that_does_not_arrive_costs_nobody_else_an_answer(
    own_server: Server, proxy: Proxy, trouble: str
) -> None:
    """Large records travel on a connection of their own, which is in trouble here."""
    store = RedisStore.from_url(own_server.url)
    store._bulk = OwnClient(lambda: pool_from_url(proxy.url(own_server.url), {}), "large")
    app = app_with(store)
    mallory, other = Browser(app), Browser(app)
    await mallory.do(log_in("mallory"))
    await other.do(log_in("alice"))
    setattr(proxy, trouble, True)

    floods = await asyncio.gather(*(mallory.another().do(put(much="x" * 100_000)) for _ in range(FLOOD)))
    statuses = [(await other.another().do(do)).status for do in (dict, put(n=1), dict)]

    assert {answer.status for answer in floods} == {503}
    assert statuses == [200, 200, 200]
    setattr(proxy, trouble, False)
    await store.aclose()
