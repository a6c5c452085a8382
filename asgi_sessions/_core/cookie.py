"""The session cookie: read every Cookie header, write one Set-Cookie, keep the answer out of caches.

All on bytes. A Cookie header is bytes from anywhere; decoding it and calling ``str.strip()`` would also remove U+00A0
and U+0085, and with that let a subdomain pass off its own cookie as one with a ``__Host-`` prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from asgi_sessions._core.origin import is_cross_site, is_top_level_navigation
from asgi_sessions._core.types import Headers, Scope
from asgi_sessions.errors import ConfigurationError

MOST_DAYS = 400
"""Days for which browsers keep a cookie at most (draft-ietf-httpbis-rfc6265bis, "The Max-Age Attribute")."""

MAX_VALUES = 256
"""How many cookies of our name are looked at; no browser sends more than a few."""

LONGEST_PAIR = 4096
"""Bytes of name and value together; browsers ignore a longer cookie (draft-ietf-httpbis-rfc6265bis, "Storage Model")."""

LONGEST_ATTRIBUTE = 1024
"""Bytes of Path; browsers ignore a longer attribute (draft-ietf-httpbis-rfc6265bis, "The Set-Cookie Header Field")."""

_LONGEST_VALUE = 1024
"""Bytes that are left for the value. Session tokens take 46 or 68, refresh tokens more."""

_TOKEN_CHARS = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
# RFC 3986, section 3.3, without the semicolon. Browsers compare a cookie's path with that of a URL as they send it, in which
# all other characters are percent-encoded and "." and ".." are resolved: a cookie with such a path is never sent.
_PATH_CHARS = re.compile(r"(?!.*/\.\.?(?:/|\Z))/(?:[A-Za-z0-9\-._~!$&'()*+,=:@/]|%[0-9A-Fa-f]{2})*")
# RFC 1123, section 2.1, two labels or more. A name whose last label is a number is an IPv4 address to browsers (WHATWG, URL).
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_DOMAIN_CHARS = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)+(?!(?:[0-9]+|0[xX][0-9A-Fa-f]*)\Z){_LABEL}")


@dataclass(frozen=True, slots=True)
class CookieConfig:
    """What the session cookie is called and where browsers send it. HttpOnly is always on.

    Contradictions that a browser would punish by silently dropping the cookie are refused here.
    """

    name: str = "__Host-Http-session"
    """The ``__Host-Http-`` prefix (draft-ietf-httpbis-rfc6265bis) makes browsers insist on Secure, HttpOnly, ``Path=/``
    and no Domain, so that neither a script nor a subdomain can write it; older ones still enforce ``__Host-``."""
    path: str = "/"
    domain: str | None = None
    """``None``: this host only. A domain hands the cookie to every subdomain; they must all be trusted."""
    secure: bool = True
    """Sent over https only. Does not depend on the scheme that a proxy shows us."""
    samesite: Literal["lax", "strict", "none"] = "lax"
    partitioned: bool = False
    """A jar of its own per top-level site (CHIPS), for apps that live in other sites' frames."""

    wanted: bytes = field(init=False, repr=False, compare=False)
    """The name as it stands in a Cookie header, with ``=``."""
    _attributes: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("name", "path", "samesite"):
            if not isinstance(getattr(self, name), str):
                raise ConfigurationError(f"CookieConfig({name}={getattr(self, name)!r}): give a str")
        for name in ("secure", "partitioned"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"CookieConfig({name}={getattr(self, name)!r}): give True or False")
        if not _TOKEN_CHARS.fullmatch(self.name):
            raise ConfigurationError(
                f"CookieConfig(name={self.name!r}): use letters, digits and !#$%&'*+-.^_`|~ only (RFC 9110, section 5.6.2)"
            )
        if len(self.name) > LONGEST_PAIR - _LONGEST_VALUE:
            raise ConfigurationError(
                f"CookieConfig(name=…) has {len(self.name)} characters: browsers ignore a cookie of more than {LONGEST_PAIR} "
                f"bytes. Use at most {LONGEST_PAIR - _LONGEST_VALUE}."
            )
        if not _PATH_CHARS.fullmatch(self.path):
            raise ConfigurationError(
                f"CookieConfig(path={self.path!r}): write the path as it stands in a URL. It begins with '/', has no ';', '?' or "
                "'#' and no segment '.' or '..', and other special characters are percent-encoded"
            )
        if len(self.path) > LONGEST_ATTRIBUTE:
            raise ConfigurationError(
                f"CookieConfig(path=…) has {len(self.path)} characters: browsers ignore a path of more than {LONGEST_ATTRIBUTE}"
            )
        if self.domain is not None and not (isinstance(self.domain, str) and _DOMAIN_CHARS.fullmatch(self.domain)):
            raise ConfigurationError(
                f"CookieConfig(domain={self.domain!r}): give a host name of two labels or more such as 'example.org', without "
                "scheme, port or leading dot, and in its xn-- form if it is not ASCII. Browsers refuse 'localhost', an IP "
                "address and a public suffix such as 'com' here: leave domain out for a cookie of one host"
            )
        samesite = self.samesite.lower()
        if samesite not in ("lax", "strict", "none"):
            raise ConfigurationError(f"CookieConfig(samesite={self.samesite!r}): use 'lax', 'strict' or 'none'")
        if samesite == "none" and not self.secure:
            raise ConfigurationError(
                "CookieConfig(samesite='none', secure=False): browsers drop such a cookie. Use secure=True, or samesite='lax'."
            )
        if self.partitioned and not self.secure:
            raise ConfigurationError(
                "CookieConfig(partitioned=True, secure=False): browsers drop such a cookie. Use secure=True."
            )
        if self.partitioned and samesite != "none":
            raise ConfigurationError(
                f"CookieConfig(partitioned=True, samesite={samesite!r}): no browser sends such a cookie in a frame of another "
                "site, and that is what partitioned is for. Use samesite='none', or leave partitioned out."
            )
        # Browsers compare the prefixes without regard to case (draft-ietf-httpbis-rfc6265bis, section 4.1.3).
        folded = self.name.lower()
        if folded.startswith(("__secure-", "__host-", "__http-")) and not self.secure:
            raise ConfigurationError(
                f"CookieConfig(name={self.name!r}, secure=False): the prefix demands Secure. Keep secure=True; for plain-http "
                "development use CookieConfig.insecure_development()."
            )
        if folded.startswith("__host-") and (self.domain is not None or self.path != "/"):
            raise ConfigurationError(
                f"CookieConfig(name={self.name!r}, path={self.path!r}, domain={self.domain!r}): a __Host- cookie "
                "has path='/' and no domain. Drop them, or choose a name with the prefix __Secure-."
            )
        put = object.__setattr__  # the way a frozen dataclass fills what it derives
        put(self, "samesite", samesite)
        put(self, "wanted", self.name.encode("ascii") + b"=")
        put(self, "_attributes", self._render_attributes())

    @classmethod
    def insecure_development(cls, name: str = "asgi-session-dev") -> CookieConfig:
        """A cookie that also travels over plain http, for development on your own machine and nothing else."""
        return cls(name=name, secure=False)

    @property
    def is_host_bound(self) -> bool:
        """Whether browsers let nobody but this host set the cookie, so that a second one is an attack."""
        return self.name.lower().startswith("__host-")

    def may_be_withheld(self, scope: Scope) -> bool:
        """Whether the browser may have a cookie of ours that it did not send with this request.

        A cookie that was sent was not withheld. ``SameSite=None`` is never withheld, ``Strict`` in every cross-site request,
        and ``Lax`` in all of them but a top-level navigation by a safe method (draft-ietf-httpbis-rfc6265bis, "Retrieval
        Algorithm"). Chromium's exception for a POST within two minutes concerns cookies without a SameSite attribute only.
        """
        if self.samesite == "none" or not is_cross_site(scope) or self.read(scope.get("headers", ())):
            return False
        return self.samesite == "strict" or not is_top_level_navigation(scope)

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
        """The values of the cookies of our name, in their order, as sent; mostly none or one, 256 at most.

        Looks into every Cookie header, since HTTP/2 splits them (RFC 9113, section 8.2.3). Never raises.
        """
        return values_called(headers, self.wanted)

    def set(self, token: str, max_age: int | None = None) -> tuple[bytes, bytes]:
        """The Set-Cookie header that puts ``token`` into the browser, for ``max_age`` seconds or until it is closed."""
        age = b"" if max_age is None else b"; Max-Age=%d" % max_age
        return b"set-cookie", self.wanted + token.encode("ascii") + age + self._attributes

    def delete(self) -> tuple[bytes, bytes]:
        """The Set-Cookie header that removes the cookie: every attribute as when it was set, or browsers keep it.

        Max-Age wins over Expires (RFC 6265, section 5.3); Expires is there for clients that only know that.
        """
        gone = b"; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"
        return b"set-cookie", self.wanted + gone + self._attributes

    def _render_attributes(self) -> bytes:
        parts = [f"; Path={self.path}"]
        if self.domain is not None:
            parts.append(f"; Domain={self.domain}")
        if self.secure:
            parts.append("; Secure")
        parts.append("; HttpOnly; SameSite=" + self.samesite.capitalize())
        if self.partitioned:
            parts.append("; Partitioned")
        return "".join(parts).encode("ascii")


def values_called(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    """The values of the cookies of a name, as :meth:`CookieConfig.read` has them. ``wanted``: the name with ``=``."""
    values: list[bytes] = []
    for name, value in headers:
        if name != b"cookie" or (at := value.find(wanted)) < 0:
            continue
        after = at + len(wanted)
        if (at == 0 or value[at - 2 : at] == b"; ") and value.find(wanted, after) < 0:
            # As browsers write it: one of our name, after "; " or nothing. The general way takes 1 µs more.
            end = value.find(b";", after)
            values.append((value[after:] if end < 0 else value[after:end]).strip(b" \t"))
        else:
            _scan(value, wanted, values)
        if len(values) >= MAX_VALUES:
            return values[:MAX_VALUES]
    return values


def _scan(header: bytes, wanted: bytes, values: list[bytes]) -> None:
    """Append the values of the cookies of a name in one header, until there are ``MAX_VALUES``."""
    start = 0
    at = header.find(wanted)
    # Every pair is looked at once, wherever our name stands in it: linear, whatever the header.
    while at >= 0 and len(values) < MAX_VALUES:
        start = header.rfind(b";", start, at) + 1 or start
        end = header.find(b";", at)
        if end < 0:
            end = len(header)
        # Ours only if nothing but SP and HTAB stands before it.
        if at == start or not header[start:at].strip(b" \t"):
            values.append(header[at + len(wanted) : end].strip(b" \t"))
        start = end
        at = header.find(wanted, end)


def vary_on(headers: Headers, name: bytes = b"Cookie") -> None:
    """Say ``Vary: Cookie``, merged into the Vary headers that are there (RFC 9110, section 12.5.5)."""
    last = -1
    for i, (key, value) in enumerate(headers):
        if len(key) == 4 and key.lower() == b"vary":
            members = [member.strip(b" \t").lower() for member in value.split(b",")]
            if b"*" in members or name.lower() in members:
                return
            last = i
    if last < 0:
        headers.append((b"vary", name))
    else:
        key, value = headers[last]
        headers[last] = (key, value + b", " + name if value.strip(b" \t") else name)


_FOR_A_CDN = frozenset({b"surrogate-control", b"edge-control", b"x-accel-expires"})
"""What Fastly, Akamai and nginx believe more than Cache-Control, besides ``…-Cache-Control`` (RFC 9213)."""


def keep_out_of_caches(headers: Headers, *, no_store: bool) -> None:
    """Make sure that no shared cache keeps a response, or with ``no_store`` no cache at all (RFC 9111, section 5.2.2).

    Where the app said nothing: ``no-store``. Where it said something, ``private, no-cache="Set-Cookie"`` joins it, or
    ``no-store``. What would contradict that goes: ``public``, ``s-maxage``, ``must-understand`` and the headers that address a
    CDN alone. ``private="X"`` and ``no-cache="X"`` cover the field X only, and the first of two may count: they lose their field.
    """
    said = _take_cache_control(headers)
    names = {_name(directive) for directive in said}
    said = [d for d in said if _name(d) != b"must-understand"]  # beside it, no-store does not count (section 5.2.2.3)
    if not names:
        said = [b"no-store"]
    elif b"no-store" not in (d.lower() for d in said):
        said = [d for d in said if _name(d) not in (b"public", b"s-maxage", b"no-store")]
        said = [d for d in said if _name(d) not in (b"private", b"no-cache") or d.lower() in _WHOLE]
        if no_store:
            said.append(b"no-store")
        else:
            if b"private" not in (d.lower() for d in said):
                said.append(b"private")
            if b"no-cache" not in map(_name, said):
                said.append(b"no-cache" if b"no-cache" in names else b'no-cache="Set-Cookie"')
    headers.append((b"cache-control", b", ".join(said)))


_WHOLE = frozenset({b"private", b"no-cache", b'no-cache="set-cookie"'})


def is_not_shared(headers: Headers, name: bytes) -> bool:
    """Whether the headers keep a response from people who send another ``name``: by Vary, ``private`` or ``no-store``."""
    varying = list(headers)
    vary_on(varying, name)
    said = {directive.lower() for directive in _take_cache_control(list(headers))}
    return varying == headers or bool(said & {b"private", b"no-store"})


def _take_cache_control(headers: Headers) -> list[bytes]:
    """Take all that speaks to caches out of the headers; the directives of Cache-Control."""
    said: list[bytes] = []
    kept: Headers = []
    for name, value in headers:
        folded = name.lower()
        if folded == b"cache-control":
            said.extend(_directives(value))
        elif folded not in _FOR_A_CDN and not folded.endswith(b"-cache-control"):
            kept.append((name, value))
    headers[:] = kept
    return said


def _name(directive: bytes) -> bytes:
    return directive.split(b"=", 1)[0].strip(b" \t").lower()


# RFC 9110, section 5.6.4: what a quoted string is. Each alternative begins differently, so nothing is tried twice.
_CLOSED = re.compile(rb'(?:[^"]|"(?:[^"\\]|\\.)*")*', re.DOTALL)
_DIRECTIVE = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*")+', re.DOTALL)


def _directives(value: bytes) -> list[bytes]:
    """The comma-separated members of a Cache-Control value; a comma inside quotes does not separate.

    Where a quote is left open nobody can say what was meant: ``no-store`` is.
    """
    if b'"' not in value:
        parts = value.split(b",")
    elif _CLOSED.fullmatch(value):
        parts = _DIRECTIVE.findall(value)
    else:
        return [b"no-store"]
    return [part.strip(b" \t") for part in parts if part.strip(b" \t")]
