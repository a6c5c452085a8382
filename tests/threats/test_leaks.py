"""Session ids in logs: a whole life of sessions, with everything that is said about it held against what must not be."""

from __future__ import annotations

import gc
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

from asgi_sessions import ConfigurationError, CookieConfig, RedisStore, SessionDataError, Timeouts
from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.record import Body, Record
from asgi_sessions._core.token import BARE_CHARS, key_of
from asgi_sessions.errors import SessionError
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with, destroy, log_in, put, regenerate
from tests.threats.hostile import SECRET, Between, Events, WriteAccess, raising

PAYLOAD = "payload-marker-4711"
USER = "user-marker@example.org"


class Listener(logging.Handler):
    """Hears all that is logged, warned of and raised."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []
        self.tokens: set[str] = set()

    def note(self, *things: Any) -> None:
        for thing in things:
            self.heard += [repr(thing), str(thing)]

    def note_error(self, error: BaseException) -> None:
        """Its text, its arguments, those of all that led to it, and the traceback as it would be printed."""
        seen: BaseException | None = error
        while seen is not None:
            self.note(seen, *seen.args, *getattr(seen, "__notes__", ()))
            self.heard += [repr(vars(seen))] if vars(seen) else []
            # What was raised "from None" is shown by nobody, collectors of errors included.
            seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
        self.heard += traceback.format_exception(error)

    def emit(self, record: logging.LogRecord) -> None:
        self.heard += [record.getMessage(), repr(record.args), repr(record.msg)]
        self.heard += [repr(value) for name, value in vars(record).items() if name not in ("pathname", "filename")]
        if record.exc_info and record.exc_info[1] is not None:
            self.note_error(record.exc_info[1])

    def finds(self, *secrets: str) -> list[str]:
        heard = "\n".join(self.heard)
        return [secret for secret in secrets if secret and secret in heard]

    def everything_secret(self) -> list[str]:
        keys = {key_of(token) for token in self.tokens}
        parts = {token[3:BARE_CHARS] for token in self.tokens} | {token[BARE_CHARS:] for token in self.tokens}
        return [*self.tokens, *parts, *keys, *(key[3:] for key in keys), SECRET]


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    root = logging.getLogger()
    names = ["", "asgi_sessions", "asyncio", "redis", "anyio", "concurrent.futures"]
    before = {name: logging.getLogger(name).level for name in names}
    root.addHandler(listener)
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield listener
    root.removeHandler(listener)
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """What is raised and warned of in this block is heard, and goes no further."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except Exception as error:
            listener.note_error(error)
    listener.note(*(warning.message for warning in caught))


async def test_tokens_keys_and_payloads_are_in_no_log_event_warning_error_or_repr(
    store: Store, options: dict[str, Any], clock: FakeClock, events: Events, listener: Listener
) -> None:
    """CVE-2023-20866 (Spring Session): a session id, logged, is a session for whoever reads the log."""
    options = {**options, "timeouts": Timeouts(renew=Timeouts().touch * 5)}
    watched = Between(store)
    app = app_with(watched, **options)
    browser = Browser(app)

    async def do(handler: Any = lambda session: None, **plan: Any) -> None:
        def noted(session: Any) -> Any:
            listener.note(session, f"{session}", [session])
            return handler(session)

        with listening(listener):
            response = await browser.do(noted, **plan)
            for line in response.all("set-cookie"):
                listener.tokens.add(line.partition("=")[2].partition(";")[0])
        if browser.token:
            listener.tokens.add(browser.token)

    data = {"secret": PAYLOAD, "nested": {"again": [PAYLOAD]}}
    # An ordinary life,
    await do(put(**data))
    await do(log_in(USER, remember=True))
    await do(lambda session: session.confirm())
    await do(regenerate)
    clock.advance(301)
    await do(put(more=PAYLOAD))  # and renewed by itself
    # with conflicts,
    async with browser.paused(put(a=PAYLOAD)):
        await do(put(b=PAYLOAD))
    async with browser.another().paused(put(a=[PAYLOAD])):
        await do(log_in(USER))
    # crashes,
    await do(put(c=PAYLOAD), crash=RuntimeError("of the app"))
    await do(destroy, status=500)
    # values that are refused,
    await do(log_in(USER))
    await do(put(**data))
    for value in (object(), {PAYLOAD: object()}, [PAYLOAD, {1, 2}], 1 << 70, [PAYLOAD] * 99_000):
        await do(put(bad=value))
    # late changes, also of a session that can have no cookie any more,
    await do(after=put(late=PAYLOAD))
    browser.token = None
    await do(after=put(late=PAYLOAD))
    # two cookies, forged ones,
    await do(log_in(USER))
    with listening(listener):
        both = f"{browser.name}={browser.token}; {browser.name}={browser.token}".encode()
        await browser.raw([(b"cookie", both)], dict)
        await browser.raw([(b"cookie", f"{browser.name}={browser.token}x".encode())], dict)
    # damage,
    access = WriteAccess(store)
    record = access.take(browser.key)
    for body in (b"", b"Pjunk", b"Sjunk" * 20, record.body[:-1]):
        access.change(browser.key, body=body)
        await do(dict)
    access.put(browser.key, record)
    # trouble with the store, of which the driver may say anything,
    for method in ("load", "update", "touch", "rename", "create", "delete", "index"):
        for handler in (dict, put(d=PAYLOAD), regenerate, log_in(USER), destroy):
            watched.instead[method] = raising(OSError(5, "input/output error"))
            app._manager.guard.breaker.succeeded()
            clock.advance(61)
            await do(handler)
            watched.instead.clear()
    # and the end.
    app._manager.guard.breaker.succeeded()
    await do(log_in(USER))
    clock.advance(40 * 86_400)
    await do(dict)
    await do(log_in(USER))
    await do(destroy)

    for event in events:
        listener.note(event, event.details, *event.details.values())
    listener.note(app, app.cookie, app._manager, store, watched, app._manager.secrets, app._manager._mint, browser.app)
    gc.collect()

    assert len(listener.tokens) > 10
    assert len(listener.heard) > 200
    assert {"session.logged_in", "session.damaged", "session.lost", "store.failed", "cookie.duplicated"} <= set(
        events.names
    )
    assert listener.finds(*listener.everything_secret()) == []
    assert listener.finds(PAYLOAD) == []


async def test_the_log_names_no_user(store: Store, options: dict[str, Any], listener: Listener) -> None:
    """A user's id may be a mail address: events have it, for the app that asked for them; the log has not."""
    alice = Browser(app_with(store, **options))
    for handler in (log_in(USER), put(a=1), regenerate, destroy):
        await alice.do(handler)

    assert listener.heard
    assert listener.finds(USER, "user-marker") == []


async def test_a_failing_hook_does_not_put_a_token_into_the_log(
    store: Store, clock: FakeClock, listener: Listener
) -> None:
    """CVE-2023-20866: what it raises is logged with its traceback, and all it had was the event."""

    def hook(event: Any) -> None:
        raise RuntimeError(repr(event))

    alice = Browser(app_with(store, clock=clock, on_event=hook))
    for handler in (put(secret=PAYLOAD), log_in("alice"), regenerate):
        await alice.do(handler)
        listener.tokens.add(str(alice.token))

    assert listener.finds("RuntimeError")
    assert listener.finds(*listener.everything_secret(), PAYLOAD) == []


def test_secrets_do_not_show() -> None:
    """Neither in the repr of what holds them, nor in the error about one that is no good."""
    secret = "hunter2-hunter2-hunter2"

    with pytest.raises(SessionError) as short:
        Secrets([secret])
    with pytest.raises(SessionError) as placeholder:
        Secrets(["changeme-" + secret + secret])
    with pytest.raises(SessionError) as twice:
        Secrets([secret * 2, secret * 2])
    with pytest.raises(SessionError) as single:
        Secrets(secret * 2)

    for caught in (short, placeholder, twice, single):
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))
        assert "hunter2" not in repr(caught.value.args)
    assert "hunter2" not in repr(Secrets([secret * 2])) + str(vars(CookieConfig))


def test_the_repr_of_a_record_shows_neither_its_key_nor_its_body() -> None:
    """Error collectors keep the locals of every frame; a driver's error brings a record along as an argument."""
    key = "Zk3" + "k" * 43
    record = Record(key, 1, 1.8e9, 1.8e9, "i" * 16, None, PAYLOAD.encode())

    assert "k" * 43 not in repr(record)
    assert PAYLOAD not in repr(record)


def test_the_repr_of_a_body_shows_neither_the_user_nor_the_payload() -> None:
    """It stands among the locals of every frame between the store and the session."""
    body = Body("session", USER, 1.8e9, 1.8e9, 1.8e9, False, PAYLOAD.encode())

    assert USER not in repr(body)
    assert PAYLOAD not in repr(body)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(f"{PAYLOAD} \ud800", id="text that is no Unicode"),
        pytest.param(datetime(2031, 4, 5, 6, 7, 8), id="a naive datetime"),
    ],
)
async def test_an_error_about_a_value_does_not_hold_the_value(
    memory: Store, clock: FakeClock, listener: Listener, value: Any
) -> None:
    """It names the key. What stands under it may be anything, and errors travel further than sessions."""
    with pytest.raises(SessionDataError, match="birthday") as caught:
        await Browser(app_with(memory, clock=clock)).do(put(birthday=value))

    listener.note_error(caught.value)
    assert listener.finds(PAYLOAD, "2031, 4, 5") == []


def test_the_password_of_a_url_is_not_in_the_error_about_it(listener: Listener) -> None:
    """The traceback of an app that does not start is the first thing that is pasted into a ticket."""
    with pytest.raises(ConfigurationError) as caught:
        RedisStore.from_url("redis://:hunter2/hunter2@localhost:6379/0")

    listener.note_error(caught.value)
    said = [line for line in listener.heard if "from_url(" not in line or "File" not in line]
    assert not [line for line in said if "hunter2" in line and "redis://" not in line]


async def test_a_user_id_that_is_refused_is_not_in_the_error(memory: Store, clock: FakeClock) -> None:
    """Nothing personal in messages; and the text of an error is often shown to whoever caused it."""
    browser = Browser(app_with(memory, clock=clock))

    bad: Any
    for bad in (b"user-marker", 4711, ["user-marker"], ""):
        with pytest.raises(SessionDataError) as caught:
            await browser.do(log_in(bad))
        assert "user-marker" not in str(caught.value)
        assert "4711" not in str(caught.value)


async def test_nothing_but_the_cookie_carries_the_token(store: Store, options: dict[str, Any]) -> None:
    """No header, no body, no event, and no record: the browser alone keeps it."""
    alice = Browser(app_with(store, **options))
    response = await alice.do(log_in("alice"))
    token = str(alice.token)
    record = await store.load(alice.key)

    others = [header for header in response.headers if header[0] != b"set-cookie"]
    assert token not in str(others) + str(response.body)
    assert token[3:BARE_CHARS] not in repr(record)
    assert token[3:BARE_CHARS].encode() not in (b"" if record is None else record.body)
