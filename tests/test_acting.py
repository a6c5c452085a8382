"""Acting as another user: a session of that user, which ends with the session of the actor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from asgi_sessions import (
    Devices,
    Event,
    MemoryStore,
    ResponseStarted,
    Session,
    SessionDataError,
    SessionError,
    SessionMiddleware,
    Sessions,
)
from asgi_sessions._core.record import Actor, Body, Record
from asgi_sessions._core.token import key_of, new_id, owner_of
from asgi_sessions.errors import StoreUnreachable
from asgi_sessions.rekey import rekey
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, Handler, app_with, destroy, log_in, put, read, regenerate
from tests.test_live import Line, listens, streams
from tests.test_realms import At, host
from tests.websockets import Socket
from tests.wrapped import Wrapped

KEYS = ["kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"]
NEWER_KEYS = ["Zx9Cv8Bn7Mm6Ll5Kk4Jj3Hh2Gg1Ff0Dd-Ss", *KEYS]
OLD = timedelta(minutes=16)


def act_as(user_id: str, **options: Any) -> Handler:
    def handler(session: Session) -> None:
        session.impersonate(user_id, **options)

    return handler


def stop(session: Session) -> None:
    session.stop_impersonating()


def then(*handlers: Handler) -> Handler:
    """One request that does all of this."""

    async def handler(session: Session) -> None:
        for each in handlers:
            result = each(session)
            if result is not None:
                await result

    return handler


async def of(browser: Browser, look: Callable[[Session], Any]) -> Any:
    """What a request finds."""
    found: list[Any] = []
    await browser.do(lambda session: found.append(look(session)))
    return found[0]


def who(session: Session) -> tuple[str | None, str | None]:
    return session.user_id, session.actor_id


class Support:
    """Alice of the support team, logged in, and the app."""

    def __init__(self, store: Store, clock: FakeClock, **options: Any) -> None:
        self.events: list[Event] = []
        self.sessions = Sessions(store, clock=clock, on_event=self.events.append, **options)
        self.app: SessionMiddleware = app_with(self.sessions)
        self.browser, self.bob = Browser(self.app), Browser(self.app)

    async def begin(self, *, acts: bool = True) -> Support:
        await self.browser.do(then(log_in("alice"), put(desk=7)))
        self.before = self.browser.another()
        """A tab that has not heard of it: its token is that of Alice's own session."""
        self.id = (await read(self.browser))["id"]
        await self.bob.do(log_in("bob"))
        if acts:
            await self.browser.do(act_as("bob"))
            self.acting_id = (await read(self.browser))["id"]
        self.events.clear()
        return self

    async def ids(self, user_id: str) -> set[str]:
        return {each.id for each in await self.sessions.list(user_id)}

    def told(self, name: str) -> list[dict[str, Any]]:
        """The details of the events of this name."""
        return [{**event.details, "user": event.user_id} for event in self.events if event.name == name]


@pytest.fixture
async def support(store: Store, clock: FakeClock) -> AsyncIterator[Support]:
    found = await Support(store, clock).begin()
    yield found
    assert found.app._watch is not None
    await found.app._watch.aclose()


# ── Begin and stop ──


async def test_the_session_is_an_empty_one_of_the_other_user(support: Support) -> None:
    found = await read(support.browser)

    assert await of(support.browser, who) == ("bob", "alice")
    assert (found["data"], found["id"]) == ({}, support.acting_id)
    assert support.id in await support.ids("alice")


async def test_the_actor_comes_back_to_their_own_session_under_a_new_token(support: Support) -> None:
    await support.browser.do(put(note="of bob"))

    await support.browser.do(stop)

    found = await read(support.browser)
    assert await of(support.browser, who) == ("alice", None)
    assert (found["id"], found["data"]) == (support.id, {"desk": 7})
    assert (await read(support.before))["user_id"] is None
    assert support.acting_id not in await support.ids("bob")


async def test_a_fresh_token_for_an_impersonated_session_keeps_its_actor(support: Support) -> None:
    before = support.browser.another()

    await support.browser.do(then(put(a=1), regenerate))

    assert await of(support.browser, who) == ("bob", "alice")
    assert (await read(support.browser))["data"] == {"a": 1}
    assert (await read(before))["user_id"] is None


async def test_the_token_is_another_one_for_each_step(store: Store, clock: FakeClock) -> None:
    support = await Support(store, clock).begin(acts=False)
    tokens = [support.browser.token]

    for step in (act_as("bob"), stop, act_as("bob"), stop):
        response = await support.browser.do(step)
        assert response.set_cookie is not None
        tokens.append(support.browser.token)

    assert len(set(tokens)) == 5


async def test_a_log_out_ends_both_sessions(support: Support) -> None:
    response = await support.browser.do(destroy)

    assert "Max-Age=0" in (response.set_cookie or "")
    assert await support.ids("alice") == set()
    assert support.acting_id not in await support.ids("bob")


async def test_a_failed_request_still_logs_out_of_both(support: Support) -> None:
    await support.browser.do(destroy, status=500)

    assert await support.ids("alice") == set()
    assert support.acting_id not in await support.ids("bob")


async def test_a_failed_request_logs_out_though_somebody_acts_afterwards(store: Store, clock: FakeClock) -> None:
    support = await Support(store, clock).begin(acts=False)

    response = await support.browser.do(then(destroy, log_in("alice"), act_as("bob")), status=500)

    assert "Max-Age=0" in (response.set_cookie or "")
    assert await support.ids("alice") == set()
    assert len(await support.ids("bob")) == 1


@pytest.mark.parametrize("user_id", ["bob", "carol"])
async def test_a_log_in_ends_both_sessions_and_nothing_of_them_is_carried_over(support: Support, user_id: str) -> None:
    await support.browser.do(put(note="of bob"))

    await support.browser.do(log_in(user_id))

    assert await of(support.browser, who) == (user_id, None)
    assert (await read(support.browser))["data"] == {}
    assert await support.ids("alice") == set()
    assert support.acting_id not in await support.ids("bob")


async def test_a_failed_request_neither_begins_nor_stops(store: Store, clock: FakeClock) -> None:
    support = await Support(store, clock).begin(acts=False)

    await support.browser.do(act_as("bob"), status=500)
    assert await of(support.browser, who) == ("alice", None)
    await support.browser.do(act_as("bob"))
    await support.browser.do(stop, status=500)

    assert await of(support.browser, who) == ("bob", "alice")


async def test_what_cannot_be_saved_is_told_before_anything_is_stored(store: Store, clock: FakeClock) -> None:
    support = await Support(store, clock).begin(acts=False)

    with pytest.raises(SessionDataError):
        await support.browser.do(then(put(a=object()), act_as("bob")))

    assert await of(support.browser, who) == ("alice", None)
    assert len(await support.ids("bob")) == 1


async def test_it_says_that_it_ends_with_the_session_of_the_actor(support: Support, clock: FakeClock) -> None:
    def ends(session: Session) -> Any:
        return session.expires_at, session.ends_at

    own = await of(support.before, lambda session: session.ends_at)
    assert (await of(support.browser, ends))[1] == own
    for _ in range(28):
        clock.advance(timedelta(minutes=50))
        await read(support.browser)

    assert await of(support.browser, ends) == (own, own)


async def test_it_ends_before_a_remembered_session_of_the_actor(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock))
    await browser.do(log_in("alice", remember=True))
    remembered = await of(browser, lambda session: session.ends_at)

    response = await browser.do(act_as("bob"))

    assert "Max-Age" not in (response.set_cookie or "")
    assert await of(browser, lambda session: session.ends_at) == remembered - timedelta(days=29)
    response = await browser.do(stop)
    assert "Max-Age" in (response.set_cookie or "")
    assert await of(browser, lambda session: session.ends_at) == remembered


# ── Who may not ──


def nested(session: Session) -> None:
    session.impersonate("carol")


REFUSED: dict[str, tuple[Handler, Handler, str]] = {
    "a visitor": (put(a=1), act_as("bob"), "no user is logged in"),
    "the user themselves": (log_in("alice"), act_as("alice"), "give the id of another"),
    "a nested one": (then(log_in("alice"), act_as("bob")), nested, "call stop_impersonating() first"),
    "a stop without a beginning": (log_in("alice"), stop, "impersonate(user_id) begins one"),
    "confirm": (then(log_in("alice"), act_as("bob")), lambda s: s.confirm(), "call stop_impersonating() first"),
    "end others": (then(log_in("alice"), act_as("bob")), lambda s: s.end_others(), "call stop_impersonating() first"),
    "a first factor": (
        then(log_in("alice"), act_as("bob")),
        lambda s: s.begin_log_in("carol"),
        "call stop_impersonating() first",
    ),
}


@pytest.mark.parametrize(("before", "verb", "why"), REFUSED.values(), ids=REFUSED)
async def test_what_is_refused(memory: MemoryStore, clock: FakeClock, before: Handler, verb: Handler, why: str) -> None:
    browser = Browser(app_with(memory, clock=clock))
    await browser.do(before)
    was = await of(browser, who)

    def handler(session: Session) -> None:
        with pytest.raises(SessionError) as refused:
            verb(session)
        assert why in str(refused.value)

    assert (await browser.do(handler)).set_cookie is None
    assert await of(browser, who) == was


async def test_it_takes_a_fresh_log_in_of_the_actor(memory: MemoryStore, clock: FakeClock) -> None:
    browser = Browser(app_with(memory, clock=clock))
    await browser.do(log_in("alice"))
    clock.advance(OLD)

    def handler(session: Session) -> None:
        with pytest.raises(SessionError, match="call confirm"):
            session.impersonate("bob")
        session.impersonate("bob", within=timedelta(minutes=17))

    await browser.do(handler)
    assert await of(browser, who) == ("bob", "alice")


async def test_a_confirmation_in_the_same_request_is_fresh(memory: MemoryStore, clock: FakeClock) -> None:
    browser = Browser(app_with(memory, clock=clock))
    await browser.do(log_in("alice"))
    clock.advance(OLD)

    await browser.do(then(lambda session: session.confirm(), act_as("bob")))

    assert await of(browser, who) == ("bob", "alice")
    await browser.do(stop)
    assert await of(browser, lambda session: session.is_fresh(timedelta(minutes=5)))


@pytest.mark.parametrize("verb", [act_as("bob"), stop], ids=["impersonate", "stop"])
async def test_it_is_too_late_when_the_response_has_started(
    memory: MemoryStore, clock: FakeClock, verb: Handler
) -> None:
    browser = Browser(app_with(memory, clock=clock))
    await browser.do(log_in("alice"))
    if verb is stop:
        await browser.do(act_as("bob"))

    def late(session: Session) -> None:
        with pytest.raises(ResponseStarted):
            verb(session)

    await browser.do(after=late)


async def test_a_session_that_was_ended_cannot_act(memory: MemoryStore, clock: FakeClock) -> None:
    browser = Browser(app_with(memory, clock=clock))
    await browser.do(log_in("alice"))
    other = browser.another()

    async def handler(session: Session) -> None:
        await other.do(destroy)
        session["a"] = 1
        await session.save()
        with pytest.raises(SessionError, match="no user is logged in"):
            session.impersonate("bob")

    await browser.do(handler)


async def test_a_store_that_does_not_know_users_is_refused(clock: FakeClock) -> None:
    class Plain:
        """Only the contract that every store must meet."""

        namespace = "plain"

        def __init__(self) -> None:
            inner = MemoryStore()
            for name in ("load", "create", "update", "touch", "rename", "delete", "index", "aclose"):
                setattr(self, name, getattr(inner, name))

    plain: Any = Plain()
    browser = Browser(app_with(plain, clock=clock))
    await browser.do(log_in("alice"))

    def handler(session: Session) -> None:
        with pytest.raises(SessionError, match="does not know which sessions belong to a user"):
            session.impersonate("bob")

    await browser.do(handler)


async def test_the_other_user_has_proved_nothing(support: Support) -> None:
    def look(session: Session) -> Any:
        return session.is_fresh(timedelta(days=1)), session.level, session.methods, session.pending_user_id

    await support.browser.do(stop)
    await support.browser.do(lambda session: session.confirm(methods=["pwd", "otp"]))
    await support.browser.do(act_as("bob"))

    assert await of(support.browser, look) == (False, 0, (), None)


# ── It ends with the session of the actor ──


async def revoke(support: Support, clock: FakeClock) -> None:
    await support.sessions.revoke("alice", support.id)


async def revoke_all(support: Support, clock: FakeClock) -> None:
    await support.sessions.revoke_all("alice")


async def end_others(support: Support, clock: FakeClock) -> None:
    await Browser(support.app).do(then(log_in("alice"), lambda session: session.end_others()))


async def log_out_elsewhere(support: Support, clock: FakeClock) -> None:
    await support.before.do(destroy)


async def log_in_over_it(support: Support, clock: FakeClock) -> None:
    await support.before.do(log_in("alice"))


async def log_in_as_another(support: Support, clock: FakeClock) -> None:
    await support.before.do(log_in("carol"))


async def erase_the_actor(support: Support, clock: FakeClock) -> None:
    await support.sessions.erase("alice")


async def reach_the_absolute_limit(support: Support, clock: FakeClock) -> None:
    for _ in range(30):  # the impersonated session began 5 minutes after the session of its actor
        clock.advance(timedelta(minutes=47, seconds=55))
        await read(support.browser)


ENDS = [
    revoke,
    revoke_all,
    end_others,
    log_out_elsewhere,
    log_in_over_it,
    log_in_as_another,
    erase_the_actor,
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_it_ends_with_the_session_of_its_actor(support: Support, clock: FakeClock, end: Any) -> None:
    await end(support, clock)
    support.events.clear()

    found = await read(support.browser)

    assert (found["user_id"], found["data"]) == (None, {})
    assert support.told("session.impersonation_ended") == [
        {"reason": "actor_ended", "actor_id": "alice", "user": "bob"}
    ]
    assert support.acting_id not in await support.ids("bob")
    newest = (await support.sessions.history("bob"))[0]
    assert (newest.event, newest.reason, newest.session_id) == ("ended", "impersonation_ended", support.acting_id)


async def test_it_does_not_outlive_the_absolute_limit_of_the_actor(store: Store, clock: FakeClock) -> None:
    support = await Support(store, clock).begin(acts=False)
    for _ in range(24):
        clock.advance(timedelta(minutes=55))
        await read(support.browser)
    await support.browser.do(lambda session: session.confirm())
    await support.browser.do(act_as("bob"))
    clock.advance(timedelta(minutes=55))
    await read(support.browser)
    clock.advance(timedelta(minutes=55))
    await read(support.browser)

    clock.advance(timedelta(minutes=11))

    assert (await read(support.browser))["user_id"] is None


async def test_activity_in_it_keeps_the_session_of_the_actor(support: Support, clock: FakeClock) -> None:
    for _ in range(5):
        clock.advance(timedelta(minutes=50))
        await read(support.browser)

    await support.browser.do(stop)

    assert (await read(support.browser))["data"] == {"desk": 7}


async def test_a_passive_request_keeps_neither(support: Support, clock: FakeClock) -> None:
    clock.advance(timedelta(minutes=50))
    await support.browser.do(lambda session: session.mark_passive())

    clock.advance(timedelta(minutes=15))

    assert (await read(support.browser))["user_id"] is None
    assert await support.ids("alice") == set()


async def test_a_failed_request_in_it_is_activity_of_the_actor(support: Support, clock: FakeClock) -> None:
    clock.advance(timedelta(minutes=50))
    await support.browser.do(status=500)

    clock.advance(timedelta(minutes=50))

    assert await of(support.browser, who) == ("bob", "alice")


async def test_another_token_for_the_session_of_the_actor_does_not_end_it(support: Support) -> None:
    await support.before.do(then(regenerate, put(desk=8)))

    assert await of(support.browser, who) == ("bob", "alice")
    await support.browser.do(stop)
    assert (await read(support.browser))["data"] == {"desk": 8}


# ── The other user ──


async def test_the_other_user_sees_it_and_not_who_acts(support: Support) -> None:
    (found,) = [each for each in await support.sessions.list("bob") if each.is_impersonated]
    newest = (await support.sessions.history("bob"))[0]

    assert (found.id, str(found.device), str(found.location)) == (support.acting_id, "unknown device", "unknown place")
    assert (newest.event, newest.session_id, newest.new_device) == ("impersonated", support.acting_id, False)
    assert not any(each.is_impersonated for each in await support.sessions.list("alice"))
    assert "alice" not in repr((found, await support.sessions.history("bob")))


async def test_the_history_says_when_it_was_stopped(support: Support) -> None:
    await support.browser.do(stop)

    newest = (await support.sessions.history("bob"))[0]
    assert (newest.event, newest.reason, newest.session_id) == ("ended", "impersonation_ended", support.acting_id)


@pytest.mark.parametrize("way", ["revoke", "end others", "erase"])
async def test_the_other_user_can_end_it_at_once(support: Support, way: str) -> None:
    if way == "revoke":
        await support.sessions.revoke("bob", support.acting_id)
    elif way == "end others":
        await support.bob.do(lambda session: session.end_others())
    else:
        await support.sessions.erase("bob")

    assert (await read(support.browser))["user_id"] is None
    assert support.id in await support.ids("alice")


@pytest.mark.parametrize("at_limit", ["end_oldest", "refuse"])
async def test_it_takes_no_room_from_the_other_user(store: Store, clock: FakeClock, at_limit: Any) -> None:
    support = await Support(store, clock, devices=Devices(max_sessions=1, at_limit=at_limit)).begin()

    assert await of(support.browser, who) == ("bob", "alice")
    assert (await read(support.bob))["user_id"] == "bob"


async def test_a_refused_log_in_acts_as_nobody(store: Store, clock: FakeClock) -> None:
    support = await Support(store, clock, devices=Devices(max_sessions=1, at_limit="refuse")).begin(acts=False)
    visitor = Browser(support.app)
    await visitor.do(put(basket=["tea"]))

    response = await visitor.do(then(log_in("alice"), act_as("bob")), status=200)

    assert response.status == 403
    assert (await read(visitor))["data"] == {"basket": ["tea"]}
    assert not any(each.is_impersonated for each in await support.sessions.list("bob"))
    assert await support.ids("alice") == {support.id}
    assert [event.name for event in support.events if event.user_id is not None or "refused" in event.name] == [
        "session.impersonated",
        "session.refused",
        "session.impersonation_ended",
    ]


async def test_end_all_ends_it_and_names_the_actor(support: Support) -> None:
    assert await support.sessions.end_all() == 3

    assert (await read(support.browser))["user_id"] is None
    ends = [each for each in support.told("session.ended") if "actor_id" in each]
    assert ends == [{"reason": "revoked_all", "actor_id": "alice", "user": "bob"}]


# ── Events ──


async def test_each_event_of_it_names_the_actor(store: Store, clock: FakeClock) -> None:
    support = await Support(store, clock).begin(acts=False)

    for step in (act_as("bob"), regenerate, stop, act_as("bob"), destroy):
        await support.browser.do(step)

    about_bob = [(event.name, event.details.get("actor_id")) for event in support.events if event.user_id == "bob"]
    assert about_bob == [
        ("session.impersonated", "alice"),
        ("session.regenerated", "alice"),
        ("session.impersonation_ended", "alice"),
        ("session.impersonated", "alice"),
        ("session.impersonation_ended", "alice"),
    ]
    assert "actor_id" not in repr([event for event in support.events if event.user_id == "alice"])


async def test_the_end_by_the_clock_names_the_actor(support: Support, clock: FakeClock) -> None:
    clock.advance(timedelta(minutes=30))
    await read(support.before)
    clock.advance(timedelta(minutes=31))

    await read(support.browser)

    assert support.told("session.ended") == [{"reason": "idle", "actor_id": "alice", "user": "bob"}]


async def test_what_another_request_ended_names_the_actor(support: Support) -> None:
    async with support.browser.paused(put(a=1)):
        await support.sessions.revoke("bob", support.acting_id)

    assert support.told("session.lost") == [{"actor_id": "alice", "user": "bob"}]


# ── Sockets and streams ──


@pytest.mark.parametrize(("kind", "play"), [("websocket", listens), ("http", streams)], ids=["socket", "stream"])
@pytest.mark.parametrize("whose", ["alice", "bob"])
async def test_a_socket_closes_when_either_session_ends(support: Support, kind: str, play: Any, whose: str) -> None:
    line = Line(support.browser, kind, play)
    await line.open.wait()

    await support.sessions.revoke_all(whose)

    assert await line.is_closed_soon()
    await line.task


async def test_a_socket_that_is_closed_is_watched_no_more(support: Support) -> None:
    line = Line(support.browser, "http", streams)
    await line.open.wait()
    line.task.cancel()
    await asyncio.wait({line.task})

    assert support.app._watch is not None
    assert not list(support.app._watch._states.here()._all())


async def test_a_touch_in_a_socket_keeps_both_sessions(support: Support, clock: FakeClock) -> None:
    async with Socket(support.browser) as socket:
        await socket.accept()
        for _ in range(3):
            clock.advance(timedelta(minutes=50))
            await socket.session.touch()
        await socket.close()

    await support.browser.do(stop)
    assert (await read(support.browser))["user_id"] == "alice"


async def test_a_handshake_can_begin_and_a_refused_one_does_not(store: Store, clock: FakeClock) -> None:
    support = await Support(store, clock).begin(acts=False)

    async def refuse() -> None:
        async with Socket(support.browser) as socket:
            socket.session["seat"] = 1
            socket.session.impersonate("bob")
            await socket.close()

    with pytest.warns(match="cannot be saved"):
        await refuse()
    assert await of(support.browser, who) == ("alice", None)
    assert (await read(support.browser))["data"] == {"desk": 7, "seat": 1}
    async with Socket(support.browser) as socket:
        socket.session.impersonate("bob")
        response = await socket.accept()
        support.browser.hear(response)
        await socket.close()

    assert await of(support.browser, who) == ("bob", "alice")


# ── Several requests, and several tasks of one ──


async def test_a_stop_gives_a_token_though_another_request_has_just_given_one(support: Support) -> None:
    """The browser has the token of the impersonated session, and none of the other."""
    async with support.browser.paused(stop):
        await support.before.do(regenerate)

    assert await of(support.browser, who) == ("alice", None)


async def test_two_requests_that_stop_leave_the_actor_logged_in(support: Support) -> None:
    other = support.browser.another()
    async with support.browser.paused(stop):
        await other.do(stop)

    assert "alice" in {(await read(each))["user_id"] for each in (support.browser, other)}
    assert await support.ids("alice") == {support.id}


async def test_a_stop_beside_a_revocation_leaves_nobody(support: Support) -> None:
    async with support.browser.paused(stop):
        await support.sessions.revoke("alice", support.id)

    assert (await read(support.browser))["user_id"] is None
    assert (await support.ids("alice"), support.acting_id in await support.ids("bob")) == (set(), False)


@pytest.mark.parametrize("verb", [put(a=1), regenerate, log_in("alice")], ids=["write", "regenerate", "log in"])
@pytest.mark.parametrize("stops", [False, True], ids=["acts", "acts and stops"])
async def test_another_task_may_act_while_a_save_is_under_way(
    memory: MemoryStore, clock: FakeClock, verb: Handler, stops: bool
) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        for name in ("create", "update", "rename"):
            wrapped.before.pop(name, None)
        reached.set()
        await go_on.wait()

    wrapped = Wrapped(memory)
    support = await Support(wrapped, clock).begin(acts=False)

    async def handler(session: Session) -> None:
        verb(session)
        wrapped.before = dict.fromkeys(("create", "update", "rename"), wait)
        saving = asyncio.ensure_future(session.save())
        await reached.wait()
        session.impersonate("bob")
        if stops:
            session.stop_impersonating()
        go_on.set()
        await saving

    await support.browser.do(handler)

    assert await of(support.browser, who) == (("alice", None) if stops else ("bob", "alice"))
    if not stops:
        await support.browser.do(stop)
    found = await read(support.browser)
    assert (found["user_id"], found["data"]["desk"]) == ("alice", 7)
    assert await support.ids("alice") == {found["id"]}
    assert len(await support.ids("bob")) == 1
    assert len([key for key in memory._records if memory._records[key].rev]) == 2


# ── Bad input, and a store that fails ──


def bodies(now: float, own_id: str) -> dict[str, Any]:
    """What may stand in the place of the actor."""
    id, fine = new_id(), Actor("alice", own_id)
    return {
        "a number": 7,
        "text": "alice",
        "an empty list": [],
        "one field": ["alice"],
        "a user that is a number": [7, id],
        "an empty user": ["", id],
        "an id that is none": ["alice", "../etc"],
        "an id that is a number": ["alice", 7],
        "a map": {"user_id": "alice", "id": id},
        "a session that is not there": ["alice", id],
        "a user who is not there": ["nobody", own_id],
        "a session of another user": ["bob", own_id],
        "text that is not UTF-8": msgspec.Raw(b"\x92\xa2\xff\xfe\xb0" + id.encode()),
        "many fields": [*msgspec.to_builtins(fine), "later"],
    }


@pytest.mark.parametrize("name", [name for name in bodies(0.0, "A" * 16) if name != "many fields"])
async def test_an_actor_that_makes_no_sense_is_no_session(memory: MemoryStore, clock: FakeClock, name: str) -> None:
    support = await Support(memory, clock).begin()

    put_in(memory, support.browser.key, bodies(clock(), support.id)[name])

    assert (await read(support.browser))["user_id"] is None
    await support.sessions.list("bob")


async def test_fields_of_a_later_version_are_ignored(memory: MemoryStore, clock: FakeClock) -> None:
    support = await Support(memory, clock).begin()

    put_in(memory, support.browser.key, bodies(clock(), support.id)["many fields"])

    assert await of(support.browser, who) == ("bob", "alice")


def put_in(memory: MemoryStore, key: str, actor: Any) -> None:
    """Write an actor into a record, past all checks."""
    record = memory._records[key]
    fields = msgspec.msgpack.decode(record.body[1:])
    fields[[*Body.__struct_fields__].index("actor")] = actor
    memory._records[key] = msgspec.structs.replace(record, body=b"P" + msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("length", [1, 2, 3])
async def test_actors_in_a_circle_are_no_sessions(memory: MemoryStore, clock: FakeClock, length: int) -> None:
    """Only somebody who writes to the store can make them. They are ended, and nothing goes round for ever."""
    app = app_with(memory, clock=clock)
    browsers = [Browser(app) for _ in range(length)]
    ids = []
    for number, browser in enumerate(browsers):
        await browser.do(log_in(f"user {number}"))
        ids.append((await read(browser))["id"])
    for number, browser in enumerate(browsers):
        put_in(memory, browser.key, [f"user {(number + 1) % length}", ids[(number + 1) % length]])

    assert [(await read(browser))["user_id"] for browser in browsers] == [None] * length


async def test_a_bearer_of_refresh_tokens_is_no_actor(memory: MemoryStore, clock: FakeClock) -> None:
    support = await Support(memory, clock).begin()
    key = support.before.key
    record = memory._records[key]
    fields = msgspec.msgpack.decode(record.body[1:])
    fields[0] = "token"
    memory._records[key] = msgspec.structs.replace(record, body=b"P" + msgspec.msgpack.encode(fields))

    assert (await read(support.browser))["user_id"] is None


async def test_an_actor_whose_record_does_not_open_here_is_not_ended(memory: MemoryStore, clock: FakeClock) -> None:
    """Another server may have the secret: the request finds nobody, and nothing is deleted."""
    support = await Support(memory, clock, secret_keys=KEYS).begin()
    record = memory._records[support.before.key]
    memory._records[record.key] = msgspec.structs.replace(record, body=b"S" + bytes(64))

    support.events.clear()

    assert (await read(support.browser))["user_id"] is None
    assert [event.name for event in support.events] == ["session.damaged"]
    memory._records[record.key] = record

    assert await of(support.browser, who) == ("bob", "alice")


@pytest.mark.parametrize("call", ["index", "load"])
async def test_a_store_that_fails_on_the_way_to_the_actor_is_503_and_ends_nothing(
    memory: MemoryStore, clock: FakeClock, call: str
) -> None:
    wrapped = Wrapped(memory)
    support = await Support(wrapped, clock).begin()
    wrapped.fail[call] = StoreUnreachable("down")

    response = await support.browser.do()

    assert (response.status, response.set_cookie) == (503, None)
    wrapped.fail.clear()
    clock.advance(10)
    assert await of(support.browser, who) == ("bob", "alice")


async def test_a_log_out_that_fails_deletes_the_cookie_though_somebody_acts_afterwards(
    memory: MemoryStore, clock: FakeClock
) -> None:
    wrapped = Wrapped(memory)
    support = await Support(wrapped, clock).begin(acts=False)

    def handler(session: Session) -> None:
        session.destroy()
        session.log_in("alice")
        session.impersonate("bob")
        wrapped.fail = dict.fromkeys(("create", "delete"), StoreUnreachable("down"))

    response = await support.browser.do(handler)

    assert response.status == 503
    assert "Max-Age=0" in (response.set_cookie or "")


@pytest.mark.parametrize("verb", [stop, destroy, log_in("carol")], ids=["stop", "destroy", "log in"])
async def test_a_session_whose_beginning_got_no_answer_ends_with_the_next_verb(
    memory: MemoryStore, clock: FakeClock, verb: Handler
) -> None:
    wrapped = Wrapped(memory)
    support = await Support(wrapped, clock).begin(acts=False)

    async def handler(session: Session) -> None:
        session.impersonate("bob")
        wrapped.fail_after["create"] = StoreUnreachable("its answer was lost")
        with pytest.raises(StoreUnreachable):
            await session.save()
        wrapped.fail_after.clear()
        verb(session)

    await support.browser.do(handler)

    assert not any(each.is_impersonated for each in await support.sessions.list("bob"))


@pytest.mark.parametrize(("first", "call"), [(act_as("bob"), "create"), (regenerate, "rename")])
async def test_a_token_that_got_no_answer_is_undone_though_the_actor_stops(
    memory: MemoryStore, clock: FakeClock, first: Handler, call: str
) -> None:
    """The request crashes after that: the browser has the token that it had."""
    wrapped = Wrapped(memory)
    support = await Support(wrapped, clock).begin(acts=call == "rename")
    before = await of(support.browser, who), await support.sessions.count("bob")

    async def handler(session: Session) -> None:
        first(session)
        wrapped.fail_after[call] = StoreUnreachable("its answer was lost")
        with pytest.raises(StoreUnreachable):
            await session.save()
        wrapped.fail_after.clear()
        session.stop_impersonating()

    with pytest.raises(ZeroDivisionError):
        await support.browser.do(handler, crash=ZeroDivisionError())

    assert (await of(support.browser, who), await support.sessions.count("bob")) == before


async def test_ending_the_others_first_does_not_end_the_session_of_the_actor(store: Store, clock: FakeClock) -> None:
    """The verbs have the effect that they would have had in separate requests."""
    app = app_with(store, clock=clock)
    browser, tablet = Browser(app), Browser(app)
    for each in (browser, tablet):
        await each.do(log_in("bob"))

    await browser.do(then(lambda session: session.end_others(), log_in("alice"), act_as("bob")))

    assert await of(browser, who) == ("bob", "alice")
    assert await of(tablet, who) == (None, None)
    await browser.do(stop)
    assert await of(browser, who) == ("alice", None)


async def test_a_touch_of_the_actor_that_fails_is_forgiven(memory: MemoryStore, clock: FakeClock) -> None:
    wrapped = Wrapped(memory)
    support = await Support(wrapped, clock).begin()
    clock.advance(timedelta(minutes=10))
    wrapped.fail["touch"] = StoreUnreachable("down")

    assert (await support.browser.do()).status == 200


async def test_a_load_asks_only_for_what_it_needs(memory: MemoryStore, clock: FakeClock) -> None:
    wrapped = Wrapped(memory)
    support = await Support(wrapped, clock).begin()
    wrapped.calls.clear()

    await read(support.browser)
    assert wrapped.calls == ["load", "index", "load"]
    wrapped.calls.clear()
    await support.browser.do(stop)

    assert wrapped.calls == ["load", "index", "load", "rename", "delete"]


# ── With the rest ──


async def test_it_counts_in_the_realm_of_the_actor_only(store: Store, clock: FakeClock) -> None:
    app = app_with(store, clock=clock, secret_keys=KEYS, realm=host)
    at_a = At(app, "a.example")
    await at_a.do(log_in("alice"))

    await at_a.do(act_as("bob"))

    assert await of(at_a, who) == ("bob", "alice")
    assert await of(at_a.elsewhere("b.example"), who) == (None, None)
    await at_a.do(stop)
    assert await of(at_a, who) == ("alice", None)
    assert await of(at_a.elsewhere("b.example"), who) == (None, None)


async def test_a_change_of_secrets_keeps_the_actor(store: Store, clock: FakeClock) -> None:
    support = await Support(store, clock, secret_keys=KEYS).begin()
    await rekey(store, NEWER_KEYS, rate=1e6)

    browser = Browser(app_with(store, clock=clock, secret_keys=NEWER_KEYS), support.browser.token)

    assert await of(browser, who) == ("bob", "alice")
    await browser.do(stop)
    assert (await read(browser))["data"] == {"desk": 7}


async def test_nothing_of_the_actor_stands_in_the_clear(memory: MemoryStore, clock: FakeClock) -> None:
    support = await Support(memory, clock, secret_keys=KEYS).begin()

    record: Record = memory._records[key_of(support.browser.token or "")]

    assert record.owner == owner_of("bob")
    assert b"alice" not in record.body
    assert support.id.encode() not in record.body


async def test_nobody_is_acted_as(memory: MemoryStore, clock: FakeClock) -> None:
    """A record of a visitor with an actor was made by somebody who writes to the store."""
    support = await Support(memory, clock).begin()
    visitor = Browser(support.app)
    await visitor.do(put(a=1))

    put_in(memory, visitor.key, ["alice", support.id])

    assert await of(visitor, who) == (None, None)
    assert "session.damaged" in [event.name for event in support.events]
