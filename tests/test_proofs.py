"""How somebody logged in: methods, levels, and a log-in that waits for its second factor."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_sessions import Devices, Session, SessionDataError, SessionError, SessionLimitReached, Sessions
from asgi_sessions._core.proofs import Proofs, level_of, pack_proofs, unpack_proofs
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate

MINUTES = timedelta(minutes=5)


@pytest.fixture
def browser(store: Store, clock: FakeClock) -> Browser:
    return Browser(app_with(store, clock=clock))


async def of(browser: Browser, look: Any) -> Any:
    """What a request finds."""
    found: list[Any] = []
    await browser.do(lambda session: found.append(look(session)))
    return found[0]


def how(session: Session) -> tuple[tuple[str, ...], int]:
    return session.methods, session.level


@pytest.mark.parametrize(
    ("methods", "level"),
    [
        ([], 0),
        (["pwd"], 1),
        (["pwd", "pin"], 1),
        (["pwd", "otp"], 2),
        (["hwk", "fpt"], 2),
        (["otp", "sms"], 1),
        (["mfa"], 2),
        (["user"], 1),
        (["something"], 1),
    ],
)
async def test_methods_and_the_level_that_they_give(browser: Browser, methods: list[str], level: int) -> None:
    await browser.do(log_in("alice", methods=methods))

    assert await of(browser, how) == (tuple(methods), level)


async def test_the_app_can_name_the_level(browser: Browser) -> None:
    await browser.do(log_in("alice", methods=["hwk"], level=3))

    assert await of(browser, how) == (("hwk",), 3)


@pytest.mark.parametrize("verb", [regenerate, put(a=1), lambda session: session.end_others()])
async def test_they_stay_with_the_session(browser: Browser, verb: Any) -> None:
    await browser.do(log_in("alice", methods=["pwd", "otp"]))

    await browser.do(verb)

    assert await of(browser, how) == (("pwd", "otp"), 2)


async def test_another_log_in_begins_anew(browser: Browser) -> None:
    await browser.do(log_in("alice", methods=["pwd", "otp"]))

    await browser.do(log_in("alice", methods=["pwd"]))

    assert await of(browser, how) == (("pwd",), 1)
    await browser.do(destroy)
    assert await of(browser, how) == ((), 0)


async def test_a_confirmation_adds_its_method_and_the_level_never_falls(browser: Browser, clock: FakeClock) -> None:
    await browser.do(log_in("alice", methods=["pwd"]))
    clock.advance(600)
    await browser.do(lambda session: session.confirm(methods=["otp"]))
    assert await of(browser, how) == (("pwd", "otp"), 2)

    clock.advance(600)
    await browser.do(lambda session: session.confirm(methods=["pwd"]))

    assert await of(browser, how) == (("otp", "pwd"), 2)


async def test_fresh_is_each_method_that_is_asked_for(browser: Browser, clock: FakeClock) -> None:
    await browser.do(log_in("alice", methods=["pwd", "otp"]))
    clock.advance(600)
    await browser.do(lambda session: session.confirm(methods=["pwd"]))

    assert await of(
        browser,
        lambda session: [
            session.is_fresh(MINUTES),
            session.is_fresh(MINUTES, methods=["pwd"]),
            session.is_fresh(MINUTES, methods=["otp"]),
            session.is_fresh(MINUTES, methods=["pwd", "otp"]),
            session.is_fresh(MINUTES, methods=["hwk"]),
            session.is_fresh(timedelta(hours=1), methods=["otp"], level=2),
            session.is_fresh(timedelta(hours=1), level=3),
        ],
    ) == [True, True, False, False, False, True, False]


async def test_a_failed_request_proves_nothing(browser: Browser) -> None:
    await browser.do(log_in("alice", methods=["pwd"]))

    await browser.do(lambda session: session.confirm(methods=["otp"]), status=500)

    assert await of(browser, how) == (("pwd",), 1)


async def test_a_confirmation_beside_a_write_of_another_request(browser: Browser) -> None:
    await browser.do(log_in("alice", methods=["pwd"]))

    async with browser.paused(lambda session: session.confirm(methods=["otp"])):
        await browser.another().do(put(a=1))

    assert await of(browser, how) == (("pwd", "otp"), 2)
    assert (await read(browser))["data"] == {"a": 1}


@pytest.mark.parametrize(
    ("before", "first", "later", "together"),
    [
        pytest.param(
            ["pwd"], {"methods": ["otp"]}, {"methods": ["pin"]}, (("pwd", "otp", "pin"), 2), id="another method"
        ),
        pytest.param([], {"methods": ["pwd"]}, {"methods": ["otp"]}, (("pwd", "otp"), 2), id="two kinds, one in each"),
        pytest.param(["pwd"], {"methods": ["otp"]}, {}, (("pwd", "otp"), 2), id="no method"),
        pytest.param(["pwd"], {}, {"methods": ["otp"]}, (("pwd", "otp"), 2), id="a method beside none"),
        pytest.param(["pwd"], {"level": 3}, {"methods": ["otp"]}, (("pwd", "otp"), 3), id="a method beside a level"),
        pytest.param(["pwd"], {"methods": ["otp"]}, {"level": 3}, (("pwd", "otp"), 3), id="a level beside a method"),
        pytest.param(["mfa"], {"methods": ["otp"]}, {"level": 1}, (("mfa", "otp"), 1), id="a level that falls"),
    ],
)
async def test_two_confirmations_beside_each_other_both_count(
    browser: Browser, clock: FakeClock, before: list[str], first: Any, later: Any, together: Any
) -> None:
    await browser.do(log_in("alice", methods=before))
    clock.advance(60)

    async with browser.another().paused(lambda session: session.confirm(**later)):
        await browser.do(lambda session: session.confirm(**first))
        clock.advance(1)

    assert await of(browser, how) == together
    assert await of(browser, lambda session: session.is_fresh(timedelta(seconds=1)))


async def test_the_first_factors_of_two_users_beside_each_other_stay_apart(browser: Browser) -> None:
    await browser.do(put(a=1))

    async with browser.another().paused(lambda session: session.begin_log_in("alice", methods=["otp"])):
        await browser.do(begin("mallory"))

    assert await of(browser, lambda session: (session.pending_user_id, session.methods)) == ("alice", ("otp",))


# ── The second factor ──


def begin(user_id: str = "alice", **options: Any) -> Any:
    return lambda session: session.begin_log_in(user_id, methods=["pwd"], **options)


async def test_who_has_passed_one_factor_is_nobody_yet(browser: Browser, store: Store, clock: FakeClock) -> None:
    await browser.do(begin())

    seen = await of(browser, lambda s: (s.user_id, s.pending_user_id, s.is_fresh(MINUTES), s.level, s.authenticated_at))

    assert seen == (None, "alice", False, 0, None)
    assert await Sessions(store, clock=clock).count("alice") == 0


async def test_the_second_factor_completes_it(browser: Browser) -> None:
    await browser.do(put(cart=[1]))
    first = browser.token
    await browser.do(begin())
    second = browser.token
    assert first != second

    await browser.do(lambda session: session.log_in(session.pending_user_id or "", methods=["otp"]))

    assert await of(browser, lambda s: (s.user_id, s.pending_user_id, *how(s))) == ("alice", None, ("pwd", "otp"), 2)
    assert (await read(browser))["data"] == {"cart": [1]}
    assert browser.token != second
    stale = Browser(browser.app, second)
    assert await of(stale, lambda s: (s.user_id, s.pending_user_id)) == (None, None)


async def test_a_first_factor_beside_a_new_token_of_another_request(browser: Browser) -> None:
    """That response has the cookie. This one has none, and keeps what it noted."""
    await browser.do(put(a=1))

    async with browser.another().paused(begin()):
        await browser.do(regenerate)

    assert await of(browser, lambda session: session.pending_user_id) == "alice"


async def test_it_waits_for_minutes_only(browser: Browser, clock: FakeClock) -> None:
    await browser.do(begin(within=timedelta(minutes=2)))
    clock.advance(120)

    assert await of(browser, lambda session: session.pending_user_id) is None
    await browser.do(log_in("alice", methods=["otp"]))
    assert await of(browser, how) == (("otp",), 1)


async def test_the_first_factor_of_somebody_else_counts_for_nothing(browser: Browser) -> None:
    await browser.do(begin("mallory"))

    await browser.do(log_in("alice", methods=["otp"]))

    assert await of(browser, how) == (("otp",), 1)


@pytest.mark.parametrize("before", ["nothing", "a log-out", "a log-in", "a log-in that was saved"])
async def test_the_first_factor_counts_for_a_log_in_that_is_tried_again(
    store: Store, clock: FakeClock, before: str
) -> None:
    """The first try was refused by the limit, and the app made room. A log-out or another user's log-in leaves no factor."""
    app = app_with(store, clock=clock, devices=Devices(max_sessions=1, at_limit="refuse"))
    browser, again = Browser(app), log_in("alice", methods=["otp"])
    await Browser(app).do(log_in("alice"))
    await browser.do(begin())

    async def handler(session: Session) -> None:
        if before == "a log-out":
            session.destroy()
        if before.startswith("a log-in"):
            session.log_in("bob")
        if before == "a log-in that was saved":
            await session.save()
        again(session)
        with pytest.raises(SessionLimitReached):
            await session.save()
        assert (session.user_id, session.pending_user_id) == (None, "alice" if before == "nothing" else None)
        await app.sessions.revoke_all("alice")
        again(session)

    await browser.do(handler)

    assert await of(browser, how) == ((("pwd", "otp"), 2) if before == "nothing" else (("otp",), 1))


async def test_it_can_be_called_off(browser: Browser) -> None:
    await browser.do(begin())

    await browser.do(destroy)

    assert await of(browser, lambda session: session.pending_user_id) is None


async def test_other_data_of_the_visitor_may_come_and_go(browser: Browser) -> None:
    await browser.do(begin())
    for handler in (put(a=1), lambda session: session.clear()):
        await browser.do(handler)

        assert await of(browser, lambda session: session.pending_user_id) == "alice"


async def test_a_user_who_is_logged_in_confirms(browser: Browser) -> None:
    await browser.do(log_in("alice"))

    with pytest.raises(SessionError, match=r"call confirm\(\)"):
        await browser.do(begin())


# ── Bad input ──


@pytest.mark.parametrize("methods", ["pwd", 7, None, [""], ["PWD"], ["a b"], ["x" * 40], [7], ["a"] * 20, ["\ud800"]])
@pytest.mark.parametrize("verb", ["log_in", "confirm", "is_fresh", "begin_log_in"])
async def test_what_is_no_method_is_refused(browser: Browser, verb: str, methods: Any) -> None:
    argument: dict[str, Any] = {"log_in": "alice", "is_fresh": MINUTES, "begin_log_in": "alice"}
    given = [argument[verb]] if verb in argument else []

    with pytest.raises(SessionDataError, match="method"):
        await browser.do(lambda session: getattr(session, verb)(*given, methods=methods))


@pytest.mark.parametrize("level", [-1, 10, "2", 1.5, True])
async def test_what_is_no_level_is_refused(browser: Browser, level: Any) -> None:
    with pytest.raises(SessionDataError, match="level="):
        await browser.do(lambda session: session.log_in("alice", level=level))


@pytest.mark.parametrize("within", [timedelta(0), timedelta(hours=2)])
async def test_the_wait_is_bounded(browser: Browser, within: timedelta) -> None:
    with pytest.raises(SessionError, match="within="):
        await browser.do(begin(within=within))


@given(st.binary(max_size=40))
def test_bytes_from_anywhere_are_some_proofs_or_none(data: bytes) -> None:
    assert isinstance(unpack_proofs(data), Proofs)


def test_a_session_without_methods_stores_nothing_more() -> None:
    assert pack_proofs(Proofs()) == b""
    assert level_of([]) == 0
