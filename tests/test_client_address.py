"""Whose address counts: forwarded headers are believed from the right, and only as far as proxies of ours wrote them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_sessions import ConfigurationError
from asgi_sessions.client_address import ClientAddress, coarse

OURS = ["10.0.0.0/8", "2001:db8:ffff::/48", "192.0.2.1"]


def scope(peer: str | None, *lines: str, name: str = "x-forwarded-for") -> dict[str, Any]:
    headers = [(name.encode(), line.encode("latin-1")) for line in lines]
    return {"type": "http", "client": None if peer is None else (peer, 5000), "headers": headers}


@pytest.mark.parametrize(
    ("peer", "lines", "expected"),
    [
        pytest.param("203.0.113.9", [], "203.0.113.9", id="no header"),
        pytest.param("203.0.113.9", ["198.51.100.1"], "203.0.113.9", id="from a stranger, a header is nothing"),
        pytest.param("10.0.0.1", ["198.51.100.1"], "198.51.100.1", id="one proxy"),
        pytest.param("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1", id="two proxies"),
        pytest.param("10.0.0.1", ["6.6.6.6, 198.51.100.1, 10.0.0.2"], "198.51.100.1", id="spoofed on the left"),
        pytest.param("10.0.0.1", ["10.6.6.6, 198.51.100.1"], "198.51.100.1", id="spoofed as one of ours"),
        pytest.param("10.0.0.1", ["6.6.6.6", "198.51.100.1"], "198.51.100.1", id="spoofed in a line of its own"),
        pytest.param("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3", id="all are ours"),
        pytest.param("10.0.0.1", ["198.51.100.1, nonsense, 10.0.0.2"], "10.0.0.2", id="nonsense ends the walk"),
        pytest.param("10.0.0.1", [""], "10.0.0.1", id="an empty header"),
        pytest.param("10.0.0.1", [",,,"], "10.0.0.1", id="commas"),
        pytest.param("10.0.0.1", ["198.51.100.1:8080"], "198.51.100.1", id="with a port"),
        pytest.param("10.0.0.1", ["[2001:db8::7]:8080"], "2001:db8::7", id="IPv6 with a port"),
        pytest.param("10.0.0.1", ["2001:db8::7"], "2001:db8::7", id="IPv6"),
        pytest.param("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1", id="mapped"),
        pytest.param("2001:db8:ffff::1", ["fe80::1%eth0"], "fe80::1", id="with a zone"),
        pytest.param("192.0.2.1", ["\xa0198.51.100.1"], "192.0.2.1", id="a space that is none"),
        pytest.param("testclient", ["198.51.100.1"], None, id="a peer without an address"),
        pytest.param(None, ["198.51.100.1"], None, id="a unix socket"),
    ],
)
def test_x_forwarded_for_is_walked_from_the_right(peer: str | None, lines: list[str], expected: str | None) -> None:
    found = ClientAddress(OURS).of(scope(peer, *lines))

    assert found == (None if expected is None else ip_address(expected))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("for=198.51.100.1", "198.51.100.1"),
        ('For="[2001:db8::7]:4711";proto=https;by=10.0.0.1', "2001:db8::7"),
        ("for=6.6.6.6, for=198.51.100.1;proto=http, for=10.0.0.2", "198.51.100.1"),
        ("for=unknown, for=10.0.0.2", "10.0.0.2"),
        ("for=_hidden", "10.0.0.1"),
        ("proto=https", "10.0.0.1"),
        ('for="198.51.100.1', "198.51.100.1"),
    ],
)
def test_forwarded_is_read_where_that_is_what_the_proxies_write(line: str, expected: str) -> None:
    found = ClientAddress(OURS, header="forwarded").of(scope("10.0.0.1", line, name="forwarded"))

    assert found == ip_address(expected)


def test_the_header_that_the_proxies_do_not_write_is_the_clients() -> None:
    request = scope("10.0.0.1", "for=6.6.6.6", name="forwarded")
    request["headers"].append((b"x-forwarded-for", b"198.51.100.1"))

    assert ClientAddress(OURS).of(request) == ip_address("198.51.100.1")


def test_a_header_without_end_is_walked_for_a_bounded_way() -> None:
    found = ClientAddress(OURS).of(scope("10.0.0.1", "6.6.6.6, " + "10.0.0.2, " * 100_000 + "10.0.0.3"))

    assert found == ip_address("10.0.0.2")


def test_nobody_is_trusted_unless_told() -> None:
    assert ClientAddress().of(scope("127.0.0.1", "198.51.100.1")) == ip_address("127.0.0.1")


@given(st.lists(st.binary(max_size=200)), st.sampled_from(["x-forwarded-for", "forwarded"]), st.text(max_size=60))
def test_whatever_is_sent_never_raises(lines: list[bytes], name: Any, peer: str) -> None:
    finder = ClientAddress(["0.0.0.0/0", "::/0"], header=name)
    headers = [(name.encode(), line) for line in lines]

    for client in (peer, "10.0.0.1"):
        found = finder.of({"type": "http", "client": (client, 1), "headers": headers})
        assert found is None or isinstance(found, IPv4Address | IPv6Address)


@given(st.ip_addresses())
def test_what_is_kept_is_the_network_and_not_the_address(address: IPv4Address | IPv6Address) -> None:
    kept = coarse(address)

    network = ip_network(kept)
    assert address in network
    assert network.prefixlen == (24 if address.version == 4 else 48)
    assert str(network.network_address) == str(address) or str(address) not in kept


@pytest.mark.parametrize("proxy", ["proxy.example", "10.0.0.1/8", "", "10.0.0.0/33", None, 10, "*"])
def test_a_proxy_that_is_no_network_is_refused(proxy: Any) -> None:
    with pytest.raises(ConfigurationError, match="trusted_proxies"):
        ClientAddress([proxy])


def test_a_single_string_and_another_header_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="list"):
        ClientAddress("10.0.0.0/8")
    with pytest.raises(ConfigurationError, match="x-forwarded-for"):
        ClientAddress(header="x-real-ip")  # type: ignore[arg-type]  # that is the point
