"""A cache hands out what is somebody else's; reading counts as writing; visitors who do nothing fill the store."""

from __future__ import annotations

import copy
import json
import operator
import random
import warnings
from collections import ChainMap
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from asgi_sessions import Session, SessionError, SessionMiddleware, SessionWarning, StoreError
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate
from tests.threats.hostile import Between, Events, WriteAccess, cookie_header, exchange, http_scope, raising

Handler = Callable[[Session], Any]
Header = tuple[bytes, bytes]


def matched(session: Session) -> Any:
    match session:
        case {"a": value}:
            return value
        case _:
            return None


C_LEVEL = pytest.mark.xfail(
    strict=True,
    reason="C code that takes a dict apart without calling its methods is not noticed: no Vary for what was read so",
)
READS: list[Any] = [
    pytest.param(lambda s: "a" in s, id="in"),
    pytest.param(len, id="len"),
    pytest.param(bool, id="bool"),
    pytest.param(lambda s: not s, id="not"),
    pytest.param(list, id="iteration"),
    pytest.param(lambda s: list(reversed(s)), id="reversed"),
    pytest.param(lambda s: [*s], id="star"),
    pytest.param(lambda s: {**s}, id="double star"),
    pytest.param(lambda s: sorted(s), id="sorted"),
    pytest.param(lambda s: set(s), id="set"),
    pytest.param(lambda s: tuple(s), id="tuple"),
    pytest.param(lambda s: ",".join(s), id="join"),
    pytest.param(lambda s: max(s, default=None), id="max"),
    pytest.param(lambda s: s.get("a"), id="get"),
    pytest.param(lambda s: s.keys(), id="keys"),
    pytest.param(lambda s: s.values(), id="values"),
    pytest.param(lambda s: s.items(), id="items"),
    pytest.param(lambda s: s.copy(), id="copy"),
    pytest.param(copy.copy, id="copy.copy"),
    pytest.param(copy.deepcopy, id="copy.deepcopy"),
    pytest.param(dict, id="dict"),
    pytest.param(lambda s: {}.update(s), id="update of another dict"),
    pytest.param(lambda s: dict.fromkeys(s), id="dict.fromkeys"),
    pytest.param(lambda s: ChainMap(s).get("a"), id="ChainMap"),
    pytest.param(lambda s: s == {}, id="equal"),
    pytest.param(lambda s: {} == s, id="equal from the left"),  # noqa: SIM300 - the left is the point
    pytest.param(lambda s: s != {}, id="not equal"),
    pytest.param(lambda s: s | {}, id="union"),
    pytest.param(lambda s: {} | s, id="union from the left"),
    pytest.param(lambda s: s.pop("nothing", None), id="pop of nothing"),
    pytest.param(matched, id="match"),
    pytest.param(operator.length_hint, id="length hint"),
    pytest.param(lambda s: "{a}".format_map({"a": 1, **s}), id="format"),
    pytest.param(lambda s: s.id, id="id"),
    pytest.param(lambda s: s.user_id, id="user_id"),
    pytest.param(lambda s: s.is_new, id="is_new"),
    pytest.param(lambda s: s.created_at, id="created_at"),
    pytest.param(lambda s: s.authenticated_at, id="authenticated_at"),
    pytest.param(lambda s: s.expires_at, id="expires_at"),
    pytest.param(lambda s: s.mark_accessed(), id="mark_accessed"),
]
JSON_IN_C = pytest.param(json.dumps, id="JSON, in C")
NOT_SEEN: list[Any] = [
    pytest.param(msgspec.json.encode, id="msgspec", marks=C_LEVEL),
    pytest.param(repr, id="repr"),
    pytest.param(str, id="str"),
]


# ── A response cache hands out somebody's Set-Cookie ──


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        pytest.param([], {b"no-store"}, id="nothing"),
        pytest.param([b"public, max-age=600"], {b"max-age=600", b"private"}, id="public"),
        pytest.param([b"max-age=600"], {b"max-age=600", b"private"}, id="max-age"),
        pytest.param([b"no-store"], {b"no-store"}, id="no-store"),
        pytest.param([b"private"], {b"private"}, id="private"),
        pytest.param([b"PRIVATE, Max-Age=5"], {b"private", b"max-age=5"}, id="in capitals"),
        pytest.param([b"s-maxage=600, max-age=5"], {b"max-age=5", b"private"}, id="s-maxage"),
        pytest.param([b"S-MaxAge=600", b"Public"], {b"private"}, id="two headers, in capitals"),
        pytest.param([b"public=yes, max-age=1"], {b"max-age=1", b"private"}, id="public with a value"),
        pytest.param([b'private="x-a, x-b", max-age=5'], {b"private", b"max-age=5"}, id="private for some fields only"),
        pytest.param(
            [b'no-cache="x-a"', b"max-age=5"], {b"private", b"no-cache", b"max-age=5"}, id="no-cache for some fields"
        ),
        pytest.param([b'x="a, public"'], {b"private", b'x="a, public"'}, id="public in quotes"),
        pytest.param([b"no-store, must-understand"], {b"no-store"}, id="must-understand, which takes no-store back"),
        pytest.param([b"must-understand", b"max-age=5"], {b"private", b"max-age=5"}, id="must-understand"),
        pytest.param([b"max-age=5", b"PUBLIC", b"s-maxage=9"], {b"private", b"max-age=5"}, id="three lines"),
        pytest.param(
            [b"public, immutable, max-age=31536000"], {b"immutable", b"max-age=31536000", b"private"}, id="assets"
        ),
        pytest.param([b""], {b"no-store"}, id="an empty one"),
        pytest.param([b" , ,"], {b"no-store"}, id="only commas"),
        pytest.param([b"no-cache"], {b"no-cache", b"private"}, id="no-cache"),
        pytest.param([b"public , s-maxage = 600"], {b"private"}, id="with odd spaces"),
    ],
)
async def test_a_response_that_sets_the_cookie_stays_out_of_shared_caches(
    memory: Store, plain: dict[str, Any], said: list[bytes], allowed: set[bytes]
) -> None:
    """CVE-2023-30861: a proxy kept the response with its Set-Cookie and logged other people in with it."""
    browser = Browser(app_with(memory, **plain))

    for verb in (put(a=1), log_in("alice"), regenerate, destroy):
        response = await browser.do(verb, headers=[(b"Cache-Control", value) for value in said])

        assert response.set_cookie is not None
        (control,) = response.all("cache-control")
        directives = [part.strip().lower().encode() for part in split_outside_quotes(control)]
        assert len(directives) == len(set(directives))
        assert set(directives) - {b'no-cache="set-cookie"'} == {value.lower() for value in allowed}
        assert "Cookie" in str(response.get("vary"))


def split_outside_quotes(value: str) -> list[str]:
    parts, quoted, escaped = [""], False, False
    for char in value:
        quoted ^= char == '"' and not escaped
        escaped = quoted and char == "\\" and not escaped
        if char == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += char
    return [part for part in parts if part.strip()]


PIECES = [
    *(b"public", b"private", b"no-store", b"no-cache", b"s-maxage=60", b"max-age=60", b"PUBLIC", b'private="x"'),
    *(
        b'x="public"',
        b'x="a, public, b"',
        b"immutable",
        b",",
        b", ",
        b" ,\t",
        b" ",
        b"",
        b"=",
        b"public=1",
    ),
]


async def test_whatever_an_app_says_about_caching_its_response_with_a_cookie_stays_private(
    memory: Store, plain: dict[str, Any]
) -> None:
    """CVE-2023-30861: two thousand Cache-Control headers made of all the pieces, in one, two or three lines."""
    dice = random.Random(30861)
    for _ in range(2000):
        lines = [b",".join(dice.choices(PIECES, k=dice.randrange(6))) for _ in range(dice.randrange(1, 4))]

        response = await Browser(app_with(memory, **plain)).do(
            put(a=1), headers=[(b"cache-control", line) for line in lines]
        )

        (control,) = response.all("cache-control")
        said = {part.strip().lower() for part in split_outside_quotes(control)}
        assert said & {"no-store", "private"}, lines
        assert "no-store" in said or not [
            part for part in said if part.partition("=")[0].strip() in ("public", "s-maxage")
        ], lines


@pytest.mark.parametrize(
    "said", [b'max-age=60, x="oops', b'x="\\"", public, s-maxage=60'], ids=["an open quote", "an escaped quote"]
)
async def test_odd_quotes_hide_nothing(memory: Store, plain: dict[str, Any], said: bytes) -> None:
    """What must be understood stands in front of what may not be, and what must go goes."""
    response = await Browser(app_with(memory, **plain)).do(put(a=1), headers=[(b"cache-control", said)])

    directives = {part.strip().lower() for part in split_outside_quotes(response.all("cache-control")[0])}
    assert directives & {"private", "no-store"}
    assert not directives & {"public", "s-maxage=60"}


@pytest.mark.parametrize(
    "name",
    [
        b"CDN-Cache-Control",
        b"cdn-cache-control",
        b"Cloudflare-CDN-Cache-Control",
        b"Surrogate-Control",
        b"Vercel-CDN-Cache-Control",
        b"Edge-Control",
        b"X-Accel-Expires",
    ],
)
async def test_what_speaks_to_a_cdn_alone_does_not_let_it_keep_the_cookie(
    memory: Store, plain: dict[str, Any], name: bytes
) -> None:
    """CVE-2023-30861 at the edge: such a header wins over Cache-Control there (RFC 9213)."""
    browser = Browser(app_with(memory, **plain))

    response = await browser.do(put(a=1), headers=[(name, b"public, max-age=600"), (b"cache-control", b"max-age=1")])

    assert response.all(name.decode().lower()) == []
    assert "private" in response.all("cache-control")[0]


async def test_a_response_without_our_cookie_keeps_the_caching_that_the_app_chose(
    store: Store, plain: dict[str, Any], clock: FakeClock
) -> None:
    """Neither a read nor a write that sends no cookie touches Cache-Control; a session that was left alone adds nothing."""
    headers = [(b"cache-control", b"public, max-age=600"), (b"cdn-cache-control", b"max-age=60")]
    browser = Browser(app_with(store, **plain))
    await browser.do(put(a=1))
    clock.advance(120)

    for handler in (lambda session: session["a"], put(a=2)):
        response = await browser.do(handler, headers=headers)
        assert response.headers == [*headers, (b"vary", b"Cookie")]
    response = await browser.do(headers=headers)
    assert response.headers == headers


@pytest.mark.parametrize("verb", [put(a=1), lambda session: session.get("a")], ids=["sets a cookie", "only reads"])
@pytest.mark.parametrize("shape", ["list", "tuple", "lists in a list"])
async def test_the_message_that_a_cache_may_have_kept_is_never_changed(
    memory: Store, plain: dict[str, Any], verb: Handler, shape: str
) -> None:
    """CVE-2023-30861 inside the process: response caches keep the very message object, and replay it to everybody."""
    shapes: dict[str, Any] = {
        "list": [(b"vary", b"Accept"), (b"cache-control", b"public")],
        "tuple": ((b"vary", b"Accept"), (b"cache-control", b"public")),
        "lists in a list": [[b"vary", b"Accept"], [b"cache-control", b"public"]],
    }
    message = {"type": "http.response.start", "status": 200, "headers": shapes[shape]}
    before = copy.deepcopy(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        verb(scope["session"])
        await send(message)
        await send({"type": "http.response.body", "body": b""})

    middleware = SessionMiddleware(app, memory, **plain)
    first = await exchange(middleware, http_scope())
    second = await exchange(middleware, http_scope())

    assert message == before
    assert message["headers"] is shapes[shape]
    assert first[0] is not message
    assert len(second[0]["headers"]) == len(first[0]["headers"])
    assert [
        header for header in second[0]["headers"] if header in first[0]["headers"] and header[0] == b"set-cookie"
    ] == []


async def test_cookies_and_headers_of_others_are_neither_lost_nor_doubled(memory: Store, plain: dict[str, Any]) -> None:
    """Set-Cookie is appended; whoever wrote one before keeps theirs, in their order."""
    browser = Browser(app_with(memory, **plain))
    theirs: list[Header] = [
        (b"Set-Cookie", b"theme=dark; Path=/"),
        (b"set-cookie", b"theme=dark; Path=/"),
        (b"X-Odd", b"\xff\x00"),
        (b"x-odd", b""),
    ]

    response = await browser.do(put(a=1), headers=theirs)

    assert response.headers[: len(theirs)] == theirs
    assert len(response.all("set-cookie")) == 3


# ── Vary, and what is forgotten as access ──


@pytest.mark.parametrize("verb", ["confirm", "end_others"])
async def test_a_verb_that_says_that_nobody_is_logged_in_is_a_read(memory: Store, verb: str) -> None:
    """The app may make a page of the error; to somebody who is logged in it would be wrong."""
    visitor = Browser(app_with(memory))

    def try_it(session: Session) -> None:
        with pytest.raises(SessionError):
            getattr(session, verb)()

    response = await visitor.do(try_it)

    assert response.get("vary") == "Cookie"


@pytest.mark.parametrize(
    ("said", "then"),
    [
        pytest.param([], [b"Cookie"], id="nothing"),
        pytest.param([(b"vary", b"Accept")], [b"Accept, Cookie"], id="another"),
        pytest.param([(b"VARY", b"Accept")], [b"Accept, Cookie"], id="in capitals"),
        pytest.param([(b"Vary", b"*")], [b"*"], id="a star"),
        pytest.param([(b"Vary", b"Accept, *")], [b"Accept, *"], id="a star among others"),
        pytest.param([(b"Vary", b"cookie")], [b"cookie"], id="there already"),
        pytest.param([(b"Vary", b"Accept,\tCOOKIE ,Origin")], [b"Accept,\tCOOKIE ,Origin"], id="there among others"),
        pytest.param([(b"Vary", b"")], [b"Cookie"], id="an empty one"),
        pytest.param([(b"Vary", b"X-Cookie-Consent")], [b"X-Cookie-Consent, Cookie"], id="one that only looks like it"),
    ],
)
async def test_vary_is_merged(memory: Store, plain: dict[str, Any], said: list[Header], then: list[bytes]) -> None:
    """CVE-2026-27205: without it a cache answers everybody with what one person was shown."""
    browser = Browser(app_with(memory, **plain))

    response = await browser.do(lambda session: session.get("a"), headers=said)

    assert [value for name, value in response.headers if name.lower() == b"vary"] == then


@pytest.mark.parametrize(
    "two",
    [[b"Accept", b"Origin"], [b"Accept", b"Cookie"], [b"Cookie", b"Accept"], [b"Accept", b"*"], [b"", b"Accept"]],
    ids=str,
)
async def test_two_vary_headers_are_merged(memory: Store, plain: dict[str, Any], two: list[bytes]) -> None:
    """CVE-2026-27205 with an app that repeats the header: whatever is done to them, together they must say Cookie."""
    browser = Browser(app_with(memory, **plain))

    response = await browser.do(lambda session: session.get("a"), headers=[(b"vary", value) for value in two])

    members = {part.strip().lower() for line in response.all("vary") for part in line.split(",")}
    assert members & {"cookie", "*"}
    assert members >= {value.decode().lower() for value in two if value}


@pytest.mark.parametrize("look", [*READS, JSON_IN_C, *NOT_SEEN])
async def test_every_way_of_reading_says_vary(
    memory: Store, plain: dict[str, Any], clock: FakeClock, look: Handler
) -> None:
    """CVE-2026-27205: ``in`` and ``len`` were forgotten; so may be whatever stands in no list."""
    browser = Browser(app_with(memory, **plain))
    await browser.do(put(a=1))

    response = await browser.do(look)

    assert response.get("vary") == "Cookie"


@pytest.mark.parametrize("look", [*READS, pytest.param(json.dumps, id="JSON, in C", marks=C_LEVEL), *NOT_SEEN])
async def test_every_way_of_reading_an_empty_session_says_vary(
    memory: Store, plain: dict[str, Any], look: Handler
) -> None:
    """CVE-2026-27205: "nobody is logged in" is an answer too, and no other visitor's."""
    response = await Browser(app_with(memory, **plain)).do(look)

    assert response.get("vary") == "Cookie"


async def test_a_session_that_was_left_alone_adds_nothing(
    store: Store, plain: dict[str, Any], clock: FakeClock
) -> None:
    """And a page without a session may be cached by everybody, cookie or not."""
    browser = Browser(app_with(store, **plain))
    await browser.do(put(a=1))
    clock.advance(120)

    for visitor in (browser, Browser(browser.app), Browser(browser.app, "nonsense")):
        response = await visitor.do()
        assert response.headers == []


# ── Reading counts as writing ──


@pytest.mark.parametrize("look", [*READS, JSON_IN_C, pytest.param(repr, id="repr")])
async def test_reading_never_writes(memory: Store, plain: dict[str, Any], clock: FakeClock, look: Handler) -> None:
    """No write to the store, and no cookie: neither with a session nor without."""
    watched = Between(memory)
    browser = Browser(app_with(watched, **plain))
    await browser.do(put(a=1, nested={"b": [1, 2.5, None, "x"]}))
    watched.calls.clear()

    found = await browser.do(look)
    empty = await Browser(browser.app).do(look)

    assert watched.calls == ["load"]
    assert found.set_cookie is None
    assert empty.set_cookie is None


async def test_reading_never_writes_the_payload_not_even_when_a_touch_is_due(
    store: Store, plain: dict[str, Any], clock: FakeClock
) -> None:
    """Activity moves two clocks. A reader that also wrote what it had loaded would undo a newer write."""
    watched = Between(store)
    browser = Browser(app_with(watched, **plain))
    await browser.do(put(a=1))
    access = WriteAccess(store)
    body = (access.take(browser.key)).body
    clock.advance(61)
    watched.calls.clear()

    response = await browser.do(lambda session: dict(session))

    assert watched.calls == ["load", "touch"]
    assert response.set_cookie is None
    assert (access.take(browser.key)).body == body


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(lambda s: s.update(a=1), id="the same value again"),
        pytest.param(lambda s: s.update({}), id="an empty update"),
        pytest.param(lambda s: (s.update(b=1), s.pop("b")), id="put and taken out"),
        pytest.param(lambda s: s.pop("nothing", None), id="pop of nothing"),
        pytest.param(lambda s: s.setdefault("a", 2), id="setdefault of what is there"),
        pytest.param(lambda s: s.save(), id="save() with no change"),
    ],
)
async def test_writing_what_is_there_already_writes_nothing(
    store: Store, plain: dict[str, Any], handler: Handler
) -> None:
    """The bytes decide, and not how often somebody assigned."""
    watched = Between(store)
    browser = Browser(app_with(watched, **plain))
    await browser.do(put(a=1))
    watched.calls.clear()

    await browser.do(handler)

    assert watched.calls == ["load"]


# ── Anonymous traffic fills the store ──


@pytest.mark.parametrize(
    "handler",
    [
        *READS,
        JSON_IN_C,
        pytest.param(repr, id="repr"),
        pytest.param(regenerate, id="regenerate"),
        pytest.param(destroy, id="destroy"),
        pytest.param(lambda s: s.clear(), id="clear"),
        pytest.param(lambda s: s.save(), id="save"),
        pytest.param(lambda s: (s.update(a=1), s.clear()), id="put and cleared"),
        pytest.param(lambda s: (s.log_in("alice"), s.destroy()), id="logged in and out"),
    ],
)
async def test_a_visitor_who_leaves_nothing_is_not_stored(memory: Store, clock: FakeClock, handler: Handler) -> None:
    """CVE-2015-5143 (Django), peeringdb #1213: every request without a session made one, and so filled the disk."""
    watched = Between(memory)
    for cookie in (None, "Zk3" + "A" * 43, "nonsense"):
        visitor = Browser(app_with(watched, clock=clock), cookie)

        response = await visitor.do(handler)

        assert watched.writes == []
        assert response.set_cookie is None


async def test_a_visitor_without_a_cookie_costs_no_question(memory: Store, plain: dict[str, Any]) -> None:
    """CVE-2015-5143, the cheaper half: not even a read."""
    watched = Between(memory)
    browser = Browser(app_with(watched, **plain))

    for handler in (dict, lambda session: None, regenerate, destroy):
        await browser.do(handler)

    assert watched.calls == []


async def test_a_log_out_leaves_no_empty_session_behind(store: Store, plain: dict[str, Any], events: Events) -> None:
    """CVE-2015-5143, the second way to it: ``logout()`` made a new, empty session each time it was called."""
    watched = Between(store)
    alice = Browser(app_with(watched, **plain))
    await alice.do(log_in("alice"))
    watched.calls.clear()

    for _ in range(3):
        await alice.do(destroy)

    assert watched.writes == ["delete"]
    assert alice.token is None
    assert (await read(alice))["is_new"] is True


async def test_a_mistyped_cookie_header_does_not_make_sessions(store: Store, plain: dict[str, Any]) -> None:
    """peeringdb #1213: clients that never keep a cookie come back without one forever."""
    watched = Between(store)
    middleware = app_with(watched, **plain)
    browser = Browser(middleware)

    for _ in range(20):
        await browser.raw(cookie_header(middleware, "expired-or-broken"), lambda session: session.get("user"))

    assert watched.calls == []


# ── What is read late, and what is only so because the store is away ──


def streaming(handler: Handler, *headers: Header, before: Handler = lambda session: None) -> Any:
    """An app that looks at the session when the answer has begun."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        before(scope["session"])
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        await send({"type": "http.response.body", "body": b"hello ", "more_body": True})
        handler(scope["session"])
        await send({"type": "http.response.body", "body": b"you"})
        scope["session"].get("in a background task")

    return app


def nothing(session: Session) -> None: ...


def writes(session: Session) -> None:
    session["progress"] = 1


LATE: dict[str, tuple[Any, bool]] = {
    "reads late": (streaming(lambda session: session.user_id), True),
    "reads late, and is public": (streaming(dict, (b"cache-control", b"public")), True),
    "reads early": (streaming(dict, before=dict), False),
    "marks early": (streaming(dict, before=lambda session: session.mark_accessed()), False),
    "is private": (streaming(dict, (b"Cache-Control", b"max-age=5, Private")), False),
    "is stored nowhere": (streaming(dict, (b"cache-control", b"no-store")), False),
    "varies by itself": (streaming(dict, (b"vary", b"Accept"), (b"vary", b"cookie")), False),
    "only writes late": (streaming(writes), False),
    "takes something out late": (streaming(lambda session: session.pop("flash", None)), True),
    "reads when all is sent": (streaming(nothing), False),
}


@pytest.mark.parametrize("is_away", [False, True], ids=["the store is there", "the store is away"])
@pytest.mark.parametrize(("app", "warns"), LATE.values(), ids=LATE.keys())
async def test_a_late_read_of_a_stored_session_is_warned_of(
    memory: Store, plain: dict[str, Any], app: Any, warns: bool, is_away: bool
) -> None:
    """The headers have left: nothing can keep a shared cache from giving the page to somebody else any more."""
    alice = Browser(app_with(memory, **plain))
    await alice.do(log_in("alice"))
    store = Between(memory)
    if is_away:
        store.instead["load"] = raising(StoreError("on purpose"))
    late = SessionMiddleware(app, store, on_store_failure="anonymous", **plain)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        response = await Browser(late, alice.token).do()
        await Browser(late, alice.token).do(method="POST")
        await Browser(late).do()  # a visitor, about whom nothing is stored

    assert response.body == b"hello you"
    late_reads = [warning for warning in caught if "'Vary: Cookie'" in str(warning.message)]
    assert [warning.category for warning in late_reads] == [SessionWarning] * warns


@pytest.mark.parametrize(
    "handler",
    [lambda session: session.user_id, lambda session: session.is_degraded, dict],
    ids=["user_id", "is_degraded", "the data"],
)
async def test_a_page_made_without_the_store_is_kept_by_no_cache(
    memory: Store, plain: dict[str, Any], handler: Handler
) -> None:
    """A minute later the same browser gets another page."""
    alice = Browser(app_with(memory, **plain))
    await alice.do(log_in("alice"))
    away = Between(memory)

    async def fails(*args: Any) -> None:
        raise StoreError("on purpose")

    away.instead["load"] = fails
    degraded = Browser(app_with(away, on_store_failure="anonymous", **plain), alice.token)
    said = [(b"Cache-Control", b"public, max-age=60"), (b"CDN-Cache-Control", b"max-age=60"), (b"expires", b"0")]

    response = await degraded.do(handler, headers=said)
    untouched = await degraded.do(headers=said)

    assert response.headers == [(b"expires", b"0"), (b"vary", b"Cookie"), (b"cache-control", b"max-age=60, no-store")]
    assert untouched.headers == said


PURPOSES: dict[str, tuple[bytes, bool]] = {
    "a prefetch": (b"prefetch", True),
    "a prerender": (b"prefetch;prerender", True),
    "through a proxy": (b"prefetch;anonymous-client-ip", True),
    "with spaces": (b" prefetch ; prerender ", True),
    "another token that begins alike": (b"prefetched", False),
    "another token that ends alike": (b"noprefetch", False),
    "a parameter": (b"navigate;prefetch", False),
    "a quoted parameter": (b'navigate;x="prefetch"', False),
    "a string": (b'"prefetch"', False),
    "in capitals, which tokens tell apart": (b"PREFETCH", False),
    "nothing": (b"", False),
}


@pytest.mark.parametrize(("purpose", "is_speculative"), PURPOSES.values(), ids=PURPOSES.keys())
async def test_what_is_a_prefetch_is_read_by_its_grammar(
    memory: Store, plain: dict[str, Any], clock: FakeClock, purpose: bytes, is_speculative: bool
) -> None:
    watched = Between(memory)
    alice = Browser(app_with(watched, **plain))
    await alice.do(log_in("alice"))
    clock.advance(600)
    watched.calls.clear()

    await alice.do(read_user, request_headers=[(b"sec-purpose", purpose)])

    assert ("touch" in watched.calls) is not is_speculative


def read_user(session: Session) -> str | None:
    return session.user_id
