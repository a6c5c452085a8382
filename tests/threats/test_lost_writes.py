"""What one request wrote is lost: to a parallel one, to a merge that knows too little, to nobody having noticed it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from operator import itemgetter
from typing import Any

import anyio
import pytest

from asgi_sessions import Session, SessionMiddleware
from asgi_sessions.stores import Store
from tests.support import Browser, app_with, log_in, put, read
from tests.threats.hostile import Between, cookie_header, exchange, http_scope

Handler = Callable[[Session], Any]


def remove(*keys: str) -> Handler:
    def handler(session: Session) -> None:
        for key in keys:
            del session[key]

    return handler


async def at_once(browser: Browser, handlers: Sequence[Handler]) -> None:
    """Requests that have all loaded the session before the first of them commits."""
    loaded, everybody = anyio.Semaphore(0), anyio.Event()

    async def before() -> None:
        loaded.release()
        await everybody.wait()

    async with anyio.create_task_group() as tasks:
        for handler in handlers:
            tasks.start_soon(partial(browser.another().do, handler, before=before))
        for _ in handlers:
            await loaded.acquire()
        everybody.set()


# ── Two parallel writers, one is lost ──


async def test_of_two_parallel_writers_neither_is_lost(browser: Browser) -> None:
    """The whole session is read, changed and written back by both; the second must not undo the first."""
    await browser.do(put(start=1))

    async with browser.paused(put(slow=1)):
        await browser.do(put(fast=1))

    assert (await read(browser))["data"] == {"start": 1, "slow": 1, "fast": 1}


async def test_of_many_parallel_writers_none_is_lost(browser: Browser) -> None:
    """A page that loads sends twenty requests at once, and every one of them may write."""
    await browser.do(put(start=1))

    await at_once(browser, [put(**{f"k{number}": number}) for number in range(20)])

    assert (await read(browser))["data"] == {"start": 1, **{f"k{number}": number for number in range(20)}}


async def test_one_visitor_who_writes_a_lot_does_not_take_the_sessions_of_all_others_away(
    store: Store, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """alkem-io/server #6332 as a weapon: a few hundred parallel writes to one's own session, and everybody gets 503."""
    watched = Between(store)
    alice = Browser(app_with(watched, **options))
    monkeypatch.setattr(
        "asgi_sessions._engine.guard.DEADLINE", 0.2
    )  # only so that Mallory's need not be waited for so long
    mallory = Browser(app_with(watched, **options))
    await alice.do(log_in("alice"))
    await mallory.do(put(start=1))

    async def at_some_distance(real: Any, *args: Any, **kwargs: Any) -> Any:
        await anyio.sleep(0.01)
        return await real(*args, **kwargs)

    watched.instead["update"] = at_some_distance
    await at_once(mallory, [put(**{f"k{number}": number}) for number in range(60)])

    assert (await alice.do(lambda session: session.user_id)).status == 200


# ── A store that merges without knowing what changed loses data ──


@pytest.mark.parametrize(
    ("before", "slow", "fast", "after"),
    [
        pytest.param({"a": 1, "b": 1, "c": 1}, remove("a"), remove("b"), {"c": 1}, id="two keys that were removed"),
        pytest.param(
            {"balance": 100},
            lambda session: session.update(seen=session["balance"]),
            put(balance=0),
            {"balance": 0, "seen": 100},
            id="a key that was only read",
        ),
        pytest.param(
            {"cart": ["tea"], "seen": ["home"]},
            lambda session: session["cart"].append("milk"),
            lambda session: session["seen"].append("shop"),
            {"cart": ["tea", "milk"], "seen": ["home", "shop"]},
            id="two nested changes",
        ),
    ],
)
async def test_a_merge_knows_what_each_side_has_changed(
    browser: Browser, before: dict[str, Any], slow: Handler, fast: Handler, after: dict[str, Any]
) -> None:
    """connect-redis PR 347: a merge of two states, without what both started from, cannot tell "removed" from "new".

    Nor an old value that was only looked at from a new one.
    """
    await browser.do(put(**before))

    async with browser.paused(slow):
        await browser.do(fast)

    assert (await read(browser))["data"] == after


async def test_a_merge_does_not_bring_back_what_the_other_side_removed(browser: Browser) -> None:
    """connect-redis PR 347: what this request merely still had from loading is no change of its."""
    await browser.do(put(flash="welcome", n=0))

    async with browser.paused(put(n=1)):
        await browser.do(remove("flash"))

    assert (await read(browser))["data"] == {"n": 1}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(1, True, id="1 to True"),
        pytest.param(0, False, id="0 to False"),
        pytest.param(1, 1.0, id="1 to 1.0"),
        pytest.param(0.0, -0.0, id="0.0 to -0.0"),
        pytest.param(b"x", "x", id="bytes to str"),
        pytest.param([1], [True], id="1 to True in a list"),
        pytest.param({"a": 1, "b": 2}, {"b": 2, "a": 1}, id="the order of a dict"),
        pytest.param(None, False, id="None to False"),
    ],
)
async def test_a_change_that_python_calls_equal_is_a_change(browser: Browser, before: Any, after: Any) -> None:
    """Compared as Python values, these would be lost: on their own, and in a merge."""
    await browser.do(put(value=before))
    await browser.do(put(value=after))
    assert repr((await read(browser))["data"]["value"]) == repr(after)

    await browser.do(put(value=before))
    async with browser.paused(put(value=after)):
        await browser.do(put(other=1))

    assert repr((await read(browser))["data"]["value"]) == repr(after)


# ── Nested changes are not noticed ──


def through_a_pattern(session: Session) -> None:
    match session:
        case {"cart": [*_] as cart}:
            cart.append("milk")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda s: s["cart"].append("milk"), id="append"),
        pytest.param(lambda s: s["user"]["prefs"].update(dark=True), id="deep update"),
        pytest.param(lambda s: s["cart"].reverse(), id="reverse"),
        pytest.param(lambda s: s["user"].pop("prefs"), id="pop"),
        pytest.param(lambda s: next(iter(s.values())).clear(), id="through values()"),
        pytest.param(lambda s: dict(s.items())["cart"].append("milk"), id="through items()"),
        pytest.param(lambda s: s.get("cart").append("milk"), id="through get()"),
        pytest.param(lambda s: s.setdefault("cart", []).append("milk"), id="through setdefault()"),
        pytest.param(lambda s: s.copy()["cart"].append("milk"), id="through a copy"),
        pytest.param(lambda s: (s | {})["cart"].append("milk"), id="through a union"),
        pytest.param(lambda s: (s["user"], s["cart"].append("milk"))[0]["prefs"].clear(), id="two at once"),
        pytest.param(lambda s: dict(s)["cart"].append("milk"), id="through dict()"),
        pytest.param(lambda s: {**s}["cart"].append("milk"), id="through **"),
        pytest.param(lambda s: ({} | s)["cart"].append("milk"), id="through a union with it"),
        pytest.param(lambda s: (lambda cart, user: cart.append("milk"))(**s), id="through arguments"),
        pytest.param(lambda s: itemgetter("cart")(s).append("milk"), id="through itemgetter"),
        pytest.param(lambda s: next(s[key] for key in s).append("milk"), id="through its keys"),
        pytest.param(
            lambda s: next(v for _, v in sorted(s.items(), key=str)).append("milk"), id="through sorted items"
        ),
        pytest.param(through_a_pattern, id="through a pattern"),
        pytest.param(lambda s: ChainMap({}, s)["cart"].append("milk"), id="through a chain of maps"),
    ],
)
async def test_a_nested_change_is_noticed(browser: Browser, change: Handler) -> None:
    """A flag that is set on assignment does not see it; the bytes do."""
    await browser.do(put(cart=["tea", "bread"], user={"prefs": {"dark": False}}))
    expected: dict[str, Any] = {}

    def handler(session: Session) -> None:
        change(session)
        expected.update(deepcopy(dict.copy(session)))  # past our methods: what is noted is noted by the change alone

    response = await browser.do(handler)

    assert response.set_cookie is None
    assert (await read(browser))["data"] == expected != {"cart": ["tea", "bread"], "user": {"prefs": {"dark": False}}}


# ── Changes after the response has begun ──


async def test_changes_in_a_stream_do_not_vanish(store: Store, browser: Browser, options: dict[str, Any]) -> None:
    """FastAPI #658, Flask #1348: the session had been saved when the first byte left, and nobody looked again."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            scope["session"]["sent"] = number
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        scope["session"]["after"] = "background task"

    await browser.do(put(start=1))
    streaming = SessionMiddleware(app, store, **options)

    await exchange(streaming, http_scope(cookie_header(streaming, str(browser.token))))

    assert (await read(browser))["data"] == {"start": 1, "sent": 2, "after": "background task"}


async def test_a_stream_saves_at_once_where_it_asks_for_it(browser: Browser) -> None:
    """``await session.save()`` in the middle of a stream: seen by others while it still goes on."""
    await browser.do(put(start=1))
    other = browser.another()
    seen: list[Any] = []

    async def after(session: Session) -> None:
        session["progress"] = 50
        await session.save()
        seen.append((await read(other))["data"])

    await browser.do(after=after)

    assert seen == [{"start": 1, "progress": 50}]
