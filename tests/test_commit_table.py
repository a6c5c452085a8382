"""The commit table, walked row by row: what the store is asked, and what the browser is told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import product
from typing import Any, get_args

import pytest

from asgi_sessions import MemoryStore, Session, Timeouts
from asgi_sessions._core.plan import COMMIT_TABLE, Call, Cookie, Data, Row, Step, Was
from asgi_sessions._core.session import Asked
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with
from tests.wrapped import Wrapped

CASES = [(row, data, asked) for row in COMMIT_TABLE for data, asked in product(row.data, row.asked)]

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
}

CHANGES: dict[Data, Callable[[Session], Any]] = {
    Data.EMPTY: lambda s: s.clear(),
    Data.SOME: lambda s: s.update(new=1),
    Data.SAME: lambda s: s.get("a"),
    Data.CHANGED: lambda s: s.update(a=2),
    Data.EMPTIED: lambda s: s.clear(),
}


def verb_of(asked: Asked) -> Callable[[Session], Any]:
    verbs: dict[Asked, Callable[[Session], Any]] = {
        Asked.LOG_IN: lambda s: s.log_in("alice"),
        Asked.REGENERATE: lambda s: s.regenerate(),
        Asked.DESTROY: lambda s: s.destroy(),
    }
    return verbs.get(asked, lambda s: None)


@pytest.mark.parametrize(("row", "data", "asked"), CASES, ids=lambda v: getattr(v, "name", "row"))
async def test_a_row_of_the_table(row: Row, data: Data, asked: Asked, clock: FakeClock) -> None:
    store = Wrapped(MemoryStore())
    renewing = Timeouts(renew=timedelta(minutes=5)) if asked is Asked.RENEWAL else Timeouts()
    browser = Browser(app_with(store, clock=clock, timeouts=renewing))
    if row.was is Was.FOUND:
        await browser.do(lambda s: s.update(a=1))
    if asked in (Asked.TOUCH, Asked.RENEWAL):
        clock.advance(timedelta(minutes=6))
    before = browser.token
    store.calls.clear()

    response = await browser.do(lambda s: (verb_of(asked)(s), CHANGES[data](s)))

    asked_of_store = store.calls[1:] if row.was is Was.FOUND else store.calls
    if row.store is Step.LOG_IN:
        assert asked_of_store == (["create", "delete"] if row.was is Was.FOUND else ["create"])
    else:
        assert asked_of_store == QUESTIONS[row.store]
    told = response.set_cookie or ""
    if row.cookie is Cookie.NOTHING:
        assert told == ""
        assert browser.token == before
    elif row.cookie is Cookie.SET:
        assert browser.token not in (None, before)
    else:
        assert "Max-Age=0" in told


def test_every_case_stands_in_one_row_only() -> None:
    keys = [(row.was, data, asked) for row, data, asked in CASES]

    assert len(keys) == len(set(keys))


def test_every_case_that_can_arise_has_a_row() -> None:
    there = {(row.was, data, asked) for row, data, asked in CASES}
    fresh, known = (Data.EMPTY, Data.SOME), (Data.SAME, Data.CHANGED, Data.EMPTIED)
    can_arise: set[tuple[Was, Data, Asked]] = {
        (Was.NONE, data, asked) for data in fresh for asked in Asked if asked is not Asked.DESTROY
    }
    can_arise |= {
        (Was.FOUND, data, asked) for data in known for asked in Asked if asked not in (Asked.LOG_IN, Asked.DESTROY)
    }
    can_arise |= {(Was.FOUND, data, asked) for data in fresh for asked in (Asked.LOG_IN, Asked.DESTROY)}

    assert there == can_arise


def test_every_call_of_a_plan_is_carried_out_by_the_manager() -> None:
    from asgi_sessions._engine.manager import Manager

    assert set(Manager._carriers) == set(get_args(Call))
