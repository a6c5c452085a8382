"""Whose address counts: forwarded headers are believed from the right, and only as far as proxies of ours wrote them."""

from __future__ import annotations

import random
import re
import time
import tracemalloc
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
        pytest.param("10.0.0.1", ["198.51.100.1,, 10.0.0.2 ,"], "198.51.100.1", id="empty elements"),
        pytest.param("10.0.0.1", ["198.51.100.1", "", "10.0.0.2"], "198.51.100.1", id="an empty line"),
        pytest.param("10.0.0.1", ["6.6.6.6:x"], "10.0.0.1", id="a port that is none"),
        pytest.param("10.0.0.1", ["[2001:db8::7]6.6.6.6"], "10.0.0.1", id="text after the bracket"),
        pytest.param("10.0.0.1", ["6.6.6.6%x"], "10.0.0.1", id="IPv4 with a zone"),
        pytest.param("10.0.0.1", ["unknown"], "10.0.0.1", id="unknown"),
        pytest.param("10.0.0.1", ['"6.6.6.6"'], "10.0.0.1", id="quotes, which this header does not have"),
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


FORWARDED: dict[str, tuple[list[str], str]] = {
    "one pair": (["for=198.51.100.1"], "198.51.100.1"),
    "in capitals": (["FOR=198.51.100.1;PROTO=https"], "198.51.100.1"),
    "IPv6 with a port": (['For="[2001:db8::7]:4711";proto=https;by=10.0.0.1'], "2001:db8::7"),
    "for comes last": (["proto=https;host=a.example;by=10.0.0.1;for=198.51.100.1"], "198.51.100.1"),
    "three elements": (["for=6.6.6.6, for=198.51.100.1;proto=http, for=10.0.0.2"], "198.51.100.1"),
    "three lines": (["for=6.6.6.6", "for=198.51.100.1;proto=http", "for=10.0.0.2"], "198.51.100.1"),
    "a comma in quotes": (['for=198.51.100.1;host="a,for=6.6.6.6"'], "198.51.100.1"),
    "a comma in quotes, first": (['host="a,for=6.6.6.6";for=198.51.100.1'], "198.51.100.1"),
    "a semicolon in quotes": (['host="a;for=6.6.6.6";for=198.51.100.1'], "198.51.100.1"),
    "an escaped quote": ([r'for=198.51.100.1;host="a\",for=6.6.6.6;x=\""'], "198.51.100.1"),
    "an escaped backslash": ([r'host="a\\";for=198.51.100.1'], "198.51.100.1"),
    "an address with escapes": ([r'for="\1\98.51.100.1"'], "198.51.100.1"),
    "spaces and tabs": (["\tfor=198.51.100.1 ;\tproto=http ,  for=10.0.0.2"], "198.51.100.1"),
    "empty elements and pairs": ([", ,;for=198.51.100.1;; ,", ""], "198.51.100.1"),
    "a port": (["for=198.51.100.1:8080"], "198.51.100.1"),
    "a hidden port": (['for="198.51.100.1:_hidden"'], "198.51.100.1"),
    "IPv6 without quotes": (["for=[2001:db8::7]:80"], "2001:db8::7"),
    "mapped": (['for="[::ffff:198.51.100.1]"'], "198.51.100.1"),
    "an unknown parameter": (["for=198.51.100.1;secret=for"], "198.51.100.1"),
    "a parameter that begins alike": (["forx=6.6.6.6;for=198.51.100.1"], "198.51.100.1"),
    # What cannot be read or says no address ends the walk, at the last proxy that is known.
    "unknown": (["for=unknown, for=10.0.0.2"], "10.0.0.2"),
    "hidden": (["for=_hidden"], "10.0.0.1"),
    "no for": (["proto=https"], "10.0.0.1"),
    "an open quote": (['for="198.51.100.1'], "10.0.0.1"),
    "a client's open quote before the proxy's element": (['for="6.6.6.6, for=198.51.100.1;host="a"'], "10.0.0.1"),
    "a client's open quote in a line of its own": (['for=6.6.6.6;x="', "for=198.51.100.1"], "198.51.100.1"),
    "quotes that two lines would make": (['for=6.6.6.6;x="a', 'b";for=198.51.100.1'], "10.0.0.1"),
    "text after a quoted string": (['for="6.6.6.6"x'], "10.0.0.1"),
    "text before a quoted string": (['for=x"6.6.6.6"'], "10.0.0.1"),
    "a backslash without quotes": ([r"for=6.6.6.6\;x=y"], "10.0.0.1"),
    "a space around the equals sign": (["for = 6.6.6.6"], "10.0.0.1"),
    "for twice": (["for=6.6.6.6;for=198.51.100.1"], "10.0.0.1"),
    "for twice, in capitals": (["for=6.6.6.6;For=198.51.100.1"], "10.0.0.1"),
    "no name": (["=6.6.6.6"], "10.0.0.1"),
    "a bare address": (["6.6.6.6"], "10.0.0.1"),
    "text after the bracket": (['for="[2001:db8::7]6.6.6.6"'], "10.0.0.1"),
    "IPv4 in brackets": (['for="[6.6.6.6]"'], "10.0.0.1"),
    "a port that is none": (['for="6.6.6.6:x"'], "10.0.0.1"),
    "two addresses": (['for="6.6.6.6 198.51.100.1"'], "10.0.0.1"),
    "a space that is none": (["\xa0for=6.6.6.6"], "10.0.0.1"),
    "a control character": (['for=6.6.6.6;x="\x00"'], "10.0.0.1"),
    "an earlier element that cannot be read": (['x="6.6.6.6, for=198.51.100.1', "for=10.0.0.2"], "10.0.0.2"),
}


@pytest.mark.parametrize(("lines", "expected"), FORWARDED.values(), ids=FORWARDED.keys())
def test_forwarded_is_read_where_that_is_what_the_proxies_write(lines: list[str], expected: str) -> None:
    found = ClientAddress(OURS, header="forwarded").of(scope("10.0.0.1", *lines, name="forwarded"))

    assert found == ip_address(expected)


# From a model to a header in a random legal spelling, and back.

LURES = ["a,for=6.6.6.6", '";for=6.6.6.6', "\\", '\\",for=6.6.6.6', "for=6.6.6.6", "", "https", "a.example:80", "\xa0é"]


def quoted(text: str, dice: random.Random) -> str:
    return '"' + "".join(rf"\{char}" if char in '"\\' or dice.random() < 0.3 else char for char in text) + '"'


def pair(name: str, text: str, dice: random.Random) -> str:
    spelled = "".join(dice.choice([char.lower(), char.upper()]) for char in name)
    needs_quotes = not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", text)
    return f"{spelled}={quoted(text, dice) if needs_quotes or dice.random() < 0.5 else text}"


def forwarded(address: IPv4Address | IPv6Address, dice: random.Random) -> str:
    """An element that names the address, and says other things that an attacker may have chosen."""
    node = f"[{address}]" if address.version == 6 else str(address)
    said = [pair("for", node + dice.choice(["", ":443", ":_secret"]), dice)]
    said += [
        pair(name, dice.choice(LURES), dice)
        for name in dice.sample(["by", "host", "proto", "secret"], dice.randrange(5))
    ]
    dice.shuffle(said)
    spaces = [" " * dice.randrange(3), "\t" * dice.randrange(2)]
    return spaces[0] + f"{spaces[1]};{spaces[0]}".join(said) + spaces[1]


@given(st.integers(0, 2**32), st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_every_legal_spelling_of_forwarded_says_the_same(seed: int, address: IPv4Address | IPv6Address) -> None:
    """Strangers come first; the element before the last two is the client, and those two are proxies of ours."""
    dice = random.Random(seed)
    strangers = [ip_address("6.6.6.6")] * dice.randrange(3)
    proxies = [ip_address("10.0.0.3"), ip_address("10.0.0.2")]
    elements = [forwarded(each, dice) for each in (*strangers, address, *proxies)]
    at = dice.randrange(len(elements) + 1)
    lines = [",".join(part) for part in (elements[:at], elements[at:]) if part]

    found = ClientAddress(["10.0.0.0/8"], header="forwarded").of(scope("10.0.0.1", *lines, name="forwarded"))

    expected = (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
    if expected not in ip_network("10.0.0.0/8"):
        assert found == expected


@given(st.text(st.sampled_from('for=6.6.6.6;,"\\ \t[]:by=host\x00\xa0'), max_size=60))
def test_whatever_a_client_put_before_it_the_proxys_element_counts_or_none_of_the_clients(before: str) -> None:
    """A proxy that adds to the client's line: 6.6.6.6 is never the answer."""
    finder = ClientAddress(["10.0.0.0/8"], header="forwarded")

    one = finder.of(scope("10.0.0.1", f'{before}, for=198.51.100.1;host="a"', name="forwarded"))
    two = finder.of(scope("10.0.0.1", before, "for=198.51.100.1", name="forwarded"))

    assert str(one) in ("198.51.100.1", "10.0.0.1")
    assert str(two) == "198.51.100.1"


@given(st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=40))
def test_whatever_a_client_wrote_into_host_its_address_stays(host: str) -> None:
    escaped = host.replace("\\", r"\\").replace('"', r"\"")
    for line in (f'for=198.51.100.1;host="{escaped}"', f'host="{escaped}";for=198.51.100.1'):
        found = ClientAddress(["10.0.0.0/8"], header="forwarded").of(scope("10.0.0.1", line, name="forwarded"))

        assert str(found) == "198.51.100.1"


def test_the_header_that_the_proxies_do_not_write_is_the_clients() -> None:
    request = scope("10.0.0.1", "for=6.6.6.6", name="forwarded")
    request["headers"].append((b"x-forwarded-for", b"198.51.100.1"))

    assert ClientAddress(OURS).of(request) == ip_address("198.51.100.1")


@pytest.mark.parametrize("lines", [1, 100_000])
@pytest.mark.parametrize(("name", "element"), [("x-forwarded-for", "{}"), ("forwarded", "for={}")])
def test_a_header_without_end_is_walked_for_a_bounded_way(name: Any, element: str, lines: int) -> None:
    elements = [element.format(each) for each in ("6.6.6.6", *["10.0.0.2"] * 100_000, "10.0.0.3")]
    sent = elements if lines > 1 else [", ".join(elements)]

    found = ClientAddress(OURS, header=name).of(scope("10.0.0.1", *sent, name=name))

    assert found == ip_address("10.0.0.2")


@pytest.mark.parametrize(
    "line", ['"' * 100_000, "\\" * 100_000, 'a="' + "\\a" * 100_000, "a" * 100_000, " " * 100_000, ";" * 100_000]
)
def test_a_hostile_line_takes_linear_time(line: str) -> None:
    finder = ClientAddress(OURS, header="forwarded")

    began = time.process_time()
    finder.of(scope("10.0.0.1", line, name="forwarded"))

    assert time.process_time() - began < 2  # quadratic: a minute


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


def test_what_is_no_address_takes_no_memory() -> None:
    """Clients write X-Forwarded-For as long as they like, and proxies pass it on."""
    found = ClientAddress(["10.0.0.0/8"])
    tracemalloc.start()
    for number in range(300):
        forged = (b"x-forwarded-for", b"%d" % number + b"9" * 30_000)
        assert found.of({"client": ("10.0.0.1", 1), "headers": [forged]}) is not None
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert kept < 200_000
