"""Devices: what is kept so that users can recognise their sessions.

Enough to recognise, nothing to exploit: the browser and its major version, the system, what kind of device it is, the network it
came from (a /24 or /48) and, with a GeoIP database, country and city. The User-Agent and the address themselves are not kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from asgi_sessions._core.address import Address, ClientAddress, Header, coarse
from asgi_sessions._core.arguments import path_in
from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.extras import needs
from asgi_sessions._core.history import FINGERPRINT_CHARS, Rules
from asgi_sessions._core.hmac import Hmac
from asgi_sessions._core.timeouts import duration
from asgi_sessions._core.token import base64url
from asgi_sessions._core.types import Scope
from asgi_sessions._core.user_agent import Device, Kind, device_of, fact, prepare
from asgi_sessions.errors import ConfigurationError

logger = logging.getLogger("asgi_sessions")

MAX_NAME: Final = 64
"""Characters of the name that a user gives a device."""


class Location(msgspec.Struct, frozen=True):
    """Where a session was begun, roughly."""

    network: str | None = None
    """The first 24 bits of an IPv4 address, 48 of IPv6: ``203.0.113.0/24``."""
    country: str | None = None
    """ISO 3166-1, two letters."""
    city: str | None = None
    """Its English name."""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.city, self.country))) or self.network or "unknown place"


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """Everything that is kept about where a session was begun. Later versions may append fields."""

    device: Device = Device()
    location: Location = Location()
    name: str = ""
    """What the user calls this device."""
    ends_at: float = 0.0
    """The absolute end of the session; so it can be told later which limit ended it. Seconds since the epoch."""
    device_bound: bool = False
    """Whether the session is bound to a device."""


class _Facts(msgspec.Struct, frozen=True, array_like=True):
    """Facts as bytes: without names, half as long."""

    browser: str | None = None
    version: str | None = None
    system: str | None = None
    kind: str = "other"
    network: str | None = None
    country: str | None = None
    city: str | None = None
    name: str = ""
    ends_at: float = 0.0
    device_bound: bool = False


_KINDS: Final = frozenset(get_args(Kind))
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Facts).decode


def pack_facts(facts: Facts) -> bytes:
    device, location = facts.device, facts.location
    return _encode(
        _Facts(
            device.browser,
            device.version,
            device.system,
            device.kind,
            location.network,
            location.country,
            location.city,
            facts.name,
            facts.ends_at,
            facts.device_bound,
        )
    )


@lru_cache(maxsize=64)  # a log-in asks twice: 1.5 µs of 40
def unpack_facts(data: bytes) -> Facts:
    """What :func:`pack_facts` was given; nothing known for anything else, since no listing shall fail over one session."""
    try:
        flat = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        return Facts()
    kind: Any = flat.kind if flat.kind in _KINDS else "other"
    return Facts(
        Device(flat.browser, flat.version, flat.system, kind),
        Location(flat.network, flat.country, flat.city),
        flat.name,
        flat.ends_at,
        flat.device_bound,
    )


def seal_facts(plain: bytes, owner: str, id: str, secrets: Secrets, namespace: str) -> bytes:
    """Packed facts for a history entry, sealed for this user and session if there are secrets."""
    if not secrets.are_given:
        return b"P" + plain
    return b"S" + secrets.seal(plain, key=f"history {owner}", associated=_associated(owner, id, namespace))


def unseal_facts(data: bytes, owner: str, id: str, secrets: Secrets, namespace: str) -> Facts | None:
    """What :func:`seal_facts` put in; ``None`` where there is nothing, or nothing that opens."""
    marker, content = data[:1], data[1:]
    if secrets.are_given:
        opened = None
        if marker == b"S":
            opened = secrets.open(content, key=f"history {owner}", associated=_associated(owner, id, namespace))
        return None if opened is None else unpack_facts(opened)
    return unpack_facts(content) if marker == b"P" else None


def _associated(owner: str, id: str, namespace: str) -> bytes:
    return "\0".join(("asgi-sessions history 1", owner, id, namespace)).encode("utf-8", "surrogatepass")


def fingerprints_of(device: Device, owner: str, secrets: Secrets) -> tuple[str, ...]:
    """Hashes of browser, system and kind of a device, without its version; one for each secret, newest first."""
    what = "\0".join((owner, device.browser or "", device.system or "", device.kind)).encode("utf-8")
    hmacs = secrets.hmacs("device fingerprint") if secrets.are_given else _WITHOUT_SECRETS
    return tuple(base64url(each.digest(what)[:8])[:FINGERPRINT_CHARS] for each in hmacs)


_WITHOUT_SECRETS: Final = (Hmac(b"asgi-sessions device fingerprint"),)


def name_of(name: object) -> str:
    """A name for a device as it may be kept: text without control characters, not too long.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(name, str):
        raise TypeError(f"a device's name is a str, not {type(name).__name__}")
    name = " ".join(name.split())
    if len(name) > MAX_NAME:
        raise ValueError(f"a device's name has at most {MAX_NAME} characters")
    if not name.isprintable():
        raise ValueError("a device's name holds a character that cannot be shown")
    return name


# ── Finding out ──


@dataclass(frozen=True)
class Devices:
    """What is kept about the sessions of users, and for how long. ``SessionMiddleware(…, devices=Devices(…))``."""

    max_sessions: int | None = 25
    """How many sessions one user may have at the same time; ``None``: any number."""
    at_limit: Literal["end_oldest", "refuse"] = "end_oldest"
    """What a log-in beyond that does: end the session that has been idle for longest, or fail with SessionLimitReached."""
    history: timedelta | None = timedelta(days=90)
    """For how long is kept what happened to a user's sessions; ``None``: not at all."""
    history_entries: int = 200
    """How many such events are kept of one user at most."""
    live: bool = True
    """Close WebSockets and streams when their session ends."""
    facts: bool = True
    """Keep device and location; ``False``: neither."""
    trusted_proxies: Sequence[str] = ()
    """Networks of your proxies; only what they say counts as a forwarded address. See :class:`ClientAddress`."""
    forwarded_header: Header = "x-forwarded-for"
    """The header that your proxies write."""
    geoip: str | PathLike[str] | None = None
    """A GeoIP2 or GeoLite2 City (or Country) database file; needs the extra ``[devices]``."""

    rules: Rules = field(init=False, repr=False, compare=False)
    _address: ClientAddress = field(init=False, repr=False, compare=False)
    _reader: Any = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.max_sessions is not None and not (_is_int(self.max_sessions) and self.max_sessions >= 1):
            raise ConfigurationError(f"Devices(max_sessions={self.max_sessions!r}): give a whole number, or None")
        if self.at_limit not in ("end_oldest", "refuse"):
            raise ConfigurationError(f"Devices(at_limit={self.at_limit!r}): use 'end_oldest' or 'refuse'")
        if not (_is_int(self.history_entries) and 1 <= self.history_entries <= 10_000):
            raise ConfigurationError(
                f"Devices(history_entries={self.history_entries!r}): give a whole number from 1 to 10000"
            )
        keep = 0.0
        if self.history is not None:
            keep = duration("Devices(history)", self.history).total_seconds()
            if not 3600 <= keep <= 3660 * 86400:
                raise ConfigurationError(
                    f"Devices(history={self.history!r}): must lie between an hour and ten years; None turns it off"
                )
        rules = Rules(
            self.history_entries if self.history is not None else 0,
            keep,
            self.max_sessions or 0,
            self.at_limit == "refuse",
        )
        put = object.__setattr__  # the way a frozen dataclass fills what it derives
        put(self, "rules", rules)
        put(self, "_address", ClientAddress(self.trusted_proxies, header=self.forwarded_header))
        if self.geoip is not None:
            put(self, "_reader", _open_geoip(path_in("Devices(geoip)", self.geoip)))

    def prepare(self) -> None:
        """Load what it takes to recognise devices, once per process: a tenth of a second, and not of somebody's log-in."""
        if self.facts:
            prepare()

    def describe(self, scope: Scope | None) -> Facts:
        """What is to be kept of where a request came from. Never raises, whatever was sent."""
        if not self.facts or scope is None:
            return Facts()
        agents = [value for name, value in scope.get("headers", ()) if name == b"user-agent"]
        device = device_of(agents[0]) if agents else Device()
        address = self._address.of(scope)
        return Facts(device, Location() if address is None else self._locate(address))

    def _locate(self, address: Address) -> Location:
        country = city = None
        if self._reader is not None:
            try:
                found = self._reader.get(str(address))
            except Exception:  # a database without IPv6, or a damaged one: a log-in must not fail over it
                found = None
            if isinstance(found, Mapping):
                country = fact(_at(found, "country", "iso_code"))
                city = fact(_at(found, "city", "names", "en"))
        return Location(coarse(address), country, city)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _at(found: Any, *path: str) -> Any:
    for step in path:
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _open_geoip(path: Path) -> Any:
    with needs("devices", "Devices(geoip=…)"):
        import maxminddb
    try:
        return maxminddb.open_database(path)
    except Exception as error:
        raise ConfigurationError(
            f"Devices(geoip={str(path)!r}): cannot be read as a GeoIP2 database ({type(error).__name__})"
        ) from error
