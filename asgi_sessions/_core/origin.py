"""Where a request comes from, by what the browser says about it.

An origin is a scheme, a host and a port (RFC 6454, section 4). A site is larger: ``SameSite`` cookies go by the scheme and the
registrable domain, and take no notice of ports (draft-ietf-httpbis-rfc6265bis, '"Same-site" and "cross-site" Requests').
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any, Final

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, section 9.2.1), without TRACE, which no browser sends."""

# RFC 6454, section 7.1, as browsers write it. Whatever does not match is no origin, and so nobody's.
_ORIGIN = re.compile(r"([a-z][a-z0-9+.\-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._\-]+)(?::([0-9]{1,5}))?", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_LONGEST = 300
"""Characters of an Origin or Host that are looked at: a host name has 253 at most (RFC 1035, section 2.3.4)."""


def parsed(origin: bytes) -> tuple[str, str, str] | None:
    """Scheme, host and port, in lower case and with the scheme's own port left out; ``None`` for ``null`` and all else."""
    if len(origin) > _LONGEST:
        return None
    match = _ORIGIN.fullmatch(origin.decode("latin-1").lower())
    if match is None:
        return None
    scheme, host, port = match[1], match[2], match[3] or ""
    return scheme, host, "" if port == _DEFAULT_PORTS.get(scheme) else port


def authority(host: bytes, scheme: str) -> tuple[str, str] | None:
    """Host and port of a Host header, as an origin of that scheme would have them."""
    found = parsed(scheme.encode("ascii") + b"://" + host)
    return None if found is None else found[1:]


def values_of(scope: Mapping[str, Any], *names: bytes) -> list[list[bytes]]:
    """For each name the values of all headers with that name, in their order."""
    found: dict[bytes, list[bytes]] = {name: [] for name in names}
    for name, value in scope.get("headers", ()):
        if name in found:
            found[name].append(value)
    return list(found.values())


def path_below_root(scope: Mapping[str, Any]) -> str:
    """The path below ``root_path``. ASGI has it within the path; older servers and mounts leave it out."""
    path, root = str(scope.get("path", "")), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and (path == root or path.startswith(f"{root}/")) else path


def is_cross_site(scope: Mapping[str, Any]) -> bool:
    """Whether a page of another site made the browser send this request, or may have.

    ``Sec-Fetch-Site`` says so (W3C, Fetch Metadata Request Headers). Browsers before 2023 do not send it, and no browser sends
    it over plain http. Then the host in ``Origin`` is compared with ``Host``. Sibling hosts may be of one site, but that takes
    a list of public suffixes to know, so they count as cross-site. A request with neither header does not.
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
    """Whether the request loads a page into a tab of its own by a safe method: what ``SameSite=Lax`` lets through.

    A browser that says where a request comes from also says what it is for. Without that, the method alone decides.
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

    ``passive``: the app's own opinion of what is no activity.

    ``Sec-Purpose: prefetch`` is from the Fetch standard's prefetch extension and W3C's Speculation Rules. It is a token that may
    have parameters (RFC 9651, sections 3.1.2 and 3.3.4).
    """
    if scope.get("method") == "OPTIONS":
        return False
    for name, value in scope.get("headers", ()):
        if name == b"sec-purpose":
            return _PREFETCH.match(value) is None
    return passive is None or not passive(scope)


def is_plain_http(scope: Mapping[str, Any]) -> bool:
    """Whether the browser sent this request over plain http to a host that is not loopback, as far as anything says.

    A header of a proxy leaves that open, and ``Sec-Fetch-Site`` rules it out: browsers send it to trustworthy URLs only.
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
