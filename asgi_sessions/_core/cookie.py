"""The session cookie: reads all Cookie headers, writes one Set-Cookie, and keeps responses out of caches.

It works on bytes. A Cookie header may have any bytes. Decoding and ``str.strip()`` would also remove U+00A0 and U+0085, so that a
subdomain could pass off its own cookie as one with a ``__Host-`` prefix.
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
"""The most days for which browsers keep a cookie (draft-ietf-httpbis-rfc6265bis, "The Max-Age Attribute")."""

MAX_VALUES = 256
"""The most cookies of our name that are read. Browsers send a few at most."""

LONGEST_PAIR = 4096
"""Bytes of name and value together. Browsers ignore a longer cookie (draft-ietf-httpbis-rfc6265bis, "Storage Model")."""

LONGEST_ATTRIBUTE = 1024
"""Bytes of Path. Browsers ignore a longer attribute (draft-ietf-httpbis-rfc6265bis, "The Set-Cookie Header Field")."""

_LONGEST_VALUE = 1024
"""Bytes reserved for the value. Session tokens take 46 or 68, refresh tokens more."""

_TOKEN_CHARS = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
# RFC 3986, section 3.3, without the semicolon. Browsers compare a cookie's path with that of the URL that they send, where all
# other characters are percent-encoded and "." and ".." are resolved. They would never send a cookie with such a path.
_PATH_CHARS = re.compile(r"(?!.*/\.\.?(?:/|\Z))/(?:[A-Za-z0-9\-._~!$&'()*+,=:@/]|%[0-9A-Fa-f]{2})*")
# RFC 1123, section 2.1, two labels or more. A name whose last label is a number is an IPv4 address to browsers (WHATWG, URL).
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_DOMAIN_CHARS = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)+(?!(?:[0-9]+|0[xX][0-9A-Fa-f]*)\Z){_LABEL}")


@dataclass(frozen=True, slots=True)
class CookieConfig:
    """The name and attributes of the session cookie. HttpOnly is always on.

    Raises ConfigurationError for contradictions, because of which browsers would silently drop the cookie.
    """

    name: str = "__Host-Http-session"
    """With the ``__Host-Http-`` prefix (draft-ietf-httpbis-rfc6265bis) browsers require Secure, HttpOnly, ``Path=/`` and no
    Domain, so that neither a script nor a subdomain can write the cookie. Older browsers enforce ``__Host-``."""
    path: str = "/"
    domain: str | None = None
    """``None`` means this host only. With a domain, every subdomain gets the cookie and must be trusted."""
    secure: bool = True
    """Whether the cookie is sent over https only. It does not depend on the scheme that a proxy passes on."""
    samesite: Literal["lax", "strict", "none"] = "lax"
    partitioned: bool = False
    """Whether each top-level site has a separate cookie (CHIPS), for apps in frames of other sites."""

    wanted: bytes = field(init=False, repr=False, compare=False)
    """The name with ``=``, as in a Cookie header."""
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
        put = object.__setattr__  # a frozen dataclass sets derived fields so
        put(self, "samesite", samesite)
        put(self, "wanted", self.name.encode("ascii") + b"=")
        put(self, "_attributes", self._render_attributes())

    @classmethod
    def insecure_development(cls, name: str = "asgi-session-dev") -> CookieConfig:
        """Return a cookie that browsers send over plain http too. Only for development on your own machine."""
        return cls(name=name, secure=False)

    @property
    def is_host_bound(self) -> bool:
        """Whether browsers let only this host set the cookie, so that a second one is an attack."""
        return self.name.lower().startswith("__host-")

    def may_be_withheld(self, scope: Scope) -> bool:
        """Whether the browser may have a cookie of ours that it did not send with this request.

        ``SameSite=None`` is never withheld. ``Strict`` is withheld in every cross-site request, and ``Lax`` in all except
        top-level navigations with a safe method (draft-ietf-httpbis-rfc6265bis, "Retrieval Algorithm"). Chromium's exception
        for a POST within two minutes only concerns cookies without a SameSite attribute.
        """
        if self.samesite == "none" or not is_cross_site(scope) or self.read(scope.get("headers", ())):
            return False
        return self.samesite == "strict" or not is_top_level_navigation(scope)

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
        """The values of all cookies with our name, in the order of the request: mostly none or one, 256 at most.

        It reads every Cookie header, since HTTP/2 splits them (RFC 9113, section 8.2.3). Never raises.
        """
        return values_called(headers, self.wanted)

    def set(self, token: str, max_age: int | None = None) -> tuple[bytes, bytes]:
        """The Set-Cookie header that stores ``token`` in the browser, for ``max_age`` seconds or until the browser is closed."""
        age = b"" if max_age is None else b"; Max-Age=%d" % max_age
        return b"set-cookie", self.wanted + token.encode("ascii") + age + self._attributes

    def delete(self) -> tuple[bytes, bytes]:
        """The Set-Cookie header that removes the cookie. It needs the same attributes, or browsers keep the cookie.

        Max-Age wins over Expires (RFC 6265, section 5.3), which is for clients without Max-Age.
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
    """The values of the cookies with a name, as for :meth:`CookieConfig.read`. ``wanted``: the name with ``=``."""
    values: list[bytes] = []
    for name, value in headers:
        if name != b"cookie" or (at := value.find(wanted)) < 0:
            continue
        after = at + len(wanted)
        if (at == 0 or value[at - 2 : at] == b"; ") and value.find(wanted, after) < 0:
            # As browsers write it: one cookie of our name, first or after "; ". The general way takes 1 µs more.
            end = value.find(b";", after)
            values.append((value[after:] if end < 0 else value[after:end]).strip(b" \t"))
        else:
            _scan(value, wanted, values)
        if len(values) >= MAX_VALUES:
            return values[:MAX_VALUES]
    return values


def _scan(header: bytes, wanted: bytes, values: list[bytes]) -> None:
    """Append the values of the cookies with a name in one header, up to ``MAX_VALUES``."""
    start = 0
    at = header.find(wanted)
    # Every pair is visited once, so the time is linear for any header.
    while at >= 0 and len(values) < MAX_VALUES:
        start = header.rfind(b";", start, at) + 1 or start
        end = header.find(b";", at)
        if end < 0:
            end = len(header)
        # It is the name of a pair only if SP and HTAB alone are before it.
        if at == start or not header[start:at].strip(b" \t"):
            values.append(header[at + len(wanted) : end].strip(b" \t"))
        start = end
        at = header.find(wanted, end)


def vary_on(headers: Headers, name: bytes = b"Cookie") -> None:
    """Add ``Vary: Cookie``, merged into existing Vary headers (RFC 9110, section 12.5.5)."""
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
"""Headers that Fastly, Akamai and nginx prefer to Cache-Control, as well as ``…-Cache-Control`` (RFC 9213)."""


def keep_out_of_caches(headers: Headers, *, no_store: bool) -> None:
    """Keep a response out of shared caches, or with ``no_store`` out of all caches (RFC 9111, section 5.2.2).

    Without directives of the app it sets ``no-store``. Otherwise it adds ``private, no-cache="Set-Cookie"``, or ``no-store``, and
    removes contradictions: ``public``, ``s-maxage``, ``must-understand`` and the headers for CDNs. ``private="X"`` and
    ``no-cache="X"`` only cover the field X, and a cache may use the first of two. So they lose their field.
    """
    directives = _take_cache_control(headers)
    names = {_name(directive) for directive in directives}
    directives = [d for d in directives if _name(d) != b"must-understand"]  # it overrides no-store (section 5.2.2.3)
    if not names:
        directives = [b"no-store"]
    elif b"no-store" not in (d.lower() for d in directives):
        directives = [d for d in directives if _name(d) not in (b"public", b"s-maxage", b"no-store")]
        fields = {d.lower() for d in directives if _name(d) == b"no-cache"}
        whole = {b"private", b"no-cache"} | (fields if fields == {_NO_CACHE.lower()} else set())
        directives = [d for d in directives if _name(d) not in (b"private", b"no-cache") or d.lower() in whole]
        if no_store:
            directives.append(b"no-store")
        else:
            if b"private" not in (d.lower() for d in directives):
                directives.append(b"private")
            if b"no-cache" not in map(_name, directives):
                directives.append(b"no-cache" if fields else _NO_CACHE)
    headers.append((b"cache-control", b", ".join(directives)))


_NO_CACHE = b'no-cache="Set-Cookie"'


def is_not_shared(headers: Headers, name: bytes) -> bool:
    """Whether caches give the response only to clients with the same header ``name``: by Vary, ``private`` or ``no-store``."""
    varying = list(headers)
    vary_on(varying, name)
    directives = {directive.lower() for directive in _take_cache_control(list(headers))}
    return varying == headers or bool(directives & {b"private", b"no-store"})


def _take_cache_control(headers: Headers) -> list[bytes]:
    """Remove all headers for caches, and return the directives of Cache-Control."""
    directives: list[bytes] = []
    kept: Headers = []
    for name, value in headers:
        folded = name.lower()
        if folded == b"cache-control":
            directives.extend(_directives(value))
        elif folded not in _FOR_A_CDN and not folded.endswith(b"-cache-control"):
            kept.append((name, value))
    headers[:] = kept
    return directives


def _name(directive: bytes) -> bytes:
    return directive.split(b"=", 1)[0].strip(b" \t").lower()


# Quoted strings: RFC 9110, section 5.6.4. Each alternative begins differently, so the time is linear.
_CLOSED = re.compile(rb'(?:[^"]|"(?:[^"\\]|\\.)*")*', re.DOTALL)
_DIRECTIVE = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*")+', re.DOTALL)


def _directives(value: bytes) -> list[bytes]:
    """The comma-separated members of a Cache-Control value. A comma in quotes does not separate.

    An unclosed quote is ambiguous, and becomes ``no-store``.
    """
    if b'"' not in value:
        parts = value.split(b",")
    elif _CLOSED.fullmatch(value):
        parts = _DIRECTIVE.findall(value)
    else:
        return [b"no-store"]
    return [part.strip(b" \t") for part in parts if part.strip(b" \t")]
