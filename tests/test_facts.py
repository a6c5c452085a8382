"""What is kept of a log-in: enough to recognise it, nothing to exploit, and no error whatever is sent."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import msgspec
import netaddr  # type: ignore[import-untyped]  # has no stubs; it is what mmdb_writer takes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter

from asgi_sessions import ConfigurationError, Devices, MemoryStore, Sessions
from asgi_sessions._core import user_agent as _devices
from asgi_sessions._core.facts import Facts, Location, pack_facts, unpack_facts
from asgi_sessions._core.history import unpack_entry
from asgi_sessions._core.user_agent import MAX_FACT, Device, device_of
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with, log_in
from tests.test_devices import LAPTOP, PHONE, logged_in

SAFARI = "AppleWebKit/537.36 (KHTML, like Gecko)"
AGENTS = {
    "Firefox on Linux": (LAPTOP, "Firefox 133 on Linux", "computer"),
    "Safari on an iPhone": (PHONE, "Mobile Safari 18 on iOS", "phone"),
    "Safari on an iPad": (PHONE.replace("iPhone; CPU iPhone", "iPad; CPU"), "Mobile Safari 18 on iOS", "tablet"),
    "Chrome on Windows": (
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {SAFARI} Chrome/131.0.0.0 Safari/537.36",
        "Chrome 131 on Windows",
        "computer",
    ),
    "Chrome on an Android phone": (
        f"Mozilla/5.0 (Linux; Android 10; K) {SAFARI} Chrome/131.0.0.0 Mobile Safari/537.36",
        "Chrome Mobile 131 on Android",
        "phone",
    ),
    "Chrome on an Android tablet": (
        f"Mozilla/5.0 (Linux; Android 10; K) {SAFARI} Chrome/131.0.0.0 Safari/537.36",
        "Chrome 131 on Android",
        "tablet",
    ),
    "Edge on a Mac": (
        f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {SAFARI} Chrome/131.0.0.0 Safari/537.36 Edg/131.0.0.0",
        "Edge 131 on Mac OS X",
        "computer",
    ),
    "a crawler": ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Googlebot 2", "bot"),
    "a command line": ("curl/8.5.0", "curl 8", "other"),
    "nothing": ("", "unknown device", "other"),
    "nonsense": ("x", "unknown device", "other"),
}


@pytest.mark.parametrize(("agent", "shown", "kind"), AGENTS.values(), ids=AGENTS.keys())
def test_devices_are_recognised(agent: str, shown: str, kind: str) -> None:
    device = device_of(agent.encode())

    assert (str(device), device.kind) == (shown, kind)


HOSTILE = {
    "64 kB": b"Mozilla/5.0 " + b"A" * 65536,
    "64 kB of parentheses": b"(" * 65536,
    "64 kB of a version": b"Firefox/" + b"1" * 65536,
    "64 kB of what a pattern backs out of": b"Mozilla/5.0 (" + b"Linux; " * 9000,
    "NUL": b"\x00" * 100,
    "surrogates": "Firefox/\ud800".encode("utf-8", "surrogatepass"),
    "every byte": bytes(range(256)),
    "HTML": b"<script>alert(1)</script>/1.0",
    "a terminal's escapes": b"\x1b[31mFirefox/1",
    "text that runs backwards": "Firefox/1 \u202e".encode(),
}


@pytest.mark.parametrize("agent", HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_user_agents_are_no_error_and_stay_small(
    agent: bytes, memory: MemoryStore, clock: FakeClock
) -> None:
    browser = Browser(app_with(memory, clock=clock))

    response = await browser.raw([], log_in("alice"), request_headers=[(b"user-agent", agent), (b"user-agent", b"x")])

    (found,) = await Sessions(memory, clock=clock).list("alice")
    assert response.status == 200
    assert len(pack_facts(Facts(found.device, found.location))) < 6 * MAX_FACT
    assert str(found.device).isprintable()


def test_of_a_long_user_agent_the_beginning_counts() -> None:
    assert str(device_of(LAPTOP.encode() + b" " * 60_000)) == "Firefox 133 on Linux"
    assert device_of(b" " * 600 + LAPTOP.encode()) == Device()


@given(st.binary(max_size=2000))
def test_no_user_agent_raises(agent: bytes) -> None:
    device = device_of(agent)

    assert all(value is None or 0 < len(value) <= MAX_FACT for value in (device.browser, device.version, device.system))


def test_without_ua_parser_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_devices, "_parser", lambda: None)
    _devices._device_of.cache_clear()

    assert device_of(LAPTOP.encode()) == Device()

    _devices._device_of.cache_clear()


@given(st.binary(max_size=300))
def test_facts_that_are_none_are_nothing(data: bytes) -> None:
    facts = unpack_facts(data)

    assert isinstance(facts, Facts)
    assert unpack_entry(data) is None or data[:13].isdigit()


_TEXT = st.none() | st.text(min_size=1, max_size=MAX_FACT)


@given(
    st.builds(Device, _TEXT, _TEXT, _TEXT, st.sampled_from(["computer", "phone", "tablet", "bot", "other"])),
    st.builds(Location, _TEXT, _TEXT, _TEXT),
    st.text(max_size=64),
    st.floats(0, 4e9),
    st.booleans(),
)
def test_facts_come_back_as_they_were(
    device: Device, location: Location, name: str, ends_at: float, bound: bool
) -> None:
    facts = Facts(device, location, name, ends_at, bound)

    assert unpack_facts(pack_facts(facts)) == facts


def test_facts_of_a_later_version_are_read() -> None:
    longer = msgspec.msgpack.encode(
        ["Firefox", "133", "Linux", "computer", None, None, None, "", 0.0, False, "of a later version"]
    )

    assert str(unpack_facts(longer).device) == "Firefox 133 on Linux"


# ── Addresses ──

ADDRESSES = {
    "203.0.113.77": "203.0.113.0/24",
    "::ffff:203.0.113.77": "203.0.113.0/24",
    "2001:db8:1:2:3:4:5:6": "2001:db8:1::/48",
    "fe80::1%eth0": "fe80::/48",
    "fe80::1%\x00<script>": "fe80::/48",
    "testclient": None,
    "": None,
    "\ud800": None,
    "1" * 65536: None,
}


@pytest.mark.parametrize(("address", "kept"), ADDRESSES.items(), ids=lambda value: repr(value)[:30])
def test_addresses_are_cut(address: str, kept: str | None) -> None:
    assert Devices().describe({"client": (address, 1), "headers": []}).location.network == kept


@given(st.ip_addresses())
def test_what_is_kept_of_an_address_is_shared_by_many(address: Any) -> None:
    network = Devices().describe({"client": (str(address), 1), "headers": []}).location.network
    assert network is not None

    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped if mapped is not None else address
    kept = ipaddress.ip_network(network)
    assert address in kept
    assert kept.num_addresses >= (2**8 if address.version == 4 else 2**80)


@pytest.mark.parametrize("scope", [{}, {"client": None}, {"client": ["10.0.0.1", 1], "headers": ()}], ids=repr)
def test_a_scope_without_a_client_is_no_error(scope: Any) -> None:
    assert isinstance(Devices().describe(scope), Facts)


def test_forwarded_addresses_count_from_trusted_proxies_only() -> None:
    scope = {"client": ("10.0.0.1", 1), "headers": [(b"x-forwarded-for", b"198.51.100.1, 203.0.113.9")]}

    assert Devices().describe(scope).location.network == "10.0.0.0/24"
    assert Devices(trusted_proxies=["10.0.0.0/8"]).describe(scope).location.network == "203.0.113.0/24"


# ── GeoIP ──


@pytest.fixture(scope="session")
def geoip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small database of our own, in MaxMind's format."""
    path = tmp_path_factory.mktemp("geoip") / "city.mmdb"
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="GeoLite2-City", languages=["en"])
    writer.insert_network(
        netaddr.IPSet(["203.0.113.0/24"]), {"country": {"iso_code": "IS"}, "city": {"names": {"en": "Akureyri"}}}
    )
    writer.insert_network(netaddr.IPSet(["2001:db8::/32"]), {"country": {"iso_code": "NZ"}})
    writer.insert_network(netaddr.IPSet(["198.51.100.0/24"]), {"country": "damaged", "city": {"names": ["x"]}})
    writer.insert_network(netaddr.IPSet(["192.0.2.0/24"]), {"city": {"names": {"en": "A\u202e" + "x" * 500}}})
    writer.to_db_file(str(path))
    return path


PLACES = {
    "203.0.113.77": "Akureyri, IS",
    "::ffff:203.0.113.77": "Akureyri, IS",
    "2001:db8::1": "NZ",
    "198.51.100.1": "198.51.100.0/24",
    "10.0.0.1": "10.0.0.0/24",
}


@pytest.mark.parametrize(("address", "shown"), PLACES.items(), ids=PLACES.keys())
def test_places_come_from_a_geoip_database(geoip: Path, address: str, shown: str) -> None:
    location = Devices(geoip=geoip).describe({"client": (address, 1), "headers": []}).location

    assert str(location) == shown


def test_names_of_places_are_bounded_and_printable(geoip: Path) -> None:
    city = Devices(geoip=str(geoip)).describe({"client": ("192.0.2.1", 1), "headers": []}).location.city

    assert city is not None
    assert len(city) <= MAX_FACT
    assert city.isprintable()


def test_what_is_no_database_is_refused_when_the_app_is_built(tmp_path: Path) -> None:
    (tmp_path / "x.mmdb").write_bytes(b"nothing of the kind")

    with pytest.raises(ConfigurationError, match="cannot be read as a GeoIP2 database"):
        Devices(geoip=tmp_path / "x.mmdb")


async def test_the_place_is_listed(geoip: Path, memory: MemoryStore, clock: FakeClock) -> None:
    app = app_with(memory, clock=clock, devices=Devices(geoip=geoip))
    await logged_in(app)

    (found,) = await app.sessions.list("alice")

    assert str(found.location) == "Akureyri, IS"
    assert found.location.network == "203.0.113.0/24"
