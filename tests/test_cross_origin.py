"""CrossOriginProtection: the truth table, hostile headers, WebSockets, and what is refused when it is built."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_sessions import ConfigurationError
from asgi_sessions.cross_origin import CrossOriginProtection

HOST = "app.example"
Headers = list[tuple[bytes, bytes]]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


async def ask(scope: dict[str, Any], **options: Any) -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("nothing is to be received")

    async def send(message: Any) -> None:
        sent.append(message)

    await CrossOriginProtection(app, **options)(scope, receive, send)
    return sent


def http(method: str = "POST", **pairs: str) -> dict[str, Any]:
    headers = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in pairs.items()]
    return {"type": "http", "method": method, "path": "/", "headers": headers}


def with_headers(headers: Headers) -> dict[str, Any]:
    return {**http(), "headers": headers}


async def passes(scope: dict[str, Any], **options: Any) -> bool:
    sent = await ask(scope, **options)
    if scope["type"] == "websocket":
        assert sent[0]["type"] in ("websocket.accept", "websocket.close")
        return bool(sent[0]["type"] == "websocket.accept")
    assert sent[0]["status"] in (200, 403)
    return bool(sent[0]["status"] == 200)


SITES = {None: None, "": None, "same-origin": True, "none": True, "same-site": False, "cross-site": False, "odd": False}
ORIGINS = {
    None: True,
    "": True,
    f"https://{HOST}": True,
    f"http://{HOST}": True,  # the scheme is not compared
    f"https://{HOST}:443": True,
    f"https://{HOST}:8443": False,
    "https://other.example": False,
    f"https://sub.{HOST}": False,
    f"https://{HOST}.evil.example": False,
    f"https://{HOST}.": False,
    f"https://{HOST}/": False,
    f"https://{HOST}@evil.example": False,
    "null": False,
    HOST: False,
    "https://APP.example": True,
    "https://": False,
}


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "QUERY", "get"])
async def test_the_truth_table(method: str, site: str | None, origin: str | None) -> None:
    pairs = {"host": HOST}
    if site is not None:
        pairs["sec_fetch_site"] = site
    if origin is not None:
        pairs["origin"] = origin
    said = SITES[site]
    expected = method in ("GET", "HEAD", "OPTIONS") or (ORIGINS[origin] if said is None else said)

    assert await passes(http(method, **pairs)) is expected
    # A handshake is judged like a POST, though its method is GET.
    socket = {**http(**pairs), "type": "websocket"}
    assert await passes(socket) is (ORIGINS[origin] if said is None else said)


@pytest.mark.parametrize("site", [None, "cross-site", "same-site"])
@pytest.mark.parametrize(
    "origin", ["https://partner.example", "https://partner.example:443", "HTTPS://Partner.Example"]
)
async def test_a_trusted_origin_passes_whatever_the_site(site: str | None, origin: str) -> None:
    pairs = {"host": HOST, "origin": origin, **({"sec_fetch_site": site} if site else {})}

    assert await passes(http(**pairs), trusted_origins=["https://partner.example"])
    assert not await passes(http(**pairs), trusted_origins=["https://partner.example:8443", "http://partner.example"])


async def test_null_is_nobody() -> None:
    assert not await passes(http(host=HOST, origin="null"), trusted_origins=["https://partner.example"])
    assert not await passes(http(host="null", origin="null"))


async def test_what_is_skipped_passes() -> None:
    scope = http(host=HOST, sec_fetch_site="cross-site")

    assert await passes(scope, skip=lambda scope: scope["path"] == "/")
    assert not await passes(scope, skip=lambda scope: scope["path"] == "/webhook")


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("app.example:8000", "http://app.example:8000", True),
        ("app.example:8000", "http://app.example:8001", False),
        ("app.example:443", "https://app.example", True),
        ("app.example:443", "http://app.example", False),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("[::1]:8000", "http://[::2]:8000", False),
        ("APP.example", "https://app.EXAMPLE", True),
        ("", "https://app.example", False),
    ],
)
async def test_hosts_and_ports(host: str, origin: str, expected: bool) -> None:
    assert await passes(http(host=host, origin=origin)) is expected


async def test_without_a_host_no_origin_is_ours() -> None:
    assert not await passes(http(origin=f"https://{HOST}"))


@pytest.mark.parametrize("name", [b"origin", b"host", b"sec-fetch-site"])
async def test_a_header_that_comes_twice_is_refused(name: bytes) -> None:
    """A proxy and we might each believe another one of them."""
    headers = [(b"host", HOST.encode()), (b"origin", f"https://{HOST}".encode()), (b"sec-fetch-site", b"same-origin")]
    assert await passes(with_headers(headers))

    again = next(value for known, value in headers if known == name)

    assert not await passes(with_headers([*headers, (name, again)]))


@given(st.lists(st.tuples(st.sampled_from([b"origin", b"host", b"sec-fetch-site", b"x"]), st.binary(max_size=400))))
async def test_no_headers_raise(headers: Headers) -> None:
    assert await passes(with_headers(headers)) in (True, False)


async def test_64_kb_are_refused() -> None:
    assert not await passes(http(host=HOST, origin="https://" + "a" * 65_536))
    assert not await passes(http(host="a" * 65_536, origin="https://" + "a" * 65_536))


async def test_a_refusal_says_why_in_a_word() -> None:
    start, body = await ask(http(host=HOST, sec_fetch_site="cross-site"))

    assert start["status"] == 403
    assert body["body"] == b"Forbidden: the request comes from another origin"
    assert (b"content-length", str(len(body["body"])).encode()) in start["headers"]


async def test_a_handshake_is_denied_with_an_answer_where_the_server_can() -> None:
    scope = {**http(host=HOST, origin="https://evil.example"), "type": "websocket"}

    (closed,) = await ask(scope)
    start, _ = await ask({**scope, "extensions": {"websocket.http.response": {}}})

    assert closed["type"] == "websocket.close"
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)


async def test_lifespan_passes() -> None:
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await CrossOriginProtection(inner)({"type": "lifespan"}, None, None)

    assert seen == ["lifespan"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"trusted_origins": "https://partner.example"}, id="a single string"),
        *(
            pytest.param({"trusted_origins": [origin]}, id=repr(origin))
            for origin in (
                "partner.example",
                "https://partner.example/",
                "https://partner.example/path",
                "https://*.partner.example",
                "https://user@partner.example",
                "https://",
                "null",
                "*",
                "",
                None,
                "https://bücher.example",
                "https://partner.example:port",
            )
        ),
        pytest.param({"skip": 1}, id="skip is no function"),
        pytest.param({"skip": ask}, id="skip is a coroutine function"),
        pytest.param({"app": None}, id="no app"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_app_is_built(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="CrossOriginProtection"):
        CrossOriginProtection(**{"app": app, **options})
