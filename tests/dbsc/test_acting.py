"""Acting as another user from a bound session: the request must prove the device of the actor."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_sessions import DeviceBound, Session
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.dbsc.world import Handler, Person, Site, Thief
from tests.support import destroy, log_in, put

PAST_GRACE = 60


def act(session: Session) -> None:
    session.impersonate("bob")


def stop(session: Session) -> None:
    session.stop_impersonating()


@pytest.fixture
def site(store: Store, clock: FakeClock) -> Site:
    return Site(store, clock)


@pytest.fixture
async def alice(site: Site, clock: FakeClock) -> Person:
    """She acts as Bob, on her own device."""
    person = Person(site)
    await person.log_in("alice")
    clock.advance(PAST_GRACE)
    await person.do(act, method="POST")
    return person


async def test_the_device_of_the_actor_is_proved(alice: Person, clock: FakeClock) -> None:
    seen = await alice.do()
    assert (seen["user"], seen["bound"], seen["unproven"]) == ("bob", True, False)

    for _ in range(3):
        clock.advance(700)  # the bound cookie has expired, and the browser proves its key
        seen = await alice.do()

    assert (seen["user"], seen["bound"]) == ("bob", True)
    await alice.do(stop, method="POST")
    clock.advance(700)
    seen = await alice.do()
    assert (seen["user"], seen["bound"]) == ("alice", True)


async def test_stolen_cookies_are_worthless(site: Site, alice: Person, clock: FakeClock) -> None:
    thief = Thief(site, alice, bound=False)
    seen = await thief.do()
    assert (seen["user"], seen["unproven"], seen["data"]) == (None, True, {})

    late = Thief(site, alice)
    clock.advance(700)
    assert (await late.do()).status_code == 307  # the same once more, without the bound cookie, which has expired
    assert (await alice.do())["user"] == "bob"


@pytest.mark.parametrize("is_written", [False, True])
@pytest.mark.parametrize("verb", [destroy, log_in("carol")], ids=["log out", "log in"])
async def test_a_log_out_without_the_device_ends_both(
    site: Site, alice: Person, verb: Handler, is_written: bool
) -> None:
    """As of every unproven session: the user may have lost the key."""
    lost = Person(site, device=False)
    lost.http.cookies.update(alice.http.cookies)
    if is_written:
        await lost.do(put(csrf="x"))

    await lost.do(verb, method="POST")

    assert await site.sessions.list("alice") == await site.sessions.list("bob") == []
    assert (await alice.do())["user"] is None
    ends = [event for event in site.events if event.name == "session.impersonation_ended"]
    assert [(event.user_id, event.details["actor_id"]) for event in ends] == [("bob", "alice")]


async def test_what_the_thief_writes_is_not_in_the_session(site: Site, alice: Person) -> None:
    thief = Thief(site, alice, bound=False)

    await thief.do(put(a=1), method="POST")

    assert (await alice.do())["data"] == {}


async def test_the_impersonated_session_registers_no_key_of_its_own(site: Site, alice: Person) -> None:
    assert len(alice.device.sessions) == 1
    assert {each.device_bound for each in await site.sessions.list("bob")} == {False}


async def test_a_session_that_is_not_bound_acts_without_a_device(site: Site, clock: FakeClock) -> None:
    alice = Person(site, device=False)
    await alice.log_in("alice")
    await alice.do(act, method="POST")
    clock.advance(PAST_GRACE)

    seen = await alice.do()

    assert (seen["user"], seen["bound"]) == ("bob", False)


async def test_a_first_cookie_that_is_shown_while_acting_confirms_the_binding(site: Site, clock: FakeClock) -> None:
    alice = Person(site)
    await alice.do(lambda session: session.log_in("alice"), method="POST")
    await alice.do(act, method="POST")
    await alice.do()

    assert [each.device_bound for each in await site.sessions.list("alice")] == [True]
    await alice.do(stop, method="POST")
    clock.advance(PAST_GRACE)
    assert (await Thief(site, alice, bound=False).do())["user"] is None


@pytest.mark.parametrize("enforce", [False, True])
async def test_sockets_close_after_a_while_as_those_of_the_actor(store: Store, clock: FakeClock, enforce: bool) -> None:
    site = Site(store, clock, DeviceBound(enforce=enforce))
    alice = Person(site)
    await alice.log_in("alice")
    await alice.do(act, method="POST")

    def look(session: Session) -> Any:
        binder = site.app._binder
        assert binder is not None
        return binder.closes_after(session)

    assert ((await alice.do(look))["result"] is not None) is enforce
