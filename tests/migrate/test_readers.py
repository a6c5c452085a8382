"""The readers themselves: what they refuse, what they carry over, and what they ask servers."""

from __future__ import annotations

import json
import logging
import pickle
import re
import secrets
import string
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import itsdangerous
import msgspec
import pytest
import redis.asyncio
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import create_async_engine

from asgi_sessions import ConfigurationError, MemoryStore, StoreError
from asgi_sessions._core.adoption import converted
from asgi_sessions._engine.failures import reason_of
from asgi_sessions.errors import StoreUnreachable
from asgi_sessions.migrate import (
    FromDjango,
    FromDjangoCache,
    FromDjangoSignedCookies,
    FromExpressSession,
    FromFastapiRedisSdk,
    FromFlask,
    FromFlaskSession,
    FromLitestar,
    FromLitestarCookie,
    FromStarlette,
    FromStarsessions,
    OldCookie,
    Reader,
)
from asgi_sessions.migrate import _base as base
from asgi_sessions.testing import FakeClock
from tests.markdown import DOCS, rows
from tests.migrate.world import DATA, OLD_KEY, Site, from_starlette, signed, user_of
from tests.ports import free_port, give_back

NOW = 1_800_000_000.0
DEAD = "redis://127.0.0.1:1/0"


async def no_row(key: str) -> None:
    """The database of a Django without sessions."""


SIGNED: dict[str, Any] = {
    "FromStarlette": from_starlette(),
    "FromFlask": FromFlask(secret_key=OLD_KEY, user=user_of),
    "FromDjangoSignedCookies": FromDjangoSignedCookies(secret_key=OLD_KEY),
    "FromLitestarCookie": FromLitestarCookie(secret=b"0123456789abcdef", user=user_of),
}
STORED: dict[str, Any] = {
    "FromStarsessions": FromStarsessions(DEAD),
    "FromLitestar": FromLitestar(DEAD),
    "FromFlaskSession": FromFlaskSession(DEAD),
    "FromFlaskSession, signed": FromFlaskSession(DEAD, secret_key=OLD_KEY),
    "FromDjangoCache": FromDjangoCache(DEAD),
    "FromDjango": FromDjango(no_row, secret_key=OLD_KEY),
    "FromExpressSession": FromExpressSession(DEAD, secret=OLD_KEY),
    "FromFastapiRedisSdk": FromFastapiRedisSdk(DEAD),
}
READERS = {**SIGNED, **STORED}

each_reader = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)


@each_reader
def test_a_reader_is_a_reader(reader: Any) -> None:
    assert isinstance(reader, Reader)
    assert OLD_KEY not in repr(reader)


# ── Cookies of anybody ──


anything = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet=string.printable, max_size=200).map(lambda text: text.encode()),
    st.lists(
        st.sampled_from([b".", b":", b"s%3A", b"eyJhIjoxfQ", b"aW7lGQ", b'"', b"=", b"-1", b"\xff", b"A" * 27]),
        max_size=8,
    ).map(b"".join),
)


@each_reader
@given(value=anything)
@example(value=b"")
@example(value=b"." * 300)
@example(value=b"x" * 100_000)
@example(value=b"a:b:c")
@example(value=b"%" * 40)
def test_no_cookie_is_an_error(reader: Any, value: bytes) -> None:
    found = reader.recognise(value, NOW)
    assert found is None or isinstance(found, OldCookie)
    for each in reader.values([(b"cookie", b"session=" + value), (b"cookie", b"session-1=" + value)]):
        reader.recognise(each, NOW)


@pytest.mark.parametrize("reader", SIGNED.values(), ids=SIGNED)
@given(data=st.data())
async def test_a_signed_cookie_that_was_changed_is_none(reader: Any, data: st.DataObject) -> None:
    value = good(reader)
    assert reader.recognise(value, NOW) is not None
    at = data.draw(st.integers(0, len(value) - 1))
    put = data.draw(st.binary(max_size=2).filter(lambda put: put != value[at : at + 1]))
    changed = value[:at] + put + value[at + 1 :]

    found = reader.recognise(changed, NOW)

    # base64 has a few bits to spare at its end: then it is the same signature.
    assert found is None or found.content == reader.recognise(value, NOW).content


def good(reader: Any) -> bytes:
    """A cookie that this reader recognises."""
    if isinstance(reader, FromStarlette):
        return signed(DATA, NOW).encode()
    if isinstance(reader, FromLitestarCookie):
        from base64 import b64encode

        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        about = json.dumps({"expires_at": int(NOW) + 60}).encode()
        sealed = AESGCM(b"0123456789abcdef").encrypt(b"n" * 12, json.dumps(DATA).encode(), about)
        return b64encode(b"n" * 12 + sealed + b"additional_authenticated_data=" + about)
    if isinstance(reader, FromFlask):
        signer: Any = itsdangerous.URLSafeTimedSerializer(
            OLD_KEY, salt="cookie-session", signer_kwargs={"key_derivation": "hmac"}
        )
        made = signer.make_signer(b"cookie-session")
        made.get_timestamp = lambda: int(NOW)
        signer.make_signer = lambda salt: made
        return str(signer.dumps(DATA)).encode()
    return django_signed(DATA)


def django_signed(data: Any, salt: str = "django.contrib.sessions.backends.signed_cookies", now: float = NOW) -> bytes:
    from base64 import urlsafe_b64encode

    from asgi_sessions.migrate._django import salted

    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    number, time = int(now), ""
    while number:
        number, digit = divmod(number, 62)
        time = digits[digit] + time
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    content = urlsafe_b64encode(raw).rstrip(b"=") + b":" + time.encode()
    signature = urlsafe_b64encode(salted(salt.encode() + b"signer", OLD_KEY.encode(), content)).rstrip(b"=")
    return content + b":" + signature


@pytest.mark.parametrize("reader", SIGNED.values(), ids=SIGNED)
def test_a_signed_cookie_ends(reader: Any) -> None:
    value = good(reader)
    found = reader.recognise(value, NOW)

    assert reader.recognise(value, found.until + 1) is None
    assert reader.recognise(value, found.until - 1) is not None
    if not isinstance(reader, FromLitestarCookie):  # it says when it ends, and not when it began
        assert reader.recognise(value, NOW - 3600) is None  # of a clock that is an hour ahead


def test_a_cookie_without_an_age_ends_when_no_browser_has_it_any_more() -> None:
    reader = from_starlette(max_age=None)
    value = signed(DATA, NOW).encode()

    assert reader.recognise(value, NOW + base.OLDEST - 1) is not None
    assert reader.recognise(value, NOW + base.OLDEST + 1) is None


@pytest.mark.parametrize("reader", SIGNED.values(), ids=SIGNED)
@given(
    raw=st.one_of(
        st.binary(max_size=100),
        st.sampled_from(
            [
                b"[" * 100_000,
                b'{"a":' * 5_000,
                b"null",
                b"[1]",
                b'{" d": 1}',
                b'{" b": 1}',
                b'{" u": "x"}',
                b'{" di": 3}',
                b"{}",
                b'{"a": 1' + b"0" * 5000 + b"}",
                b"\x80\x04.",
            ]
        ),
    )
)
async def test_signed_nonsense_is_nothing(reader: Any, raw: bytes) -> None:
    """The old app may have had another serializer; nobody but it can sign."""
    found = await reader.read(OldCookie(b"x", NOW + 1, raw), NOW)

    assert found is None or isinstance(found.data, dict)


async def test_nothing_of_a_forged_cookie_is_stored(clock: FakeClock) -> None:
    store = MemoryStore()
    site = Site(store, clock, *SIGNED.values())

    for value in (
        signed(DATA, clock(), "another key"),
        signed(DATA, clock() - 90 * 86_400),
        "x" * 20_000,
        'a"b',
        "\xff",
    ):
        assert (await site.visitor(value.encode("latin-1")).sees())["data"] == {}
    assert len(store) == 0


async def test_many_cookies_of_one_name_are_a_few_looks(clock: FakeClock) -> None:
    """Old names have no prefix, so a subdomain may have put one there: ours is among the first two, or not at all."""
    site = Site(MemoryStore(), clock, from_starlette())
    cookie = signed(DATA, clock())

    assert (await site.visitor(f"planted; session={cookie}").sees())["user"] == "alice"
    assert (await site.visitor(f"planted; session=planted; session={cookie}").sees())["user"] is None


# ── What is carried over ──


class Color(Enum):
    RED = "red"


VALUES: list[tuple[str, Any, Any]] = [
    ("text, numbers, `True`, `None`, `bytes`", ["a", 1, 1.5, True, None, b"x"], ["a", 1, 1.5, True, None, b"x"]),
    ("lists and objects of these", {"a": [{"b": 1}]}, {"a": [{"b": 1}]}),
    ("an aware `datetime`", datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
    ("a naive `datetime`, `date`, `time`", [datetime(2026, 1, 2), date(2026, 1, 2), time(3)],
     ["2026-01-02T00:00:00", "2026-01-02", "03:00:00"]),
    ("`timedelta`", timedelta(minutes=1), 60.0),
    ("`UUID`, `Decimal`", [UUID(int=1), Decimal("1.50")], ["00000000-0000-0000-0000-000000000001", "1.50"]),
    ("a tuple, a set", [(1, 2), {3}], [[1, 2], [3]]),
    ("`Markup` and other subclasses of text and numbers", type("Markup", (str,), {})("<b>"), "<b>"),
    ("an `Enum`", Color.RED, "red"),
    ("a key that is a number", {1: "a"}, {"1": "a"}),
]  # fmt: skip

LOST: list[tuple[str, Any]] = [
    ("an integer of more than 64 bits", 2**70),
    ("text that is not valid Unicode", "\ud800"),
    ("two keys that are the same as text", {1: "a", "1": "b"}),
    ("any other object", object()),
    ("what nests deeper than 100", json.loads("[" * 150 + "]" * 150)),
]


@pytest.mark.parametrize(("what", "value", "becomes"), VALUES, ids=[what for what, *_ in VALUES])
def test_what_becomes_of_a_value(what: str, value: Any, becomes: Any) -> None:
    kept, dropped = converted({"key": value, "other": 1})

    assert kept == {"key": becomes, "other": 1}
    assert type(kept["key"]) is type(becomes)
    assert dropped == []


@pytest.mark.parametrize(("what", "value"), LOST, ids=[what for what, _ in LOST])
def test_what_is_dropped(what: str, value: Any) -> None:
    assert converted({"key": value, "other": 1}) == ({"other": 1}, ["key"])


def test_the_table_of_conversions_is_that_of_the_tests() -> None:
    assert [cells[0] for cells in rows(DOCS / "switching.md", "What becomes of values")] == [
        *(what for what, *_ in VALUES),
        *(what for what, _ in LOST),
    ]


def test_data_that_is_too_much_is_dropped() -> None:
    kept, dropped = converted({"a": "x" * 600_000, "b": "x" * 600_000})

    assert (kept, dropped) == ({}, ["a", "b"])
    assert converted({1: "a", "1": "b"}) == ({"1": "a"}, ["1"])


async def test_an_event_names_what_was_dropped(clock: FakeClock) -> None:
    site = Site(MemoryStore(), clock, from_starlette())
    data = {"user": "alice", "kept": 1, **{f"key {number}\n": 2**70 for number in range(100)}}

    assert (await site.visitor(signed(data, clock())).sees())["data"] == {"user": "alice", "kept": 1}

    (event,) = site.said("session.adopted")
    assert event.details["keys_dropped"] == 100
    assert event.details["dropped"][:2] == ["key 0\\n", "key 1\\n"]
    assert len(event.details["dropped"]) == 20


async def test_what_the_app_drops_is_seen_by_the_user_function_alone(clock: FakeClock) -> None:
    site = Site(MemoryStore(), clock, from_starlette(drop=["user"]))
    seen = await site.visitor(signed(DATA, clock())).sees()

    assert (seen["user"], set(seen["data"])) == ("alice", {"basket", "visits"})


@pytest.mark.parametrize("user", [user_of, None], ids=["user", "visitor"])
@pytest.mark.parametrize(
    ("max_age", "remember", "lasts"), [(60, None, True), (None, None, False), (60, False, False), (None, True, True)]
)
async def test_our_cookie_lasts_as_the_old_one_did(
    clock: FakeClock, max_age: int | None, remember: bool | None, lasts: bool, user: Any
) -> None:
    site = Site(MemoryStore(), clock, from_starlette(max_age=max_age, remember=remember, user=user))
    response = await site.visitor(signed(DATA, clock())).do()

    (ours,) = [line for line in response.all("set-cookie") if line.startswith(site.name)]
    assert ("Max-Age=" in ours) is lasts


# ── Configuration ──


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FromStarlette(secret_key="", user=None), "secret_key"),
        (lambda: FromFlask(secret_key=["a", ""], user=None), "secret_key"),
        (lambda: FromFlask(secret_key=None, user=None), "secret_key"),  # type: ignore[arg-type]
        (lambda: FromStarlette(secret_key="x", user="user_id"), "give a function"),  # type: ignore[arg-type]
        (lambda: from_starlette(keep_old=1), "keep_old"),
        (lambda: from_starlette(remember=1), "remember"),
        (lambda: from_starlette(drop="user"), "drop"),
        (lambda: from_starlette(drop=[["user"]]), "drop"),
        (lambda: from_starlette(domain=5), "domain"),
        (lambda: from_starlette(domain=""), "domain"),
        (lambda: FromStarsessions(DEAD, deadline=timedelta(0)), "deadline"),
        (lambda: from_starlette(max_age=0), "max_age"),
        (lambda: from_starlette(max_age=timedelta(days=1)), "max_age"),
        (lambda: from_starlette(cookie="a b"), "name"),
        (lambda: from_starlette(path="no slash"), "path"),
        (lambda: FromLitestarCookie(secret=b"short", user=None), "16, 24 or 32"),
        (lambda: FromLitestarCookie(secret="0123456789abcdef", user=None), "16, 24 or 32"),  # type: ignore[arg-type]
        (lambda: FromStarsessions(object()), "redis.asyncio"),
        (lambda: FromStarsessions(redis.Redis()), "redis.asyncio"),
        (lambda: FromStarsessions("http://nonsense"), "redis"),
        (lambda: FromStarsessions(redis.asyncio.Redis(decode_responses=True)), "decode_responses"),
        (lambda: FromStarsessions(DEAD, deadline=1), "timedelta"),  # type: ignore[arg-type]
        (lambda: FromStarsessions(DEAD, prefix=str.upper), "prefix"),  # type: ignore[arg-type]
        (lambda: FromDjango("sqlite://", secret_key="x"), "AsyncEngine"),
        (lambda: FromDjango(no_row, secret_key="x", delete=1), "delete"),  # type: ignore[arg-type]
        (lambda: FromDjango(no_row, secret_key="x", password="x"), "password"),  # type: ignore[arg-type]
        (lambda: FromDjangoCache(DEAD, password=no_row), "secret_key"),
        (lambda: FromExpressSession(DEAD, secret=[]), "secret"),
    ],
)  # fmt: skip
def test_a_mistake_says_what_to_do(make: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_the_domain_of_old_cookies_may_begin_with_a_dot() -> None:
    (deletion,) = from_starlette(domain=".example.org").delete_cookie([])
    assert deletion[1].startswith(b"session=; Max-Age=0")
    assert b"Domain=example.org" in deletion[1]


def test_sessions_take_readers_only(clock: FakeClock) -> None:
    for nonsense in (FromStarlette, object(), "starlette"):
        with pytest.raises(ConfigurationError, match="readers"):
            Site(MemoryStore(), clock, nonsense)  # type: ignore[arg-type]


# ── Redis ──


@pytest.fixture
async def old_redis(valkey_url: str) -> AsyncIterator[Any]:
    client = redis.asyncio.Redis.from_url(valkey_url)
    yield client
    await client.aclose()


ID = "0123456789abcdef0123456789abcdef"


async def test_a_reader_of_redis_reads_and_forgets(clock: FakeClock, old_redis: Any, valkey_url: str) -> None:
    """With a client of the app, and with connections of its own."""
    for server in (old_redis, valkey_url):
        name = f"switch-{secrets.token_hex(4)}:{ID}"
        await old_redis.set(name, json.dumps({**DATA, "__metadata__": {"lifetime": 60}}), ex=60)
        site = Site(MemoryStore(), clock, FromStarsessions(server, prefix=name.removesuffix(ID), user=user_of))
        alice = site.visitor(ID)

        assert (await alice.sees())["data"] == DATA
        assert not await old_redis.exists(name)
        assert set(alice.jar) == {site.name}
        await site.sessions.adopt[0].aclose()


async def test_a_redis_that_is_away_is_503(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    try:
        reader = FromLitestar(f"redis://user:password@127.0.0.1:{port}/0", user=user_of)
        site = Site(MemoryStore(), clock, reader)

        assert (await site.visitor(ID).do()).status == 503
        assert f"host=127.0.0.1:{port}" in caplog.text
        assert "password" not in caplog.text
        assert (await site.visitor("no id of that library").do()).status == 200  # it is not even asked
        await reader.aclose()
    finally:
        give_back(port)


async def test_a_redis_that_hangs_is_503_in_time(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    import asyncio

    async def hang(reader: Any, writer: Any) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = redis.asyncio.Redis(port=port)
    try:
        began = asyncio.get_running_loop().time()
        site = Site(MemoryStore(), clock, FromStarsessions(client, deadline=timedelta(seconds=0.2)))
        assert (await site.visitor(ID).do()).status == 503
        assert asyncio.get_running_loop().time() - began < 1
        assert f"host=localhost:{port}" in caplog.text  # and not that of our store
    finally:
        await client.aclose()
        server.close()
        await server.wait_closed()


async def test_a_key_of_another_kind_is_an_error_of_the_server(old_redis: Any) -> None:
    name = f"switch-{secrets.token_hex(4)}:"
    await old_redis.hset(name + ID, "a", "b")
    reader = FromStarsessions(old_redis, prefix=name)
    cookie = reader.recognise(ID.encode(), NOW)
    assert cookie is not None

    with pytest.raises(StoreError, match="WRONGTYPE"):
        await reader.read(cookie, NOW)
    await old_redis.delete(name + ID)


async def test_a_loop_that_stands_still_is_not_the_fault_of_the_old_store(clock: FakeClock, old_redis: Any) -> None:
    import asyncio
    import time as clocks

    prefix = f"switch-{secrets.token_hex(4)}:"
    await old_redis.set(prefix + ID, json.dumps(DATA), ex=60)
    reader = FromStarsessions(old_redis, prefix=prefix, user=user_of, deadline=timedelta(seconds=0.2))
    asked = asyncio.ensure_future(Site(MemoryStore(), clock, reader).visitor(ID).sees())
    await asyncio.sleep(0)
    clocks.sleep(0.5)  # noqa: ASYNC251 - a handler that blocks

    assert (await asked)["user"] == "alice"


class Bomb:
    loaded = False

    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> dict[str, Any]:
    Bomb.loaded = True
    return {}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
async def test_a_pickle_is_never_loaded(
    clock: FakeClock, old_redis: Any, protocol: int, caplog: pytest.LogCaptureFixture
) -> None:
    base._log_pickled.cache_clear()
    prefix = f"switch-{secrets.token_hex(4)}:"
    raw = pickle.dumps(Bomb(), protocol)
    for reader in (
        FromFlaskSession(old_redis, prefix=prefix, keep_old=True),
        FromStarsessions(old_redis, prefix=prefix, keep_old=True),
        FromDjangoCache(old_redis, key_prefix=prefix, cookie="session", keep_old=True),
    ):
        await old_redis.set(reader._prefix + ID.encode(), raw, ex=60)
        site = Site(MemoryStore(), clock, reader)
        with caplog.at_level(logging.ERROR, "asgi_sessions"):
            for _ in range(3):
                assert (await site.visitor(ID).sees())["data"] == {}
        said = [line for line in caplog.messages if type(reader).__name__ in line]
        assert len(said) == (1 if protocol > 1 else 0)  # the older ones have no mark: they are merely damaged
    assert not Bomb.loaded


async def test_damaged_values_are_nothing(clock: FakeClock, old_redis: Any) -> None:
    prefix = f"switch-{secrets.token_hex(4)}:"
    store = MemoryStore()
    for reader in (
        FromStarsessions(old_redis, prefix=prefix),
        FromLitestar(old_redis, namespace=prefix),
        FromFlaskSession(old_redis, prefix=prefix),
        FromDjangoCache(old_redis, key_prefix=prefix, cookie="session"),
    ):
        for raw in (
            b"",
            b"{",
            b"[]",
            b"{}",
            b"\xc1",
            b"null",
            b"\x93\x01",
            b"nul",
            b"x" * 2_000_000,
            b'{"a": "' + b"x" * 5_000_000 + b'"}',
        ):
            await old_redis.set(reader._prefix + ID.encode(), raw, ex=60)
            assert (await Site(store, clock, reader).visitor(ID).sees())["data"] == {}
    assert len(store) == 0


async def test_a_user_with_too_much_data_stays_logged_in_without_it(clock: FakeClock, old_redis: Any) -> None:
    prefix = f"switch-{secrets.token_hex(4)}:"
    await old_redis.set(prefix + ID, json.dumps({**DATA, "much": "x" * 2_000_000}), ex=60)
    site = Site(MemoryStore(), clock, FromStarsessions(old_redis, prefix=prefix, user=user_of))

    seen = await site.visitor(ID).sees()
    assert (seen["user"], seen["data"]) == ("alice", {"basket": DATA["basket"], "user": "alice", "visits": 3})
    assert site.said("session.adopted")[0].details["dropped"] == ["much"]


async def test_a_signed_id_of_flask_session(clock: FakeClock, old_redis: Any) -> None:
    prefix = f"switch-{secrets.token_hex(4)}:"
    await old_redis.set(prefix + ID, msgspec.msgpack.encode(DATA), ex=60)
    reader = FromFlaskSession(old_redis, prefix=prefix, secret_key=OLD_KEY, user=user_of)
    site = Site(MemoryStore(), clock, reader)
    signer = itsdangerous.Signer(OLD_KEY, salt="flask-session", key_derivation="hmac")

    assert (await site.visitor(ID).sees())["user"] is None
    assert (await site.visitor(signer.sign(ID).decode()).sees())["user"] == "alice"


@pytest.mark.parametrize(("ends", "user"), [(60, "alice"), (-1, None), (None, "alice"), ("nonsense", "alice")])
async def test_a_session_of_express_ends_when_its_cookie_does(
    clock: FakeClock, old_redis: Any, ends: Any, user: str | None
) -> None:
    """Also where connect-redis was told not to set a time."""
    prefix = f"switch-{secrets.token_hex(4)}:"
    at = datetime.fromtimestamp(clock() + ends, UTC).isoformat() if isinstance(ends, int) else ends
    about = {"expires": at, "originalMaxAge": None if ends is None else 60_000}
    await old_redis.set(prefix + ID, json.dumps({**DATA, "cookie": about}), ex=60)
    reader = FromExpressSession(old_redis, secret=OLD_KEY, prefix=prefix, user=user_of, cookie="session")
    site = Site(MemoryStore(), clock, reader)

    assert (await site.visitor(express_signed(ID)).sees())["user"] == user
    assert (await site.visitor(express_signed(ID, "another secret")).sees())["user"] is None
    assert (await site.visitor(ID).sees())["user"] is None


def express_signed(id: str, secret: str = OLD_KEY) -> str:
    import base64
    import hmac
    from urllib.parse import quote

    signature = base64.b64encode(hmac.digest(secret.encode(), id.encode(), "sha256")).decode().rstrip("=")
    return quote(f"s:{id}.{signature}", safe="")


@pytest.mark.parametrize(("seconds", "user"), [(60, "alice"), (None, None)])
async def test_what_the_sdk_of_redis_wrote_after_the_end_is_none(
    clock: FakeClock, old_redis: Any, seconds: int | None, user: str | None
) -> None:
    prefix = f"switch-{secrets.token_hex(4)}"
    name = f"{prefix}:session:{ID}"
    await old_redis.hset(name, "d", json.dumps({"m": {}, "d": DATA}))
    if seconds is not None:
        await old_redis.expire(name, seconds)
    site = Site(MemoryStore(), clock, FromFastapiRedisSdk(old_redis, prefix=prefix, user=user_of))

    assert (await site.visitor(ID).sees())["user"] == user
    await old_redis.delete(name)


async def test_a_small_cookie_that_inflates_to_much_is_none(clock: FakeClock) -> None:
    """Only who has the key can make one; it is bounded all the same."""
    import zlib
    from base64 import urlsafe_b64encode

    bomb = b"." + urlsafe_b64encode(zlib.compress(b'{"a": "' + b"x" * 8_000_000 + b'"}')).rstrip(b"=")
    signer = itsdangerous.TimestampSigner(OLD_KEY, salt=b"cookie-session", key_derivation="hmac")
    signer.get_timestamp = lambda: int(clock())  # type: ignore[method-assign]
    reader = FromFlask(secret_key=OLD_KEY, user=None)

    assert len(signer.sign(bomb)) < base.MAX_COOKIE
    assert reader.recognise(signer.sign(bomb), clock()) is None


# ── Django's database, through functions of the app ──


@pytest.mark.parametrize(
    ("expires", "user"),
    [
        (datetime.fromtimestamp(NOW + 60, UTC), "7"),
        (datetime.fromtimestamp(NOW + 60, UTC).replace(tzinfo=None), "7"),
        (datetime.fromtimestamp(NOW + 60, timezone(timedelta(hours=5))), "7"),
        (None, "7"),
        (datetime.fromtimestamp(NOW - 1, UTC), None),
    ],
    ids=["aware", "naive", "elsewhere", "never", "over"],
)
async def test_a_row_of_django(clock: FakeClock, expires: Any, user: str | None) -> None:
    there = {
        ID: (django_signed({"_auth_user_id": "7", "a": 1}, "django.contrib.sessions.SessionStore").decode(), expires)
    }

    async def find(key: str) -> Any:
        return there.get(key)

    async def delete(key: str) -> None:
        del there[key]

    reader = FromDjango(find, secret_key=["a newer one", OLD_KEY], delete=delete, cookie="session")
    seen = await Site(MemoryStore(), clock, reader).visitor(ID).sees()

    assert seen["user"] == user
    assert seen["data"] == ({} if user is None else {"a": 1})
    assert bool(there) is (user is None)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense",
        b"a:b:c",
        django_signed(DATA),
        django_signed(pickle.dumps(1), "django.contrib.sessions.SessionStore"),
    ],
)
async def test_a_row_that_is_damaged_is_nothing(clock: FakeClock, raw: bytes) -> None:
    async def find(key: str) -> Any:
        return raw.decode(), None

    reader = FromDjango(find, secret_key=OLD_KEY, cookie="session")
    assert (await Site(MemoryStore(), clock, reader).visitor(ID).sees())["data"] == {}


@pytest.mark.parametrize(
    ("deadline", "failed"),
    [(timedelta(seconds=0.1), [("forget", "the old database")]), (timedelta(seconds=20), [])],
    ids=["impatient", "patient"],
)
async def test_a_slow_deletion_has_the_time_limit_of_the_reader_and_costs_no_log_in(
    clock: FakeClock, deadline: timedelta, failed: list[Any]
) -> None:
    there = {ID: django_signed({"_auth_user_id": "7"}, "django.contrib.sessions.SessionStore").decode()}

    async def find(key: str) -> Any:
        return there[key], None

    async def delete(key: str) -> None:
        await anyio.sleep(1.2)
        del there[key]

    reader = FromDjango(find, secret_key=OLD_KEY, delete=delete, deadline=deadline, cookie="session")
    site = Site(MemoryStore(), clock, reader)

    assert (await site.visitor(ID).sees())["user"] == "7"
    assert [(event.details["step"], event.details["host"]) for event in site.said("store.failed")] == failed
    assert bool(there) is bool(failed)


async def test_a_database_that_fails_is_503(clock: FakeClock) -> None:
    async def find(key: str) -> Any:
        raise OSError("no route to host")

    reader = FromDjango(find, secret_key=OLD_KEY, cookie="session")
    assert (await Site(MemoryStore(), clock, reader).visitor(ID).do()).status == 503


async def test_a_database_without_the_table_says_which_option_to_look_at(tmp_path: Path) -> None:
    """In the log, where a message ends at the first quote."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'django.db'}")
    reader = FromDjango(engine, secret_key=OLD_KEY, table="other")
    cookie = reader.recognise(ID.encode("ascii"), NOW)
    assert cookie is not None
    with pytest.raises(StoreError) as caught:
        await reader.read(cookie, NOW)
    assert re.search(r"FromDjango\(table=…\).*no such table: other", reason_of(caught.value))
    await reader.aclose()
    await engine.dispose()


async def test_a_password_that_was_changed_ends_a_session_of_django(clock: FakeClock) -> None:
    from asgi_sessions.migrate._django import _HASH_SALT, salted

    now: Any = "pbkdf2_sha256$1$salt$hash"

    async def password(user_id: str) -> str | None:
        assert user_id == "7"
        if isinstance(now, Exception):
            raise now
        return now  # type: ignore[no-any-return]

    data = {"_auth_user_id": "7", "_auth_user_hash": salted(_HASH_SALT, OLD_KEY.encode(), now.encode()).hex()}
    reader = FromDjangoSignedCookies(secret_key=OLD_KEY, password=password, cookie="session", keep_old=True)

    async def who() -> Any:
        site = Site(MemoryStore(), clock, reader)
        seen = await site.visitor(django_signed(data)).sees()
        return seen["user"] if seen["status"] == 200 else seen["status"]

    assert await who() == "7"
    now = "pbkdf2_sha256$1$salt$another"
    assert await who() is None
    now = None  # deleted
    assert await who() is None
    now = OSError()
    assert await who() == 503
    now = StoreUnreachable("away")
    assert await who() == 503
