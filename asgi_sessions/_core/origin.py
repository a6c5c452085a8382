"""Origin: finds the origin and the kind of a request from its headers.

An origin is a scheme, a host and a port (RFC 6454, section 4). A site is larger: ``SameSite`` cookies compare the scheme and the
registrable domain, and ignore ports (draft-ietf-httpbis-rfc6265bis, '"Same-site" and "cross-site" Requests').
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any, Final

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Safe methods (RFC 9110, section 9.2.1), except TRACE, since browsers never send it."""

# RFC 6454, section 7.1, as browsers write it. Other values are not an origin, and match none.
_ORIGIN = re.compile(r"([a-z][a-z0-9+.\-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._\-]+)(?::([0-9]{1,5}))?", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_LONGEST = 300
"""The longest valid Origin or Host, in characters: a host name has 253 at most (RFC 1035, section 2.3.4)."""


def parsed(origin: bytes) -> tuple[str, str, str] | None:
    """Parse scheme, host and port, in lower case, without the default port. ``None`` for ``null`` and invalid values."""
    if len(origin) > _LONGEST:
        return None
    match = _ORIGIN.fullmatch(origin.decode("latin-1").lower())
    if match is None:
        return None
    scheme, host, port = match[1], match[2], match[3] or ""
    return scheme, host, "" if port == _DEFAULT_PORTS.get(scheme) else port


def authority(host: bytes, scheme: str) -> tuple[str, str] | None:
    """Parse host and port of a Host header, as in an origin with this scheme."""
    found = parsed(scheme.encode("ascii") + b"://" + host)
    return None if found is None else found[1:]


def values_of(scope: Mapping[str, Any], *names: bytes) -> list[list[bytes]]:
    """Return the values of all headers with these names: one list for each name, in the order of the request."""
    found: dict[bytes, list[bytes]] = {name: [] for name in names}
    for name, value in scope.get("headers", ()):
        if name in found:
            found[name].append(value)
    return list(found.values())


def path_below_root(scope: Mapping[str, Any]) -> str:
    """Return the path below ``root_path``. In ASGI the path includes ``root_path``. With older servers and mounts it does not."""
    path, root = str(scope.get("path", "")), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and (path == root or path.startswith(f"{root}/")) else path


def is_cross_site(scope: Mapping[str, Any]) -> bool:
    """Whether a page of another site caused this request, or may have.

    ``Sec-Fetch-Site`` answers this (W3C, Fetch Metadata Request Headers). Browsers before 2023 do not send it, and no browser
    sends it over plain http. Then ``Origin`` is compared with ``Host``. Sibling hosts count as cross-site, since only a list of
    public suffixes could show that they are one site. A request with neither header is not cross-site.
    """
    sites, origins, hosts = values_of(scope, b"sec-fetch-site", b"origin", b"host")
    if b"cross-site" in sites:
        return True
    if len(sites) == 1 and sites[0] in (b"same-origin", b"same-site", b"none"):
        return False
    if not any(origins):
        return False
    origin = parsed(origins[0])
    if origin is None or len(origins) > 1 or len(hosts) != 1:
        return True
    ours = authority(hosts[0], origin[0])
    return ours is None or ours[0] != origin[1]


def is_top_level_navigation(scope: Mapping[str, Any]) -> bool:
    """Whether the request loads a page into a tab by a safe method. ``SameSite=Lax`` allows such requests.

    Browsers with Fetch Metadata send the mode and the destination. Without these headers, the method alone decides.
    """
    modes, destinations = values_of(scope, b"sec-fetch-mode", b"sec-fetch-dest")
    return (
        scope["type"] == "http"
        and scope["method"] in SAFE_METHODS
        and all(mode == b"navigate" for mode in modes)
        and all(destination == b"document" for destination in destinations)
    )


_FROM_PROXIES: Final = frozenset(
    {b"via", b"x-real-ip", b"x-scheme", b"x-url-scheme", b"front-end-https", b"x-arr-ssl", b"cf-visitor"}
)

_PREFETCH = re.compile(rb"[ \t]*prefetch[ \t]*(?:;|\Z)")


def is_activity(scope: Any, passive: Callable[[Any], bool] | None = None) -> bool:
    """Whether a user sent this request. Browsers send preflights and speculative loads by themselves.

    ``passive``: the app's own check, true for requests other than user activity.

    ``Sec-Purpose: prefetch`` is from the Fetch standard's prefetch extension and W3C's Speculation Rules. It is a token, possibly
    with parameters (RFC 9651, sections 3.1.2 and 3.3.4).
    """
    if scope.get("method") == "OPTIONS":
        return False
    for name, value in scope.get("headers", ()):
        if name == b"sec-purpose":
            return _PREFETCH.match(value) is None
    value = b""  # of a cookie, perhaps: if `passive` fails, error collectors record local variables
    return passive is None or not passive(scope)


def is_plain_http(scope: Mapping[str, Any]) -> bool:
    """Whether the browser certainly sent this request over plain http to a host other than loopback.

    With a proxy's header this is unknown. With ``Sec-Fetch-Site`` it is false: browsers send it to trustworthy URLs only.
    """
    if scope.get("scheme", "http") not in ("http", "ws"):
        return False
    host: bytes | None = None
    for name, value in scope.get("headers", ()):
        if b"forwarded" in name or name in _FROM_PROXIES or name == b"sec-fetch-site":
            return False
        if name == b"host":
            host = value
    found = None if host is None else authority(host, "http")
    return found is not None and not _is_loopback(found[0].rstrip("."))


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
