"""Finds the client's address behind proxies, and shortens it for storage.

The address in the ASGI scope is that of the client or of a proxy. Any client can send the headers for another address. So only
those parts count that trusted proxies wrote: from the right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Literal, get_args

from asgi_sessions._core.arguments import several
from asgi_sessions._core.types import Scope
from asgi_sessions.errors import ConfigurationError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Header = Literal["x-forwarded-for", "forwarded"]

MAX_PROXIES: Final = 32
"""The most elements of a forwarded header that are read. No deployment has as many proxies in a row."""

KEPT_BITS: Final = {4: 24, 6: 48}
"""Bits of an address that are kept: /24 of IPv4, /48 of IPv6. They show the provider, but not the household."""


class ClientAddress:
    """Finds the client's address.

    Args:
        trusted_proxies: networks (``"10.0.0.0/8"``) and addresses of your proxies. Without any, the connection's address counts.
        header: the one that your proxies write. The other is ignored, since they pass it on from the client.
    Raises:
        ConfigurationError: a proxy is not a network, or the header is not one of the two.
    """

    __slots__ = ("_header", "_trusted")

    def __init__(self, trusted_proxies: Iterable[str] = (), *, header: Header = "x-forwarded-for") -> None:
        if header not in get_args(Header):
            raise ConfigurationError(f"header={header!r}: use 'x-forwarded-for' or 'forwarded'")
        self._trusted = tuple(
            map(_network, several("trusted_proxies", trusted_proxies, "trusted_proxies=['10.0.0.0/8']"))
        )
        self._header = header.encode("ascii")

    def of(self, scope: Scope) -> Address | None:
        """The client's address, or ``None`` if there is none, as on a Unix socket. Never raises."""
        peer = scope.get("client")
        address = _parsed(str(peer[0])) if peer else None
        if address is None or not self._trusts(address):
            return address
        for found in self._named(scope):
            # Each proxy writes the address that connected to it. If a trusted one wrote nonsense, stop there.
            if found is None:
                return address
            address = found
            if not self._trusts(address):
                return address
        return address

    def _trusts(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._trusted)

    def _named(self, scope: Scope) -> Iterator[Address | None]:
        """The addresses in the header, the last one first. ``None`` for an element that is not an address."""
        read = _forwarded if self._header == b"forwarded" else _listed
        left = MAX_PROXIES
        for name, value in reversed(list(scope.get("headers", ()))):
            if name == self._header and left:
                # Each header separately, so that an unclosed quote of the client does not reach into a proxy's header.
                for element in read(value.decode("latin-1"), left):
                    yield _parsed(element)
                    left -= 1


@lru_cache(maxsize=1024)  # 5 µs of a log-in
def coarse(address: Address) -> str:
    """The network of an address, short enough for storage: ``203.0.113.0/24``, ``2001:db8:1::/48``."""
    return str(ip_network((address, KEPT_BITS[address.version]), strict=False))


def _listed(value: str, most: int) -> list[str]:
    """The elements of an X-Forwarded-For, the last one first. Empty ones are ignored (RFC 9110, section 5.6.1.2)."""
    elements = (element.strip(" \t") for element in reversed(value.rsplit(",", most)[-most:]))
    return [element for element in elements if element]


# A pair of Forwarded and its delimiter (RFC 7239, section 4; quoted strings: RFC 9110, section 5.6.4). Against the grammar,
# values without quotes may have ":", "[" and "]", as many proxies write them. Possessive quantifiers keep it linear.
_PAIR = re.compile(
    r"""[ \t]*+
    (?: (?P<name> [!#$%&'*+\-.^_`|~0-9A-Za-z]++ )
        =
        (?P<value> "(?: [^"\\\x00-\x08\x0a-\x1f\x7f] | \\[\t\x20-\x7e\x80-\xff] )*+" | [!#$%&'*+\-.^_`|~0-9A-Za-z:\[\]]++ )
    )?+
    [ \t]*+ (?P<end> [;,] | \Z )""",
    re.VERBOSE,
)
_ESCAPED = re.compile(r"\\(.)")


def _forwarded(value: str, most: int) -> list[str]:
    """The ``for=`` of each element of a Forwarded, the last one first.

    A value that breaks the grammar is one unreadable element, since a client may have written any part of it.
    """
    elements: list[str] = []
    pairs: dict[str, str] = {}
    at = 0
    while at <= len(value):
        match = _PAIR.match(value, at)
        name = "" if match is None else (match["name"] or "").lower()
        if match is None or name in pairs:  # RFC 7239, section 4: each parameter once
            return ["unreadable"]
        if name:
            pairs[name] = match["value"]
        at = match.end() if match["end"] else len(value) + 1
        if match["end"] != ";" and pairs:
            node = pairs.get("for", "")
            elements.append(_ESCAPED.sub(r"\1", node[1:-1]) if node.startswith('"') else node)
            pairs = {}
    return elements[: -most - 1 : -1]


_PORT = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._\-]+))?"  # RFC 7239, section 6
_IPV6 = r"([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)"
_NODE = re.compile(rf"([0-9.]+){_PORT}|\[{_IPV6}(?:%[^\]]*)?\]{_PORT}|{_IPV6}(?:%.*)?")


def _parsed(text: str) -> Address | None:
    """Parse an address with or without port, brackets and zone. ``None`` for ``unknown``, ``_hidden``, names and nonsense."""
    # An address with all of these has 60 characters at most.
    return _address_in(text) if len(text) <= 100 else None


@lru_cache(maxsize=1024)  # 3 µs of a log-in
def _address_in(text: str) -> Address | None:
    match = _NODE.fullmatch(text)
    if match is None:
        return None
    try:
        address = ip_address(match[1] or match[2] or match[3])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _network(proxy: object) -> Network:
    try:
        return ip_network(proxy if isinstance(proxy, str) else "")
    except ValueError:
        raise ConfigurationError(
            f"trusted_proxies=[{proxy!r}]: give a network such as '10.0.0.0/8' (no bits beyond its length), or an address, "
            "not a name"
        ) from None
