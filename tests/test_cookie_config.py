"""Which cookies are refused when the app is built, because no browser would keep them or send them back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from asgi_sessions import ConfigurationError, CookieConfig, MemoryStore, SessionMiddleware, Timeouts
from tests.support import inner_app

PLAIN: dict[str, Any] = {"name": "sid"}
LABEL = "a" * 63

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # Partitioned
    "partitioned and lax": ({"partitioned": True}, "samesite='none'"),
    "partitioned and strict": ({"partitioned": True, "samesite": "strict"}, "samesite='none'"),
    "partitioned and not secure": ({**PLAIN, "partitioned": True, "samesite": "none", "secure": False}, "secure=True"),
    # SameSite
    "none and not secure": ({**PLAIN, "samesite": "none", "secure": False}, "secure=True"),
    "None and not secure": ({**PLAIN, "samesite": "None", "secure": False}, "secure=True"),
    "no such value": ({"samesite": "default"}, "'lax', 'strict' or 'none'"),
    # Prefixes; browsers compare them without regard to case
    "__Host- and a domain": ({"name": "__Host-s", "domain": "example.org"}, "__Host-"),
    "__Host- and a path": ({"name": "__Host-s", "path": "/app"}, "__Host-"),
    "__Host-Http- and a path": ({"path": "/app"}, "__Host-"),
    "__HOST- and a path": ({"name": "__HOST-s", "path": "/app"}, "__Host-"),
    "__Host- and not secure": ({"name": "__Host-s", "secure": False}, "demands Secure"),
    "__Secure- and not secure": ({"name": "__Secure-s", "secure": False}, "demands Secure"),
    "__secure- and not secure": ({"name": "__secure-s", "secure": False}, "demands Secure"),
    "__Http- and not secure": ({"name": "__Http-s", "secure": False}, "demands Secure"),
    # Names
    "no name": ({"name": ""}, "RFC 9110"),
    "a name with =": ({"name": "a=b"}, "RFC 9110"),
    "a name with ;": ({"name": "a;b"}, "RFC 9110"),
    "a name with a space": ({"name": "a b"}, "RFC 9110"),
    "a name that is not ASCII": ({"name": "sitzung-ü"}, "RFC 9110"),
    "a name that ends in a new line": ({"name": "sid\n"}, "RFC 9110"),
    "a name that leaves no room for a token": ({"name": "a" * 3073}, "4096"),
    # Paths: those that the path of no URL begins with
    "a path without a slash": ({**PLAIN, "path": "app"}, "begins with '/'"),
    "an empty path": ({**PLAIN, "path": ""}, "begins with '/'"),
    "a path with ;": ({**PLAIN, "path": "/a;b"}, "';'"),
    "a path with a query": ({**PLAIN, "path": "/a?b"}, "'?'"),
    "a path with a fragment": ({**PLAIN, "path": "/a#b"}, "'#'"),
    "a path with a space": ({**PLAIN, "path": "/my app"}, "percent-encoded"),
    "a path with quotes": ({**PLAIN, "path": '/"app"'}, "percent-encoded"),
    "a path with braces, a framework's": ({**PLAIN, "path": "/{tenant}"}, "percent-encoded"),
    "a path with a backslash": ({**PLAIN, "path": "/a\\b"}, "percent-encoded"),
    "a path with a bare %": ({**PLAIN, "path": "/100%"}, "percent-encoded"),
    "a path that is not ASCII": ({**PLAIN, "path": "/käse"}, "percent-encoded"),
    "a path with ..": ({**PLAIN, "path": "/a/../b"}, "'..'"),
    "a path that ends in .": ({**PLAIN, "path": "/a/."}, "'..'"),
    "a path with a new line": ({**PLAIN, "path": "/a\n"}, "begins with '/'"),
    "a path that is too long": ({**PLAIN, "path": "/" + "a" * 1024}, "1024"),
    # Domains
    "a leading dot": ({**PLAIN, "domain": ".example.org"}, "leading dot"),
    "a dot at the end": ({**PLAIN, "domain": "example.org."}, "leave domain out"),
    "two dots": ({**PLAIN, "domain": "example..org"}, "leave domain out"),
    "a wildcard": ({**PLAIN, "domain": "*.example.org"}, "leave domain out"),
    "an empty domain": ({**PLAIN, "domain": ""}, "leave domain out"),
    "a top-level domain": ({**PLAIN, "domain": "com"}, "leave domain out"),
    "localhost": ({**PLAIN, "domain": "localhost"}, "leave domain out"),
    "an IPv4 address": ({**PLAIN, "domain": "192.0.2.1"}, "leave domain out"),
    "an IPv4 address in short": ({**PLAIN, "domain": "127.1"}, "leave domain out"),
    "an IPv4 address in hexadecimal": ({**PLAIN, "domain": "127.0x1"}, "leave domain out"),
    "an IPv6 address": ({**PLAIN, "domain": "::1"}, "leave domain out"),
    "an IPv6 address in brackets": ({**PLAIN, "domain": "[2001:db8::1]"}, "leave domain out"),
    "a port": ({**PLAIN, "domain": "example.org:8000"}, "port"),
    "a scheme": ({**PLAIN, "domain": "https://example.org"}, "scheme"),
    "a path in the domain": ({**PLAIN, "domain": "example.org/app"}, "leave domain out"),
    "a domain that is not ASCII": ({**PLAIN, "domain": "bücher.example"}, "xn--"),
    "a label that begins with a hyphen": ({**PLAIN, "domain": "-a.example.org"}, "leave domain out"),
    "a label that is too long": ({**PLAIN, "domain": f"{LABEL}a.example"}, "leave domain out"),
    "a domain that is too long": ({**PLAIN, "domain": ".".join([LABEL] * 4)}, "leave domain out"),
    "a new line": ({**PLAIN, "domain": "example.org\n"}, "leave domain out"),
}

TAKEN: dict[str, dict[str, Any]] = {
    "the default": {},
    "strict": {"samesite": "strict"},
    "none": {"samesite": "none"},
    "partitioned and none": {"samesite": "none", "partitioned": True},
    "partitioned, none, and a path": {**PLAIN, "samesite": "None", "partitioned": True, "path": "/app"},
    "__Secure- with a domain and a path": {"name": "__Secure-s", "domain": "example.org", "path": "/app"},
    "__Http- with a domain": {"name": "__Http-s", "domain": "example.org"},
    "a domain of two letters and hyphens": {**PLAIN, "domain": "a-b--c.io"},
    "an international domain": {**PLAIN, "domain": "xn--bcher-kva.example"},
    "digits in a domain": {**PLAIN, "domain": "4.3.2.1.example.org"},
    "a domain in upper case": {**PLAIN, "domain": "Example.ORG"},
    "the longest label": {**PLAIN, "domain": f"{LABEL}.example"},
    "a path as URLs have it": {**PLAIN, "path": "/a/~b/%C3%A4/c.d/...e/:f@g/(h)!$&'*+,="},
    "hidden folders in a path": {**PLAIN, "path": "/.well-known/..x/"},
    "the longest path": {**PLAIN, "path": "/" + "a" * 1023},
    "the longest name": {"name": "a" * 3072},
    "for development": {**PLAIN, "secure": False},
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_cookie_that_browsers_would_drop_is_refused(case: str) -> None:
    options, advice = REFUSED[case]

    with pytest.raises(ConfigurationError) as refused:
        CookieConfig(**options)

    assert str(refused.value).startswith("CookieConfig(")
    assert advice in str(refused.value)


@pytest.mark.parametrize("case", TAKEN)
def test_a_cookie_that_browsers_keep_is_taken(case: str) -> None:
    cookie = CookieConfig(**TAKEN[case])

    line = cookie.set("t" * 68, 60)[1]

    assert len(line.split(b"; ", 1)[0]) <= 4096


def test_a_session_that_outlives_every_cookie_is_refused() -> None:
    """Browsers keep a cookie for 400 days, whatever its Max-Age says."""
    year, days = timedelta(days=400), timedelta(days=401)

    with pytest.raises(ConfigurationError, match="400 days"):
        SessionMiddleware(inner_app, MemoryStore(), timeouts=Timeouts(remember_absolute=days))
    SessionMiddleware(inner_app, MemoryStore(), timeouts=Timeouts(remember_absolute=year))
    SessionMiddleware(inner_app, MemoryStore(), timeouts=Timeouts(absolute=days))  # its cookie has no Max-Age
    SessionMiddleware(
        inner_app, MemoryStore(), timeouts=Timeouts(remember_absolute=days, renew=timedelta(hours=1))
    )  # a new cookie is sent with each renewal
