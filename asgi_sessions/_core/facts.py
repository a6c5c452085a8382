"""Devices: stores facts about log-ins, so that users can recognise their sessions.

These are the browser and its major version, the system, the kind of device, the network (a /24 or /48) and, with a GeoIP
database, country and city. The User-Agent and the full address are not stored, since an attacker could use them.
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
"""The most characters of a user's name for a device."""


class Location(msgspec.Struct, frozen=True):
    """The approximate location of a log-in."""

    network: str | None = None
    """The first 24 bits of an IPv4 address, or 48 of IPv6: ``203.0.113.0/24``."""
    country: str | None = None
    """The country code of ISO 3166-1, two letters."""
    city: str | None = None
    """The English name of the city."""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.city, self.country))) or self.network or "unknown place"


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """The stored facts about a log-in. Later versions may append fields."""

    device: Device = Device()
    location: Location = Location()
    name: str = ""
    """The user's name for this device."""
    ends_at: float = 0.0
    """The absolute end of the session, in seconds since the epoch. With it, the history can name the timeout of an expiry."""
    device_bound: bool = False
    """Whether the session is bound to a device."""


class _Facts(msgspec.Struct, frozen=True, array_like=True):
    """The encoding of facts: without field names, half as long."""

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
    by, at, own = facts.device, facts.location, (facts.name, facts.ends_at, facts.device_bound)
    return _encode((by.browser, by.version, by.system, by.kind, at.network, at.country, at.city, *own))


@lru_cache(maxsize=64)  # a log-in calls it twice: 1.5 µs of 40
def unpack_facts(data: bytes) -> Facts:
    """Decode the bytes of :func:`pack_facts`. Invalid bytes give empty facts, so that one session cannot break a listing."""
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
    """Prepare packed facts for a history entry. With secrets, seal them for this user and session."""
    if not secrets.are_given:
        return b"P" + plain
    return b"S" + secrets.seal(plain, key=f"history {owner}", associated=_associated(owner, id, namespace))


def unseal_facts(data: bytes, owner: str, id: str, secrets: Secrets, namespace: str) -> Facts | None:
    """Return the facts of :func:`seal_facts`, or ``None`` if there are none or they cannot be decrypted."""
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
    """Hash browser, system and kind of a device, without its version. One hash for each secret, newest first."""
    what = "\0".join((owner, device.browser or "", device.system or "", device.kind)).encode("utf-8")
    hmacs = secrets.hmacs("device fingerprint") if secrets.are_given else _WITHOUT_SECRETS
    return tuple(base64url(each.digest(what)[:8])[:FINGERPRINT_CHARS] for each in hmacs)


_WITHOUT_SECRETS: Final = (Hmac(b"asgi-sessions device fingerprint"),)


def name_of(name: object) -> str:
    """Check the name of a device and return it with single spaces.

    Raises:
        ValueError: the name is too long or has unprintable characters. TypeError: it is not text.
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
    """Limits, history and stored facts of the sessions of users: ``Sessions(…, devices=Devices(…))``."""

    max_sessions: int | None = 25
    """How many sessions one user may have at the same time. ``None``: any number."""
    at_limit: Literal["end_oldest", "refuse"] = "end_oldest"
    """The effect of a log-in beyond this limit: end the session idle for longest, or fail with SessionLimitReached."""
    history: timedelta | None = timedelta(days=90)
    """How long the history of a user's sessions is kept. ``None``: no history."""
    history_entries: int = 200
    """How many history entries are kept for one user at most."""
    live: bool = True
    """Close WebSockets and streams when their session ends."""
    facts: bool = True
    """Store device and location. ``False``: neither."""
    trusted_proxies: Sequence[str] = ()
    """Networks of your proxies. Forwarded addresses from other hosts are ignored. See :class:`ClientAddress`."""
    forwarded_header: Header = "x-forwarded-for"
    """The header in which your proxies forward the address."""
    geoip: str | PathLike[str] | None = None
    """A GeoIP2 or GeoLite2 City (or Country) database file. Needs the extra ``[devices]``."""

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
        """Load the parser of User-Agents, once per process. It takes a tenth of a second, which would delay the first log-in."""
        if self.facts:
            prepare()

    def describe(self, scope: Scope | None) -> Facts:
        """Return the facts to store about the origin of a request. Never raises, even for invalid headers."""
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
            except Exception:  # a database without IPv6, or a damaged one, must not fail a log-in
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
