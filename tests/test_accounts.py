"""Several accounts in one browser: parked sessions, and the switch between them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from asgi_sessions import (
    ConfigurationError,
    Devices,
    Event,
    MemoryStore,
    ResponseStarted,
    Session,
    SessionDataError,
    SessionError,
    SessionMiddleware,
    Sessions,
    Timeouts,
)
from asgi_sessions._core.token import key_of, owner_of
from asgi_sessions.accounts import MOST_PARKED, Accounts
from asgi_sessions.dbsc import DeviceBound
from asgi_sessions.errors import SessionLimitReached, SessionReadOnly, StoreError, StoreUnreachable
from asgi_sessions.rekey import rekey
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import BearerMiddleware, SigningKey, Tokens
from tests.support import Browser, Handler, app_with, destroy, inner_app, log_in, put, read, regenerate
from tests.test_acting import KEYS, NEWER_KEYS, act_as, of, then
from tests.test_realms import At, host
from tests.wrapped import Wrapped


class Shared:
    """A browser in which Alice's session is active and Bob's is parked, and the app."""

    def __init__(self, store: Store, clock: FakeClock, **options: Any) -> None:
        self.events: list[Event] = []
        self.sessions = Sessions(store, clock=clock, on_event=self.events.append, **options)
        self.accounts = Accounts(self.sessions)
        self.app: SessionMiddleware = app_with(self.sessions)
        self.browser = Browser(self.app)

    async def begin(self, *users: str) -> Shared:
        for number, user_id in enumerate(users or ("bob", "alice")):
            if number:
                await self.browser.do(self.park)
            await self.browser.do(then(log_in(user_id), put(of=user_id)))
        self.events.clear()
        return self

    async def park(self, session: Session) -> None:
        await self.accounts.park(session)

    def switch(self, user_id: str) -> Handler:
        return partial(self.accounts.switch, user_id=user_id)

    async def switched(self, user_id: str) -> bool:
        response = await self.browser.do(self.switch(user_id))
        assert response.status == 200
        return response.body == b"True"

    async def parked(self, browser: Browser | None = None) -> list[str]:
        found: list[str] = []

        async def ask(session: Session) -> None:
            found.extend(await self.accounts.parked(session))

        assert (await (browser or self.browser).do(ask)).status == 200
        return found

    async def ids(self, user_id: str) -> set[str]:
        return {each.id for each in await self.sessions.list(user_id)}

    async def active(self, *users: str) -> dict[str, int]:
        return {user_id: len(await self.ids(user_id)) for user_id in users or ("alice", "bob")}


@pytest.fixture
async def shared(store: Store, clock: FakeClock) -> Shared:
    return await Shared(store, clock).begin()


# ── Park and switch ──


async def test_a_parked_session_waits_while_another_user_is_logged_in(shared: Shared) -> None:
    assert (await read(shared.browser))["data"] == {"of": "alice"}
    assert await shared.parked() == ["bob"]
    assert await shared.active() == {"alice": 1, "bob": 1}


async def test_a_switch_brings_back_the_session_with_its_id_and_data(shared: Shared) -> None:
    bob, alice = await shared.ids("bob"), await shared.ids("alice")

    assert await shared.switched("bob")

    found = await read(shared.browser)
    assert (found["user_id"], found["data"], {found["id"]}) == ("bob", {"of": "bob"}, bob)
    assert await shared.parked() == ["alice"]
    assert await shared.switched("alice")
    assert {(await read(shared.browser))["id"]} == alice


async def test_a_switch_gives_a_new_token_and_the_one_from_before_is_dead(shared: Shared) -> None:
    alice = shared.browser.another()
    await shared.switched("bob")
    bob = shared.browser.another()

    await shared.switched("alice")
    await shared.switched("bob")

    assert len({alice.token, bob.token, shared.browser.token}) == 3
    assert (await read(bob))["user_id"] is None
    assert (await read(alice))["user_id"] is None


async def test_changes_before_a_switch_belong_to_the_session_before(shared: Shared) -> None:
    await shared.browser.do(then(put(a=1), shared.switch("bob"), put(b=2)))

    assert (await read(shared.browser))["data"] == {"of": "bob", "b": 2}
    await shared.switched("alice")
    assert (await read(shared.browser))["data"] == {"of": "alice", "a": 1}


async def test_between_two_accounts_the_browser_has_no_user(shared: Shared) -> None:
    await shared.browser.do(then(put(a=1), shared.park, put(state="of a log-in")))

    found = await read(shared.browser)
    assert (found["user_id"], found["data"]) == (None, {"state": "of a log-in"})
    assert await shared.parked() == ["alice", "bob"]
    assert await shared.switched("alice")
    assert (await read(shared.browser))["data"] == {"of": "alice", "a": 1}


async def test_a_second_factor_may_take_its_time_between_two_accounts(shared: Shared) -> None:
    await shared.browser.do(shared.park)
    await shared.browser.do(lambda session: session.begin_log_in("carol", methods=["pwd"]))
    await shared.browser.do(lambda session: session.log_in(session.pending_user_id or "", methods=["otp"]))

    assert await of(shared.browser, lambda session: (session.user_id, session.level)) == ("carol", 2)
    assert await shared.parked() == ["alice", "bob"]


async def test_to_switch_back_instead_of_a_log_in_ends_the_empty_session(shared: Shared) -> None:
    await shared.browser.do(then(shared.park, put(state=1)))
    empty = shared.browser.another()

    assert await shared.switched("alice")

    assert (await read(shared.browser))["data"] == {"of": "alice"}
    assert await shared.parked() == ["bob"]
    assert (await read(empty))["data"] == {}
    assert await shared.parked(empty) == []


async def test_an_empty_session_is_kept_while_it_has_parked_ones(shared: Shared) -> None:
    await shared.browser.do(shared.park)

    response = await shared.browser.do(then(put(a=1), lambda session: session.clear()))

    assert response.set_cookie is None
    assert await shared.parked() == ["alice", "bob"]


@pytest.mark.parametrize(
    "verb", [regenerate, put(a=1), lambda session: session.confirm()], ids=["token", "data", "confirm"]
)
async def test_changes_of_the_active_session_keep_the_parked_ones(shared: Shared, verb: Handler) -> None:
    await shared.browser.do(verb)

    assert await shared.parked() == ["bob"]
    assert await shared.switched("bob")


async def test_a_renewal_and_a_new_name_keep_them_too(store: Store, clock: FakeClock) -> None:
    shared = await Shared(store, clock, timeouts=Timeouts(renew=timedelta(minutes=5))).begin()
    (id,) = await shared.ids("alice")
    assert await shared.sessions.rename("alice", id, "desk")
    clock.advance(timedelta(minutes=6))
    before = shared.browser.token

    assert await shared.parked() == ["bob"]
    assert shared.browser.token != before
    assert await shared.switched("bob")


async def test_the_cookie_lasts_as_long_as_the_session_switched_to(memory: MemoryStore, clock: FakeClock) -> None:
    shared = Shared(memory, clock)
    for handler in (log_in("bob", remember=True), shared.park, log_in("alice")):
        response = await shared.browser.do(handler)
    assert "Max-Age" not in (response.set_cookie or "")

    assert "Max-Age" in ((await shared.browser.do(shared.switch("bob"))).set_cookie or "")
    assert "Max-Age" not in ((await shared.browser.do(shared.switch("alice"))).set_cookie or "")


async def test_a_switch_to_the_active_user_does_nothing(shared: Shared) -> None:
    response = await shared.browser.do(shared.switch("alice"))

    assert (response.body, response.set_cookie) == (b"True", None)


async def test_encrypted_records_and_a_rotation_of_secrets(memory: MemoryStore, clock: FakeClock) -> None:
    shared = await Shared(memory, clock, secret_keys=KEYS).begin()
    newer = Shared(memory, clock, secret_keys=NEWER_KEYS)
    newer.browser = Browser(newer.app, shared.browser.token)

    assert await newer.parked() == ["bob"]
    await rekey(memory, NEWER_KEYS)

    assert await newer.switched("bob")
    assert await newer.parked() == ["alice"]


async def test_a_page_with_the_list_is_not_for_shared_caches(memory: MemoryStore, clock: FakeClock) -> None:
    shared = await Shared(memory, clock).begin()

    async def ask(session: Session) -> None:
        await shared.accounts.parked(session)

    assert "Cookie" in ((await shared.browser.do(ask)).get("vary") or "")


# ── Ends ──


async def test_a_log_out_ends_every_account_of_the_browser(shared: Shared) -> None:
    ids = {"alice": await shared.ids("alice"), "bob": await shared.ids("bob")}

    response = await shared.browser.do(destroy)

    assert "Max-Age=0" in (response.set_cookie or "")
    assert await shared.active() == {"alice": 0, "bob": 0}
    ended = {(e.user_id, e.session_id, e.details["reason"]) for e in shared.events if e.name == "session.ended"}
    assert ended == {(user, id, "logged_out") for user, (id,) in ids.items()}


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("before", [[], ["park"], ["park", "save"], ["switch"], ["park", "carol"]], ids="-".join)
async def test_so_does_one_in_the_middle_of_other_verbs(shared: Shared, before: list[str], status: int) -> None:
    verbs: dict[str, Handler] = {
        "park": shared.park,
        "save": lambda session: session.save(),
        "switch": shared.switch("bob"),
        "carol": log_in("carol"),
    }

    response = await shared.browser.do(then(*(verbs[each] for each in before), destroy), status=status)

    assert "Max-Age=0" in (response.set_cookie or "")
    assert await shared.active("alice", "bob", "carol") == {"alice": 0, "bob": 0, "carol": 0}


async def test_a_log_out_ends_the_parked_ones_though_the_active_one_has_just_ended(shared: Shared) -> None:
    async with shared.browser.paused(destroy):
        await shared.sessions.revoke_all("alice")

    assert await shared.active() == {"alice": 0, "bob": 0}


async def test_another_user_who_logs_in_over_the_active_one_finds_no_parked_session(shared: Shared) -> None:
    await shared.browser.do(log_in("carol"))

    assert await shared.parked() == []
    assert not await shared.switched("bob")
    assert await shared.active("alice", "bob", "carol") == {"alice": 0, "bob": 0, "carol": 1}


async def test_a_second_log_in_of_the_active_user_keeps_the_parked_ones(shared: Shared) -> None:
    await shared.browser.do(log_in("alice"))

    assert await shared.parked() == ["bob"]
    assert await shared.active() == {"alice": 1, "bob": 1}


async def test_a_user_is_in_a_browser_only_once(store: Store, clock: FakeClock) -> None:
    shared = await Shared(store, clock, devices=Devices(max_sessions=1, at_limit="refuse")).begin()

    await shared.browser.do(then(shared.park, log_in("bob")))

    assert await shared.parked() == ["alice"]
    assert await shared.active() == {"alice": 1, "bob": 1}


@pytest.mark.parametrize("how", ["revoked", "all", "idle"])
async def test_an_ended_session_is_not_listed_and_a_switch_changes_nothing(
    shared: Shared, clock: FakeClock, how: str
) -> None:
    if how == "revoked":
        assert await shared.sessions.revoke("bob", *await shared.ids("bob"))
    elif how == "all":
        await shared.sessions.revoke_all("bob")
    else:
        for _ in range(4):
            clock.advance(timedelta(minutes=50))
            await shared.browser.do()

    response = await shared.browser.do(then(put(a=1), shared.switch("bob"), put(b=2)))

    assert response.set_cookie is None
    assert await shared.parked() == []
    assert (await read(shared.browser))["data"] == {"of": "alice", "a": 1, "b": 2}


async def test_too_many_accounts_end_the_one_that_was_parked_first(memory: MemoryStore, clock: FakeClock) -> None:
    users = [f"user {number}" for number in range(MOST_PARKED + 2)]

    shared = await Shared(memory, clock).begin(*users)

    assert await shared.parked() == users[-2:0:-1]
    assert await shared.active(*users[:2]) == {users[0]: 0, users[1]: 1}


async def test_a_failed_request_neither_parks_nor_switches(shared: Shared) -> None:
    for handler in (shared.park, shared.switch("bob")):
        assert (await shared.browser.do(handler, status=500)).set_cookie is None

    assert (await read(shared.browser))["user_id"] == "alice"
    assert await shared.parked() == ["bob"]
    assert await shared.switched("bob")


async def test_only_sessions_that_are_active_count_towards_the_eight(memory: MemoryStore, clock: FakeClock) -> None:
    users = [f"user {number}" for number in range(MOST_PARKED)]
    shared = await Shared(memory, clock).begin(*users, "alice")
    for user_id in users[1:]:
        await shared.sessions.revoke_all(user_id)

    await shared.browser.do(then(shared.park, log_in("bob")))

    assert await shared.parked() == ["alice", users[0]]


@pytest.mark.parametrize("at_limit", ["refuse", "end_oldest"])
async def test_a_parked_session_that_has_ended_makes_no_room(store: Store, clock: FakeClock, at_limit: Any) -> None:
    shared = await Shared(store, clock, devices=Devices(max_sessions=1, at_limit=at_limit)).begin()
    await shared.sessions.revoke_all("bob")
    laptop = Browser(shared.app)
    await laptop.do(log_in("bob"))

    try:
        await shared.browser.do(then(shared.park, log_in("bob"), lambda session: session.save()))
    except SessionLimitReached:
        assert at_limit == "refuse"

    assert await shared.active() == {"alice": 1, "bob": 1}
    assert (await read(laptop))["user_id"] == ("bob" if at_limit == "refuse" else None)


@pytest.mark.parametrize("user_id", ["alice", "carol"])
async def test_a_log_out_after_a_refused_log_in_ends_the_parked_ones(
    memory: MemoryStore, clock: FakeClock, user_id: str
) -> None:
    devices = Devices(max_sessions=1, at_limit="refuse")
    shared = await Shared(memory, clock, devices=devices).begin()
    lax = Browser(app_with(memory, clock=clock))
    for _ in range(2):  # the limit was lowered since
        await Browser(lax.app).do(log_in(user_id))

    async def handler(session: Session) -> None:
        session.log_in(user_id)
        with pytest.raises(SessionLimitReached):
            await session.save()
        assert dict(session) == {}
        assert not await shared.accounts.switch(session, "bob")
        session.destroy()

    response = await shared.browser.do(handler)

    assert "Max-Age=0" in (response.set_cookie or "")
    assert (await shared.active())["bob"] == 0
    assert (await read(shared.browser))["user_id"] is None


async def test_a_log_in_that_is_tried_again_keeps_the_parked_ones(store: Store, clock: FakeClock) -> None:
    """The first try was refused by the limit, and the app made room."""
    shared = await Shared(store, clock, devices=Devices(max_sessions=1, at_limit="refuse")).begin("alice")
    await Browser(shared.app).do(log_in("bob"))
    await shared.browser.do(shared.park)

    async def handler(session: Session) -> None:
        session.log_in("bob")
        with pytest.raises(SessionLimitReached):
            await session.save()
        await shared.sessions.revoke_all("bob")
        session.log_in("bob")

    await shared.browser.do(handler)

    assert (await read(shared.browser))["user_id"] == "bob"
    assert await shared.parked() == ["alice"]


async def test_switches_do_not_fill_the_history(memory: MemoryStore, clock: FakeClock) -> None:
    shared = await Shared(memory, clock).begin()
    for user_id in ("bob", "alice", "bob"):
        await shared.switched(user_id)

    assert [entry.event for entry in await shared.sessions.history("bob")] == ["logged_in"]
    assert [(event.name, event.user_id) for event in shared.events] == [
        ("session.switched", "bob"), ("session.switched", "alice"), ("session.switched", "bob"),
    ]  # fmt: skip


@pytest.mark.parametrize("seconds", [0, 60], ids=["in the same clock tick", "later"])
async def test_a_switch_and_a_proof_of_identity_are_two_events(
    memory: MemoryStore, clock: FakeClock, seconds: int
) -> None:
    shared = await Shared(memory, clock).begin()
    clock.advance(seconds)

    await shared.browser.do(then(shared.switch("bob"), lambda session: session.confirm(methods=["otp"])))

    assert [(event.name, event.user_id) for event in shared.events] == [
        ("session.switched", "bob"), ("session.confirmed", "bob"),
    ]  # fmt: skip
    assert [entry.event for entry in await shared.sessions.history("bob")] == ["stepped_up", "logged_in"]


async def test_a_failed_switch_is_no_activity_of_the_other_user(memory: MemoryStore, clock: FakeClock) -> None:
    shared = await Shared(memory, clock).begin()
    for _ in range(3):
        clock.advance(timedelta(minutes=25))
        await shared.browser.do(shared.switch("bob"), status=500)

    assert await shared.active() == {"alice": 1, "bob": 0}


async def test_a_slow_store_does_not_hold_up_the_list(memory: MemoryStore, clock: FakeClock) -> None:
    store = Wrapped(memory)
    shared = await Shared(store, clock, store_deadline=timedelta(milliseconds=100)).begin("carol", "bob", "alice")
    store.delay["index"] = 0.08

    async def ask(session: Session) -> None:
        with pytest.raises(StoreError, match="did not answer"):
            await shared.accounts.parked(session)

    await shared.browser.do(ask)


async def test_between_two_accounts_a_page_is_private(memory: MemoryStore, clock: FakeClock) -> None:
    shared = Shared(memory, clock)
    shared.app = app_with(shared.sessions, no_store_when_logged_in=True)
    shared.browser = Browser(shared.app)
    await shared.browser.do(log_in("alice"))
    await shared.browser.do(shared.park)

    async def ask(session: Session) -> None:
        await shared.accounts.parked(session)

    assert "no-store" in ((await shared.browser.do(ask)).get("cache-control") or "")


# ── Beside other requests ──


@pytest.mark.parametrize("last", ["fast", "slow"])
async def test_of_two_parallel_switches_either_answer_may_arrive_last(
    store: Store, clock: FakeClock, last: str
) -> None:
    shared = await Shared(store, clock).begin("carol", "bob", "alice")
    slow_tab = shared.browser.another()
    async with slow_tab.paused(shared.switch("bob")) as slow:
        clock.advance(0.1)
        fast = await shared.browser.do(shared.switch("bob"))
    for response in [slow.response, fast] if last == "fast" else [fast, slow.response]:
        shared.browser.hear(response)

    assert (slow.response.body, slow.response.set_cookie) == (b"True", None)
    assert (await read(shared.browser))["user_id"] == "bob"
    assert await shared.parked() == ["alice", "carol"]


async def test_a_session_that_began_in_the_same_request_gets_its_token(memory: MemoryStore, clock: FakeClock) -> None:
    shared = Shared(memory, clock)

    async def handler(session: Session) -> None:
        clock.advance(1)
        session.log_in("alice")
        await shared.accounts.park(session)
        session.log_in("bob")
        clock.advance(1)
        assert await shared.accounts.switch(session, "alice")

    await shared.browser.do(handler)

    assert (await read(shared.browser))["user_id"] == "alice"
    assert await shared.parked() == ["bob"]


async def test_a_log_out_counts_though_the_look_for_the_next_user_fails(memory: MemoryStore, clock: FakeClock) -> None:
    store = Wrapped(memory)
    shared = await Shared(store, clock).begin()

    async def once() -> None:
        store.before.clear()
        raise StoreUnreachable("for a moment")

    def handler(session: Session) -> None:
        session.destroy()
        session.log_in("bob")
        store.before["index"] = once

    response = await shared.browser.do(handler)

    assert response.status == 503
    assert "Max-Age=0" in (response.set_cookie or "")
    assert await shared.active() == {"alice": 0, "bob": 0}


@pytest.mark.parametrize("verb", [regenerate, lambda session: session.confirm()], ids=["regenerate", "confirm"])
async def test_a_switch_to_a_session_that_another_tab_moves_keeps_the_list(
    memory: MemoryStore, clock: FakeClock, verb: Handler
) -> None:
    shared = await Shared(memory, clock).begin("bob")
    bob = shared.browser.another()
    await shared.browser.do(then(shared.park, log_in("alice")))

    async def handler(session: Session) -> None:
        assert await shared.accounts.switch(session, "bob")
        await bob.do(verb)

    await shared.browser.do(handler)

    assert await shared.parked(bob) == ["alice"]
    await bob.do(destroy)
    assert await shared.active() == {"alice": 0, "bob": 0}


OTHER_TASKS: dict[str, tuple[Handler, dict[str, int]]] = {
    "destroy": (destroy, {"alice": 0, "bob": 0, "carol": 0}),
    "log in": (log_in("carol"), {"alice": 0, "bob": 0, "carol": 1}),
    "act": (act_as("carol"), {"alice": 1, "bob": 1, "carol": 1}),
    "write": (put(a=1), {"alice": 1, "bob": 1, "carol": 0}),
}


@pytest.mark.parametrize("at", ["index", "update"])
@pytest.mark.parametrize("other", OTHER_TASKS)
async def test_another_task_of_the_request_acts_during_a_switch(
    memory: MemoryStore, clock: FakeClock, other: str, at: str
) -> None:
    store, (verb, alive) = Wrapped(memory), OTHER_TASKS[other]
    shared = await Shared(store, clock).begin()

    async def act(session: Session) -> None:
        store.before.clear()
        verb(session)

    async def handler(session: Session) -> bool:
        session["before"] = 1
        store.before[at] = partial(act, session)
        return await shared.accounts.switch(session, "bob")

    response = await shared.browser.do(handler)

    assert response.body == (b"True" if other == "write" else b"False")
    assert await shared.active(*alive) == alive
    if other == "write":
        await shared.switched("alice")
        assert (await read(shared.browser))["data"] == {"of": "alice", "before": 1, "a": 1}


async def test_another_task_of_the_request_logs_out_during_park(memory: MemoryStore, clock: FakeClock) -> None:
    store = Wrapped(memory)
    shared = await Shared(store, clock).begin()

    async def handler(session: Session) -> None:
        async def act() -> None:
            store.before.clear()
            session.destroy()

        session["before"] = 1
        store.before["update"] = act
        with pytest.raises(SessionError, match="another task"):
            await shared.accounts.park(session)

    await shared.browser.do(handler)
    assert await shared.active() == {"alice": 0, "bob": 0}


@pytest.mark.parametrize("handler", ["park", "switch"])
async def test_a_log_out_in_another_tab_is_final(shared: Shared, handler: str) -> None:
    async with shared.browser.paused({"park": shared.park, "switch": shared.switch("bob")}[handler]):
        await shared.browser.another().do(destroy)

    assert await shared.active() == {"alice": 0, "bob": 0}
    assert (await read(shared.browser))["user_id"] is None
    assert await shared.parked() == []


async def test_a_session_that_ends_between_the_look_and_the_switch(memory: MemoryStore, clock: FakeClock) -> None:
    shared = await Shared(memory, clock).begin()

    async def handler(session: Session) -> None:
        assert await shared.accounts.switch(session, "bob")
        await shared.sessions.revoke_all("bob")

    assert (await shared.browser.do(handler)).set_cookie is None
    assert await shared.active() == {"alice": 1, "bob": 0}
    assert (await read(shared.browser))["user_id"] == "alice"


async def test_data_that_another_request_saves_during_a_switch_is_kept(memory: MemoryStore, clock: FakeClock) -> None:
    shared = await Shared(memory, clock).begin("bob")
    late_tab = shared.browser.another()
    await shared.browser.do(then(shared.park, log_in("alice")))

    async def handler(session: Session) -> None:
        assert await shared.accounts.switch(session, "bob")
        await late_tab.do(put(late=1))
        session["mine"] = 2

    await shared.browser.do(handler)

    assert (await read(shared.browser))["data"] == {"of": "bob", "late": 1, "mine": 2}
    assert await shared.parked() == ["alice"]


async def test_an_undone_switch_undoes_its_list_too(memory: MemoryStore, clock: FakeClock) -> None:
    store = Wrapped(memory)
    shared = await Shared(store, clock).begin("bob")
    bob, (id,) = shared.browser.another(), await shared.ids("bob")
    await shared.browser.do(then(shared.park, log_in("alice")))

    async def handler(session: Session) -> None:
        assert await shared.accounts.switch(session, "bob")
        store.fail_after["rename"] = StoreUnreachable("the answer is lost")
        with pytest.raises(StoreError):
            await session.save()
        store.fail_after.clear()
        assert await shared.sessions.rename("bob", id, "desk")

    await shared.browser.do(handler, status=500)

    assert [each.name for each in await shared.sessions.list("bob")] == ["desk"]
    assert await shared.parked() == ["bob"]
    assert await shared.parked(bob) == []
    assert (await read(bob))["user_id"] == "bob"


async def test_a_switch_to_the_active_user_whose_session_has_just_ended(memory: MemoryStore, clock: FakeClock) -> None:
    shared = await Shared(memory, clock).begin()

    async def handler(session: Session) -> bool:
        await shared.sessions.revoke_all("alice")
        session["a"] = 1
        await session.save()
        assert not await shared.accounts.switch(session, "bob")
        return await shared.accounts.switch(session, "alice")

    assert (await shared.browser.do(handler)).body == b"False"


# ── What is refused ──


@pytest.mark.parametrize("handler", ["park", "switch"])
async def test_not_while_acting_as_another_user(memory: MemoryStore, clock: FakeClock, handler: str) -> None:
    shared = await Shared(memory, clock).begin()
    await shared.browser.do(act_as("carol"))

    with pytest.raises(SessionError, match="call stop_impersonating"):
        await shared.browser.do({"park": shared.park, "switch": shared.switch("bob")}[handler])

    await shared.browser.do(lambda session: session.stop_impersonating())
    assert await shared.parked() == ["bob"]


@pytest.mark.parametrize("before", [put(a=1), destroy], ids=["visitor", "logged out"])
async def test_without_a_user_there_is_nothing_to_park(memory: MemoryStore, clock: FakeClock, before: Handler) -> None:
    shared = await Shared(memory, clock).begin()
    browser = Browser(shared.app) if before is not destroy else shared.browser

    await browser.do(then(before, shared.park))

    assert await shared.parked(browser) == []


async def test_a_second_click_on_add_changes_nothing(shared: Shared) -> None:
    await shared.browser.do(then(shared.park, put(state=1)))

    response = await shared.browser.do(shared.park)

    assert (response.status, response.set_cookie) == (200, None)
    assert (await read(shared.browser))["data"] == {"state": 1}
    assert await shared.parked() == ["alice", "bob"]


@pytest.mark.parametrize(
    "user_id", ["", "x" * 20_000, "\udc80", "carol"], ids=["empty", "long", "surrogate", "unknown"]
)
async def test_a_user_id_of_a_form_that_has_no_session_here(
    memory: MemoryStore, clock: FakeClock, user_id: str
) -> None:
    shared = await Shared(memory, clock).begin()

    assert not await shared.switched(user_id)
    assert (await read(shared.browser))["user_id"] == "alice"


@pytest.mark.parametrize("user_id", [7, None], ids=ascii)
async def test_a_user_id_is_text(memory: MemoryStore, clock: FakeClock, user_id: Any) -> None:
    shared = await Shared(memory, clock).begin()

    with pytest.raises(SessionDataError):
        await shared.browser.do(shared.switch(user_id))


@pytest.mark.parametrize("call", ["park", "switch"])
async def test_a_session_of_another_sessions_is_refused(memory: MemoryStore, clock: FakeClock, call: str) -> None:
    shared = await Shared(memory, clock).begin()
    shared.accounts = Accounts(Sessions(memory, clock=clock))

    with pytest.raises(SessionError, match="belongs to another Sessions"):
        await shared.browser.do({"park": shared.park, "switch": shared.switch("bob")}[call])


@pytest.mark.parametrize("handler", ["park", "switch"])
async def test_not_after_the_response_has_started(memory: MemoryStore, clock: FakeClock, handler: str) -> None:
    shared = await Shared(memory, clock).begin()

    async def late(session: Session) -> None:
        with pytest.raises(ResponseStarted):
            await {"park": shared.park, "switch": shared.switch("bob")}[handler](session)

    await shared.browser.do(after=late)
    assert (await read(shared.browser))["user_id"] == "alice"


async def test_not_with_an_access_token(memory: MemoryStore, clock: FakeClock) -> None:
    sessions = Sessions(memory, secret_keys=KEYS, clock=clock)
    tokens = Tokens(sessions, issuer="https://example.org", audience="app", keys=[SigningKey.generate("EdDSA")])
    accounts, refused = Accounts(sessions), list[str]()
    pair = await tokens.log_in("alice")
    app = SessionMiddleware(BearerMiddleware(inner_app, tokens), sessions)
    browser = Browser(app)

    async def handler(session: Session) -> None:
        for each in (accounts.park(session), accounts.switch(session, "bob")):
            with pytest.raises(SessionReadOnly):
                await each
            refused.append(session.scheme)
        assert await accounts.parked(session) == []

    headers = [(b"authorization", f"Bearer {pair.access_token}".encode())]
    await browser.do(handler, request_headers=headers)
    assert refused == ["Bearer", "Bearer"]


def test_device_bound_sessions_and_stores_without_users_are_refused_when_the_app_is_built() -> None:
    bound = Sessions(MemoryStore(), secret_keys=KEYS, device_bound=DeviceBound())
    for given, why in ((bound, "device-bound"), (Sessions(_NoUsers(MemoryStore())), "which sessions belong to a user")):
        with pytest.raises(ConfigurationError, match=why):
            Accounts(given)
    with pytest.raises(ConfigurationError, match="give one of type Sessions"):
        Accounts(MemoryStore())  # type: ignore[arg-type]


class _NoUsers(Wrapped):
    end = None


@pytest.mark.parametrize("call", ["park", "parked", "switch"])
async def test_a_dict_is_no_session(memory: MemoryStore, call: str) -> None:
    accounts = Accounts(Sessions(memory))
    calls: dict[str, Callable[[Any], Any]] = {
        "park": accounts.park,
        "parked": accounts.parked,
        "switch": partial(accounts.switch, user_id="bob"),
    }

    with pytest.raises(ConfigurationError, match="give one of type Session"):
        await calls[call]({})


async def test_a_switch_leads_to_the_host_of_the_request_only(memory: MemoryStore, clock: FakeClock) -> None:
    sessions = Sessions(memory, clock=clock)
    accounts = Accounts(sessions)
    app = SessionMiddleware(inner_app, sessions, realm=host)
    browser = At(app, "a.example")
    for handler in (log_in("bob"), accounts.park, log_in("alice"), partial(accounts.switch, user_id="bob")):
        await browser.do(handler)
    assert (await read(browser))["user_id"] == "bob"

    elsewhere = At(app, "b.example", browser.token)

    assert (await read(elsewhere))["user_id"] is None


# ── Damage ──


async def rewritten(shared: Shared, store: MemoryStore, key: str, **fields: Any) -> None:
    """Change the body of a record behind the back of the app."""
    records, record = shared.sessions._manager.records, await store.load(key)
    assert record is not None
    body = replace(records.open(record), **fields)
    await store.update(records.sealed(replace(record, rev=record.rev + 1), body), rev=record.rev)


@pytest.mark.parametrize("place", ["", "x" * 37, "x" * 39, "é" * 38], ids=["empty", "short", "long", "not ASCII"])
async def test_a_record_with_a_damaged_place_is_an_empty_session(
    memory: MemoryStore, clock: FakeClock, place: str
) -> None:
    shared = await Shared(memory, clock).begin()
    await rewritten(shared, memory, shared.browser.key, parked=(place,))

    assert (await read(shared.browser))["user_id"] is None
    assert [event.name for event in shared.events] == ["session.damaged"]


async def test_a_parked_session_that_does_not_open_counts_as_ended(memory: MemoryStore, clock: FakeClock) -> None:
    shared = await Shared(memory, clock).begin()
    ((_, key),) = (await memory.index(owner_of("bob"))).items()
    record = await memory.load(key)
    assert record is not None
    await memory.update(replace(record, body=b"?", rev=record.rev + 1), rev=record.rev)

    assert await shared.parked() == []
    assert not await shared.switched("bob")
    assert (await read(shared.browser))["user_id"] == "alice"


@pytest.mark.parametrize("verb", [destroy, log_in("bob")], ids=["log-out", "log-in"])
async def test_a_parked_session_that_does_not_open_ends_with_the_others(
    memory: MemoryStore, clock: FakeClock, verb: Handler
) -> None:
    """Another server may have sealed it with a secret that this one does not know. Its id and owner are readable."""
    shared = await Shared(memory, clock).begin()
    ((id, key),) = (await memory.index(owner_of("bob"))).items()
    record = await memory.load(key)
    assert record is not None
    await memory.update(replace(record, body=b"?", rev=record.rev + 1), rev=record.rev)

    await shared.browser.do(verb)

    assert id not in await memory.index(owner_of("bob"))


async def test_so_does_one_whose_data_does_not_decode(memory: MemoryStore, clock: FakeClock) -> None:
    shared = await Shared(memory, clock).begin()
    ((_, key),) = (await memory.index(owner_of("bob"))).items()
    await rewritten(shared, memory, key, payload=b"\xc1")

    assert not await shared.switched("bob")
    assert (await read(shared.browser))["user_id"] == "alice"


async def test_an_impersonated_session_is_never_a_parked_one(memory: MemoryStore, clock: FakeClock) -> None:
    """Otherwise it would outlive the session of its actor. Only who writes to the store can try."""
    shared = await Shared(memory, clock).begin("alice")
    actor = Browser(shared.app)
    await actor.do(then(log_in("sue"), act_as("bob")))
    place = owner_of("bob") + (await read(actor))["id"]
    await rewritten(shared, memory, shared.browser.key, parked=(place,))

    assert await shared.parked() == []
    assert not await shared.switched("bob")


async def test_nothing_of_an_erased_user_stays_in_the_session_of_another(memory: MemoryStore, clock: FakeClock) -> None:
    shared = await Shared(memory, clock).begin("bob@example.org", "alice")

    await shared.sessions.erase("bob@example.org")

    assert shared.browser.token is not None
    record = await memory.load(key_of(shared.browser.token))
    assert record is not None
    assert b"bob@example.org" not in record.body
    assert await shared.parked() == []
