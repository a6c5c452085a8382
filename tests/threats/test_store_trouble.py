"""The store is down, slow, lying, or gives one request's reply to another."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import redis
from msgspec.structs import replace

from asgi_sessions import MemoryStore, RedisStore, Session, Sessions, StoreError
from asgi_sessions._core.record import Record
from asgi_sessions._engine import guard as guard_module
from asgi_sessions._engine.breaker import FAILURES_TO_OPEN, FIRST_PAUSE, Breaker
from asgi_sessions.errors import RecordChanged, RecordDamaged, RecordExists, RecordGone
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.conftest import Server
from tests.proxy import Proxy
from tests.support import Browser, Response, app_with, destroy, log_in, put, read, regenerate
from tests.threats.hostile import Between, Events, answering, hanging, raising, within

Handler = Callable[[Session], Any]

VERBS: dict[str, tuple[Handler, set[str]]] = {
    # what a request does, and the methods of the store that it may need
    "read": (lambda session: dict(session), {"load", "touch"}),
    "write": (put(b=2), {"load", "update"}),
    "regenerate": (regenerate, {"load", "rename"}),
    "log_in": (log_in("alice"), {"load", "create", "delete", "index", "update"}),
    "destroy": (destroy, {"load", "delete", "index"}),
    "destroy and write": (
        lambda session: (session.destroy(), session.update(c=3)),
        {"load", "delete", "index", "create"},
    ),
    "clear": (lambda session: session.clear(), {"load", "update"}),
}
ASKED = [(verb, method) for verb, (_, methods) in VERBS.items() for method in sorted(methods)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that need not be waited for."""
    monkeypatch.setattr(guard_module, "DEADLINE", 0.03)


async def a_visit(store: Store, options: dict[str, Any], user: str = "alice") -> Browser:
    browser = Browser(app_with(store, **options))
    await browser.do(log_in(user))
    await browser.do(put(whose=user, secret=f"secret of {user}"))
    return browser


@pytest.fixture
def watched(memory: Store) -> Between:
    return Between(memory)


@pytest.fixture
async def alice(watched: Between, options: dict[str, Any], anyio_backend: Any) -> Browser:
    return await a_visit(watched, options)


def is_unavailable(response: Response, *, log_out: bool = False, is_half_done: bool = False) -> bool:
    """What promise 19 says: 503, when to come back, the cookie untouched, in no cache.

    A log-out takes the cookie along. A new session whose predecessor could not be ended brings its own: it was saved.
    """
    retry_after = response.get("retry-after")
    cookie = response.set_cookie
    return (
        response.status == 503
        and (cookie is not None) is (log_out or is_half_done)
        and (cookie is None or ("Max-Age=0" in cookie) is log_out)
        and retry_after is not None
        and 1 <= int(retry_after) <= 60
        and response.get("cache-control") == "no-store"
    )


# ── Down ──


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(hanging, id="hangs"),
        pytest.param(raising(StoreError("down")), id="StoreError"),
        pytest.param(raising(ConnectionRefusedError(111, "refused")), id="ConnectionRefusedError"),
        pytest.param(raising(TimeoutError()), id="TimeoutError"),
        pytest.param(raising(OSError(24, "too many open files")), id="OSError"),
        pytest.param(raising(RuntimeError("Event loop is closed")), id="RuntimeError"),
        pytest.param(raising(AttributeError("'NoneType' object has no attribute 'send'")), id="AttributeError"),
        pytest.param(raising(KeyError("x")), id="KeyError"),
        pytest.param(raising(MemoryError()), id="MemoryError"),
        pytest.param(raising(RecursionError()), id="RecursionError"),
        pytest.param(raising(StopAsyncIteration()), id="StopAsyncIteration"),
        pytest.param(raising(ExceptionGroup("several", [OSError(), ValueError()])), id="ExceptionGroup"),
        pytest.param(raising(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")), id="UnicodeDecodeError"),
        pytest.param(raising(RecordGone("gone")), id="RecordGone out of load"),
        pytest.param(raising(RecordExists("there")), id="RecordExists out of load"),
        pytest.param(answering({"user_id": "bob"}), id="answers a dict"),
        pytest.param(answering(b"1"), id="answers bytes"),
        pytest.param(answering(True), id="answers True"),
        pytest.param(answering(0), id="answers 0"),
        pytest.param(answering(""), id="answers an empty str"),
        pytest.param(answering([]), id="answers an empty list"),
        pytest.param(answering(Record), id="answers a class"),
    ],
)
@pytest.mark.usefixtures("impatient")
async def test_a_store_that_cannot_be_asked_is_a_503_with_the_cookie_untouched(
    watched: Between, alice: Browser, trouble: Any
) -> None:
    """alkem-io/server #6332: the store was down, so everybody hung, and then got a new, empty session in place of theirs."""
    token = alice.token
    watched.instead["load"] = trouble
    ran: list[Session] = []

    async with within():
        response = await alice.do(ran.append)

    assert is_unavailable(response)
    assert ran == []
    watched.instead.clear()
    assert alice.token == token
    assert (await read(alice))["user_id"] == "alice"


@pytest.mark.usefixtures("impatient")
async def test_who_has_no_cookie_does_not_notice(store: Store, options: dict[str, Any]) -> None:
    """alkem-io/server #6332: with the sessions the whole site was gone, health checks and log-in page included."""
    watched = Between(store)
    for method in ("load", "create", "update", "touch", "rename", "delete", "index"):
        watched.instead[method] = hanging

    async with within():
        for handler in (lambda session: None, dict, regenerate, destroy):
            response = await Browser(app_with(watched, **options)).do(handler)
            assert response.status == 200


@pytest.mark.usefixtures("impatient")
async def test_a_dead_store_is_not_asked_by_everyone(watched: Between, alice: Browser) -> None:
    """alkem-io/server #6332: a thousand requests, each waiting for its own time-out, are what keeps it dead."""
    watched.instead["load"] = hanging
    watched.calls.clear()

    async with within():
        for _ in range(FAILURES_TO_OPEN * 4):
            assert is_unavailable(await alice.do())

    assert len(watched.calls) == FAILURES_TO_OPEN


@pytest.mark.parametrize(("verb", "method"), [pair for pair in ASKED if pair[1] not in ("load", "touch")])
@pytest.mark.parametrize(
    "trouble", [hanging, raising(OSError()), raising(StoreError("down"))], ids=["hangs", "OSError", "StoreError"]
)
@pytest.mark.usefixtures("impatient")
async def test_a_commit_that_fails_promises_nothing_to_the_browser(
    watched: Between, alice: Browser, verb: str, method: str, trouble: Any
) -> None:
    """Neither "saved", nor "welcome", nor "logged out": 503, and the cookie as it was, unless it was to go or is replaced."""
    handler, _ = VERBS[verb]
    watched.instead[method] = trouble
    watched.calls.clear()

    async with within():
        response = await alice.raw([(b"cookie", f"{alice.name}={alice.token}".encode())], handler)

    if method in watched.calls:
        half_done = method == "delete" and verb in ("log_in", "destroy and write")
        log_out = verb.startswith("destroy") and not half_done
        assert is_unavailable(response, log_out=log_out, is_half_done=half_done)
    else:
        assert response.status == 200


@pytest.mark.usefixtures("impatient")
async def test_a_touch_that_fails_costs_nobody_a_page(
    watched: Between, alice: Browser, clock: FakeClock, events: Events
) -> None:
    """The request has been read and answered; that somebody was here a minute longer is not worth a 503."""
    for trouble in (hanging, raising(OSError()), answering({}), answering(None), answering(b"")):
        clock.advance(61)
        watched.instead["touch"] = trouble
        async with within():
            response = await alice.do(lambda session: session["whose"])
        assert (response.status, response.body, response.set_cookie) == (200, b"'alice'", None)
    watched.instead.clear()

    assert (await read(alice))["user_id"] == "alice"
    assert events.names.count("store.failed") == 5


async def test_nobody_is_told_logged_out_before_the_store_has_said_so(store: Store, options: dict[str, Any]) -> None:
    """Whoever closes the browser after "you are logged out" relies on it."""
    watched = Between(store)
    alice = await a_visit(watched, options)
    old = alice.another()
    watched.instead["delete"] = raising(OSError())

    response = await alice.do(destroy)

    assert is_unavailable(response, log_out=True)  # an error, and this browser is out all the same
    assert alice.token is None
    watched.instead.clear()
    assert (await read(old))["user_id"] == "alice"
    assert (await old.another().do(destroy)).status == 200
    assert await store.load(old.key) is None


async def test_nobody_is_told_logged_out_by_a_stand_in_for_the_session(store: Store, options: dict[str, Any]) -> None:
    """With ``on_store_failure="anonymous"`` the app talks to an empty session; to destroy that is no log-out."""
    watched = Between(store)
    alice = await a_visit(watched, options)
    degraded = Browser(app_with(watched, on_store_failure="anonymous", **options), alice.token)
    watched.instead["load"] = raising(OSError())

    response = await degraded.do(destroy)

    assert is_unavailable(response, log_out=True)


async def test_a_stand_in_for_the_session_writes_nothing_and_keeps_the_cookie(
    store: Store, options: dict[str, Any]
) -> None:
    """alkem-io/server #6332: an empty session, saved over a good cookie, logs everybody out for good."""
    watched = Between(store)
    alice = await a_visit(watched, options)
    degraded = Browser(app_with(watched, on_store_failure="anonymous", **options), alice.token)
    watched.instead["load"] = raising(OSError())
    watched.calls.clear()

    for handler in (dict, regenerate, lambda session: session.clear(), lambda session: session.save()):
        response = await degraded.do(handler)
        assert (response.status, response.set_cookie) == (200, None)
    assert is_unavailable(await degraded.do(log_in("mallory")))

    assert watched.writes == []
    assert (await read(Browser(app_with(store, **options), alice.token)))["user_id"] == "alice"


# ── Lying ──

GARBAGE: list[Any] = [
    pytest.param({"rev": 1}, id="a dict"),
    pytest.param(b"1", id="bytes"),
    pytest.param(True, id="True"),
    pytest.param(7, id="an int"),
    pytest.param([], id="a list"),
    pytest.param("x", id="a str"),
    pytest.param(object(), id="an object"),
]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(("verb", "method"), [pair for pair in ASKED if pair[1] != "load"])
async def test_a_store_that_answers_garbage_is_no_error_of_the_app(
    watched: Between, alice: Browser, verb: str, method: str, garbage: Any
) -> None:
    """503 or an ordinary answer, and never a traceback out of this package."""
    watched.instead[method] = answering(garbage)

    response = await alice.raw([(b"cookie", f"{alice.name}={alice.token}".encode())], VERBS[verb][0])

    assert response.status in (200, 503)


@pytest.mark.parametrize("garbage", GARBAGE[1:3])
@pytest.mark.parametrize("verb", ["log_in", "destroy"])
async def test_an_index_of_garbage_is_no_error_of_the_app(
    watched: Between, alice: Browser, verb: str, garbage: Any
) -> None:
    """As above, where the record is gone and the index is asked where it went."""
    watched.instead["delete"] = answering(None)
    watched.instead["index"] = answering(garbage)

    response = await alice.raw([(b"cookie", f"{alice.name}={alice.token}".encode())], VERBS[verb][0])

    assert response.status in (200, 503)


@pytest.mark.parametrize("current", GARBAGE[:3])
@pytest.mark.parametrize(("verb", "method"), [("write", "update"), ("regenerate", "rename")])
async def test_a_conflict_with_garbage_is_no_error_of_the_app(
    watched: Between, alice: Browser, verb: str, method: str, current: Any
) -> None:
    """``RecordChanged`` carries a record; a store that puts something else there is a store that lies."""
    watched.instead[method] = raising(RecordChanged(current))

    response = await alice.raw([(b"cookie", f"{alice.name}={alice.token}".encode())], VERBS[verb][0])

    assert response.status == 503


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"body": None}, id="no body"),
        pytest.param({"seen_at": None}, id="no clock"),
        pytest.param({"seen_at": "1800000000"}, id="a clock of text"),
        pytest.param({"rev": None}, id="no revision"),
        pytest.param({"id": None}, id="no id"),
    ],
)
async def test_a_record_whose_fields_are_garbage_is_no_error_of_the_app(
    memory: Store, sealed: dict[str, Any], fields: dict[str, Any]
) -> None:
    """A store of somebody else's that forgot to convert what its database gave it."""
    watched = Between(memory)
    alice = await a_visit(watched, sealed)
    record = await memory.load(alice.key)
    assert record is not None
    watched.instead["load"] = answering(replace(record, **fields))

    response = await alice.do(lambda session: (dict(session), session.expires_at))

    assert response.status in (200, 503)


async def test_a_store_that_answers_with_another_users_record_is_believed_by_nobody(
    store: Store, options: dict[str, Any]
) -> None:
    """CVE-2023-28858, CVE-2023-28859 (redis-py): a cancelled request left its reply behind, and the next caller got it."""
    watched = Between(store)
    alice, bob = await a_visit(watched, options, "alice"), await a_visit(watched, options, "bob")
    bobs = await store.load(bob.key)
    watched.instead["load"] = answering(bobs)
    seen: list[Any] = []

    for _ in range(2):
        response = await alice.do(lambda session: seen.append(dict(session)))
        assert is_unavailable(response) or seen[-1] == {}

    assert "bob" not in str(seen)
    watched.instead.clear()
    assert (await read(alice))["user_id"] == "alice"


async def test_a_reply_that_strayed_once_is_asked_for_again(server: Store, options: dict[str, Any]) -> None:
    """CVE-2023-28858: the record under the key says whose it is. One stray reply is no reason to log Alice out."""
    watched = Between(server)
    alice = await a_visit(watched, options)
    strayed = [True]

    async def once(real: Any, key: str) -> Any:
        if strayed:
            strayed.clear()
            raise RecordDamaged("the record under the key belongs to another key")
        return await real(key)

    watched.instead["load"] = once

    assert (await read(alice))["user_id"] == "alice"


async def test_a_delete_that_answers_with_another_users_record_gives_nobody_their_data(
    store: Store, options: dict[str, Any]
) -> None:
    """CVE-2023-28859 on the way out: at a log-in, changes that a parallel request made to the old session come along."""
    watched = Between(store)
    alice, bob = await a_visit(watched, options, "alice"), await a_visit(watched, options, "bob")
    await bob.do(put(card="bob's card"))
    bobs = await store.load(bob.key)
    assert bobs is not None

    for record in (bobs, replace(bobs, key=alice.key)):
        watched.instead["delete"] = answering(record)
        await alice.do(log_in("alice"))
        watched.instead.clear()
        assert "card" not in (await read(alice))["data"]


async def test_a_conflict_that_shows_another_users_record_gives_nobody_their_data(
    store: Store, options: dict[str, Any]
) -> None:
    """CVE-2023-28859 in the middle: the record of a conflict is what is merged with, so it must be the right one."""
    watched = Between(store)
    alice, bob = await a_visit(watched, options, "alice"), await a_visit(watched, options, "bob")
    bobs = await store.load(bob.key)
    assert bobs is not None

    for method, handler in (("update", put(b=2)), ("rename", regenerate), ("delete", destroy)):
        for record in (bobs, replace(bobs, key=alice.key)):
            watched.instead = {method: raising(RecordChanged(record))}
            seen: list[Any] = []
            response = await alice.raw(
                [(b"cookie", f"{alice.name}={alice.token}".encode())],
                handler,
                after=lambda session, seen=seen: seen.append((dict.copy(session), session.user_id)),
            )
            assert response.status in (200, 503)
            assert "bob" not in str(seen)
    watched.instead.clear()
    assert (await read(alice))["data"] == {"whose": "alice", "secret": "secret of alice"}


# ── A cancelled request's reply ──


async def test_a_cancelled_request_never_gives_its_reply_to_another(server: Store, options: dict[str, Any]) -> None:
    """CVE-2023-28858, CVE-2023-28859: users in parallel, some of whom hang up at any moment; each sees only themselves."""
    dice = random.Random(28858)
    app = app_with(server, **options)
    users = [Browser(app) for _ in range(8)]
    for number, user in enumerate(users):
        await user.do(log_in(f"user-{number}"))
        await user.do(put(whose=f"user-{number}", n=0))
    wrong: list[Any] = []

    async def visit(number: int) -> None:
        def look(session: Session) -> None:
            if (session.user_id, session.get("whose")) != (f"user-{number}", f"user-{number}"):
                wrong.append((number, session.user_id, dict(session)))
            session["n"] = dice.random()

        response = await users[number].another().do(look)
        if response.status != 200:
            wrong.append((number, response.status))

    async def visit_and_hang_up(number: int, turns: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(visit, number)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    async with within(30):
        for _ in range(12):
            async with anyio.create_task_group() as tasks:
                for number in range(len(users)):
                    tasks.start_soon(visit, number)
                    tasks.start_soon(visit_and_hang_up, number, dice.randrange(12))

    assert wrong == []
    for number, user in enumerate(users):
        assert (await read(user))["user_id"] == f"user-{number}"


# ── The driver repeats a command ──


@pytest.mark.parametrize(
    "verb",
    [put(b=2), regenerate, log_in("alice"), destroy, lambda session: session.clear()],
    ids=["write", "regenerate", "log_in", "destroy", "clear"],
)
@pytest.mark.parametrize("method", ["create", "update", "rename", "touch", "delete"])
async def test_a_command_that_a_driver_sends_twice_does_what_it_does_once(
    store: Store, options: dict[str, Any], verb: Handler, method: str, clock: FakeClock
) -> None:
    """After a lost connection a driver cannot know whether its command arrived, and may send it again."""

    async def twice(real: Any, *args: Any, **kwargs: Any) -> Any:
        await real(*args, **kwargs)
        return await real(*args, **kwargs)

    watched = Between(store)
    alice = await a_visit(watched, options)
    old = alice.another()
    clock.advance(61)
    watched.instead[method] = twice

    response = await alice.do(verb)

    assert response.status == 200
    watched.instead.clear()
    user = None if verb is destroy else "alice"
    assert (await read(alice))["user_id"] == user
    assert (await read(old))["user_id"] == (user if old.token == alice.token else None)


# ── The hook that hears of it ──


async def fails_later(event: Any) -> None:
    await anyio.lowlevel.checkpoint()
    raise ExceptionGroup("several", [OSError(), ValueError()])


@pytest.mark.parametrize(
    "hook",
    [
        pytest.param(lambda event: 1 / 0, id="raises"),
        pytest.param(lambda event: object(), id="answers something"),
        pytest.param(lambda event: event.details.clear(), id="meddles"),
        pytest.param(fails_later, id="raises later, and in somebody else's code"),
    ],
)
async def test_a_hook_that_fails_changes_nothing(store: Store, clock: FakeClock, hook: Any) -> None:
    """It is told; it is not asked."""
    alice = Browser(app_with(store, clock=clock, on_event=hook))

    for handler, user in ((put(a=1), None), (log_in("alice"), "alice"), (regenerate, "alice"), (destroy, None)):
        response = await alice.do(handler)
        assert response.status == 200
        assert (await read(alice))["user_id"] == user


@pytest.mark.parametrize("trouble", [False, True], ids=["store well", "store down"])
async def test_a_hook_that_hangs_does_not_hold_up_the_site(memory: Store, clock: FakeClock, trouble: bool) -> None:
    """It mails, or posts to a collector; when the network is in trouble, so is that, at the same moment as the store."""
    watched = Between(memory)
    alice = Browser(app_with(watched, clock=clock))
    await alice.do(log_in("alice"))

    async def hook(event: Any) -> None:
        await anyio.sleep_forever()

    waiting = Browser(app_with(watched, clock=clock, on_event=hook), alice.token)
    if trouble:
        watched.instead["load"] = raising(OSError())

    async with within(5):
        response = await waiting.do(regenerate)

    assert response.status == (503 if trouble else 200)


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["answered", "cancelled"])
async def test_a_slow_hook_gets_every_event_of_a_request_and_the_response_waits_only_once(
    store: Store, clock: FakeClock, is_cancelled: bool
) -> None:
    """One log-out of many sessions is many events. The client may hang up while the hook has only had the first."""
    heard: list[str] = []
    begun = asyncio.Event()

    async def hook(event: Any) -> None:
        begun.set()
        await anyio.sleep(0.06)
        heard.append(event.name)

    sessions = Sessions(store, clock=clock, on_event=hook)
    app = app_with(sessions)
    for _ in range(10):
        alice = Browser(app)
        await alice.do(log_in("alice"))
    heard.clear()
    begun.clear()

    began = time.monotonic()
    request = asyncio.ensure_future(alice.do(lambda session: session.end_others()))
    if is_cancelled:
        await begun.wait()
        request.cancel()
    await asyncio.wait({request})
    took = time.monotonic() - began
    async with within():
        while running := sessions._manager.events._running:
            await asyncio.wait(running)

    assert request.cancelled() == is_cancelled
    assert heard == ["session.regenerated", *["session.ended"] * 9]
    assert took < 0.5


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_cancelled_request_tells_the_hook_of_every_event_under_trio(
    clock: FakeClock, anyio_backend: str
) -> None:
    heard: list[str] = []

    async def hook(event: Any) -> None:
        await anyio.sleep(0.01)
        heard.append(event.name)
        scope.cancel()

    scope = anyio.CancelScope()
    app = app_with(MemoryStore(), clock=clock, on_event=hook)
    plain = app_with(app.sessions.store, clock=clock)
    for _ in range(3):
        alice = Browser(plain)
        await alice.do(log_in("alice"))

    with scope:
        await Browser(app, alice.token).do(lambda session: session.end_others())

    assert heard == ["session.regenerated", "session.ended", "session.ended"]


async def test_a_hook_that_the_end_of_the_event_loop_stops_is_logged(
    memory: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async def hook(event: Any) -> None:
        await anyio.sleep_forever()

    alice = Browser(app_with(memory, on_event=hook))
    await alice.do(log_in("alice"))

    for task in tuple(alice.app._manager.events._running):
        task.cancel()
        await asyncio.wait({task})

    assert "the on_event hook failed on session.logged_in" in caplog.text


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_an_async_hook_is_heard_under_trio(clock: FakeClock, anyio_backend: str) -> None:
    """In a main thread where nobody has asked for one yet, asyncio makes such a loop itself when it is asked."""
    heard: list[str] = []

    async def hook(event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        heard.append(event.name)

    idle = asyncio.new_event_loop()
    asyncio.set_event_loop(idle)
    try:
        await Browser(app_with(MemoryStore(), clock=clock, on_event=hook)).do(log_in("alice"))
    finally:
        asyncio.set_event_loop(None)
        for task in asyncio.all_tasks(idle):
            task.cancel()
        idle.run_until_complete(asyncio.sleep(0))
        idle.close()

    assert heard == ["session.logged_in"]


async def test_a_hook_may_use_the_session_of_the_request_it_hears_of(store: Store, clock: FakeClock) -> None:
    """Not wise, and no deadlock either."""
    found: list[Any] = []
    sessions: list[Session] = []

    async def hook(event: Any) -> None:
        for session in sessions:
            found.append(session.user_id)
            await session.save()

    alice = Browser(app_with(store, clock=clock, on_event=hook))

    def handler(session: Session) -> None:
        sessions.append(session)
        session.log_in("alice")

    async with within():
        response = await alice.do(handler)

    assert response.status == 200
    assert found == ["alice"]


# ── A breaker that makes it worse ──


def test_requests_that_fail_together_are_one_failure() -> None:
    """alkem-io/server #6332: a restart of the store that takes a tenth of a second must not cost much more than that."""
    breaker = Breaker()

    for _ in range(64):
        breaker.failed(100.0)

    assert breaker.allows(100.0 + FIRST_PAUSE)


async def test_a_loop_that_stood_still_is_not_held_against_the_store(watched: Between, alice: Browser) -> None:
    """A handler blocks, or the machine is busy: the store has answered, and nobody has looked yet."""

    async def answering_meanwhile(real: Any, *args: Any) -> Any:
        asyncio.get_running_loop().call_soon(time.sleep, 0.6)
        for _ in range(5):
            await asyncio.sleep(0)
        return await real(*args)

    watched.instead["load"] = answering_meanwhile

    assert (await alice.do()).status == 200


async def test_clients_that_hang_up_after_the_loop_stood_still_do_not_shut_the_store(
    watched: Between, alice: Browser
) -> None:
    """They have waited for half of the deadline and more; the store, for no longer than a moment."""
    watched.instead["load"] = hanging
    tasks = [asyncio.ensure_future(alice.another().do()) for _ in range(FAILURES_TO_OPEN * 2)]
    while len(watched.calls) < len(tasks):  # noqa: ASYNC110 - a turn or two
        await asyncio.sleep(0)

    time.sleep(0.4)  # noqa: ASYNC251 - this is the trouble
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    watched.instead.clear()

    assert (await read(alice))["user_id"] == "alice"


async def test_nor_where_the_store_keeps_the_time(own_server: Server, proxy: Proxy) -> None:
    """Then there is no limit of ours while it is asked, and so nobody who notices that the loop stood still."""
    store = RedisStore.from_url(proxy.url(own_server.url))
    alice = Browser(app_with(store))
    await alice.do(log_in("alice"))
    proxy.hanging = True
    tasks = [asyncio.ensure_future(alice.another().do()) for _ in range(FAILURES_TO_OPEN * 2)]
    await asyncio.sleep(0.05)

    time.sleep(0.3)  # noqa: ASYNC251 - this is the trouble
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    proxy.hanging = False

    assert (await read(alice))["user_id"] == "alice"
    await store.aclose()


async def test_touches_that_hang_are_held_against_a_store_that_keeps_the_time(
    own_server: Server, own_store: RedisStore, clock: FakeClock
) -> None:
    """They have a limit of their own, so somebody did watch whether the loop stood still."""
    app = app_with(own_store, clock=clock)
    browsers = [Browser(app) for _ in range(FAILURES_TO_OPEN)]
    for number, browser in enumerate(browsers):
        await browser.do(log_in(f"user {number}"))
    clock.advance(timedelta(minutes=2))
    with redis.Redis(port=own_server.port) as client:
        client.execute_command("CLIENT PAUSE", 3000, "WRITE")

    answers = await asyncio.gather(*(browser.do() for browser in browsers))

    assert {answer.status for answer in answers} == {200}
    assert app._manager.guard.breakers.whole.is_open


async def test_what_hangs_when_it_is_tried_again_is_held_against_the_store() -> None:
    """By our own deadline, of which some was left after somebody else had been faster."""

    class HangingWhenAskedAgain(MemoryStore):
        asked = 0

        async def update(self, record: Record, *, rev: int) -> None:
            self.asked += 1
            if self.asked > 1:
                await anyio.sleep_forever()
            raise RecordChanged(self._records[record.key])

    store = HangingWhenAskedAgain()
    app = app_with(store)
    alice = Browser(app)
    await alice.do(put(a=1))

    assert (await alice.do(put(a=2))).status == 503
    assert app._manager.guard.breakers.whole.failures == 1


@pytest.mark.parametrize("keeps_the_time", [False, True])
async def test_a_loop_that_stood_still_until_somebody_else_was_faster_leaves_time_to_try_again(
    keeps_the_time: bool,
) -> None:
    """Whoever is told of a conflict has been answered; how long that took says nothing of the store."""

    class OvertakenWhileTheLoopStoodStill(MemoryStore):
        keeps_its_own_deadline = keeps_the_time
        asked = 0

        async def update(self, record: Record, *, rev: int) -> None:
            self.asked += 1
            if self.asked == 1:
                time.sleep(0.6)  # noqa: ASYNC251 - the whole loop
                raise RecordChanged(self._records[record.key])
            await anyio.sleep(0.01)
            await super().update(record, rev=rev)

    store = OvertakenWhileTheLoopStoodStill()
    alice = Browser(app_with(store))
    await alice.do(put(a=1))

    assert (await alice.do(put(b=2))).status == 200
    assert store.asked == 2
    assert (await read(alice))["data"] == {"a": 1, "b": 2}


async def test_a_client_that_leaves_while_it_probes_does_not_keep_everybody_else_out(
    memory: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may ask a store that was down is a browser like any other, and may hang up before it has answered."""
    watched = Between(memory)
    alice = Browser(app_with(watched, clock=clock))
    await alice.do(log_in("alice"))
    watched.instead["load"] = raising(OSError())
    for _ in range(FAILURES_TO_OPEN):
        await alice.do()
    await anyio.sleep(FIRST_PAUSE)

    async def forever(*args: Any, **kwargs: Any) -> None:
        await anyio.sleep_forever()

    watched.instead["load"] = forever
    with anyio.move_on_after(0.05):
        await alice.another().do()
    del watched.instead["load"]

    assert (await read(alice))["user_id"] == "alice"
