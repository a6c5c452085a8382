"""Code that was written for the sessions of others: it works here, or the error says what to write instead."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any

import fastapi
import jinja2
import pytest
import quart
from starlette.applications import Starlette
from starlette.middleware.sessions import Session as StarlettesSession
from starlette.middleware.sessions import SessionMiddleware as StarlettesMiddleware

from asgi_sessions import (
    ConfigurationError,
    MemoryStore,
    Session,
    SessionError,
    SessionMiddleware,
    Sessions,
    SessionWarning,
)
from asgi_sessions._core.session import ATTRIBUTES
from asgi_sessions.frameworks.litestar import SessionPlugin
from asgi_sessions.frameworks.quart import init_app
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, Handler, app_with, destroy, log_in, put, read, regenerate

# ── What Starlette's Session offers ──


def names_of(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_a_session_has_every_name_of_starlettes() -> None:
    assert names_of(StarlettesSession) <= names_of(Session)


@pytest.mark.parametrize(
    "mark",
    [lambda session: session.mark_modified(), lambda session: setattr(session, "modified", True)],
    ids=["mark_modified, as Starlette", "modified = True, as Flask and Django"],
)
async def test_a_mark_has_a_change_past_the_methods_saved(store: Store, mark: Handler) -> None:
    browser = Browser(app_with(store))
    await browser.do(put(basket=["tea"]))

    def change_unseen(session: Session) -> None:
        dict.__getitem__(session, "basket").append("milk")
        mark(session)

    await browser.do(change_unseen)

    assert (await read(browser))["data"] == {"basket": ["tea", "milk"]}


async def test_mark_modified_has_a_list_saved_that_was_kept_since_the_last_save(store: Store) -> None:
    browser = Browser(app_with(store))

    async def change_what_was_kept(session: Session) -> None:
        session["basket"] = basket = ["tea"]
        await session.save()
        basket.append("milk")
        session.mark_modified()

    await browser.do(change_what_was_kept)

    assert (await read(browser))["data"] == {"basket": ["tea", "milk"]}


async def test_mark_modified_has_what_cannot_be_kept_refused(store: Store) -> None:
    """Without it a tuple in the place of an equal list, put there by code in C, would stay unnoticed."""
    browser = Browser(app_with(store))
    await browser.do(put(pair=[1, 2]))

    def change_unseen(session: Session) -> None:
        dict.__setitem__(session, "pair", (1, 2))
        session.mark_modified()

    with pytest.raises(SessionError, match=r"session\['pair'\] holds a builtins\.tuple"):
        await browser.do(change_unseen)


async def test_mark_modified_without_a_change_writes_nothing(store: Store) -> None:
    browser = Browser(app_with(store))
    await browser.do(put(a=1))
    before = await store.load(browser.key)

    response = await browser.do(lambda session: session.mark_modified())

    assert await store.load(browser.key) == before
    assert response.set_cookie is None
    assert response.get("vary") == "Cookie"


def nested(session: Session) -> None:
    session["deep"]["list"].append(1)


def same(session: Session) -> None:
    session["name"] = "tea"


def back_and_forth(session: Session) -> None:
    session["name"] = "milk"
    session["name"] = "tea"


def past_the_methods(session: Session) -> None:
    dict.__setitem__(session, "name", "milk")
    session.mark_modified()


def moved_clock(session: Session) -> None:
    session["at"] = session["at"].astimezone(timezone(timedelta(hours=2)))


MODIFIED: dict[str, tuple[Callable[[Session], Any], bool]] = {
    "nothing": (lambda session: None, False),
    "a read": (lambda session: session["name"], False),
    "a read of a list": (lambda session: session["deep"]["list"], False),
    "a read of all": (lambda session: dict(session.items()), False),
    "a read of a time in a zone": (lambda session: session["zoned"], False),
    "a nested change": (nested, True),
    "the same value": (same, False),
    "a change and back": (back_and_forth, False),
    "a change past the methods": (past_the_methods, True),
    "the same instant in another zone": (moved_clock, True),
    "another value": (put(name="milk"), True),
    "a new key": (put(other=1), True),
    "what cannot be kept": (put(other=object()), True),
    "a key less": (lambda session: session.pop("name"), True),
    "a key that was not there": (lambda session: session.pop("nothing", None), False),
    "clear": (lambda session: session.clear(), True),
    "log_in": (log_in("alice"), True),
    "regenerate": (regenerate, True),
    "destroy": (destroy, True),
}


@pytest.mark.parametrize(("change", "is_modified"), MODIFIED.values(), ids=MODIFIED)
async def test_modified_is_whether_something_is_to_be_saved(
    memory: MemoryStore, change: Callable[[Session], Any], is_modified: bool
) -> None:
    browser = Browser(app_with(memory))
    zoned = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    await browser.do(put(name="tea", deep={"list": []}, at=datetime(2026, 1, 1, tzinfo=UTC), zoned=zoned))
    said = []

    async def handler(session: Session) -> None:
        said.append(session.modified)
        change(session)
        said.extend([session.modified, session.modified])
        dict.pop(session, "other", None)  # so that all can be saved
        await session.save()
        said.append(session.modified)

    await browser.do(handler)

    assert said == [False, is_modified, is_modified, False]


@pytest.mark.parametrize(
    ("change", "is_modified"),
    [(lambda session: session.get("a", []), False), (put(a=1), True), (log_in("alice"), True), (destroy, False)],
    ids=["a default list", "data", "a log-in", "an end of nothing"],
)
async def test_modified_of_a_session_that_is_not_stored_yet(
    memory: MemoryStore, change: Callable[[Session], Any], is_modified: bool
) -> None:
    said = []

    def handler(session: Session) -> None:
        change(session)
        said.append(session.modified)

    await Browser(app_with(memory)).do(handler)

    assert said == [is_modified]


async def test_modified_does_not_change_what_is_saved(memory: MemoryStore) -> None:
    """A value that only looks like the one before is refused, whether or not the app asked before."""
    browser = Browser(app_with(memory))
    await browser.do(put(pair=[1, 2]))

    def handler(session: Session) -> None:
        session["pair"] = (1, 2)
        assert session.modified

    with pytest.raises(SessionError, match="tuple"):
        await browser.do(handler)


async def test_after_mark_modified_a_session_says_so_until_it_is_saved(memory: MemoryStore) -> None:
    browser = Browser(app_with(memory))
    await browser.do(put(a=1))
    said = []

    async def handler(session: Session) -> None:
        session.mark_modified()
        said.extend([session.accessed, session.modified])
        await session.save()
        said.append(session.modified)

    await browser.do(handler)

    assert said == [True, True, False]


async def test_accessed_is_whether_the_app_has_looked_and_to_ask_is_not_to_look(memory: MemoryStore) -> None:
    browser = Browser(app_with(memory))
    await browser.do(put(a=1))
    said = []

    def handler(session: Session) -> None:
        said.append((session.accessed, session.modified, session.accessed))
        assert "a" in session
        said.append((session.accessed, session.modified, session.accessed))

    await browser.do(handler)
    response = await browser.do(lambda session: (session.accessed, session.modified))

    assert said == [(False, False, False), (True, False, True)]
    assert response.get("vary") is None


@pytest.mark.parametrize("name", ["accessed", "modified"])
async def test_setting_a_mark_to_false_is_refused(memory: MemoryStore, name: str) -> None:
    """It would be believed that something is not saved, or not told to caches."""
    with pytest.raises(SessionError, match=f"session.{name} = False"):
        await Browser(app_with(memory)).do(lambda session: setattr(session, name, False))


async def test_setting_accessed_says_vary(memory: MemoryStore) -> None:
    response = await Browser(app_with(memory)).do(lambda session: setattr(session, "accessed", True))

    assert response.get("vary") == "Cookie"


# ── What sessions of other libraries offer ──

FOREIGN = {
    "invalidate": r"destroy\(\)",  # Pyramid, aiohttp-session
    "changed": r"mark_modified\(\)",
    "new": "is_new",
    "created": "created_at",
    "identity": "id",
    "empty": "not session",
    "flush": r"destroy\(\)",  # Django
    "cycle_key": r"regenerate\(\)",
    "session_key": "id",
    "is_empty": "not session",
    "set_expiry": "timeouts=",
    "permanent": "remember=True",  # Flask
    "sid": "id",  # Flask-Session
}


@pytest.mark.parametrize(("name", "advice"), FOREIGN.items(), ids=FOREIGN)
async def test_a_name_of_another_librarys_session_says_what_it_is_called_here(
    memory: MemoryStore, name: str, advice: str
) -> None:
    said = f"no '{name}' here: .*{advice}"

    with pytest.raises(AttributeError, match=said):
        await Browser(app_with(memory)).do(lambda session: getattr(session, name))
    with pytest.raises(AttributeError, match=said):
        await Browser(app_with(memory)).do(lambda session: setattr(session, name, True))


async def test_data_under_such_a_name_is_what_a_template_finds(memory: MemoryStore) -> None:
    found = []
    template = jinja2.Environment().from_string(
        "{% for name in names %}{{ session[name] }}{% endfor %}{{ session.new }}"
    )

    def handler(session: Session) -> None:
        session.update(dict.fromkeys(FOREIGN, "x"))
        found.append(template.render(session=session, names=list(FOREIGN)))
        assert not any(hasattr(session, name) for name in FOREIGN)

    await Browser(app_with(memory)).do(handler)

    assert found == ["x" * (len(FOREIGN) + 1)]


# ── Data under the name of an attribute ──


@contextmanager
def warned() -> Iterator[list[str]]:
    """What SessionWarnings say while this lasts."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
        said.extend(str(each.message) for each in caught if issubclass(each.category, SessionWarning))


def merged(session: Session) -> None:
    session |= {"user_id": "alice"}


WAYS: dict[str, Callable[[Session], Any]] = {
    "item": lambda session: session.__setitem__("user_id", "alice"),
    "setdefault": lambda session: session.setdefault("user_id", "alice"),
    "update with a dict": lambda session: session.update({"user_id": "alice"}),
    "update with pairs": lambda session: session.update([("user_id", "alice")]),
    "update with names": lambda session: session.update(user_id="alice"),
    "|=": merged,
    "past the methods": lambda session: (dict.__setitem__(session, "user_id", "alice"), session.mark_modified()),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_data_under_the_name_of_an_attribute_is_warned_of_once(
    memory: MemoryStore, way: Callable[[Session], Any]
) -> None:
    app = app_with(memory)

    with warned() as said:
        for browser in (Browser(app), Browser(app), Browser(app_with(app.sessions))):
            await browser.do(way)
            await browser.do(way)

    assert len(said) == 1
    assert "session['user_id']" in said[0]
    assert "session.user_id" in said[0]
    assert "session.log_in(user_id)" in said[0]


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
async def test_each_attribute_has_its_warning_and_the_data_is_kept(memory: MemoryStore, name: str) -> None:
    browser = Browser(app_with(memory))

    with warned() as said:
        await browser.do(put(**{name: "data"}))

    assert [f"session[{name!r}] is data" in each for each in said] == [True]
    assert (await read(browser))["data"] == {name: "data"}


def test_every_public_attribute_that_a_dict_does_not_have_is_one_of_them() -> None:
    assert {name for name in names_of(Session) - names_of(dict) if hasattr(Session, name)} == ATTRIBUTES
    assert {"user_id", "id", "created_at", "scheme", "is_new", "modified"} <= ATTRIBUTES


async def test_other_names_are_not_warned_of(memory: MemoryStore) -> None:
    with warned() as said:
        await Browser(app_with(memory)).do(put(user="alice", items=[], keys=1, get=2, **dict.fromkeys(FOREIGN, 1)))

    assert said == []


async def test_data_from_before_is_warned_of_when_its_session_is_next_touched(
    memory: MemoryStore, clock: FakeClock
) -> None:
    """A request that only reads has no part in it: the look costs nothing there."""
    browser = Browser(app_with(memory, clock=clock))
    with warned():
        await browser.do(put(user_id="alice"))
    again: set[str] = set()
    browser.app._manager.shadowed = again  # as in a process that has just started

    with warned() as said:
        await browser.do(lambda session: session["user_id"])
        assert not again
        clock.advance(timedelta(minutes=2))
        await browser.do(lambda session: session["user_id"])

    assert len(said) == 1
    assert again == {"user_id"}


async def test_the_warning_points_at_the_line_that_stored_it(memory: MemoryStore) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await Browser(app_with(memory)).do(lambda session: session.__setitem__("user_id", "alice"))

    assert [each.filename for each in caught] == [__file__]


async def test_where_warnings_are_errors_nothing_is_stored(memory: MemoryStore) -> None:
    browser = Browser(app_with(memory))

    with pytest.raises(SessionWarning):
        await browser.do(put(user_id="alice"))
    with pytest.raises(SessionWarning):
        await browser.do(put(user_id="alice"))

    assert browser.token is None


# ── Options of other session middlewares ──

STARLETTES = {
    "secret_key": "secret_keys=[",
    "session_cookie": "cookie=CookieConfig(name=…)",
    "max_age": "timeouts=Timeouts(idle=…, absolute=…)",
    "path": "cookie=CookieConfig(path=…)",
    "same_site": "cookie=CookieConfig(samesite=…)",
    "https_only": "cookie=CookieConfig(secure=…)",
    "domain": "cookie=CookieConfig(domain=…)",
    "partitioned": "cookie=CookieConfig(partitioned=True",
}
OTHERS = {
    "lifetime": "timeouts=Timeouts(",
    "rolling": "timeouts=Timeouts(idle=…)",
    "backend": "store=…",
    "cookie_name": "cookie=CookieConfig(name=…)",
    "cookie_same_site": "cookie=CookieConfig(samesite=…)",
    "cookie_https_only": "cookie=CookieConfig(secure=…)",
    "cookie_domain": "cookie=CookieConfig(domain=…)",
    "cookie_path": "cookie=CookieConfig(path=…)",
}
BUILDERS: dict[str, Callable[..., Any]] = {
    "SessionMiddleware": partial(SessionMiddleware, Starlette()),
    "SessionPlugin": SessionPlugin,
    "init_app": partial(init_app, quart.Quart("shop")),
    "Sessions": Sessions,
}
each_builder = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


def test_every_option_of_starlettes_middleware_is_known() -> None:
    theirs = set(inspect.signature(StarlettesMiddleware).parameters) - {"app"}

    assert theirs <= STARLETTES.keys()


@each_builder
@pytest.mark.parametrize("with_store", [True, False], ids=["with a store", "without a store"])
@pytest.mark.parametrize(("option", "ours"), (STARLETTES | OTHERS).items(), ids=list(STARLETTES | OTHERS))
def test_an_option_of_another_middleware_is_answered_with_ours(
    memory: MemoryStore, build: Callable[..., Any], with_store: bool, option: str, ours: str
) -> None:
    store = {"store": memory} if with_store else {}

    with pytest.raises(ConfigurationError) as caught:
        build(**store, **{option: "of another"})

    assert f"Instead of {option}: " in str(caught.value)
    assert ours in str(caught.value)
    assert ("Give a store" in str(caught.value)) is not with_store
    assert "of another" not in str(caught.value)


@each_builder
def test_all_options_of_starlettes_at_once_are_answered_one_by_one(build: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build(**dict.fromkeys(STARLETTES))

    for option, ours in STARLETTES.items():
        assert f"Instead of {option}: {ours}" in str(caught.value)


@each_builder
def test_no_store_is_a_clear_error(build: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"Give a store: store=MemoryStore\(\)"):
        build()


@each_builder
def test_an_option_of_nobodys_is_a_type_error_as_ever(memory: MemoryStore, build: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="sauce"):
        build(store=memory, sauce="soy")


@each_builder
@pytest.mark.parametrize("given", ["hunter2-hunter2-hunter2-hunter2", "redis://:hunter2@localhost", b"hunter2"])
def test_what_is_given_in_the_place_of_a_store_is_not_shown(build: Callable[..., Any], given: object) -> None:
    """Starlette's second argument is its secret key."""
    with pytest.raises(ConfigurationError, match="give a store") as caught:
        build(store=given)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("framework", [Starlette, fastapi.FastAPI])
async def test_add_middleware_as_for_starlettes_says_so_when_the_app_starts(framework: type[Starlette]) -> None:
    app = framework()
    app.add_middleware(SessionMiddleware, secret_key="hunter2", https_only=True)  # type: ignore[call-arg]  # the point

    with pytest.raises(ConfigurationError, match="Instead of secret_key: secret_keys=") as caught:
        await app({"type": "lifespan"}, None, None)  # type: ignore[arg-type]  # it does not get so far

    assert "hunter2" not in str(caught.value)
