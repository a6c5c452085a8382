"""A request that failed leaves behind what it should not, or takes with it what it should have left."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any

import anyio
import pytest
import redis.asyncio

from asgi_sessions import RedisStore, ResponseStarted, Session, SessionMiddleware, SessionWarning, StoreError
from asgi_sessions._core.token import owner_of
from asgi_sessions.stores import Store
from tests.support import Browser, Response, app_with, destroy, log_in, put, read, regenerate
from tests.threats.hostile import (
    CONNECT,
    URLS,
    Between,
    WriteAccess,
    cookie_header,
    exchange,
    http_scope,
    raising,
    websocket_scope,
)

Handler = Callable[[Session], Any]


async def state(browser: Browser) -> tuple[Any, Any]:
    found = await read(browser)
    return found["user_id"], found["data"]


@pytest.mark.parametrize("before", [put(basket=1), log_in("bob")], ids=["anonymous", "another user"])
async def test_an_answer_of_5xx_does_not_log_in(store: Store, browser: Browser, before: Handler) -> None:
    """The log-in of a failed request does not count; nor may it cost the session that was there."""
    await browser.do(before)
    found = await state(browser)

    response = await browser.do(log_in("alice"), status=500)

    assert response.set_cookie is None
    assert await store.index(owner_of("alice")) == {}
    assert await state(browser) == found


@pytest.mark.parametrize("verb", [regenerate, lambda session: session.confirm()], ids=["regenerate", "confirm"])
async def test_an_answer_of_5xx_does_not_log_out_by_changing_the_token(alice: Browser, verb: Handler) -> None:
    """No cookie goes out with it, so the token must stay."""
    response = await alice.do(verb, status=500)

    assert response.set_cookie is None
    assert (await state(alice))[0] == "alice"


async def test_a_crash_saves_nothing_and_logs_nobody_in(store: Store, browser: Browser) -> None:
    """The same for a handler that raises."""

    def handler(session: Session) -> None:
        session["paid"] = True
        session.log_in("alice")

    await browser.do(put(paid=False))

    with pytest.raises(ZeroDivisionError):
        await browser.do(handler, crash=ZeroDivisionError())

    assert await store.index(owner_of("alice")) == {}
    assert await state(browser) == (None, {"paid": False})


@pytest.mark.parametrize("crash", [ZeroDivisionError(), asyncio.CancelledError()], ids=["crash", "cancelled"])
async def test_a_task_that_outlives_a_crashed_request_changes_no_token(
    store: Store, browser: Browser, crash: BaseException
) -> None:
    """No answer can carry the new cookie: a new token would log the user out, and a new session would be nobody's."""
    left: list[Session] = []
    await browser.do(log_in("alice"))

    for handler in (left.append, lambda session: (left.append(session), session.log_in("bob"))):
        with pytest.raises(type(crash)):
            await browser.do(handler, crash=crash)
    for verb in (regenerate, log_in("bob"), lambda session: session.confirm()):
        with pytest.raises(ResponseStarted):
            verb(left[0])
    left[0]["late"] = True
    await left[0].save()
    with pytest.warns(SessionWarning, match="can no longer reach the browser"):
        await left[1].save()

    assert await store.index(owner_of("bob")) == {}
    assert await state(browser) == ("alice", {"late": True})


@pytest.mark.parametrize("how", [{"status": 500}, {"crash": ZeroDivisionError()}], ids=["5xx", "crash"])
async def test_a_failed_request_still_logs_out(store: Store, alice: Browser, how: dict[str, Any]) -> None:
    """Whoever pressed "log out" is logged out, whatever else went wrong."""
    old = alice.another()

    try:
        await alice.do(destroy, **how)
    except ZeroDivisionError:
        pass

    assert await store.load(old.key) is None
    assert await store.index(owner_of("alice")) == {}


@pytest.mark.parametrize("verb", [log_in("alice"), regenerate], ids=["log_in", "regenerate"])
async def test_an_app_that_never_answers_does_not_cost_the_session(
    store: Store, options: dict[str, Any], browser: Browser, verb: Handler
) -> None:
    """The server answers 500 in its place; no cookie can go with that."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        verb(scope["session"])

    await browser.do(put(basket=1))
    silent = SessionMiddleware(app, store, **options)

    await exchange(silent, http_scope(cookie_header(silent, str(browser.token))))

    assert await state(browser) == (None, {"basket": 1})


@pytest.mark.parametrize("verb", [log_in("alice"), regenerate], ids=["log_in", "regenerate"])
async def test_a_refused_websocket_does_not_cost_the_session(
    store: Store, browser: Browser, options: dict[str, Any], verb: Handler
) -> None:
    """The server answers 403 in the app's place; no cookie can go with that either."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        verb(scope["session"])
        await send({"type": "websocket.close"})

    await browser.do(put(basket=1))
    refusing = SessionMiddleware(app, store, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SessionWarning)  # there is one, for the log-in that comes to nothing
        await exchange(refusing, websocket_scope(cookie_header(refusing, str(browser.token))[0][1]), [CONNECT])

    assert await state(browser) == (None, {"basket": 1})


@pytest.mark.parametrize(
    ("kind", "ending"), [*product(["http", "websocket"], ["returns", "crashes"]), ("websocket", "closes")]
)
async def test_a_token_that_was_saved_reaches_the_browser_though_the_app_gives_no_answer(
    store: Store, options: dict[str, Any], alice: Browser, kind: str, ending: str
) -> None:
    """The old one is worthless since the save. The server's own answer would not carry the new one."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"].regenerate()
        await scope["session"].save()
        if ending == "crashes":
            raise ZeroDivisionError
        if ending == "closes":
            await send({"type": "websocket.close"})

    async def send(message: Any) -> None:
        sent.append(message)

    silent = SessionMiddleware(app, store, **options)
    scope = {**http_scope(cookie_header(silent, str(alice.token))), "type": kind}
    scope["extensions"] = {"websocket.http.response": {}}
    with nullcontext() if ending != "crashes" else pytest.raises(ZeroDivisionError):
        await silent(scope, anyio.sleep_forever, send)

    alice.hear(Response(sent[0]["status"], sent[0]["headers"], b"", sent))
    assert sent[0]["status"] == (403 if ending == "closes" else 500)
    assert (await state(alice))[0] == "alice"


# ── A request that is cancelled while it is being saved ──


async def cancelled_at_its_commit(browser: Browser, handler: Handler) -> None:
    """The client hangs up when the handler has done its work; what comes next is the commit."""
    with anyio.CancelScope() as scope:

        def and_hang_up(session: Session) -> None:
            handler(session)
            scope.cancel()

        await browser.do(and_hang_up)


async def test_what_a_handler_has_finished_is_saved_though_its_request_is_cancelled(browser: Browser) -> None:
    """Some middleware cancels what it has passed on. The order was placed; the session must know of it."""
    await browser.do(put(basket=0))
    await browser.do(put(basket=1))

    await cancelled_at_its_commit(browser, put(ordered=True))

    assert await state(browser) == (None, {"basket": 1, "ordered": True})


async def test_what_a_handler_has_finished_is_saved_though_the_server_must_be_sent_the_script_first(
    server: Store, options: dict[str, Any]
) -> None:
    """The same after a restart of the server: the first answer is NOSCRIPT, and a second command is due."""
    browser = Browser(app_with(server, **options))
    await browser.do(put(basket=1))
    WriteAccess(server).command("SCRIPT", "FLUSH")

    await cancelled_at_its_commit(browser, put(ordered=True))

    assert await state(browser) == (None, {"basket": 1, "ordered": True})


async def test_what_a_handler_has_finished_is_saved_though_it_must_be_merged_first(
    server: Store, options: dict[str, Any]
) -> None:
    """The same with another request in between: the first answer is a conflict."""
    browser = Browser(app_with(server, **options))
    await browser.do(put(basket=1))

    with anyio.CancelScope() as scope:
        async with browser.paused(lambda session: (session.update(ordered=True), scope.cancel())):
            await browser.do(put(theirs=1))

    assert await state(browser) == (None, {"basket": 1, "ordered": True, "theirs": 1})


async def test_what_a_handler_has_finished_is_saved_through_a_client_of_the_apps_too(
    server: Store, options: dict[str, Any]
) -> None:
    """``RedisStore(client)``: a pool of redis-py, which gives a connection up when its caller is cancelled."""
    async with redis.asyncio.Redis.from_url(URLS[server.namespace]) as client:
        store = RedisStore(client, prefix=server.namespace)
        browser = Browser(app_with(store, **options))
        await browser.do(put(basket=0))
        await browser.do(put(basket=1))

        await cancelled_at_its_commit(browser, put(ordered=True))

        assert await state(browser) == (None, {"basket": 1, "ordered": True})


async def test_a_log_in_that_was_answered_with_503_is_not_saved_later(store: Store, options: dict[str, Any]) -> None:
    """The app caught the error of its answer. The cookie of the new session could not reach the browser any more."""
    watched = Between(store)
    watched.instead["create"] = raising(OSError())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"].log_in("alice")
        with pytest.raises(StoreError):
            await send({"type": "http.response.start", "status": 200, "headers": []})
        watched.instead.clear()
        with pytest.warns(
            SessionWarning, match="can no longer reach the browser; write to the session before the response starts$"
        ):
            await scope["session"].save()

    start, _ = await exchange(SessionMiddleware(app, watched, **options), http_scope())

    assert start["status"] == 503
    assert await store.index(owner_of("alice")) == {}
