"""The pure layer: what we write we read, nothing else is taken for ours, and no bytes make a parser raise."""

from __future__ import annotations

import base64
import hmac
import math
import re
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from hashlib import sha256
from http.cookies import SimpleCookie
from itertools import pairwise
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import assume, example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from asgi_sessions import ConfigurationError, CookieConfig, SessionDataError, Timeouts
from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.cookie import keep_out_of_caches, vary_on
from asgi_sessions._core.payload import MAX_CONTAINERS, MessagePackCodec, merge
from asgi_sessions._core.record import Body, Record, pack, pack_rev, seal, unpack, unseal
from asgi_sessions._core.timeouts import RENEWAL_GRACE
from asgi_sessions._core.token import BARE_CHARS, SIGNED_CHARS, TokenMint, key_of, owner_of, shard_of
from asgi_sessions._core.types import Headers, instant
from asgi_sessions._engine.breaker import FAILURES_TO_OPEN, LONGEST_PAUSE, Breaker
from asgi_sessions._engine.guard import DEADLINE
from asgi_sessions.errors import RecordDamaged

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
CODEC = MessagePackCodec()


def base64url(chars: int) -> st.SearchStrategy[str]:
    return st.text(ALPHABET, min_size=chars, max_size=chars)


# Hashed, so that what hypothesis makes is never one of the placeholders that are refused.
secret = st.integers(0, 2**32).map(lambda number: sha256(b"%d" % number).digest())
two_secrets = st.lists(secret, min_size=2, max_size=2, unique=True)
signing_key = st.binary(min_size=32, max_size=32)
unicode_text = st.text(st.characters(exclude_categories=["Cs"]))


# ── Tokens ──


@given(st.lists(signing_key, max_size=3), unicode_text, st.none() | base64url(3))
def test_what_is_minted_is_parsed(keys: list[bytes], purpose: str, shard: str | None) -> None:
    mint = TokenMint(keys, purpose)

    token = mint.mint(shard)

    assert mint.key_in(token.encode()) == key_of(token)
    assert len(token) == (SIGNED_CHARS if keys else BARE_CHARS)
    assert shard is None or shard_of(token) == shard


token_like = st.one_of(
    st.binary(max_size=100),
    base64url(BARE_CHARS).map(str.encode),
    base64url(SIGNED_CHARS).map(str.encode),
    st.tuples(base64url(BARE_CHARS - 1), st.integers(0, BARE_CHARS - 1), st.binary(max_size=2)).map(
        lambda t: t[0][: t[1]].encode() + t[2] + t[0][t[1] :].encode()
    ),
)


@given(token_like)
def test_without_keys_the_form_of_a_token_is_all_that_counts(raw: bytes) -> None:
    key = TokenMint().key_in(raw)

    assert key == (key_of(raw.decode()) if re.fullmatch(rb"[A-Za-z0-9_-]{46}", raw) else None)


@given(token_like, st.lists(signing_key, min_size=1, max_size=3))
def test_with_keys_nothing_that_others_made_is_a_token(raw: bytes, keys: list[bytes]) -> None:
    assert TokenMint(keys).key_in(raw) is None


@given(signing_key, st.lists(signing_key, max_size=3))
def test_a_token_signed_with_a_key_that_is_not_listed_is_refused(key: bytes, others: list[bytes]) -> None:
    assume(key not in others)
    token = TokenMint([key]).mint().encode()

    assert TokenMint(others).key_in(token) is None


@given(signing_key, st.lists(signing_key, max_size=2), st.lists(signing_key, max_size=2))
def test_a_token_signed_with_any_listed_key_is_good(key: bytes, before: list[bytes], after: list[bytes]) -> None:
    token = TokenMint([key]).mint()

    assert TokenMint([*before, key, *after]).key_in(token.encode()) == key_of(token)


@given(signing_key, unicode_text, unicode_text)
def test_a_token_is_worthless_for_another_purpose(key: bytes, purpose: str, other: str) -> None:
    assume(purpose != other)
    token = TokenMint([key], purpose).mint().encode()

    assert TokenMint([key], other).key_in(token) is None


@given(signing_key, st.integers(0, SIGNED_CHARS - 1), st.integers(0, 255))
def test_no_character_of_a_signed_token_can_be_changed(key: bytes, at: int, to: int) -> None:
    mint = TokenMint([key])
    token = bytearray(mint.mint().encode())
    assume(token[at] != to)

    token[at] = to

    assert mint.key_in(bytes(token)) is None


@given(st.binary(min_size=1, max_size=200), unicode_text)
def test_a_signature_is_the_hmac_of_the_standard_library(key: bytes, purpose: str) -> None:
    """RFC 2104; ours only does the first half of the work in advance."""
    token = TokenMint([key], purpose).mint()
    message = b"asgi-sessions token\0" + purpose.encode() + b"\0" + token[:BARE_CHARS].encode()

    expected = hmac.digest(key, message, "sha256")[:16]

    assert base64.urlsafe_b64decode(token[BARE_CHARS:] + "==") == expected


@given(secret, base64url(46))
def test_a_record_is_sealed_under_a_key_by_hkdf(raw: bytes, key: str) -> None:
    """RFC 5869, twice: from a secret to its purpose, and from there to one record."""
    root = hmac.digest(b"asgi-sessions", raw, "sha256")
    purpose = HKDFExpand(SHA256(), 32, b"asgi-sessions seal records").derive(root)
    aes = AESGCM(HKDFExpand(SHA256(), 32, b"asgi-sessions record " + key.encode()).derive(purpose))

    sealed = Secrets([raw]).seal(b"plain", key=key, associated=b"record")

    assert aes.decrypt(sealed[4:16], sealed[16:], b"record") == b"plain"


@given(signing_key, st.sampled_from(ALPHABET))
def test_a_signature_has_one_spelling(key: bytes, last: str) -> None:
    """The last base64url character of 16 bytes has four bits to spare; a lenient decoder would take any of them."""
    mint = TokenMint([key])
    token = mint.mint()
    assume(token[-1] != last)

    assert mint.key_in((token[:-1] + last).encode()) is None


@given(base64url(BARE_CHARS), base64url(BARE_CHARS), base64url(SIGNED_CHARS - BARE_CHARS))
def test_a_key_tells_the_shard_of_its_token_and_nothing_else(token: str, other: str, signature: str) -> None:
    key = key_of(token)

    assert re.fullmatch(r"[A-Za-z0-9_-]{25}", key)
    assert shard_of(key) == shard_of(token)
    assert token[3:] not in key
    assert (key_of(other) == key) == (other == token)
    assert key_of(token + signature) == key


@given(unicode_text.filter(bool), unicode_text.filter(bool))
def test_every_user_id_has_an_owner_name_of_its_own(user_id: str, other: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", owner_of(user_id))
    assert (owner_of(user_id) == owner_of(other)) == (user_id == other)


# ── Reading cookies ──


def slow_read(name: bytes, headers: Headers) -> list[bytes]:
    """CookieConfig.read as anybody would write it who has all day."""
    values = []
    for header, value in headers:
        if header == b"cookie":
            for piece in value.split(b";"):
                bare = piece.strip(b" \t")
                if bare.startswith(name + b"="):
                    values.append(bare[len(name) + 1 :].strip(b" \t"))
    return values


NAMES = ["__Host-Http-session", "__Host-a", "session", "a", "aa", "a.b", "$Version", "s!#$%&'*+-.^_`|~"]


def cookie_soup(name: str) -> st.SearchStrategy[bytes]:
    """Cookie headers of an attacker who knows the name: every separator, every look-alike space, in every order."""
    ours = name.encode()
    fragments = [
        ours,
        ours + b"=",
        b"; " + ours + b"=value",
        ours[:-1],
        ours.upper(),
        ours * 2,
        b"=",
        b";",
        b" ",
        b"\t",
    ]
    fragments += [
        b"\xa0",
        b"\x85",
        b"\xc2\xa0",
        b"\x0b",
        b"\x0c",
        b"\0",
        b"\r\n",
        b'"',
        b",",
        b"\\",
        b"$Version=1",
        b"x",
    ]
    return st.lists(st.sampled_from(fragments) | st.binary(max_size=3), max_size=30).map(b"".join)


# Everything that some parser somewhere takes for a space.
odd_spaces = st.lists(
    st.sampled_from(
        [b" ", b"\t", b"\xa0", b"\x85", b"\xc2\xa0", b"\xe2\x80\x83", b"\x0b", b"\x0c", b"\r", b"\n", b"\0", b"\x1c"]
    ),
    max_size=2,
).map(b"".join)


def odd_pairs(name: str) -> st.SearchStrategy[bytes]:
    """Pairs of our name, with what looks like space wherever there may be some."""
    pair = st.tuples(
        odd_spaces, st.just(name.encode()), odd_spaces, st.just(b"="), odd_spaces, st.just(b"v"), odd_spaces
    )
    clean = st.tuples(odd_spaces, st.just(name.encode() + b"="), odd_spaces, st.just(b"v"), odd_spaces)
    return st.lists((pair | clean | clean).map(b"".join), max_size=4).map(b";".join)


@st.composite
def name_and_headers(draw: st.DrawFn) -> tuple[str, Headers]:
    name = draw(st.sampled_from(NAMES))
    header = st.sampled_from([b"cookie", b"cookie", b"cookie", b"set-cookie", b"cookie2", b"Cookie", b""])
    return name, draw(
        st.lists(st.tuples(header, cookie_soup(name) | odd_pairs(name) | st.binary(max_size=50)), max_size=5)
    )


@given(name_and_headers())
@example(("session", [(b"cookie", b"session=a; \xa0session=b;\tsession=c ;session =d;xsession=e;session=session=f")]))
def test_the_cookie_reader_agrees_with_a_slow_and_obvious_one(case: tuple[str, Headers]) -> None:
    name, headers = case

    assert CookieConfig(name=name, secure=True).read(headers) == slow_read(name.encode(), headers)


@given(st.sampled_from(NAMES), st.lists(base64url(BARE_CHARS), max_size=3), st.lists(base64url(5), max_size=3))
def test_a_token_is_found_among_other_cookies(name: str, tokens: list[str], others: list[str]) -> None:
    pairs = [f"{name}={token}" for token in tokens] + [f"other{other}={other}" for other in others]
    header = "; ".join(pairs).encode()

    assert CookieConfig(name=name).read([(b"cookie", header)]) == [token.encode() for token in tokens]


# ── Writing cookies ──


@given(
    name=unicode_text | st.sampled_from(NAMES),
    path=unicode_text | st.just("/"),
    domain=st.none() | unicode_text,
    secure=st.booleans(),
    samesite=st.sampled_from(["lax", "strict", "none", "None", "x"]),
    partitioned=st.booleans(),
)
def test_a_cookie_configuration_is_refused_clearly_or_writes_one_clean_line(**options: Any) -> None:
    try:
        cookie = CookieConfig(**options)
    except ConfigurationError:
        return

    for name, value in (cookie.set("A" * BARE_CHARS, 60), cookie.delete()):
        assert name == b"set-cookie"
        assert re.fullmatch(rb"[\x20-\x7e]+", value)
        assert b"HttpOnly" in value.split(b"; ")
        assert value.count(b";") == value.count(b"; ")


@st.composite
def cookies(draw: st.DrawFn) -> CookieConfig:
    samesite: Literal["lax", "strict", "none"] = draw(st.sampled_from(["lax", "strict", "none"]))
    secure = draw(st.booleans()) or samesite == "none"
    host_bound = secure and draw(st.booleans())
    name = draw(st.text("abcXYZ019-_.!~", min_size=1, max_size=10))
    assume(not name.startswith("__"))
    return CookieConfig(
        name="__Host-" + name if host_bound else name,
        path="/" if host_bound else draw(st.text("ab/", max_size=5).map(lambda path: "/" + path)),
        domain=None if host_bound else draw(st.sampled_from([None, "example.org", "app.example.org"])),
        secure=secure,
        samesite=samesite,
        partitioned=samesite == "none" and draw(st.booleans()),
    )


@given(cookies(), st.none() | st.integers(1, 10**9))
def test_the_standard_library_reads_the_cookie_as_it_was_meant(cookie: CookieConfig, max_age: int | None) -> None:
    token = TokenMint().mint()
    # Python 3.13 and older do not know Partitioned, and then read nothing at all.
    line = cookie.set(token, max_age)[1].decode().removesuffix("; Partitioned")

    jar = SimpleCookie(line)

    assert list(jar) == [cookie.name]
    morsel = jar[cookie.name]
    assert morsel.value == token
    assert morsel["max-age"] == ("" if max_age is None else str(max_age))
    assert (morsel["path"], morsel["domain"]) == (cookie.path, cookie.domain or "")
    assert bool(morsel["secure"]) is cookie.secure
    assert morsel["httponly"] is True
    assert morsel["samesite"].lower() == cookie.samesite
    assert cookie.set(token)[1].endswith(b"; Partitioned") is cookie.partitioned


@given(cookies(), st.none() | st.integers(60, 10**6))  # the jar goes by the clock of the machine
def test_a_real_jar_keeps_sends_back_and_deletes_the_cookie(cookie: CookieConfig, max_age: int | None) -> None:
    token = TokenMint().mint()
    jar = httpx.Cookies()

    jar.extract_cookies(answer(cookie, cookie.set(token, max_age)))

    (kept,) = jar.jar
    assert (kept.name, kept.value, kept.path) == (cookie.name, token, cookie.path)
    assert kept.secure is cookie.secure
    assert kept.domain_specified is (cookie.domain is not None)
    assert (kept.expires is None) is (max_age is None)
    sent = httpx.Request("GET", f"https://app.example.org{cookie.path}")
    jar.set_cookie_header(sent)
    assert cookie.read([(b"cookie", sent.headers["cookie"].encode())]) == [token.encode()]

    jar.extract_cookies(answer(cookie, cookie.delete()))

    assert list(jar.jar) == []


def answer(cookie: CookieConfig, header: tuple[bytes, bytes]) -> httpx.Response:
    request = httpx.Request("GET", f"https://app.example.org{cookie.path}")
    return httpx.Response(200, headers=[header], request=request)


@given(cookies())
def test_deleting_repeats_every_attribute(cookie: CookieConfig) -> None:
    written = cookie.set("A" * BARE_CHARS)[1].split(b"; ")[1:]
    deleted = cookie.delete()[1].split(b"; ")[1:]

    assert [attribute for attribute in deleted if attribute not in written] == [
        b"Max-Age=0",
        b"Expires=Thu, 01 Jan 1970 00:00:00 GMT",
    ]
    assert set(written) <= set(deleted)


# ── Headers for caches ──

directive = st.sampled_from(
    [
        b"public",
        b"Private",
        b"no-store",
        b" no-store ",
        b"no-cache",
        b'no-cache="Set-Cookie"',
        b"max-age=60",
        b"s-maxage=9",
    ]
) | st.sampled_from(
    [
        b"S-MaxAge=9",
        b'private="x, y"',
        b"must-revalidate",
        b"immutable",
        b"",
        b'ext="a, public"',
        b"must-understand",
        b'no-cache="x"',
    ]
)
cache_control = st.lists(directive, max_size=4).map(b",".join) | st.lists(directive, max_size=4).map(b" , ".join)
vary_value = st.lists(
    st.sampled_from([b"*", b"Cookie", b"cookie", b"Accept", b"X-Cookie", b"Origin", b"", b" ", b"\t*"]), max_size=3
).map(b",".join)
vary_header = st.tuples(st.sampled_from([b"vary", b"Vary"]), vary_value)
vary_list = st.lists(
    vary_header | st.tuples(st.sampled_from([b"x-vary", b"content-type"]), st.binary(max_size=8)), max_size=4
)
header_list = st.lists(
    st.one_of(
        vary_header,
        st.tuples(st.sampled_from([b"cache-control", b"Cache-Control"]), cache_control),
        st.tuples(
            st.sampled_from(
                [
                    b"surrogate-control",
                    b"CDN-Cache-Control",
                    b"Edge-Control",
                    b"X-Accel-Expires",
                    b"x-vary",
                    b"set-cookie",
                ]
            ),
            st.binary(max_size=8),
        ),
        st.tuples(st.binary(max_size=8), st.binary(max_size=8)),
    ),
    max_size=6,
)


def members(headers: Headers, wanted: bytes) -> list[bytes]:
    """Every comma-separated member of every header of that name, as a cache reads them."""
    joined = b",".join(value for name, value in headers if name.lower() == wanted)
    split = re.findall(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+', joined)
    return [member.strip(b" \t") for member in split if member.strip(b" \t")]


@given(vary_list)
def test_vary_on_cookie_adds_the_cookie_and_keeps_the_rest(before: Headers) -> None:
    after = list(before)

    vary_on(after)

    said = {member.lower() for member in members(after, b"vary")}
    assert said & {b"cookie", b"*"}
    assert set(members(before, b"vary")) <= set(members(after, b"vary"))
    assert len(members(after, b"vary")) <= len(members(before, b"vary")) + 1
    assert others(after, b"vary") == others(before, b"vary")


@given(vary_list)
def test_vary_on_cookie_twice_is_once(headers: Headers) -> None:
    vary_on(headers)
    once = list(headers)

    vary_on(headers)

    assert headers == once


def others(headers: Headers, *unwanted: bytes) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in unwanted]


def for_a_cdn(name: bytes) -> bool:
    names = (b"surrogate-control", b"edge-control", b"x-accel-expires")
    return name.lower() in names or name.lower().endswith(b"-cache-control")


@given(header_list, st.booleans())
def test_no_shared_cache_may_keep_what_was_kept_out_of_them(before: Headers, no_store: bool) -> None:
    after = list(before)

    keep_out_of_caches(after, no_store=no_store)

    said = [member.lower() for member in members(after, b"cache-control")]
    assert b"no-store" in said or not no_store
    assert b"must-understand" not in said
    assert b"no-store" in said or (b"private" in said and not {b"public"} & set(said))
    assert b"no-store" in said or not any(member.startswith((b"s-maxage", b"private=")) for member in said)
    assert not any(for_a_cdn(name) for name, _ in after)
    assert [name.lower() for name, _ in after].count(b"cache-control") == 1


@given(
    st.lists(st.sampled_from([b'"', b"\\", b",", b"public", b"=", b"s-maxage=9", b"x", b" "]), max_size=12).map(
        b"".join
    ),
    st.booleans(),
)
def test_no_odd_quotes_make_a_cache_overlook_what_was_added(said: bytes, no_store: bool) -> None:
    headers = [(b"cache-control", said)]

    keep_out_of_caches(headers, no_store=no_store)

    read = {member.lower() for member in members(headers, b"cache-control")}
    assert b"no-store" in read or not no_store
    assert b"no-store" in read or (b"private" in read and b"public" not in read)


@given(header_list, st.booleans())
@example([(b"cache-control", b'no-cache="Set-Cookie", no-cache="x"')], False)
def test_what_the_app_said_about_caching_stays_unless_it_contradicts(before: Headers, no_store: bool) -> None:
    after = list(before)

    keep_out_of_caches(after, no_store=no_store)

    dropped = set(members(before, b"cache-control")) - set(members(after, b"cache-control"))
    left = {member.lower() for member in members(after, b"cache-control")}
    for member in dropped:
        name, _, value = member.lower().partition(b"=")
        assert name in (b"public", b"s-maxage", b"must-understand") or (value and (name in left or b"no-store" in left))
    silent = not members(before, b"cache-control")
    assert (members(after, b"cache-control") == [b"no-store"]) or not silent
    assert others(after, b"cache-control") == [
        pair for pair in others(before, b"cache-control") if not for_a_cdn(pair[0])
    ]


@given(header_list, st.booleans())
@example([(b"cache-control", b"max-age=60")], False)
def test_keeping_out_of_caches_twice_is_once(headers: Headers, no_store: bool) -> None:
    keep_out_of_caches(headers, no_store=no_store)
    once = list(headers)

    keep_out_of_caches(headers, no_store=no_store)

    assert headers == once


# ── Timeouts ──

limit = st.timedeltas(timedelta(milliseconds=1), timedelta(days=3660))
moment = st.floats(0, 4e9) | st.integers(1_700_000_000, 1_900_000_000).map(float)
timeouts = st.builds(
    Timeouts,
    idle=limit,
    absolute=limit,
    remember_idle=limit,
    remember_absolute=limit,
    renew=st.none() | st.timedeltas(timedelta(seconds=30), timedelta(days=3660)),
    touch=st.timedeltas(timedelta(0), timedelta(days=1)),
)


def over(limits: Timeouts, created_at: float, seen_at: float, remembered: bool, now: float) -> str | None:
    expires_at = limits.expires_at(created_at=created_at, seen_at=seen_at, remembered=remembered)
    return limits.over(created_at=created_at, seen_at=seen_at, expires_at=expires_at, remembered=remembered, now=now)


@given(timeouts, moment, moment, st.booleans(), moment)
def test_a_session_is_over_exactly_from_when_it_expires(
    limits: Timeouts, created_at: float, seen_at: float, remembered: bool, now: float
) -> None:
    expires_at = limits.expires_at(created_at=created_at, seen_at=seen_at, remembered=remembered)

    assert (over(limits, created_at, seen_at, remembered, now) is None) == (now < expires_at)
    assert over(limits, created_at, seen_at, remembered, expires_at) is not None
    assert over(limits, created_at, seen_at, remembered, math.nextafter(expires_at, 0)) is None or expires_at == 0


@given(timeouts, moment, moment, st.booleans(), moment, moment)
def test_what_is_over_stays_over(
    limits: Timeouts, created_at: float, seen_at: float, remembered: bool, now: float, later: float
) -> None:
    assume(now <= later)
    first, second = (over(limits, created_at, seen_at, remembered, at) for at in (now, later))

    order = [None, "idle", "absolute"]
    assert order.index(first) <= order.index(second)


@given(timeouts, moment, moment, st.booleans())
def test_remembered_picks_its_own_pair_of_limits(
    limits: Timeouts, created_at: float, seen_at: float, remembered: bool
) -> None:
    idle = limits.remember_idle if remembered else limits.idle
    absolute = limits.remember_absolute if remembered else limits.absolute

    assert limits.expires_at(created_at=created_at, seen_at=seen_at, remembered=remembered) == min(
        seen_at + idle.total_seconds(), created_at + absolute.total_seconds()
    )
    assert limits.ends_at(created_at=created_at, remembered=remembered) == created_at + absolute.total_seconds()


@given(timeouts, moment, moment, moment, st.booleans())
def test_no_activity_moves_the_absolute_limit(
    limits: Timeouts, created_at: float, seen_at: float, later: float, remembered: bool
) -> None:
    ends_at = limits.ends_at(created_at=created_at, remembered=remembered)

    assert limits.expires_at(created_at=created_at, seen_at=later, remembered=remembered) <= ends_at
    assert over(limits, created_at, seen_at, remembered, ends_at) == "absolute"


@given(timeouts, timeouts, moment, moment, st.booleans(), moment)
def test_limits_that_changed_since_end_sessions_and_revive_none(
    then: Timeouts, today: Timeouts, created_at: float, seen_at: float, remembered: bool, now: float
) -> None:
    promised = then.expires_at(created_at=created_at, seen_at=seen_at, remembered=remembered)
    by_today = today.expires_at(created_at=created_at, seen_at=seen_at, remembered=remembered)

    ended = today.over(created_at=created_at, seen_at=seen_at, expires_at=promised, remembered=remembered, now=now)

    assert (ended is None) == (now < min(promised, by_today))


@given(timeouts, moment, moment, st.booleans())
def test_activity_is_due_to_be_noted_once_it_is_old_enough_and_from_then_on(
    limits: Timeouts, seen_at: float, now: float, remembered: bool
) -> None:
    idle = (limits.remember_idle if remembered else limits.idle).total_seconds()
    spacing = min(limits.touch.total_seconds(), idle / 2)

    assert limits.touch_due(seen_at=seen_at, remembered=remembered, now=now) == (now - seen_at >= spacing)
    assert limits.touch_due(seen_at=seen_at, remembered=remembered, now=seen_at) == (spacing == 0)


@given(
    idle=st.integers(2, 10_000),
    touch=st.integers(0, 10_000),
    gaps=st.lists(st.floats(0, 1), max_size=30),
    remembered=st.booleans(),
)
def test_a_busy_session_never_goes_idle_and_a_silent_one_never_lives_longer(
    idle: int, touch: int, gaps: list[float], remembered: bool
) -> None:
    """Activity is noted only now and then. That may cost a session up to one spacing, and never gives it a second."""
    minutes, days = timedelta(seconds=idle), timedelta(days=3000)
    limits = Timeouts(
        idle=minutes, remember_idle=minutes, absolute=days, remember_absolute=days, touch=timedelta(seconds=touch)
    )
    spacing = min(touch, idle / 2)
    now = seen_at = created_at = 1_800_000_000.0
    for gap in gaps:
        now += round(gap * (idle - spacing), 3) * 0.999
        assert over(limits, created_at, seen_at, remembered, now) is None
        if limits.touch_due(seen_at=seen_at, remembered=remembered, now=now):
            seen_at = now

    assert over(limits, created_at, seen_at, remembered, now + idle) == "idle"


@given(timeouts, moment, moment)
def test_a_renewed_token_is_not_renewed_again_while_its_predecessor_is_honoured(
    limits: Timeouts, minted_at: float, now: float
) -> None:
    renew = limits.renew

    assert limits.renewal_due(minted_at=minted_at, now=now) == (
        renew is not None and now - minted_at >= renew.total_seconds()
    )
    if now >= minted_at and limits.renewal_due(minted_at=minted_at, now=now):
        assert not limits.in_grace(renewed_at=minted_at, now=now)
    assert limits.in_grace(renewed_at=minted_at, now=minted_at)
    assert not limits.in_grace(renewed_at=0, now=RENEWAL_GRACE)


@given(st.none() | moment, st.floats(0, 1e6), moment)
def test_only_who_authenticated_lately_is_fresh(authenticated_at: float | None, within: float, now: float) -> None:
    fresh = Timeouts.fresh(authenticated_at=authenticated_at, within=within, now=now)

    assert fresh == (authenticated_at is not None and now - authenticated_at < within)


@given(
    st.sampled_from(["idle", "absolute", "remember_idle", "remember_absolute", "renew", "touch"]),
    st.one_of(st.timedeltas(), st.integers(), st.floats(), st.text(), st.none(), st.booleans()),
)
def test_a_timeout_that_makes_no_sense_is_refused_when_it_is_given(name: str, value: Any) -> None:
    least = timedelta(0) if name == "touch" else timedelta(milliseconds=1)
    if name == "renew":
        least = timedelta(seconds=RENEWAL_GRACE)
    good = isinstance(value, timedelta) and least <= value <= timedelta(days=3660)

    if good or (name == "renew" and value is None):
        assert getattr(Timeouts(**{name: value}), name) == value
    else:
        with pytest.raises(ConfigurationError, match=name):
            Timeouts(**{name: value})


# ── Records ──

milliseconds = st.integers(0, 10**13 - 1).map(lambda number: number / 1000)
records = st.builds(
    Record,
    key=base64url(25),
    rev=st.integers(0, 10**8 - 1),
    seen_at=milliseconds,
    expires_at=milliseconds,
    id=base64url(16),
    owner=st.none() | base64url(22),
    body=st.binary(max_size=60),
)


@given(records)
def test_what_is_packed_is_unpacked(record: Record) -> None:
    assert unpack(record.key, pack(record)) == record


def damage(data: st.DataObject, whole: bytes) -> bytes:
    """The bytes cut short, with a bit flipped, with bytes replaced, or something else altogether."""
    kind = data.draw(st.sampled_from(["cut", "flip", "replace", "other"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "cut":
        return whole[:at]
    if kind == "flip":
        return whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :]
    if kind == "replace":
        return whole[:at] + data.draw(st.binary(min_size=1, max_size=8)) + whole[at + 1 :]
    return data.draw(st.binary(max_size=200))


@given(records, st.data())
def test_whatever_lies_under_a_key_is_a_record_of_that_key_or_damaged(record: Record, data: st.DataObject) -> None:
    found = damage(data, pack(record))
    try:
        unpacked = unpack(record.key, found)
    except RecordDamaged:
        return

    assert unpacked.key == record.key
    assert found.startswith(b"1")
    assert len(unpacked.id) == 16
    assert unpacked.owner is None or len(unpacked.owner) == 22
    assert found.endswith(unpacked.body)


@given(records, base64url(25))
def test_a_record_does_not_unpack_under_another_key(record: Record, other: str) -> None:
    assume(other[3:19] != record.key[3:19])

    with pytest.raises(RecordDamaged):
        unpack(other, pack(record))


@given(records)
def test_a_record_cut_short_in_its_header_is_damaged(record: Record) -> None:
    packed = pack(record)

    for size in range(len(packed) - len(record.body)):
        with pytest.raises(RecordDamaged):
            unpack(record.key, packed[:size])


@given(st.integers(1, 10**18))
def test_no_revision_looks_like_that_of_an_alias_or_of_its_successor(rev: int) -> None:
    assert re.fullmatch(r"\d{8}", pack_rev(rev))
    assert pack_rev(rev) not in (pack_rev(0), pack_rev(rev + 1))


# ── Sealing ──

instant_of_a_session = st.floats(0, 4e9)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[Body, Record]:
    """A body that makes sense, and the record around it, without the body's bytes yet."""
    alias = draw(st.integers(0, 4)) == 0
    user_id = None if alias else draw(st.none() | unicode_text.filter(bool))
    body = Body(
        kind="alias" if alias else "session",
        user_id=user_id,
        created_at=draw(instant_of_a_session),
        authenticated_at=None if user_id is None else draw(instant_of_a_session),
        minted_at=draw(instant_of_a_session),
        remembered=draw(st.booleans()),
        payload=draw(st.binary(max_size=60)),
    )
    record = draw(records)
    rev = 0 if alias else max(record.rev, 1)
    return body, replace(record, rev=rev, owner=None if user_id is None else owner_of(user_id), body=b"")


def sealed_with(secrets: Secrets, namespace: str, body: Body, record: Record) -> Record:
    return replace(record, body=seal(record.key, record.id, record.owner, body, secrets, namespace))


@given(bodies(), st.lists(secret, max_size=2, unique=True), unicode_text)
def test_what_is_sealed_opens(case: tuple[Body, Record], keys: list[bytes], namespace: str) -> None:
    body, record = case
    secrets = Secrets(keys)

    assert unseal(sealed_with(secrets, namespace, body, record), secrets, namespace) == body


@given(bodies(), two_secrets, unicode_text)
def test_a_record_opens_with_any_listed_secret_and_with_no_other(
    case: tuple[Body, Record], keys: list[bytes], namespace: str
) -> None:
    body, record = case
    old, new = keys
    sealed = sealed_with(Secrets([old]), namespace, body, record)

    assert unseal(sealed, Secrets([new, old]), namespace) == body
    for other in (Secrets([new]), Secrets()):
        with pytest.raises(RecordDamaged):
            unseal(sealed, other, namespace)


@given(bodies(), secret, unicode_text, base64url(25), base64url(16), base64url(22), unicode_text)
def test_a_sealed_record_opens_in_its_own_place_only(
    case: tuple[Body, Record], key: bytes, namespace: str, other_key: str, other_id: str, other_owner: str, other: str
) -> None:
    body, record = case
    secrets = Secrets([key])
    sealed = sealed_with(secrets, namespace, body, record)
    moved = [
        (replace(sealed, key=other_key), namespace),
        (replace(sealed, id=other_id), namespace),
        (replace(sealed, owner=other_owner), namespace),
        (replace(sealed, owner=None), namespace),
        (sealed, other),
    ]

    for found, where in moved:
        if (found, where) != (sealed, namespace):
            with pytest.raises(RecordDamaged):
                unseal(found, secrets, where)


@given(bodies(), secret, st.data())
def test_no_bit_of_a_sealed_record_can_be_changed(case: tuple[Body, Record], key: bytes, data: st.DataObject) -> None:
    body, record = case
    secrets = Secrets([key])
    sealed = sealed_with(secrets, "app", body, record)
    found = damage(data, sealed.body)
    assume(found != sealed.body)

    with pytest.raises(RecordDamaged):
        unseal(replace(sealed, body=found), secrets, "app")


@given(bodies(), secret)
def test_an_unsealed_record_is_not_read_where_there_are_secrets(case: tuple[Body, Record], key: bytes) -> None:
    body, record = case

    with pytest.raises(RecordDamaged):
        unseal(sealed_with(Secrets(), "app", body, record), Secrets([key]), "app")


@given(st.binary(max_size=5))
@example(b"\xff")
def test_an_unsealed_body_with_odd_text_opens_or_is_damaged(text: bytes) -> None:
    body = Body("session", "alice", 1.0, 1.0, 1.0, False, b"")
    record = Record("A" * 25, 1, 1.0, 2.0, "i" * 16, owner_of("alice"), b"")
    found = sealed_with(Secrets(), "app", body, record).body.replace(b"alice", text.ljust(5, b"e"))

    with suppress(RecordDamaged):
        unseal(replace(record, body=found), Secrets(), "app")


@given(bodies(), st.data())
@example((Body("session", None, 1.0, None, 1.0, False, b""), Record("A" * 25, 1, 1.0, 2.0, "i" * 16, None, b"")), None)
def test_an_unsealed_body_opens_or_is_damaged_whatever_its_bytes(
    case: tuple[Body, Record], data: st.DataObject | None
) -> None:
    body, record = case
    sealed = sealed_with(Secrets(), "app", body, record)
    found = sealed.body.replace(b"session", b"sessio\xee") if data is None else damage(data, sealed.body)

    with suppress(RecordDamaged):
        unseal(replace(sealed, body=found), Secrets(), "app")


foreign_field = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary(), st.just("session")
)


@given(st.lists(foreign_field, max_size=9) | foreign_field | st.dictionaries(st.text(), foreign_field), records)
def test_a_body_of_somebody_elses_making_opens_or_is_damaged(fields: Any, record: Record) -> None:
    with suppress(RecordDamaged):
        unseal(replace(record, body=b"P" + encode_anything(fields)), Secrets(), "app")


def encode_anything(fields: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(fields)
    except UnicodeEncodeError:
        return b"\xc1"  # the one byte that MessagePack never uses


any_time = st.one_of(st.floats(), st.floats(0, 4e9), st.integers(-(2**63), 2**64 - 1).map(float))


@given(any_time, any_time)
@example(1e300, 0.0)
def test_the_times_of_a_record_that_opens_can_be_shown(created_at: float, authenticated_at: float) -> None:
    body = Body("session", "alice", created_at, authenticated_at, 1.0, False, b"")
    record = Record("A" * 25, 1, 1.0, 2.0, "i" * 16, owner_of("alice"), b"")
    try:
        opened = unseal(sealed_with(Secrets(), "app", body, record), Secrets(), "app")
    except RecordDamaged:
        return

    assert opened.authenticated_at is not None
    for time in (opened.created_at, opened.authenticated_at):
        assert instant(time).tzinfo is UTC


@given(secret, unicode_text, unicode_text)
def test_purposes_share_no_subkey(key: bytes, label: str, other: str) -> None:
    secrets = Secrets([key])

    (subkey,) = secrets.subkeys(label)

    assert len(subkey) == 32
    assert subkey != key
    assert (secrets.subkeys(other) == (subkey,)) == (label == other)


# ── The payload ──

offsets = st.timedeltas(timedelta(hours=-24), timedelta(hours=24)).filter(
    lambda offset: abs(offset) < timedelta(hours=24)
)
zones = st.one_of(
    st.just(UTC),
    offsets.map(timezone),
    st.sampled_from(["Europe/Berlin", "Asia/Kathmandu", "Pacific/Apia", "America/St_Johns", "UTC"]).map(ZoneInfo),
)
moments = st.datetimes(
    min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31), timezones=zones, allow_imaginary=False
)
numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([-(2**63), 2**63 - 1, 2**63, 2**64 - 1, 0, 1]),
    st.floats(),
    st.sampled_from([math.nan, -math.nan, -0.0, 0.0, math.inf, 5e-324]),
    st.booleans(),
)
leaf = st.none() | numbers | unicode_text | st.binary() | moments
value = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(unicode_text, inner, max_size=4), max_leaves=12
)
payloads = st.dictionaries(unicode_text, value, max_size=5)


def exactly(thing: Any) -> Any:
    """A form in which two values are equal only if nothing tells them apart: type, bits, offset, zone, order of keys."""
    kind = type(thing)
    if kind is float:
        return kind, struct.pack(">d", thing)
    if kind is list or kind is tuple:
        return kind, [exactly(item) for item in thing]
    if kind is dict:
        return kind, [(exactly(key), exactly(item)) for key, item in thing.items()]
    if kind is datetime:
        # Of the two times that clocks show twice a year, the offset tells which; elsewhere ``fold`` means nothing.
        zone = thing.tzinfo.key if isinstance(thing.tzinfo, ZoneInfo) else None
        return kind, thing.replace(tzinfo=None, fold=0), thing.utcoffset(), zone
    return kind, thing


@given(payloads)
def test_what_is_encoded_is_decoded_to_the_last_bit(data: dict[str, Any]) -> None:
    assert exactly(CODEC.decode(CODEC.encode(data))) == exactly(data)


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Stamp(datetime):
    pass


unfaithful = st.one_of(
    st.tuples(leaf),
    st.sets(st.integers(), max_size=2),
    st.builds(UUID, int=st.integers(0, 2**128 - 1)),
    st.decimals(),
    st.dates(),
    st.datetimes(),
    st.integers(2**64) | st.integers(max_value=-(2**63) - 1),
    st.just("\ud800"),
    st.binary().map(bytearray),
    st.dictionaries(st.integers() | st.none() | st.binary() | st.tuples(st.integers()), leaf, min_size=1, max_size=2),
    st.sampled_from([Text("a"), Number(1), Stamp(2026, 1, 1, tzinfo=UTC), object(), Decimal(1), date(2026, 1, 1)]),
    st.just({"\ud800": 1}),
)
anything = st.recursive(
    unfaithful | leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(unicode_text, inner, max_size=3),
    max_leaves=6,
)


@given(unicode_text, anything, payloads)
def test_a_value_comes_back_as_it_was_or_is_refused_by_the_name_of_its_key(
    key: str, thing: Any, rest: dict[str, Any]
) -> None:
    data = {**rest, key: thing}
    try:
        encoded = CODEC.encode(data)
    except SessionDataError as refusal:
        assert repr(key) in str(refusal)  # noqa: PT017 - both outcomes are fine, and each has its own proof
        return

    assert exactly(CODEC.decode(encoded)) == exactly(data)


@given(payloads, st.data())
def test_a_payload_decodes_or_is_damaged_whatever_its_bytes(data: dict[str, Any], choice: st.DataObject) -> None:
    with suppress(RecordDamaged):
        assert isinstance(CODEC.decode(damage(choice, CODEC.encode(data))), dict)


@given(st.binary(max_size=40), st.integers(-128, 127))
def test_a_foreign_extension_type_decodes_or_is_damaged(content: bytes, code: int) -> None:
    payload = msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(code, content)})

    with suppress(RecordDamaged):
        CODEC.decode(payload)


@given(payloads, payloads)
def test_every_change_that_can_be_saved_is_noticed(before: dict[str, Any], after: dict[str, Any]) -> None:
    same = CODEC.is_same(after, CODEC.encode(before), True)

    assert not same or exactly(after) == exactly(before)


look_alikes = st.one_of(
    st.lists(leaf, max_size=3).map(lambda items: (items, tuple(items))),
    st.uuids().map(lambda uuid: (str(uuid), uuid)),
    st.tuples(moments, offsets).map(lambda t: (t[0].astimezone(UTC), t[0].astimezone(timezone(t[1])))),
)


@given(look_alikes, st.sampled_from([lambda thing: thing, lambda thing: [thing], lambda thing: {"b": [thing]}]))
@example(
    (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))), lambda it: it
)
@example(([1], (1,)), lambda thing: thing)
def test_a_value_that_only_looks_like_the_one_before_is_noticed(
    pair: tuple[Any, Any], inside: Callable[[Any], Any]
) -> None:
    before, after = pair
    assume(exactly(before) != exactly(after))

    with suppress(SessionDataError):
        assert CODEC.encode({"a": inside(after)}, {"a"}) != CODEC.encode({"a": inside(before)})
    assert not CODEC.is_same({"a": inside(after)}, CODEC.encode({"a": inside(before)}), {"a"})


@given(look_alikes)
def test_whether_a_value_is_refused_depends_on_the_value_alone(pair: tuple[Any, Any]) -> None:
    """Not on a touch that is due, nor on another key that changed: a read would be refused now and then."""
    _, value = pair
    stored = CODEC.encode({"a": pair[0], "b": 1})

    def refuses(data: dict[str, Any], changed: set[str]) -> bool:
        if CODEC.is_same(data, stored, changed):
            return False
        try:
            CODEC.encode(data, changed)
        except SessionDataError:
            return True
        return False

    assert refuses({"a": value, "b": 1}, {"a"}) == refuses({"a": value, "b": 2}, {"a", "b"})


@pytest.mark.parametrize(
    "value",
    [
        [[] for _ in range(MAX_CONTAINERS + 1)],
        [{} for _ in range(MAX_CONTAINERS + 1)],
        [[[]] for _ in range(MAX_CONTAINERS // 2 + 1)],
        {str(number): 0 for number in range(MAX_CONTAINERS + 1)},
        [{str(number): 0 for number in range(100)} for _ in range(MAX_CONTAINERS // 100 + 1)],
    ],
    ids=["lists", "dicts", "lists in lists", "keys of one dict", "keys of many dicts"],
)
def test_data_that_costs_more_than_its_bytes_is_refused(value: Any) -> None:
    with pytest.raises(SessionDataError, match="lists and dicts"):
        CODEC.encode({"a": value})


def test_size_is_checked_before_anything_is_walked() -> None:
    """A refusal must not cost more than a session that is kept."""
    with pytest.raises(SessionDataError, match="bytes, the limit is"):
        CODEC.encode({"a": [[] for _ in range(2 * 1024 * 1024)]})


def test_so_is_that_of_data_that_msgspec_refuses() -> None:
    """It has no size then, but each item would take a byte."""
    with pytest.raises(SessionDataError, match="over 1,048,576 bytes"):
        CODEC.encode({"a": [*range(2 * 1024 * 1024), "\ud800"]})


def test_many_values_in_few_containers_are_kept() -> None:
    data = {"a": list(range(100_000)), "b": ["x" * 90 for _ in range(5_000)]}

    assert CODEC.decode(CODEC.encode(data)) == data


@given(payloads)
def test_no_change_is_seen_where_there_is_none(data: dict[str, Any]) -> None:
    """Times are the exception: there it takes the closer look, which says the same."""
    stored = CODEC.encode(data)
    loaded = CODEC.decode(stored)

    assert CODEC.encode(loaded) == stored
    assert CODEC.is_same(loaded, stored, True) or holds(loaded, lambda thing: type(thing) is datetime)


def holds(thing: Any, wanted: Callable[[Any], bool]) -> bool:
    inner = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list) else ()
    return wanted(thing) or any(holds(item, wanted) for item in inner)


# ── The merge ──

small = st.sampled_from(
    [0, 1, True, False, 1.0, 0.0, -0.0, math.nan, "", "1", b"1", None, [], [1], {"a": 1}, {"a": True}]
)
three_keys = st.dictionaries(st.sampled_from("abcd"), small | value, max_size=4)
MISSING = object()


@given(three_keys, three_keys, three_keys)
def test_each_key_follows_whoever_changed_it_and_the_later_commit_where_both_did(
    loaded: dict[str, Any], mine: dict[str, Any], current: dict[str, Any]
) -> None:
    merged = merge(loaded, mine, current, CODEC)

    for key in {**loaded, **mine, **current}:
        before, after, theirs = (exactly(data.get(key, MISSING)) for data in (loaded, mine, current))
        assert exactly(merged.get(key, MISSING)) == (theirs if after == before else after)
    assert merged.keys() <= mine.keys() | current.keys()


@given(three_keys, three_keys)
def test_who_changed_nothing_takes_what_is_there(loaded: dict[str, Any], current: dict[str, Any]) -> None:
    assert exactly(merge(loaded, loaded, current, CODEC)) == exactly(current)


@given(three_keys, three_keys)
def test_where_nobody_else_changed_anything_mine_is_the_result(loaded: dict[str, Any], mine: dict[str, Any]) -> None:
    merged = merge(loaded, mine, loaded, CODEC)

    assert {key: exactly(item) for key, item in merged.items()} == {key: exactly(item) for key, item in mine.items()}


@given(three_keys, st.sampled_from("abcd"), st.sampled_from("abcd"), value, value)
def test_changes_of_different_keys_are_both_kept_in_either_order(
    loaded: dict[str, Any], one: str, two: str, first: Any, second: Any
) -> None:
    assume(one != two)
    mine, theirs = {**loaded, one: first}, {**loaded, two: second}

    for merged in (merge(loaded, mine, theirs, CODEC), merge(loaded, theirs, mine, CODEC)):
        assert exactly(merged[one]) == exactly(first)
        assert exactly(merged[two]) == exactly(second)


@given(three_keys, three_keys, st.sampled_from("abcd"))
def test_what_one_side_deleted_stays_deleted_unless_the_later_commit_wrote_it(
    loaded: dict[str, Any], mine: dict[str, Any], key: str
) -> None:
    without = {name: item for name, item in loaded.items() if name != key}

    assert key not in merge(loaded, without, loaded, CODEC)
    unchanged = exactly(mine.get(key, MISSING)) == exactly(loaded.get(key, MISSING))
    assert (key in merge(loaded, mine, without, CODEC)) == (key in mine and not unchanged)


@given(three_keys, three_keys, three_keys)
def test_a_merge_changes_none_of_its_three_sides(
    loaded: dict[str, Any], mine: dict[str, Any], current: dict[str, Any]
) -> None:
    before = exactly(loaded), exactly(mine), exactly(current)

    merge(loaded, mine, current, CODEC)

    assert (exactly(loaded), exactly(mine), exactly(current)) == before


# ── The breaker ──


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, DEADLINE), st.integers(0, 3)), max_size=80))
def test_an_open_breaker_lets_one_through_at_a_time_and_never_waits_long(
    asked: Sequence[tuple[float, float, int]],
) -> None:
    """Each question: how long after the one before it comes, how long its answer takes, and whether that is good (0)."""
    breaker, now = Breaker(), 100.0
    pending: list[tuple[float, int, bool, bool]] = []  # when it ends, number, good, a probe
    last_answer = now
    for number, (pause, takes, outcome) in enumerate(asked):
        now += pause
        for end, other, good, probe in sorted(pending):
            if end <= now:
                pending.remove((end, other, good, probe))
                last_answer = end
                if good:
                    breaker.succeeded()
                    assert not breaker.is_open
                else:
                    breaker.failed(end)
        was_open = breaker.is_open
        probing = any(probe for *_, probe in pending)

        allowed = breaker.allows(now)

        assert allowed or was_open
        if was_open and probing:
            assert not allowed
        if was_open and now - last_answer >= LONGEST_PAUSE and not pending:
            assert allowed
        assert 1 <= breaker.retry_after(now) <= math.ceil(LONGEST_PAUSE) + 1
        if allowed:
            pending.append((now + takes, number, outcome == 0, was_open))


@given(st.integers(1, FAILURES_TO_OPEN), st.floats(0, 10), st.integers(0, 10))
def test_a_breaker_opens_after_so_many_failures_in_a_row_and_closes_on_the_first_success(
    failures: int, gap: float, late: int
) -> None:
    breaker = Breaker()
    opens = failures == FAILURES_TO_OPEN

    opened = [breaker.failed(number * gap) for number in range(failures)]
    now = (failures - 1) * gap
    opened += [breaker.failed(now) for _ in range(late if opens else 0)]  # of those that were under way

    assert opened.count(True) == opens
    assert breaker.is_open == opens
    assert breaker.allows(now) != opens
    assert breaker.allows(now + LONGEST_PAUSE)
    assert breaker.succeeded() == opens
    assert not breaker.is_open
    assert breaker.allows(now)


@given(st.lists(st.sampled_from(["answer", "failure", "guess"]), max_size=40))
def test_no_number_of_guesses_shuts_a_store(row: list[str]) -> None:
    """As long as there is a guess in the row, the next caller may find out, at once. If it fails, the store is left alone."""
    breaker = Breaker()
    since_answer: list[str] = []
    for outcome in row:
        since_answer = [] if outcome == "answer" else [*since_answer, outcome]
        if outcome == "answer":
            breaker.succeeded()
        else:
            breaker.failed(0.0, is_sure=outcome == "failure")
        if breaker.is_open:
            break

    if not breaker.is_open:
        assert len(since_answer) < FAILURES_TO_OPEN
    elif "guess" in since_answer:
        assert breaker.allows(0.0)
        assert not breaker.allows(0.0)  # one finds out for all
        assert breaker.is_unsure
        breaker.failed(0.0)
        assert not breaker.allows(0.0)
        assert not breaker.is_unsure
    else:
        assert not breaker.allows(0.0)


@given(st.lists(st.floats(0, DEADLINE), max_size=12))
def test_however_often_a_probe_fails_the_next_one_is_never_far(answers: list[float]) -> None:
    """Each answer: how long it took to fail."""
    breaker, now = Breaker(), 0.0
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(now)

    for takes in answers:
        assert not breaker.allows(now)
        now += LONGEST_PAUSE
        assert breaker.allows(now)
        now += takes
        breaker.failed(now)

    assert breaker.is_open


@given(st.lists(st.floats(0, LONGEST_PAUSE), max_size=30))
def test_a_probe_that_never_reports_does_not_keep_the_breaker_open_for_good(gaps: list[float]) -> None:
    breaker, now = Breaker(), 0.0
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(now)
    probes = []
    for gap in gaps:
        now += gap
        if breaker.allows(now):
            probes.append(now)

    assert all(later - earlier >= LONGEST_PAUSE for earlier, later in pairwise(probes))
    assert breaker.allows(now + 2 * LONGEST_PAUSE)
