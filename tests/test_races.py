"""Two requests of one session at the same time. One is held between load and commit; the other runs through meanwhile.

Also the narrower ones, where the second request runs while the first is in the middle of its commit, before a given
question to the store.
"""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asgi_sessions import (
    Devices,
    Event,
    MemoryStore,
    RedisStore,
    Session,
    SessionLimitReached,
    SessionWarning,
    StoreError,
    Timeouts,
    UserSessions,
)
from asgi_sessions._core.record import Record
from asgi_sessions._core.token import owner_of
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.properties.faults import Faulty
from tests.support import Browser, Handler, Response, app_with, destroy, log_in, put, read, regenerate
from tests.threats.hostile import Between
from tests.websockets import Socket
from tests.wrapped import Wrapped

RENEWING = Timeouts(renew=timedelta(minutes=10))


@pytest.fixture
def browser(store: Store, clock: FakeClock) -> Browser:
    return Browser(app_with(store, clock=clock, timeouts=RENEWING))


@pytest.fixture
def wrapped(store: Store) -> Wrapped:
    """The store, which can be told to fail."""
    return Wrapped(store)


@pytest.fixture
def visitor(wrapped: Wrapped, clock: FakeClock) -> Browser:
    """Of an app with that store."""
    return Browser(app_with(wrapped, clock=clock))


def was_a_normal_answer_without_cookie(response: Response) -> bool:
    return response.status == 200 and response.set_cookie is None


async def gone(store: Store, *browsers: Browser) -> bool:
    """Nobody's token leads anywhere, and alice's index is empty."""
    found = [await store.load(browser.key) for browser in browsers]
    return not any(found) and await store.index(owner_of("alice")) == {}


# ── Against an end ──

LOSERS: dict[str, tuple[Handler, int]] = {
    # what the slow request does, and for how many minutes the user has been logged in
    "update": (put(a=1), 2),
    "touch": (lambda session: None, 2),
    "renewal": (lambda session: None, 11),
    "regenerate": (regenerate, 2),
    "update and regenerate": (lambda session: (session.update(a=1), session.regenerate()), 2),
    "confirm": (lambda session: session.confirm(), 2),
    "clear": (lambda session: session.clear(), 2),
    "destroy": (destroy, 2),
}


@pytest.mark.parametrize(("loser", "minutes"), LOSERS.values(), ids=LOSERS.keys())
async def test_an_end_that_comes_first_is_final(
    browser: Browser, store: Store, clock: FakeClock, loser: Handler, minutes: int
) -> None:
    """The loser gets a normal response and no cookie, and brings nothing back."""
    await browser.do(log_in("alice"))
    clock.advance(timedelta(minutes=minutes))
    slow = browser.another()

    async with slow.paused(loser) as request:
        await browser.another().do(destroy)

    assert was_a_normal_answer_without_cookie(request.response)
    assert await gone(store, slow, browser)


@pytest.mark.parametrize(
    ("first", "minutes", "moves"),
    [(regenerate, 0, True), (lambda s: s.confirm(), 0, True), (put(a=1), 0, False), (lambda s: None, 11, True)],
    ids=["regenerate", "confirm", "update", "renewal"],
)
async def test_a_log_out_means_the_session_wherever_its_token_has_gone(
    browser: Browser, store: Store, clock: FakeClock, first: Handler, minutes: int, moves: bool
) -> None:
    """The token is replaced while the log-out is on its way. What the user ended is the session, not that token."""
    await browser.do(log_in("alice"))
    clock.advance(timedelta(minutes=minutes))
    slow = browser.another()

    async with slow.paused(destroy, method="OPTIONS") as request:
        await browser.do(first)
        assert (browser.token != slow.token) is moves

    assert "Max-Age=0" in (request.response.set_cookie or "")
    assert await gone(store, browser)


@pytest.mark.parametrize(
    ("first", "minutes"),
    [(put(a=1), 0), (regenerate, 0), (lambda session: None, 11)],
    ids=["update", "regenerate", "renewal"],
)
async def test_a_log_out_ends_a_session_that_another_server_has_saved_with_a_newer_secret(
    store: Store, clock: FakeClock, first: Handler, minutes: int
) -> None:
    """Of a deployment that skipped the first step. This server cannot read what the other one wrote."""
    old, new = secrets.token_bytes(32), secrets.token_bytes(32)
    behind = Browser(app_with(store, clock=clock, timeouts=RENEWING, secret_keys=[old]))
    await behind.do(log_in("alice"))
    clock.advance(timedelta(minutes=minutes))
    ahead = Browser(app_with(store, clock=clock, timeouts=RENEWING, secret_keys=[new, old]), behind.token)

    async with behind.paused(destroy):
        await ahead.do(first)

    assert behind.token is None
    assert (await read(ahead))["user_id"] is None
    assert await store.index(owner_of("alice")) == {}


async def test_a_log_in_as_somebody_else_and_a_log_out_both_count(browser: Browser, store: Store) -> None:
    await browser.do(log_in("alice"))
    slow = browser.another()

    async with slow.paused(destroy) as request:
        await browser.do(log_in("bob"))

    assert was_a_normal_answer_without_cookie(request.response)
    assert (await read(browser))["user_id"] == "bob"
    assert await store.index(owner_of("alice")) == {}


# ── Two that change the token ──


async def test_of_two_regenerations_one_wins_and_the_other_says_nothing(browser: Browser, store: Store) -> None:
    await browser.do(log_in("alice"))
    slow = browser.another()

    async with slow.paused(regenerate) as request:
        await browser.do(regenerate)

    assert was_a_normal_answer_without_cookie(request.response)
    assert (await read(browser))["user_id"] == "alice"
    assert len(await store.index(owner_of("alice"))) == 1


async def test_of_two_renewals_one_wins_and_the_other_is_led_by_the_alias(
    browser: Browser, store: Store, clock: FakeClock
) -> None:
    await browser.do(log_in("alice"))
    clock.advance(timedelta(minutes=11))
    slow = browser.another()

    async with slow.paused(put(slow=1)) as request:
        await browser.do(put(fast=1))

    assert was_a_normal_answer_without_cookie(request.response)
    assert (await read(browser))["data"] == {"fast": 1, "slow": 1}
    assert len(await store.index(owner_of("alice"))) == 1


async def test_a_regeneration_after_a_renewal_leaves_no_way_back(
    browser: Browser, store: Store, clock: FakeClock
) -> None:
    """The renewal's alias leads to a token that the regeneration has ended, and so nowhere."""
    await browser.do(log_in("alice"))
    clock.advance(timedelta(minutes=11))
    slow, stale = browser.another(), browser.another()

    async with slow.paused(regenerate) as request:
        await browser.do()
    slow.hear(request.response)

    assert (await read(slow))["user_id"] == "alice"
    assert (await read(browser))["user_id"] is None
    assert (await read(stale))["user_id"] is None


async def test_two_log_ins_from_one_anonymous_session_are_two_sessions(browser: Browser, store: Store) -> None:
    await browser.do(put(basket=1))
    slow = browser.another()

    async with slow.paused(log_in("alice")):
        await browser.do(log_in("alice"))

    assert (await read(slow))["user_id"] == (await read(browser))["user_id"] == "alice"
    assert len(await store.index(owner_of("alice"))) == 2


# ── Data ──


async def test_what_is_put_into_the_basket_during_the_log_in_comes_along(browser: Browser) -> None:
    await browser.do(put(basket=1, kept=1))
    slow = browser.another()

    async with slow.paused(lambda s: (s.log_in("alice"), s.update(kept="by the log-in"))):
        await browser.another().do(put(wish=2, kept="by the other"))

    found = await read(slow)
    assert (found["user_id"], found["data"]) == ("alice", {"basket": 1, "wish": 2, "kept": "by the log-in"})


async def test_what_somebody_else_left_behind_does_not_come_along(browser: Browser) -> None:
    await browser.do(log_in("alice"))
    await browser.do(put(mine=1))
    slow = browser.another()

    async with slow.paused(log_in("bob")):
        await browser.another().do(put(more_of_mine=2))

    found = await read(slow)
    assert (found["user_id"], found["data"]) == ("bob", {})


async def test_emptying_a_session_does_not_take_along_what_another_request_has_just_put_in(browser: Browser) -> None:
    await browser.do(put(a=1))
    slow = browser.another()

    async with slow.paused(lambda s: s.clear()) as request:
        await browser.do(put(b=2))

    assert was_a_normal_answer_without_cookie(request.response)
    assert (await read(browser))["data"] == {"b": 2}


async def test_after_a_merge_the_app_sees_the_merged_data_and_the_last_commit_keeps_it(browser: Browser) -> None:
    await browser.do(put(a=1, b=1))
    seen: list[Any] = []
    slow = browser.another()

    def late(session: Session) -> None:
        seen.append(dict(session))
        session["c"] = 3

    async with slow.paused(put(a=2), after=late):
        await browser.do(put(b=2))

    assert seen == [{"a": 2, "b": 2}]
    assert (await read(browser))["data"] == {"a": 2, "b": 2, "c": 3}


async def test_a_regeneration_keeps_what_another_request_wrote_meanwhile(browser: Browser) -> None:
    await browser.do(put(a=1))
    slow = browser.another()

    async with slow.paused(lambda s: (s.regenerate(), s.update(b=2))):
        await browser.another().do(put(a=2))

    assert (await read(slow))["data"] == {"a": 2, "b": 2}


async def test_a_confirmation_survives_a_merge_with_a_request_that_knew_nothing_of_it(
    browser: Browser, clock: FakeClock
) -> None:
    await browser.do(log_in("alice"))
    clock.advance(600)
    slow = browser.another()
    before = await browser.another().do(lambda s: s.authenticated_at)

    async with slow.paused(lambda s: (s.confirm(), s.update(a=1))):
        await browser.another().do(put(b=2))
    after = await slow.do(lambda s: s.authenticated_at)

    assert before.body != after.body
    assert (await read(slow))["data"] == {"a": 1, "b": 2}


@pytest.mark.parametrize("meanwhile", [regenerate, put(b=2)], ids=["regenerate", "write"])
async def test_a_confirmation_beside_another_request_is_told_once(
    store: Store, clock: FakeClock, meanwhile: Handler
) -> None:
    names: list[str] = []
    browser = Browser(app_with(store, clock=clock, on_event=lambda event: names.append(event.name)))
    await browser.do(log_in("alice"))
    clock.advance(600)
    slow = browser.another()

    async with slow.paused(lambda session: session.confirm(methods=["otp"])):
        await browser.do(meanwhile)

    assert names.count("session.confirmed") == 1
    now = browser if meanwhile is regenerate else slow
    assert (
        await now.do(lambda session: (session.methods, session.is_fresh(timedelta(minutes=1))))
    ).body == b"(('otp',), True)"


# ── In the middle of a commit ──


async def test_a_revocation_between_the_two_steps_of_a_log_in_leaves_the_log_in_whole(
    store: Store, wrapped: Wrapped, visitor: Browser
) -> None:
    """The new record is there, the old one not yet gone; somebody deletes the old one just then."""
    await visitor.do(put(a=1))
    old = visitor.key

    async def somebody_else() -> None:
        await store.delete(old)

    wrapped.before["delete"] = somebody_else
    await visitor.do(log_in("alice"))
    del wrapped.before["delete"]

    assert (await read(visitor))["user_id"] == "alice"
    assert (await read(visitor))["data"] == {"a": 1}


async def test_a_log_in_that_fails_half_way_is_a_503_with_the_cookie_of_what_was_saved(
    wrapped: Wrapped, visitor: Browser
) -> None:
    """The new session is there, and the old one may be gone: the new token is the only one that is sure to work."""
    await visitor.do(put(a=1))
    before = visitor.token
    wrapped.fail["delete"] = ConnectionError("gone away")

    response = await visitor.do(log_in("alice"))
    wrapped.fail.clear()

    assert response.status == 503
    assert visitor.token != before
    assert (await read(visitor))["data"] == {"a": 1}
    assert (await read(visitor))["user_id"] == "alice"


async def test_a_log_in_whose_first_step_fails_is_a_503_and_the_old_session_lives_on(
    store: Store, wrapped: Wrapped, visitor: Browser
) -> None:
    await visitor.do(put(a=1))
    before = visitor.token
    wrapped.fail_after["create"] = ConnectionError("gone away")

    response = await visitor.do(log_in("alice"))
    wrapped.fail_after.clear()

    assert response.status == 503
    assert visitor.token == before
    assert (await read(visitor))["user_id"] is None
    assert await store.index(owner_of("alice")) == {}


async def test_a_log_in_that_failed_half_way_can_be_repeated_in_the_same_request(
    wrapped: Wrapped, visitor: Browser
) -> None:
    await visitor.do(put(a=1))
    before = visitor.another()

    async def handler(session: Session) -> None:
        session.log_in("alice")
        wrapped.fail["delete"] = ConnectionError("gone away")
        with pytest.raises(Exception, match="store"):
            await session.save()
        wrapped.fail.clear()

    response = await visitor.do(handler)

    assert response.status == 200
    assert (await read(visitor))["user_id"] == "alice"
    assert (await read(visitor))["data"] == {"a": 1}
    assert (await read(before))["is_new"] is True


@pytest.mark.parametrize("method", ["create", "update", "rename"])
async def test_an_answer_that_was_lost_after_the_store_had_done_it_is_a_503_and_nothing_breaks(
    wrapped: Wrapped, visitor: Browser, method: str
) -> None:
    await visitor.do(log_in("alice"))
    wrapped.fail_after[method] = ConnectionError("the answer was lost")

    handler = {"create": log_in("alice"), "update": put(a=1), "rename": regenerate}[method]
    response = await visitor.do(handler)
    wrapped.fail_after.clear()

    assert response.status == 503
    assert response.set_cookie is None
    assert (await visitor.do(lambda s: s.get("a"))).status == 200


async def test_a_conflict_that_took_its_time_does_not_get_a_second_deadline(
    own_store: RedisStore, clock: FakeClock
) -> None:
    """Load and commit together stay under a second, also where the first answer came late and was a conflict."""
    browser = Browser(app_with(own_store, clock=clock))
    await browser.do(put(a=1))
    update, calls = own_store.update, 0

    async def late(record: Record, *, rev: int, asked: Any = None) -> None:
        nonlocal calls
        calls += 1
        await anyio.sleep(0.3)
        await update(record, rev=rev)

    slow = browser.another()
    async with slow.paused(put(b=2)) as request:
        await browser.do(put(c=3))
        own_store.update = late  # type: ignore[method-assign]  # on this very store, which is trusted to keep time
        own_store.ask_update = lambda *args, **more: None  # type: ignore[method-assign]

    assert request.response.status == 503
    assert calls == 2


@pytest.mark.filterwarnings("ignore::asgi_sessions.SessionWarning")  # the log-in is not saved, and the app is warned
@pytest.mark.parametrize("verb", [regenerate, log_in("alice")], ids=["regenerate", "log in again"])
async def test_a_handshake_that_is_refused_after_a_lost_reply_leaves_the_old_token_alive(
    store: Store, wrapped: Wrapped, visitor: Browser, verb: Any
) -> None:
    """The cookie of the new token can no longer leave, so what may have been done is undone."""
    await visitor.do(log_in("alice"))
    for method in ("rename", "create"):
        wrapped.fail_after[method] = StoreError("the reply was lost")

    async with Socket(visitor, extensions=False) as socket:
        verb(socket.session)
        with pytest.raises(StoreError):
            await socket.session.save()
        wrapped.fail_after.clear()
        await socket.close()

    assert (await read(visitor))["user_id"] == "alice"
    assert len(await store.index(owner_of("alice"))) == 1


# ── A session that another request moves again and again, or ends ──

MOVING = Timeouts(
    idle=timedelta(minutes=10), absolute=timedelta(hours=1), touch=timedelta(minutes=1), renew=timedelta(minutes=2)
)


@pytest.fixture
def moving(store: Store, clock: FakeClock) -> Browser:
    """A browser whose token is renewed every two minutes. Its sockets stay open when their session ends."""
    return Browser(app_with(store, clock=clock, timeouts=MOVING, devices=Devices(live=False)))


@pytest.mark.parametrize("who", [log_in("alice"), put(a=1)], ids=["alice", "anonymous"])
@pytest.mark.parametrize("verb", [put(slow=1), destroy], ids=["write", "log out"])
async def test_a_request_finds_a_session_that_was_renewed_and_then_regenerated(
    moving: Browser, clock: FakeClock, who: Handler, verb: Handler
) -> None:
    """The alias of the renewal leads to a key that the regeneration has left."""
    await moving.do(who)
    clock.advance(121)
    slow = moving.another()

    async with slow.paused(verb, method="OPTIONS"):
        await moving.do()
        await moving.do(regenerate)

    found = await read(moving)
    assert found["is_new"] if verb is destroy else found["data"]["slow"] == 1


@pytest.mark.parametrize("who", [log_in("alice"), put(a=1)], ids=["alice", "anonymous"])
async def test_an_open_socket_saves_to_its_session_after_any_number_of_renewals(
    moving: Browser, clock: FakeClock, who: Handler
) -> None:
    """By then the idle time that the socket knows of is over, and so is the grace of each old token."""
    await moving.do(who)
    clock.advance(121)

    async with Socket(moving.another()) as socket:
        await socket.accept()
        for number in range(8):
            await moving.do(put(number=number))
            clock.advance(121)
            await Browser(moving.app).do(put(other=1))  # MemoryStore sweeps
        socket.session["late"] = 1
        await socket.session.save()

    found = (await read(moving))["data"]
    assert (found["number"], found["late"]) == (7, 1)


async def test_a_socket_does_not_revive_a_session_that_expired_after_it_had_moved(
    moving: Browser, clock: FakeClock
) -> None:
    await moving.do(log_in("alice"))
    clock.advance(121)

    async with Socket(moving.another()) as socket:
        await socket.accept()
        await moving.do()
        clock.advance(MOVING.idle)
        socket.session["late"] = 1
        await socket.session.save()

    assert (await read(moving))["user_id"] is None


async def test_a_log_out_that_was_interrupted_on_its_way_to_a_regenerated_session_is_repeated(
    wrapped: Wrapped, visitor: Browser
) -> None:
    """What leads there is still there the second time."""
    await visitor.do(put(a=1))
    slow = visitor.another()

    async def come_between() -> None:
        if wrapped.calls.count("delete") == 2:
            raise StoreError("not now")

    async def log_out_twice(session: Session) -> None:
        session.destroy()
        wrapped.calls.clear()
        with pytest.raises(StoreError, match="not now"):
            await session.save()
        await session.save()

    wrapped.before["delete"] = come_between
    async with slow.paused(log_out_twice):
        await visitor.do(regenerate)

    assert (await read(visitor))["is_new"]


async def test_a_regeneration_is_undone_though_another_request_has_followed_it(
    store: Store, wrapped: Wrapped, visitor: Browser
) -> None:
    """The crashed request told nobody of the new token, and the other one has saved under it."""
    await visitor.do(put(a=1))
    await visitor.do(log_in("alice"))
    slow = visitor.another()

    followed = anyio.Event()

    async with slow.paused(put(slow=1), after=lambda session: followed.set()) as request:

        async def regenerate_and_crash(session: Session) -> None:
            session["lost"] = 1
            session.regenerate()
            wrapped.fail_after["rename"] = StoreError("the reply was lost")
            with pytest.raises(StoreError):
                await session.save()
            wrapped.fail_after.clear()
            request.go_on.set()
            await followed.wait()
            raise RuntimeError

        with pytest.raises(RuntimeError):
            await visitor.do(regenerate_and_crash)

    found = await read(visitor)
    assert (found["user_id"], found["data"]["slow"]) == ("alice", 1)
    assert await store.index(owner_of("alice")) == {found["id"]: visitor.key}


async def test_a_log_in_whose_last_write_meets_a_conflict_still_gives_its_cookie(
    store: Store, wrapped: Wrapped, visitor: Browser
) -> None:
    """The old session has ended by then. That last write brings along what another request had put into it."""
    users = UserSessions(wrapped)
    await visitor.do(put(a=1))
    slow = visitor.another()

    async def name_the_device() -> None:
        wrapped.before.clear()
        (id,) = await store.index(owner_of("alice"))
        assert await users.name("alice", id, "laptop")

    async with slow.paused(log_in("alice")):
        await visitor.another().do(put(b=2))
        wrapped.before["update"] = name_the_device

    assert (await read(slow))["data"] == {"a": 1, "b": 2}


async def test_a_log_out_counts_though_the_log_in_after_it_is_refused(store: Store, clock: FakeClock) -> None:
    app = app_with(store, clock=clock, devices=Devices(max_sessions=1, at_limit="refuse"))
    browser = Browser(app)
    await Browser(app).do(log_in("bob"))
    await browser.do(log_in("alice"))

    response = await browser.do(lambda session: (session.destroy(), session.log_in("bob")))

    assert (response.status, browser.token) == (403, None)
    assert await store.index(owner_of("alice")) == {}


@pytest.mark.parametrize("then", [destroy, log_in("alice")], ids=["log out", "log in as another user"])
async def test_a_verb_after_a_refused_log_in_still_means_the_session_before(
    store: Store, clock: FakeClock, then: Handler
) -> None:
    app = app_with(store, clock=clock, devices=Devices(max_sessions=1, at_limit="refuse"))
    browser = Browser(app)
    await Browser(app).do(log_in("bob"))
    await browser.do(put(a=1))
    old = browser.another()

    async def try_bob(session: Session) -> None:
        session.log_in("bob")
        with pytest.raises(SessionLimitReached):
            await session.save()
        then(session)

    await browser.do(try_bob)

    assert (await read(old))["is_new"]
    assert (await read(browser))["user_id"] == (None if then is destroy else "alice")


async def test_a_refused_log_in_gives_the_cookie_of_what_was_saved_before(store: Store, clock: FakeClock) -> None:
    app = app_with(store, clock=clock, devices=Devices(max_sessions=1, at_limit="refuse"))
    browser = Browser(app)
    await Browser(app).do(log_in("bob"))
    await browser.do(put(a=1))

    async def alice_then_bob(session: Session) -> None:
        session.log_in("alice")
        await session.save()
        session.log_in("bob")

    response = await browser.do(alice_then_bob)

    assert response.status == 403
    assert (await read(browser))["user_id"] == "alice"


@pytest.mark.parametrize("at_limit", ["refuse", "end_oldest"])
async def test_a_limit_is_kept_though_the_session_that_a_log_in_replaces_has_ended(
    store: Store, clock: FakeClock, at_limit: Any
) -> None:
    """It does not count, and then neither does its end make room."""
    app = app_with(store, clock=clock, devices=Devices(max_sessions=1, at_limit=at_limit))
    browser = Browser(app)
    await browser.do(log_in("alice"))
    slow = browser.another()

    async with slow.paused(log_in("alice")) as request:
        await browser.do(destroy)
        await browser.do(log_in("alice"))

    assert request.response.status == (403 if at_limit == "refuse" else 200)
    assert len(await store.index(owner_of("alice"))) == 1


async def test_what_a_session_wanted_of_the_others_of_its_user_ends_with_it(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock))
    await browser.do(log_in("alice"))
    slow = browser.another()

    async with slow.paused(lambda session: (session.end_others(), session.destroy())):
        await browser.do(destroy)
        await browser.do(log_in("alice"))

    assert (await read(browser))["user_id"] == "alice"


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after the loss was noticed"])
async def test_a_change_to_an_anonymous_session_that_another_request_logs_in_over_warns_the_app(
    browser: Browser, clock: FakeClock, late: bool
) -> None:
    """It does not follow: what was begun before the log-in must not write into the session of a user."""
    await browser.do(put(a=1))
    clock.advance(61)
    slow = browser.another()

    async def write(session: Session) -> None:
        if late:
            await session.save()  # notes the activity, and so that the session is gone
        session["b"] = 2

    with pytest.warns(SessionWarning, match="not saved") as caught:
        async with slow.paused(write) as request:
            await browser.do(log_in("alice"))

    assert (len(caught), request.response.status) == (1, 200)
    assert (await read(browser))["data"] == {"a": 1}


async def test_a_request_that_changes_nothing_is_not_warned_of_a_log_in(browser: Browser, clock: FakeClock) -> None:
    await browser.do(put(list=[1]))
    clock.advance(61)
    slow = browser.another()

    async with slow.paused(lambda session: session["list"]) as request:
        await browser.do(log_in("alice"))

    assert request.response.status == 200


async def test_a_commit_that_has_begun_is_finished_however_often_its_caller_is_cancelled(
    memory: MemoryStore, clock: FakeClock
) -> None:
    """A cancelled caller only stops waiting. The anonymous session that a log-in replaces must not stay alive."""
    store = Between(memory)
    browser = Browser(app_with(store, clock=clock))
    await browser.do(put(basket=1))
    old, reached, goes_on = browser.key, asyncio.Event(), asyncio.Event()

    async def slow(real: Any, *args: Any, **kwargs: Any) -> Any:
        reached.set()
        await goes_on.wait()
        return await real(*args, **kwargs)

    store.instead["delete"] = slow
    request = asyncio.ensure_future(browser.do(log_in("alice")))
    await reached.wait()
    for _ in range(3):
        request.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await request
    goes_on.set()
    for _ in range(20):
        await asyncio.sleep(0)

    assert await memory.load(old) is None
    assert len(await memory.index(owner_of("alice"))) == 1


async def test_a_cancelled_save_gives_no_turn_away_that_another_task_has(memory: MemoryStore, clock: FakeClock) -> None:
    """A task has finished the save, and the next one began before its caller returned. A third one must wait for that."""
    store, heard = Between(memory), list[str]()
    renaming, saved, creating, goes_on = (asyncio.Event() for _ in range(4))

    async def stuck(real: Any, *args: Any, **kwargs: Any) -> None:
        renaming.set()
        await anyio.sleep_forever()

    async def slow(real: Any, *args: Any, **kwargs: Any) -> Any:
        creating.set()
        await goes_on.wait()
        return await real(*args, **kwargs)

    async def hook(event: Event) -> None:
        heard.append(event.name)
        if event.name == "session.regenerated":
            saved.set()
            await creating.wait()

    async def log_in_then(session: Session) -> None:
        await saved.wait()
        session.log_in("bob")
        await session.save()

    async def handler(session: Session) -> None:
        session.regenerate()
        store.instead["rename"] = stuck
        first = asyncio.ensure_future(session.save())
        await renaming.wait()
        store.instead = {"create": slow}
        first.cancel()
        second = asyncio.ensure_future(log_in_then(session))
        await asyncio.wait({first})
        third = asyncio.ensure_future(session.save())
        for _ in range(20):
            await asyncio.sleep(0)
        goes_on.set()
        await asyncio.gather(second, third)

    browser = Browser(app_with(store, clock=clock, on_event=hook))
    await browser.do(log_in("alice"))
    store.calls.clear()
    heard.clear()
    await browser.do(handler)

    assert store.calls.count("create") == heard.count("session.logged_in") == 1


@pytest.mark.parametrize(
    "meanwhile",
    [put(b=2), lambda session: (session.regenerate(), session.update(b=2))],
    ids=["writes", "regenerates and writes"],
)
async def test_a_log_in_over_ones_own_session_is_one_step(store: Store, clock: FakeClock, meanwhile: Handler) -> None:
    """It ends that session wherever another request has moved it, and what was written there comes along."""
    faulty: Any = Faulty(store)
    browser = Browser(app_with(faulty, clock=clock, devices=Devices(max_sessions=1, at_limit="refuse")))
    await browser.do(log_in("alice"))
    slow = browser.another()

    async def fail(*args: Any, **kwargs: Any) -> Any:
        raise StoreError("a log-in needs no second step")

    async with slow.paused(log_in("alice")) as request:
        await browser.do(meanwhile)
        faulty.delete = faulty.end = fail
    del faulty.delete, faulty.end

    assert request.response.status == 200
    assert (await read(slow))["data"] == {"b": 2}
    assert (await read(browser))["is_new"]
    assert len(await store.index(owner_of("alice"))) == 1


@pytest.mark.parametrize(
    ("then", "user"),
    [(destroy, None), (log_in("alice"), "alice"), (log_in("bob"), "bob")],
    ids=["out", "same", "other"],
)
async def test_a_verb_beside_a_log_in_over_ones_own_session_means_what_came_of_that(
    memory: MemoryStore, clock: FakeClock, then: Handler, user: str | None
) -> None:
    """Another task of the request uses the session while the log-in is being saved."""
    store: Any = Faulty(memory)
    browser = Browser(app_with(store, clock=clock))
    await browser.do(log_in("alice"))
    old = browser.key

    async def handler(session: Session) -> None:
        async def slow(*args: Any, **kwargs: Any) -> Any:
            del store.create
            answer = await store.create(*args, **kwargs)
            then(session)
            return answer

        store.create = slow
        session.log_in("alice")
        await session.save()

    response = await browser.do(handler)

    assert (response.status, (await read(browser))["user_id"]) == (200, user)
    assert await memory.load(old) is None
    alive = {name: len(await memory.index(owner_of(name))) for name in ("alice", "bob")}
    assert alive == {name: int(name == user) for name in ("alice", "bob")}
