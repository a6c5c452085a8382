"""The commit table, walked row by row: what the store is asked, and what the browser is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from typing import Any, get_args

import pytest

from asgi_sessions import CookieConfig, MemoryStore, Session, StoreError, Timeouts
from asgi_sessions._core.intent import Asked
from asgi_sessions._core.plan import COMMIT_TABLE, Call, Cookie, Data, Phase, Row, Step, Was
from asgi_sessions._engine.commit import CALLERS
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with
from tests.wrapped import Wrapped

Case = tuple[Row, Was, Data, Asked, Phase]
CASES: list[Case] = [(row, *case) for row in COMMIT_TABLE for case in product(row.was, row.data, row.asked, row.phase)]

# What each step asks of the store, when nobody interferes.
QUESTIONS = {
    Step.NOTHING: [],
    Step.CREATE: ["create"],
    Step.TOUCH: ["touch"],
    Step.UPDATE: ["update"],
    Step.RENAME: ["rename"],
    Step.RENEW: ["rename"],
    Step.DELETE: ["delete"],
    Step.DELETE_UNCHANGED: ["delete"],
    Step.DELETE_CREATE: ["create", "delete"],
    Step.DELETE_ONLY: ["delete"],
    Step.NOT_SAVED: [],
    Step.REFUSE: [],
}

CHANGES: dict[Data, Callable[[Session], Any]] = {
    Data.EMPTY: lambda s: s.clear(),
    Data.SOME: lambda s: s.update(new=1),
    Data.SAME: lambda s: s.get("a"),
    Data.CHANGED: lambda s: s.update(a=2),
    Data.EMPTIED: lambda s: s.clear(),
}

VERBS: dict[Asked, Callable[[Session], Any]] = {
    Asked.LOG_IN: lambda s: s.log_in("alice"),
    Asked.REGENERATE: lambda s: s.regenerate(),
    Asked.DESTROY: lambda s: s.destroy(),
}


def verb_of(asked: Asked) -> Callable[[Session], Any]:
    return VERBS.get(asked, Session.mark_accessed)


CROSS_SITE = {"type": "http", "method": "POST", "headers": [(b"sec-fetch-site", b"cross-site")]}


@pytest.mark.parametrize(("row", "was", "data", "asked", "phase"), CASES, ids=lambda v: getattr(v, "name", "row"))
async def test_a_row_of_the_table(row: Row, was: Was, data: Data, asked: Asked, phase: Phase, clock: FakeClock) -> None:
    store = Wrapped(MemoryStore())
    renewing = Timeouts(renew=timedelta(minutes=5)) if asked is Asked.RENEWAL else Timeouts()
    browser = Browser(app_with(store, clock=clock, timeouts=renewing, cookie=CookieConfig(samesite="lax")))
    manager = browser.app._manager
    if was is Was.FOUND:
        await browser.do(lambda s: s.update(a=1))
    if asked in (Asked.TOUCH, Asked.RENEWAL):
        clock.advance(timedelta(minutes=6))
    session = await manager.load([browser.key]) if was is Was.FOUND else manager.begin()
    if phase is Phase.DEGRADED or (row.store is Step.REFUSE):
        session = manager.degraded()
    store.calls.clear()

    if phase is Phase.ENDED:
        session._over = True
    if phase is Phase.WITHHELD:
        session._origin = CROSS_SITE
    verb_of(asked)(session)
    CHANGES[data](session)
    if phase is Phase.ENDED:
        session._over = True  # a verb may have begun another session
    session._started = phase is Phase.STARTED
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            await manager.commit(session, failed=phase is Phase.FAILED)
        except StoreError:
            assert row.store is Step.REFUSE
        else:
            assert row.store is not Step.REFUSE

    if row.store is Step.LOG_IN:
        assert store.calls == (["create", "delete"] if was is Was.FOUND else ["create"])
    else:
        assert store.calls == QUESTIONS[row.store]
    cookie = {Cookie.NOTHING: False, Cookie.DELETE: True}.get(row.cookie)
    assert session._cookie is cookie or (cookie is None and isinstance(session._cookie, tuple))
    is_not_saved = row.store in (Step.NOT_SAVED, Step.DELETE_ONLY)
    assert bool(warned) == (is_not_saved and phase is not Phase.WITHHELD)


@pytest.mark.parametrize(
    ("row", "was", "data", "asked", "phase"),
    [case for case in CASES if case[-1] is Phase.OPEN],
    ids=lambda v: getattr(v, "name", "row"),
)
async def test_a_row_of_the_table_as_a_browser_sees_it(
    row: Row, was: Was, data: Data, asked: Asked, phase: Phase, clock: FakeClock
) -> None:
    store = Wrapped(MemoryStore())
    renewing = Timeouts(renew=timedelta(minutes=5)) if asked is Asked.RENEWAL else Timeouts()
    browser = Browser(app_with(store, clock=clock, timeouts=renewing))
    if was is Was.FOUND:
        await browser.do(lambda s: s.update(a=1))
    if asked in (Asked.TOUCH, Asked.RENEWAL):
        clock.advance(timedelta(minutes=6))
    before = browser.token
    store.calls.clear()

    response = await browser.do(lambda s: (verb_of(asked)(s), CHANGES[data](s)))

    asked_of_store = store.calls[1:] if was is Was.FOUND else store.calls
    if row.store is Step.LOG_IN:
        assert asked_of_store == (["create", "delete"] if was is Was.FOUND else ["create"])
    else:
        assert asked_of_store == QUESTIONS[row.store]
    cookie = response.set_cookie or ""
    if row.cookie is Cookie.NOTHING:
        assert cookie == ""
        assert browser.token == before
    elif row.cookie is Cookie.SET:
        assert browser.token not in (None, before)
    else:
        assert "Max-Age=0" in cookie


def test_every_case_stands_in_one_row_only() -> None:
    keys = [case for _, *case in map(list, CASES)]

    assert len(keys) == len({tuple(key) for key in keys})


def test_every_case_that_can_arise_has_a_row() -> None:
    there = {case[1:] for case in CASES}
    fresh, known = (Data.EMPTY, Data.SOME), (Data.SAME, Data.CHANGED, Data.EMPTIED)
    can_arise: set[tuple[Was, Data, Asked, Phase]] = set()
    for phase in (Phase.OPEN, Phase.STARTED, Phase.DEGRADED):
        # The clocks make nothing due where there is no record, and no token is renewed when its cookie cannot leave.
        by_clock = (Asked.TOUCH, Asked.RENEWAL) if phase is Phase.OPEN else (Asked.TOUCH,)
        quiet = (Asked.NOTHING, Asked.REGENERATE)
        can_arise |= set(product([Was.NONE], fresh, (*quiet, Asked.LOG_IN), [phase]))
        if phase is Phase.DEGRADED:
            can_arise |= set(product([Was.NONE], fresh, [Asked.DESTROY], [phase]))
        else:
            can_arise |= set(product([Was.FOUND], known, (*quiet, *by_clock), [phase]))
            can_arise |= set(product([Was.FOUND], fresh, (Asked.LOG_IN, Asked.DESTROY), [phase]))
    # Only what would begin an anonymous session finds that a cookie may have been withheld.
    can_arise |= {(Was.NONE, Data.SOME, asked, Phase.WITHHELD) for asked in quiet}
    can_arise |= {(Was.FOUND, Data.SOME, Asked.DESTROY, Phase.WITHHELD)}
    # Of a failed request neither data nor any other verb counts.
    can_arise |= {(Was.NONE, Data.EMPTY, asked, Phase.FAILED) for asked in (Asked.NOTHING, Asked.DESTROY)}
    can_arise |= {(Was.FOUND, Data.SAME, asked, Phase.FAILED) for asked in (Asked.NOTHING, Asked.TOUCH)}
    can_arise |= {(Was.FOUND, Data.EMPTY, Asked.DESTROY, Phase.FAILED)}
    can_arise |= {(Was.NONE, Data.EMPTY, Asked.NOTHING, Phase.ENDED)}
    can_arise |= {(Was.FOUND, Data.SAME, asked, Phase.ENDED) for asked in (Asked.NOTHING, Asked.TOUCH)}

    assert there == can_arise


def test_every_call_of_a_plan_is_carried_out() -> None:
    assert set(CALLERS) == set(get_args(Call))
