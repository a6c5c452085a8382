"""Bad input: cookie headers from anywhere, users' ids of any kind, values that cannot be kept, apps that break the rules.

What a request sends must cost little and never raise. What an app hands over is kept to the letter, or refused by name.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import fractions
import ipaddress
import math
import pathlib
import random
import types
import uuid
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from asgi_sessions import CookieConfig, Session, SessionDataError, SessionMiddleware
from asgi_sessions._core.cookie import values_called
from asgi_sessions._core.payload import MAX_PAYLOAD
from asgi_sessions._core.token import key_of, owner_of
from asgi_sessions.errors import SessionError
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import PLAIN, Browser, app_with, destroy, log_in, put, read, regenerate
from tests.threats.hostile import CONNECT, Between, exchange, http_scope, websocket_scope

Handler = Callable[[Session], Any]
NAME = CookieConfig().name.encode()
KB64 = 65_536


# ── Cookie headers ──

ODD_HEADERS: list[Any] = [
    pytest.param([b""], id="empty"),
    pytest.param([b";"], id="a semicolon"),
    pytest.param([b"=" * KB64], id="64 kB of ="),
    pytest.param([b";" * KB64], id="64 kB of ;"),
    pytest.param([b" " * KB64], id="64 kB of spaces"),
    pytest.param([b"\t;" * (KB64 // 2)], id="64 kB of tabs and ;"),
    pytest.param([b'"' * KB64], id="64 kB of quotes"),
    pytest.param([b"\x00" * KB64], id="64 kB of NUL"),
    pytest.param([b"\xff" * KB64], id="64 kB of what is no UTF-8"),
    pytest.param([b"a=" + b"x" * KB64], id="one cookie of 64 kB"),
    pytest.param([NAME + b"=" + b"x" * KB64], id="ours, 64 kB long"),
    pytest.param([NAME + b"=" + b"A" * KB64], id="ours, 64 kB of the right letters"),
    pytest.param([(b"x" + NAME + b"=") * 3000], id="3,000 that nearly are ours"),
    pytest.param([NAME * 3000], id="our name 3,000 times"),
    pytest.param([b"; ".join(b"c%d=%d" % (n, n) for n in range(5000))], id="5,000 cookies"),
    pytest.param([b"c=d"] * 5000, id="5,000 headers"),
    pytest.param([NAME + b"=\r\nSet-Cookie: evil=1"], id="CR LF"),
    pytest.param([NAME + b"=\x00"], id="NUL"),
    pytest.param([NAME + b"=\xf0\x9f\x8d\xaa"], id="an emoji"),
    pytest.param([NAME + b"=\xc3\x28"], id="broken UTF-8"),
    pytest.param([NAME], id="no ="),
    pytest.param([NAME + b"="], id="no value"),
    pytest.param([NAME + b"=="], id="a value of ="),
    pytest.param([b"$Version=1; " + NAME + b'="x"; $Path="/"; $Domain="x"'], id="$Version and quotes"),
    pytest.param([NAME + b'="' + b"A" * 46 + b'"'], id="quoted"),
    pytest.param([NAME + b'="' + b"A" * 46], id="an open quote"),
    pytest.param([b"'" + NAME + b"='" + b"A" * 46], id="single quotes"),
    pytest.param([NAME + b"=" + b"A" * 46 + b"\\"], id="a backslash"),
    pytest.param([NAME + b"=" + b"%41" * 46], id="percent-encoded"),
    pytest.param([NAME + b"=../../../etc/passwd"], id="a path"),
    pytest.param([NAME + b"={" + b"A" * 44 + b"}"], id="braces"),
    pytest.param([NAME + b"=" + b"A" * 45 + b"*"], id="a star"),
    pytest.param([NAME + b"=" + b"A" * 45 + b":"], id="a colon"),
    pytest.param([NAME + b"=" + b"A" * 45 + b"\n"], id="a line break at the end"),
    pytest.param([NAME + b"=" + b"A" * 45 + b"+"], id="plus, of the other base64"),
    pytest.param([NAME + b"=" + b"A" * 45 + b"="], id="padding"),
    pytest.param([NAME + b"=" + "٣".encode() * 23], id="digits that are no ASCII"),
]


@pytest.mark.parametrize("headers", ODD_HEADERS)
async def test_no_cookie_header_raises_costs_a_question_or_is_a_session(
    memory: Store, options: dict[str, Any], headers: list[bytes]
) -> None:
    watched = Between(memory)
    browser = Browser(app_with(watched, **options))
    found: list[Any] = []

    response = await browser.raw(
        [(b"cookie", header) for header in headers], lambda s: found.append((dict(s), s.user_id))
    )

    assert (response.status, response.set_cookie) == (200, None)
    assert found == [({}, None)]
    assert watched.calls == []


@pytest.mark.parametrize("crowd", [param for param in ODD_HEADERS if NAME + b"=" not in param.values[0][0][:100]])
async def test_our_cookie_is_found_in_any_crowd(memory: Store, clock: FakeClock, crowd: Any) -> None:
    """Whatever else a proxy, an old script or a subdomain has put there, before it, behind it, or in other headers."""
    alice = Browser(app_with(memory, clock=clock))
    await alice.do(log_in("alice"))
    ours, odd = NAME + b"=" + str(alice.token).encode(), b"; ".join(crowd)
    found: list[Any] = []

    for headers in (
        [ours + b"; " + odd],
        [odd + b"; " + ours],
        [odd + b";" + ours + b";" + odd],
        [*crowd, ours, *crowd],
    ):
        await alice.raw([(b"cookie", header) for header in headers], lambda session: found.append(session.user_id))

    assert found == ["alice"] * 4


def test_any_bytes_at_all_are_read_without_raising() -> None:
    """Random ones, made of the pieces that matter; nothing is found that does not stand there."""
    dice = random.Random(6265)
    pieces = [NAME, b"=", b";", b" ", b"\t", b'"', b",", b"$", b"\x00", b"\xa0", b"\xc2\x85", b"\r\n", b"A" * 46, b"x"]
    config = CookieConfig()

    for _ in range(3000):
        header = b"".join(dice.choices(pieces, k=dice.randrange(30)))
        expected = [
            part.strip(b" \t")[len(NAME) + 1 :].strip(b" \t")
            for part in header.split(b";")
            if part.strip(b" \t").startswith(NAME + b"=")
        ]
        assert config.read([(b"cookie", header)]) == expected


@pytest.mark.parametrize("name", ["s", "session"])
def test_reading_a_header_takes_time_in_proportion_to_its_length(name: str) -> None:
    """Counted, not timed: how many bytes are looked at. Twice the header may cost twice as much, and not four times."""

    def looked_at(size: int) -> int:
        header = Counted((b"x" + (name.encode() + b"=") * size)[:size])
        values_called([(b"cookie", header)], name.encode() + b"=")
        return header.looked_at

    assert looked_at(16_384) < 3 * looked_at(8_192)


def test_space_before_a_name_is_not_walked_over_byte_by_byte() -> None:
    """Counted likewise: one look at a slice is one; a look at each byte is 64 thousand."""
    header = Counted(b";" + b" " * (KB64 - 60) + NAME + b"=x")

    values_called([(b"cookie", header)], NAME + b"=")

    assert header.looks < 100


class Counted(bytes):
    """Bytes that count how often they are looked at, and how many of them a search passes over."""

    looked_at = 0
    looks = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        found = bytes.find(self, sub, start)
        self.looked_at += (found if found >= 0 else len(self)) - start
        self.looks += 1
        return found

    def __getitem__(self, index: Any) -> Any:
        self.looked_at += 1
        self.looks += 1
        return bytes.__getitem__(self, index)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="none"),
        pytest.param([(b"host", b"x")], id="no cookie"),
        pytest.param(((b"cookie", b"a=b"),), id="a tuple"),
        pytest.param([[b"cookie", b"a=b"]], id="lists in a list"),
        pytest.param([(b"cookies", b"a=b"), (b"cook", b"ie")], id="names that nearly are it"),
        pytest.param(None, id="not even the key"),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_any_shape_of_headers_will_do(memory: Store, clock: FakeClock, headers: Any, kind: str) -> None:
    seen: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["session"].is_new)

    scope = {"type": kind} if headers is None else {**http_scope(), "type": kind, "headers": headers}
    await exchange(SessionMiddleware(app, memory, clock=clock), scope)

    assert seen == [True]


async def test_64_kb_of_our_own_cookies_cost_four_questions_at_most(store: Store, options: dict[str, Any]) -> None:
    """Well-formed ones under a plain name: with secrets none gets as far as the store."""
    watched = Between(store)
    browser = Browser(app_with(watched, cookie=PLAIN, **options))
    size = 68 if "secret_keys" in options else 46
    name = PLAIN.name.encode()
    flood = b"; ".join(name + b"=" + (b"%d" % n).rjust(size, b"A") for n in range(KB64 // (len(name) + size + 3)))

    response = await browser.raw([(b"cookie", flood)], lambda session: session.user_id)

    assert response.status == 200
    assert watched.calls == ([] if "secret_keys" in options else ["load"] * 4)


# ── Users' ids ──


class Name(str, enum.Enum):  # noqa: UP042 - the old way to write a StrEnum is the point
    BOB = "bob"


class StrName(enum.StrEnum):
    BOB = "bob"


class Shouting(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


USER_IDS = [
    pytest.param("{}", id="braces"),
    pytest.param("{user}:*", id="a hash tag and a pattern"),
    pytest.param("*", id="a star"),
    pytest.param("?[a-z]", id="a glob"),
    pytest.param(":", id="a colon"),
    pytest.param("a:b:c", id="colons"),
    pytest.param("\x00", id="NUL"),
    pytest.param("alice\x00", id="NUL at the end"),
    pytest.param("\r\nDEL *\r\n", id="a command of its own"),
    pytest.param(" ", id="a space"),
    pytest.param(" alice ", id="spaces around"),
    pytest.param("x" * 10_240, id="10 kB"),
    pytest.param("🦊👩‍👩‍👧‍👦", id="emoji"),
    pytest.param("é", id="composed"),
    pytest.param("e\u0301", id="decomposed"),
    pytest.param("ALICE", id="capitals"),
    pytest.param("\u202ealice", id="right to left"),
    pytest.param("\ufeffalice", id="a byte order mark"),
    pytest.param("\U0010ffff", id="the last character"),
    pytest.param("0", id="zero"),
    pytest.param("None", id="None, as text"),
    pytest.param("../../etc", id="a path"),
    pytest.param("' OR 1=1 --", id="SQL"),
    pytest.param("%s%n{0}", id="formats"),
    pytest.param(".", id="a dot"),
    pytest.param("." * 22, id="what a record without owner has"),
]


@pytest.mark.parametrize("user_id", USER_IDS)
async def test_any_text_is_a_users_id(store: Store, options: dict[str, Any], browser: Browser, user_id: str) -> None:
    """It comes back to the letter, through every verb; its sessions are listed under it, and under no other."""
    bystander = Browser(app_with(store, **options))
    await bystander.do(log_in("alice"))

    for handler in (log_in(user_id), put(a=1), regenerate, lambda session: session.confirm(), put(b=2)):
        assert (await browser.do(handler)).status == 200
    found = await read(browser)

    assert (found["user_id"], found["data"]) == (user_id, {"a": 1, "b": 2})
    assert await store.index(owner_of(user_id)) == {found["id"]: browser.key}
    await browser.do(destroy)
    assert await store.index(owner_of(user_id)) == {}
    assert (await read(bystander))["user_id"] == "alice"


def test_no_two_users_share_an_index() -> None:
    ids = [param.values[0] for param in USER_IDS]

    assert len({owner_of(str(user_id)) for user_id in ids}) == len(ids)


@pytest.mark.parametrize(
    "user_id",
    [
        pytest.param("", id="empty"),
        pytest.param("\ud800", id="a lone surrogate"),
        pytest.param("alice\udcff", id="a byte that was no UTF-8"),
        pytest.param(None, id="None"),
        pytest.param(0, id="0"),
        pytest.param(4711, id="an int"),
        pytest.param(True, id="True"),
        pytest.param(b"alice", id="bytes"),
        pytest.param(uuid.UUID(int=1), id="a UUID"),
        pytest.param(["alice"], id="a list"),
        pytest.param(object(), id="an object"),
    ],
)
async def test_what_is_no_text_is_no_users_id(store: Store, options: dict[str, Any], user_id: Any) -> None:
    """Refused at the call, with nothing changed: the session before is still there, and nobody is logged in."""
    watched = Between(store)
    browser = Browser(app_with(watched, **options))
    await browser.do(put(basket=1))
    token = browser.token
    watched.calls.clear()

    def handler(session: Session) -> Any:
        with pytest.raises(SessionDataError, match=r"^log_in\(\): .*user id"):
            session.log_in(user_id)
        return session.user_id

    response = await browser.do(handler)

    assert response.body == b"None"
    assert (watched.writes, browser.token) == ([], token)


@pytest.mark.parametrize(
    ("user_id", "value"),
    [
        pytest.param(StrName.BOB, "bob", id="a StrEnum"),
        pytest.param(Name.BOB, "bob", id="a str and Enum"),
        pytest.param(Shouting("bob"), "bob", id="a str with a __str__ of its own"),
    ],
)
async def test_a_kind_of_text_is_taken_for_the_text_that_it_is(
    memory: Store, options: dict[str, Any], user_id: str, value: str
) -> None:
    """What was compared and checked is what must be kept."""
    browser = Browser(app_with(memory, **options))

    await browser.do(log_in(user_id))

    found = (await read(browser))["user_id"]
    assert (type(found), found) == (str, value)


# ── Values ──


class Color(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Flags(enum.Flag):
    A = 1


class Half(enum.Enum):
    VALUE = 0.5


@dataclasses.dataclass
class Point:
    x: int = 1


class Struct(msgspec.Struct):
    a: int = 1


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Dict(dict[str, Any]):
    pass


class Moment(datetime):
    pass


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - a plain one is the point


def circular_list() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def circular_dict() -> Any:
    value: dict[str, Any] = {}
    value["again"] = [value]
    return value


def deep(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"in": value}
    return value


UNFAITHFUL = [
    pytest.param(uuid.UUID(int=7), id="UUID"),
    pytest.param(Decimal("1.10"), id="Decimal"),
    pytest.param(Decimal("NaN"), id="Decimal NaN"),
    pytest.param(fractions.Fraction(1, 3), id="Fraction"),
    pytest.param(1 + 2j, id="complex"),
    pytest.param({1, 2}, id="set"),
    pytest.param(set(), id="an empty set"),
    pytest.param(frozenset("a"), id="frozenset"),
    pytest.param((1, 2), id="tuple"),
    pytest.param((), id="an empty tuple"),
    pytest.param(Pair(1, 2), id="namedtuple"),
    pytest.param(datetime(2026, 1, 1), id="naive datetime"),
    pytest.param(date(2026, 1, 1), id="date"),
    pytest.param(time(12, 0), id="time"),
    pytest.param(time(12, 0, tzinfo=UTC), id="aware time"),
    pytest.param(timedelta(1), id="timedelta"),
    pytest.param(Moment(2026, 1, 1, tzinfo=UTC), id="a subclass of datetime"),
    pytest.param(timezone.utc, id="a time zone"),  # noqa: UP017 - its name is the point
    pytest.param(Color.RED, id="Enum"),
    pytest.param(StrName.BOB, id="StrEnum"),
    pytest.param(Name.BOB, id="str and Enum"),
    pytest.param(Number.ONE, id="IntEnum"),
    pytest.param(Flags.A, id="Flag"),
    pytest.param(Half.VALUE, id="an Enum of floats"),
    pytest.param(Point(), id="dataclass"),
    pytest.param(Struct(), id="msgspec.Struct"),
    pytest.param(bytearray(b"x"), id="bytearray"),
    pytest.param(memoryview(b"x"), id="memoryview"),
    pytest.param(2**64, id="an int of 65 bits"),
    pytest.param(-(2**63) - 1, id="a negative int of 65 bits"),
    pytest.param(10**400, id="an int with 400 digits"),
    pytest.param(10**5000, id="an int that Python will not even print"),
    pytest.param(Text("x"), id="a subclass of str"),
    pytest.param(Whole(1), id="a subclass of int"),
    pytest.param(Dict(a=1), id="a subclass of dict"),
    pytest.param(OrderedDict(a=1), id="OrderedDict"),
    pytest.param(defaultdict(list), id="defaultdict"),
    pytest.param(types.MappingProxyType({"a": 1}), id="mappingproxy"),
    pytest.param(deque([1]), id="deque"),
    pytest.param(range(3), id="range"),
    pytest.param({1: "a"}, id="a dict with an int as key"),
    pytest.param({True: "a"}, id="a dict with a bool as key"),
    pytest.param({None: "a"}, id="a dict with None as key"),
    pytest.param({b"a": 1}, id="a dict with bytes as key"),
    pytest.param({(1, 2): 3}, id="a dict with a tuple as key"),
    pytest.param({1.5: 3}, id="a dict with a float as key"),
    pytest.param({StrName.BOB: 1}, id="a dict with a StrEnum as key"),
    pytest.param({Text("a"): 1}, id="a dict with a subclass of str as key"),
    pytest.param({"a": 1, 2: 3}, id="a dict with mixed keys"),
    pytest.param(object(), id="object()"),
    pytest.param(object, id="a class"),
    pytest.param(len, id="a function"),
    pytest.param((n for n in [1]), id="a generator"),
    pytest.param(NotImplemented, id="NotImplemented"),
    pytest.param(..., id="Ellipsis"),
    pytest.param(ValueError("x"), id="an exception"),
    pytest.param(pathlib.PurePosixPath("/x"), id="a path"),
    pytest.param(ipaddress.ip_address("::1"), id="an address"),
    pytest.param(msgspec.UNSET, id="UNSET"),
    pytest.param(msgspec.Raw(b"\xc0"), id="Raw"),
    pytest.param(msgspec.msgpack.Ext(1, b"\0" * 16), id="an extension type, our own"),
    pytest.param(msgspec.msgpack.Ext(-1, b"\0" * 4), id="an extension type, a timestamp's"),
    pytest.param(circular_list(), id="a list that holds itself"),
    pytest.param(circular_dict(), id="a dict that holds itself"),
    pytest.param(deep(1000), id="1,000 levels"),
    pytest.param(deep(100_000), id="100,000 levels"),
    pytest.param("\ud800", id="a lone surrogate"),
    pytest.param("a\udcffb", id="a byte that was no UTF-8"),
    pytest.param({"\ud800": 1}, id="a lone surrogate as key"),
    pytest.param(datetime(2026, 3, 29, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")), id="a time that its zone skips"),
]


def wrapped(value: Any, how: str) -> Any:
    return {"bare": value, "in a list": [1, [value]], "in a dict": {"a": {"b": [value]}}}[how]


@pytest.mark.parametrize("value", UNFAITHFUL)
async def test_a_value_that_would_come_back_as_something_else_is_refused_by_name(
    memory: Store, options: dict[str, Any], value: Any
) -> None:
    """Into a new session and into one that is there; by ``save()`` and at the end. Nothing is written, nothing is lost."""
    watched = Between(memory)
    found, fresh = Browser(app_with(watched, **options)), Browser(app_with(watched, **options))
    await found.do(put(kept=1))
    watched.calls.clear()

    for browser in (fresh, found):
        for how in ("bare", "in a list", "in a dict"):
            bad = wrapped(value, how)
            with pytest.raises(SessionDataError, match=r"^session\['the-bad-one'\]"):
                await browser.do(put(good=1, **{"the-bad-one": bad}))

        async def saves(session: Session) -> None:
            session["the-bad-one"] = value
            with pytest.raises(SessionDataError, match="the-bad-one"):
                await session.save()
            del session["the-bad-one"]

        response = await browser.do(saves)
        assert response.status == 200

    assert watched.writes == []
    assert (await read(found))["data"] == {"kept": 1}


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(1, id="int"),
        pytest.param(True, id="bool"),
        pytest.param(None, id="None"),
        pytest.param(b"a", id="bytes"),
        pytest.param(1.5, id="float"),
        pytest.param(("a", 1), id="tuple"),
        pytest.param(StrName.BOB, id="StrEnum"),
        pytest.param(Name.BOB, id="str and Enum"),
        pytest.param(Text("a"), id="a subclass of str"),
        pytest.param("\ud800", id="a lone surrogate"),
        pytest.param(uuid.UUID(int=1), id="UUID"),
    ],
)
async def test_a_session_key_that_is_no_text_is_refused_by_name(
    memory: Store, options: dict[str, Any], key: Any
) -> None:
    """It would come back as text, and be another key."""
    watched = Between(memory)
    found, fresh = Browser(app_with(watched, **options)), Browser(app_with(watched, **options))
    await found.do(put(kept=1))
    watched.calls.clear()

    for browser in (fresh, found):
        with pytest.raises(SessionDataError) as caught:
            await browser.do(lambda session: session.update({key: 1}))
        assert repr(key) in str(caught.value)

    assert watched.writes == []


@pytest.mark.parametrize(
    "key", ["", " ", "\0", "a" * 10_000, "🍪", "{}", "__class__", "_accessed", "user_id", "id", "\n"], ids=ascii
)
@pytest.mark.filterwarnings("ignore:.* is data, but session[.]:asgi_sessions.SessionWarning")  # kept nevertheless
async def test_any_text_is_a_session_key(browser: Browser, key: str) -> None:
    await browser.do(lambda session: session.update({key: key}))

    assert (await read(browser))["data"] == {key: key}


class Odd(tzinfo):
    """A zone of somebody's own."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(hours=3, minutes=7, seconds=11)

    def dst(self, when: datetime | None) -> None:
        return None

    def tzname(self, when: datetime | None) -> str:
        return "ODD"


def offset(**parts: int) -> timezone:
    return timezone(timedelta(**parts))


FAITHFUL: list[Any] = [
    *(None, True, False, 0, 1, -1, 127, 128, 255, 256, -32, -33, -128, -129, 2**31, 2**32, 2**53, 2**53 + 1, 2**62),
    *(2**63 - 1, 2**63, 2**64 - 1, -(2**63), -(2**31) - 1),
    *(0.0, -0.0, 1.0, 0.1, math.pi, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), float("nan")),
    *("", "x", "\0", "é", "🦊", "\U0010ffff", "\ufeff", "x" * 40, "x" * 70_000, "2026-01-01T00:00:00Z", "NaN", "null"),
    *(b"", b"\0", bytes(range(256)), b"x" * 70_000),
    *(
        [],
        {},
        [[]],
        [{}],
        {"": {}},
        [None, True, 1, 1.0, "1", b"1"],
        list(range(1000)),
        {str(n): n for n in range(100)},
    ),
    deep(96),
    datetime(2026, 11, 23, 12, 34, 56, 789_012, UTC),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC),
    datetime(1, 1, 2, tzinfo=offset(hours=23, minutes=59)),
    datetime(9999, 12, 30, 23, 59, 59, 999_999, tzinfo=offset(hours=-23, minutes=-59)),
    datetime(2026, 1, 1, tzinfo=offset(hours=5, minutes=45)),
    datetime(2026, 1, 1, tzinfo=offset(hours=-3, minutes=-30)),
    datetime(2026, 1, 1, tzinfo=offset(seconds=1)),
    datetime(2026, 1, 1, tzinfo=offset(microseconds=-1)),
    datetime(1880, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")),
    datetime(2026, 1, 1, tzinfo=ZoneInfo("Asia/Kathmandu")),
    datetime(2026, 1, 1, tzinfo=ZoneInfo("Etc/GMT+12")),
    datetime(9999, 12, 31, tzinfo=ZoneInfo("Asia/Tokyo")),
]


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, all the way down; where Python's ``==`` is too generous."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a.hex() == b.hex() or (math.isnan(a) and math.isnan(b))
    if isinstance(a, datetime):
        return (
            a.replace(tzinfo=None) == b.replace(tzinfo=None)
            and a.utcoffset() == b.utcoffset()
            and (type(a.tzinfo), str(a.tzinfo), a.fold) == (type(b.tzinfo), str(b.tzinfo), b.fold)
        )
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@pytest.mark.parametrize("how", ["bare", "in a list", "in a dict"])
async def test_what_is_read_is_what_was_written_in_value_and_type(
    store: Store, options: dict[str, Any], how: str
) -> None:
    """And once read, it is unchanged: nothing is written again."""
    watched = Between(store)
    for value in FAITHFUL:
        browser = Browser(app_with(watched, **options))
        await browser.do(put(value=wrapped(copy.deepcopy(value), how)))
        watched.calls.clear()

        found = (await read(browser))["data"]["value"]

        assert same(found, wrapped(value, how)), value
        assert watched.calls == ["load"], value


async def test_a_zone_of_somebodys_own_keeps_its_offset(memory: Store, options: dict[str, Any]) -> None:
    """Its class cannot be kept; the instant and the offset can."""
    value = datetime(2026, 1, 1, 12, tzinfo=Odd())
    browser = Browser(app_with(memory, **options))

    await browser.do(put(value=value))

    found = (await read(browser))["data"]["value"]
    assert (found, found.utcoffset()) == (value, value.utcoffset())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 5, tzinfo=offset(hours=5)), id="another offset"
        ),
        pytest.param(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")), id="another zone"),
        pytest.param("00000000-0000-0000-0000-000000000007", uuid.UUID(int=7), id="a UUID for its text"),
        pytest.param([1, 2], (1, 2), id="a tuple for a list"),
        pytest.param("red", Color.RED, id="an Enum for its value"),
        pytest.param(1, Number.ONE, id="an IntEnum for its value"),
        pytest.param("1.10", Decimal("1.10"), id="a Decimal for its text"),
        pytest.param({"x": 1}, Point(), id="a dataclass for a dict"),
        pytest.param("2026-01-01T00:00:00", datetime(2026, 1, 1), id="a naive datetime for its text"),
        pytest.param(None, datetime(1, 1, 1, tzinfo=offset(hours=1)), id="before year 1 in UTC"),
        pytest.param(None, datetime(9999, 12, 31, 23, tzinfo=offset(hours=-2)), id="after year 9999 in UTC"),
    ],
)
async def test_a_value_that_replaces_what_it_would_come_back_as_is_no_exception(
    memory: Store, options: dict[str, Any], before: Any, after: Any
) -> None:
    """Kept to the letter or refused by name, whatever was there before."""
    browser = Browser(app_with(memory, **options))
    await browser.do(put(value=before))

    try:
        await browser.do(put(value=after))
    except SessionDataError as error:
        assert "session['value']" in str(error)  # noqa: PT017 - either will do
    else:
        assert same((await read(browser))["data"]["value"], after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("00000000-0000-0000-0000-000000000007", uuid.UUID(int=7), id="a UUID for its text"),
        pytest.param([1, 2], (1, 2), id="a tuple for a list"),
    ],
)
async def test_a_nested_value_that_only_looks_like_the_one_before_leaves_what_was_stored(
    memory: Store, options: dict[str, Any], before: Any, after: Any
) -> None:
    """One level down, where no method of the session hears of it: nothing is written, and nothing wrong is."""
    browser = Browser(app_with(memory, **options))
    await browser.do(put(outer={"inner": before}))

    try:
        await browser.do(lambda session: session["outer"].update(inner=after))
    except SessionDataError as error:
        assert "session['outer']" in str(error)  # noqa: PT017 - with the next change that is saved it is refused

    assert same((await read(browser))["data"]["outer"]["inner"], before)


async def test_a_nested_time_that_moves_to_another_zone_is_saved(memory: Store, options: dict[str, Any]) -> None:
    """To msgspec it is the same instant, and so the same bytes."""
    before, after = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 5, tzinfo=offset(hours=5))
    browser = Browser(app_with(memory, **options))
    await browser.do(put(outer={"inner": before}))

    await browser.do(lambda session: session["outer"].update(inner=after))

    assert same((await read(browser))["data"]["outer"]["inner"], after)


async def test_a_value_that_is_broken_itself_is_refused_by_name(memory: Store, options: dict[str, Any]) -> None:
    """A struct with a field that was never set; whatever it raises when it is looked at is not ours to pass on."""
    broken = Struct()
    del broken.a
    browser = Browser(app_with(memory, **options))
    await browser.do(put(kept=1))

    with pytest.raises(SessionDataError, match="bad"):
        await browser.do(put(bad=broken))


# ── Sizes ──


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: "x" * 10_000_000, id="one text of 10 MB"),
        pytest.param(lambda: b"x" * 10_000_000, id="10 MB of bytes"),
        pytest.param(lambda: [0] * 2_000_000, id="two million numbers"),
        pytest.param(lambda: {str(n): n for n in range(200_000)}, id="200,000 keys"),
        pytest.param(lambda: "x" * MAX_PAYLOAD, id="just above the limit"),
    ],
)
async def test_a_session_of_10_mb_is_refused_by_name(
    memory: Store, options: dict[str, Any], make: Callable[[], Any]
) -> None:
    """The error says how much there is, how much there may be, and which key to look at."""
    watched = Between(memory)
    browser = Browser(app_with(watched, **options))
    await browser.do(put(kept=1))
    watched.calls.clear()

    with pytest.raises(SessionDataError, match=r"1,048,576.*session\['big'\]") as caught:
        await browser.do(put(small="x", big=make()))

    assert len(str(caught.value)) < 500
    assert watched.writes == []
    assert (await read(browser))["data"] == {"kept": 1}


async def test_a_session_just_below_the_limit_is_kept(browser: Browser) -> None:
    value = "x" * (MAX_PAYLOAD - 50)

    await browser.do(put(big=value))

    assert (await read(browser))["data"] == {"big": value}


async def test_two_halves_that_are_too_large_together_are_refused(browser: Browser) -> None:
    """Each is within the limit; the merge is not. The one that comes second hears of it, and the first one stays."""
    half = "x" * (MAX_PAYLOAD * 2 // 3)
    await browser.do(put(kept=1))

    with pytest.raises(ExceptionGroup) as caught:
        async with browser.paused(put(mine=half)):
            await browser.do(put(theirs=half))

    assert caught.group_contains(SessionDataError, match="the limit is")
    assert (await read(browser))["data"] == {"kept": 1, "theirs": half}


# ── Apps that break the rules ──

START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]}
BODY: dict[str, Any] = {"type": "http.response.body", "body": b"x"}
BROKEN: list[Any] = [
    pytest.param([START, START, BODY], id="started twice"),
    pytest.param([START, {**START, "status": 500}, BODY], id="started twice, with a 500"),
    pytest.param([START, BODY, START, BODY], id="a second response after the first"),
    pytest.param([{"type": "http.response.start", "status": 200}, BODY], id="no headers"),
    pytest.param([{**START, "headers": None}, BODY], id="headers None"),
    pytest.param([{**START, "headers": ()}, BODY], id="an empty tuple of headers"),
    pytest.param([{**START, "headers": ((b"x-a", b"b"), (b"vary", b"Accept"))}, BODY], id="a tuple of headers"),
    pytest.param([{**START, "headers": [[b"x-a", b"b"]]}, BODY], id="lists as headers"),
    pytest.param([{"type": "http.response.start", "headers": []}, BODY], id="no status"),
    pytest.param([{**START, "status": "200"}, BODY], id="a status of text"),
    pytest.param([{**START, "status": None}, BODY], id="a status of None"),
    pytest.param([{**START, "status": 200.0}, BODY], id="a status of float"),
    pytest.param([{**START, "status": 99999}, BODY], id="a status out of range"),
    pytest.param([], id="no response"),
    pytest.param([BODY], id="only a body"),
    pytest.param([BODY, START, BODY], id="a body before the start"),
    pytest.param([START], id="no body"),
    pytest.param([START, BODY, BODY, BODY], id="bodies after the end"),
    pytest.param([{"type": "http.response.trailers", "headers": []}, START, BODY], id="trailers first"),
    pytest.param([START, {"type": "http.response.nonsense"}, BODY], id="a message that does not exist"),
    pytest.param([{"type": "websocket.accept"}, START, BODY], id="a WebSocket's message"),
    pytest.param([{"type": ""}, START, BODY], id="a message without a name"),
    pytest.param([types.MappingProxyType(START), BODY], id="a message that cannot be changed"),
    pytest.param([{**START, "trailers": True, "extra": object()}, BODY], id="more than the rules know"),
]


@pytest.mark.parametrize("messages", BROKEN)
@pytest.mark.filterwarnings("ignore:a new session was written to:asgi_sessions.SessionWarning")
async def test_a_broken_app_meets_no_exception_of_ours_and_breaks_no_session(
    memory: Store, options: dict[str, Any], messages: list[Any]
) -> None:
    """What it sends goes on to the server as it is, but for the headers of the one start; the server will say its mind."""
    handlers: dict[str, Handler] = {
        "nothing": lambda session: None,
        "read": lambda session: session.get("kept"),
        "write": put(more=1),
        "log in": log_in("bob"),
        "destroy": destroy,
    }
    before = copy.deepcopy([dict(message) for message in messages if "extra" not in message])

    for what, handler in handlers.items():

        async def app(scope: Any, receive: Any, send: Any, handler: Handler = handler) -> None:
            handler(scope["session"])
            for message in messages:
                await send(message)

        alice = Browser(app_with(memory, **options))
        await alice.do(log_in("alice"))
        await alice.do(put(kept=1))
        broken = SessionMiddleware(app, memory, **options)

        sent = await exchange(broken, http_scope([(b"cookie", NAME + b"=" + str(alice.token).encode())]))
        await exchange(broken, http_scope())

        assert [message["type"] for message in sent] == [message["type"] for message in messages]
        for message, original in zip(sent, messages, strict=True):
            differs = {key for key in {**message, **original} if message.get(key) != original.get(key)}
            assert differs <= {"headers"}
        assert [dict(message) for message in messages if "extra" not in message] == before
        # An answer of 5xx, or none at all, saves nothing.
        first = next((message for message in messages if message["type"] == "http.response.start"), {"status": 500})
        failed = isinstance(first.get("status"), int) and first["status"] >= 500
        if what in ("nothing", "read"):
            assert (await read(alice))["data"] == {"kept": 1}
        elif what == "write":
            assert (await read(alice))["data"] == {"kept": 1, **({} if failed else {"more": 1})}
        elif what == "destroy":
            assert await memory.load(key_of(str(alice.token))) is None


ACCEPT: dict[str, Any] = {"type": "websocket.accept"}
CLOSE: dict[str, Any] = {"type": "websocket.close", "code": 1000}
DENIAL: dict[str, Any] = {"type": "websocket.http.response.start", "status": 403, "headers": []}
BROKEN_SOCKETS: list[Any] = [
    pytest.param([ACCEPT, ACCEPT, CLOSE], id="accepted twice"),
    pytest.param([CLOSE, ACCEPT], id="closed, then accepted"),
    pytest.param([ACCEPT, CLOSE, CLOSE], id="closed twice"),
    pytest.param([ACCEPT, CLOSE, {"type": "websocket.send", "text": "x"}], id="sent after the close"),
    pytest.param([{"type": "websocket.send", "text": "x"}, ACCEPT], id="sent before the handshake"),
    pytest.param([ACCEPT, DENIAL], id="denied after it was accepted"),
    pytest.param([DENIAL, ACCEPT], id="accepted after it was denied"),
    pytest.param([DENIAL, DENIAL], id="denied twice"),
    pytest.param([DENIAL, CLOSE], id="closed after it was denied"),
    pytest.param([], id="nothing at all"),
    pytest.param([CLOSE], id="only closed"),
    pytest.param([{**ACCEPT, "headers": None}], id="accepted with headers None"),
    pytest.param([{**ACCEPT, "headers": ((b"a", b"b"),)}], id="accepted with a tuple of headers"),
    pytest.param([{**DENIAL, "status": "403"}], id="denied with a status of text"),
    pytest.param([{"type": "websocket.http.response.start"}], id="denied with nothing"),
    pytest.param([{"type": "websocket.http.response.body", "body": b""}], id="a denial's body first"),
    pytest.param([START, BODY], id="an HTTP response"),
    pytest.param([{"type": "websocket.nonsense"}, ACCEPT], id="a message that does not exist"),
]


@pytest.mark.parametrize("messages", BROKEN_SOCKETS)
@pytest.mark.filterwarnings("ignore:a new session was written to:asgi_sessions.SessionWarning")
async def test_a_broken_socket_meets_no_exception_of_ours_and_breaks_no_session(
    memory: Store, options: dict[str, Any], messages: list[Any]
) -> None:
    """As above. And a token is replaced only where the new one got through."""
    handlers: dict[str, Handler] = {
        "nothing": lambda session: None,
        "read": lambda session: session.get("kept"),
        "write": put(more=1),
        "regenerate": regenerate,
        "destroy": destroy,
    }

    for what, handler in handlers.items():

        async def app(scope: Any, receive: Any, send: Any, handler: Handler = handler) -> None:
            await receive()
            handler(scope["session"])
            for message in messages:
                await send(message)
            await receive()

        alice = Browser(app_with(memory, **options))
        await alice.do(log_in("alice"))
        await alice.do(put(kept=1))
        broken = SessionMiddleware(app, memory, **options)

        sent = await exchange(broken, websocket_scope(NAME + b"=" + str(alice.token).encode()), [CONNECT])
        await exchange(broken, websocket_scope(), [CONNECT])

        assert [message["type"] for message in sent] == [message["type"] for message in messages]
        cookies = [value for message in sent for name, value in message.get("headers") or () if name == b"set-cookie"]
        assert len(cookies) <= 1
        for cookie in cookies:
            alice.token = cookie.partition(b"=")[2].partition(b";")[0].decode()
        found = await read(alice)
        assert found["user_id"] == (None if what == "destroy" else "alice")
        if what in ("nothing", "read", "regenerate"):
            assert found["data"] == {"kept": 1}


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("x-a", "b")], id="text"),
        pytest.param([(b"x-a", b"b", b"c")], id="three of a kind"),
        pytest.param([(None, b"b")], id="no name"),
        pytest.param({b"x-a": b"b"}, id="a dict"),
    ],
)
async def test_headers_that_no_server_takes_are_the_servers_to_refuse(
    memory: Store, clock: FakeClock, headers: Any
) -> None:
    """An app that sends text where bytes are due hears of it from the server, and not from us in the middle of a commit."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["a"] = 1
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    sent = await exchange(SessionMiddleware(app, memory, clock=clock), http_scope())

    assert [message["type"] for message in sent] == ["http.response.start"]


async def test_a_second_start_sets_no_second_cookie(memory: Store, options: dict[str, Any]) -> None:
    """The server refuses it; whatever is between the server and us may not."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["a"] = 1
        await send(START)
        await send(START)

    sent = await exchange(SessionMiddleware(app, memory, **options), http_scope())

    assert [sum(name == b"set-cookie" for name, _ in message["headers"]) for message in sent] == [1, 0]


@pytest.mark.parametrize(
    "replacement",
    [{"b": 2}, {}, None, type("Empty", (), {}), types.MappingProxyType({"b": 2}), 1, "x", b"x", [], object()],
    ids=lambda value: repr(value).partition(" at ")[0],
)
async def test_what_is_put_in_the_place_of_the_session_is_no_wish_of_the_app(
    memory: Store, options: dict[str, Any], replacement: Any
) -> None:
    """It may be another middleware's. The session stays as the app has changed it before."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["more"] = 1
        scope["session"] = replacement
        await send(START)

    alice = Browser(app_with(memory, **options))
    await alice.do(log_in("alice"))
    await alice.do(put(a=1))
    replacing = SessionMiddleware(app, memory, **options)

    sent = await exchange(replacing, http_scope([(b"cookie", NAME + b"=" + str(alice.token).encode())]))

    assert not [name for name, _ in sent[0]["headers"] if name == b"set-cookie"]
    assert (await read(alice))["user_id"] == "alice"
    assert (await read(alice))["data"] == {"a": 1, "more": 1}


async def test_an_app_that_takes_its_session_away_keeps_it(memory: Store, options: dict[str, Any]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["a"] = 1
        del scope["session"]
        await send(START)

    sent = await exchange(SessionMiddleware(app, memory, **options), http_scope())

    assert [name for name, _ in sent[0]["headers"] if name == b"set-cookie"] == [b"set-cookie"]


@pytest.mark.parametrize("kind", ["lifespan", "other"])
async def test_a_scope_that_is_no_request_passes_untouched(memory: Store, clock: FakeClock, kind: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    scope = {"type": kind}
    await SessionMiddleware(app, memory, clock=clock)(scope, _never, _never)

    assert seen == [{"type": kind}]
    assert seen[0] is scope


async def _never(*message: Any) -> Any:
    raise AssertionError("nothing is sent or received here")


def test_every_error_of_ours_is_one_of_ours() -> None:
    assert issubclass(SessionDataError, SessionError)
