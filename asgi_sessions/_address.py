"""Whose address a request came from, and as much of it as may be kept. Layer 1.

The address in the ASGI scope is that of whoever opened the connection: the client, or a proxy of ours. Headers that name another
one are written by anybody, so they count only as far as proxies that we trust have written them: from the right.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Literal, get_args

from asgi_sessions._errors import ConfigurationError
from asgi_sessions._types import Scope

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Header = Literal["x-forwarded-for", "forwarded"]

MAX_PROXIES: Final = 32
"""How many elements of a forwarded header are walked; nobody has more proxies in a row."""

KEPT_BITS: Final = {4: 24, 6: 48}
"""As much of an address as is kept: a /24 of IPv4, a /48 of IPv6. Enough to recognise a provider, too little for a household."""


class ClientAddress:
    """Finds the client's address.

    Args:
        trusted_proxies: networks (``"10.0.0.0/8"``) and addresses of your proxies. None: the connection's address counts.
        header: the one that your proxies write. The other is ignored: they pass it on as the client wrote it.
    Raises:
        ConfigurationError: a proxy is no network, or the header is none of the two.
    """

    __slots__ = ("_header", "_trusted")

    def __init__(self, trusted_proxies: Iterable[str] = (), *, header: Header = "x-forwarded-for") -> None:
        if isinstance(trusted_proxies, str):
            raise ConfigurationError("trusted_proxies is a single string: give a list, trusted_proxies=['10.0.0.0/8']")
        if header not in get_args(Header):
            raise ConfigurationError(f"header={header!r}: use 'x-forwarded-for' or 'forwarded'")
        self._trusted = tuple(map(_network, trusted_proxies))
        self._header = header.encode("ascii")

    def of(self, scope: Scope) -> Address | None:
        """The client's address; ``None`` where there is none, as on a unix socket. Never raises, whatever was sent."""
        peer = scope.get("client")
        address = _parsed(str(peer[0])) if peer else None
        if address is None or not self._trusts(address):
            return address
        for element in self._elements(scope):
            # An element says who spoke to the one that wrote it. Where a trusted one wrote nonsense, the walk ends.
            found = _parsed(element)
            if found is None:
                return address
            address = found
            if not self._trusts(address):
                return address
        return address

    def _trusts(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._trusted)

    def _elements(self, scope: Scope) -> list[str]:
        """The addresses that the header names, the last one first."""
        lines = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == self._header]
        elements = ",".join(lines).rsplit(",", MAX_PROXIES)[-MAX_PROXIES:] if lines else []
        if self._header == b"forwarded":
            elements = [_forwarded_for(element) for element in elements]
        return [element.strip(" \t") for element in reversed(elements)]


def coarse(address: Address) -> str:
    """The network of an address, as much of it as may be kept: ``203.0.113.0/24``, ``2001:db8:1::/48``."""
    return str(ip_network((address, KEPT_BITS[address.version]), strict=False))


def _forwarded_for(element: str) -> str:
    """What ``for=`` says in an element of Forwarded (RFC 7239, section 4)."""
    for pair in element.split(";"):
        name, _, value = pair.partition("=")
        if name.strip(" \t").lower() == "for":
            return value.strip(" \t").strip('"')
    return ""


def _parsed(text: str) -> Address | None:
    """An address with or without port, brackets and zone; ``None`` for ``unknown``, ``_hidden``, names and nonsense."""
    if len(text) > 100:  # an address with all its trimmings has 60 characters at most
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
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
            f"trusted_proxies=[{proxy!r}]: give a network such as '10.0.0.0/8' (no bits beyond its length), or an address; "
            "not a name"
        ) from None
