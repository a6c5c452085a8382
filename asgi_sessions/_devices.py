"""Devices: what is kept so that users can recognise their sessions, and the lines of their history. Layer 1.

Enough to recognise, nothing to exploit: the browser and its major version, the system, what kind of device it is, the network it
came from (a /24 or /48) and, with a GeoIP database, country and city. The User-Agent and the address themselves are not kept.
"""

from __future__ import annotations

import functools
import hmac
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from asgi_sessions._address import Address, ClientAddress, Header, coarse
from asgi_sessions._arguments import path_in
from asgi_sessions._cipher import Secrets
from asgi_sessions._errors import ConfigurationError, MissingExtra
from asgi_sessions._extras import needs
from asgi_sessions._timeouts import duration
from asgi_sessions._token import ID_CHARS, base64url
from asgi_sessions._types import Scope

logger = logging.getLogger("asgi_sessions")

MAX_USER_AGENT: Final = 512
"""Bytes of a User-Agent that are looked at. Browsers send 80 to 250; patterns over 64 kB of somebody's making take seconds."""

MAX_FACT: Final = 64
"""Characters of any one fact."""

MAX_NAME: Final = 64
"""Characters of the name that a user gives a device."""

Kind = Literal["computer", "phone", "tablet", "bot", "other"]

Reason = Literal[
    "logged_out", "revoked", "revoked_all", "idle", "absolute", "limit", "replaced", "emptied", "refresh_reused"
]


class Device(msgspec.Struct, frozen=True):
    """What a session was begun with, as far as its User-Agent told; ``None``: it did not."""

    browser: str | None = None
    """Its family: ``Firefox``, ``Mobile Safari``, ``Chrome`` …"""
    version: str | None = None
    """The major version of the browser."""
    system: str | None = None
    """``Windows``, ``Mac OS X``, ``Android``, ``iOS`` …"""
    kind: Kind = "other"

    def __str__(self) -> str:
        browser = " ".join(filter(None, (self.browser, self.version)))
        return " on ".join(filter(None, (browser, self.system))) or "unknown device"


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
        )
    )


def unpack_facts(data: bytes) -> Facts:
    """What :func:`pack_facts` was given; nothing known for anything else, since no listing shall fail over one session."""
    try:
        flat = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        return Facts()
    kind: Any = flat.kind if flat.kind in get_args(Kind) else "other"
    return Facts(
        Device(flat.browser, flat.version, flat.system, kind),
        Location(flat.network, flat.country, flat.city),
        flat.name,
        flat.ends_at,
    )


# ── The history: one line per event, in a capped list per user ──


@dataclass(frozen=True, slots=True)
class Rules:
    """What a store must know to keep the sessions of a user within bounds."""

    entries: int = 200
    """How many lines of history a user has at most; 0: none is written."""
    keep: float = 90 * 86400.0
    """Seconds for which a line is kept."""
    limit: int = 0
    """How many sessions a user may have; 0: any number."""
    refuses: bool = False
    """Whether a log-in beyond the limit is refused, instead of ending the session idle for longest."""


LOGGED_IN = "i"
NEW_DEVICE = "n"
"""Logged in, with a device of which the history knows no other log-in. A store makes it out of LOGGED_IN."""
STEPPED_UP = "s"
REGENERATED = "g"
EXPIRED = "t"
"""Ended by a limit of time, noticed by a store, which cannot tell which: idle or absolute."""
_ENDED: Final[Mapping[Reason, str]] = {
    "logged_out": "o",
    "revoked": "r",
    "revoked_all": "a",
    "idle": "d",
    "absolute": "x",
    "limit": "l",
    "replaced": "p",
    "emptied": "e",
    "refresh_reused": "u",
}
_REASONS: Final[Mapping[str, Reason]] = {letter: reason for reason, letter in _ENDED.items()}

LIMIT_LETTER: Final = _ENDED["limit"]
ENDED_BY_CLOCK: Final = (EXPIRED, _ENDED["idle"], _ENDED["absolute"])

MINUTE = 60.0
"""Seconds. The history says when something happened to the minute; no more is needed to recognise it."""

MARK_CHARS = 11
NO_MARK = "." * MARK_CHARS
ENTRY_HEADER = 13 + 1 + ID_CHARS + MARK_CHARS


class Note(msgspec.Struct, frozen=True):
    """A line to be written into the history of a user, in the same step as what it tells of."""

    what: str
    """One letter."""
    now: float
    """By the app's clock."""
    id: str
    """Of the session."""
    rules: Rules
    marks: tuple[str, ...] = ()
    """By which another log-in of the same device is recognised; the first one is written."""
    facts: bytes = b""
    """Opaque: sealed if there are secrets."""
    at: float | None = None
    """When it happened, if that was not now."""


class Admission(msgspec.Struct, frozen=True):
    """What a store says when it has kept the session of a log-in."""

    new_device: bool = False
    first: bool = False
    """The history knows of no log-in at all."""
    ended: tuple[str, ...] = ()
    """The ids of the sessions that had to make room."""


def line(what: str, at: float, id: str, mark: str = NO_MARK, facts: bytes = b"") -> bytes:
    """A line of the history as bytes: milliseconds (13 digits, to the minute), one letter, id, mark, facts."""
    time = min(max(int(at // MINUTE) * 60_000, 0), 10**13 - 1)
    return f"{time:013d}{what}{id}{mark}".encode("ascii") + facts


def line_of(note: Note) -> bytes:
    at = note.now if note.at is None else note.at
    return line(note.what, at, note.id, note.marks[0] if note.marks else NO_MARK, note.facts)


class Entry(msgspec.Struct, frozen=True):
    """A line of the history, taken apart."""

    at: float
    event: Literal["logged_in", "stepped_up", "regenerated", "ended"]
    reason: Reason | Literal["expired"] | None
    session_id: str
    new_device: bool
    facts: bytes


def entry_of(data: bytes) -> Entry | None:
    """What :func:`line` wrote; ``None`` for anything else."""
    try:
        header = data[:ENTRY_HEADER].decode("ascii")
        at = int(header[:13]) / 1000
    except (UnicodeDecodeError, ValueError):
        return None
    what, id = header[13:14], header[14 : 14 + ID_CHARS]
    event: Literal["logged_in", "stepped_up", "regenerated", "ended"]
    reason: Reason | Literal["expired"] | None = None
    if what in (LOGGED_IN, NEW_DEVICE):
        event = "logged_in"
    elif what == STEPPED_UP:
        event = "stepped_up"
    elif what == REGENERATED:
        event = "regenerated"
    elif what == EXPIRED or what in _REASONS:
        event, reason = "ended", _REASONS.get(what, "expired")
    else:
        return None
    return Entry(at, event, reason, id, what == NEW_DEVICE, data[ENTRY_HEADER:])


def ended(reason: Reason) -> str:
    """The letter for the end of a session."""
    return _ENDED[reason]


def seal_facts(facts: Facts, owner: str, id: str, secrets: Secrets, namespace: str) -> bytes:
    """Facts for a line of the history, sealed for this user and session if there are secrets."""
    plain = pack_facts(facts)
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


def marks_of(device: Device, owner: str, secrets: Secrets) -> tuple[str, ...]:
    """By what a device is recognised: browser, system and kind, but no version; hashed, one for each secret, newest first."""
    what = "\0".join((owner, device.browser or "", device.system or "", device.kind)).encode("utf-8")
    keys = secrets.subkeys("device mark") if secrets.are_given else (b"asgi-sessions device mark",)
    return tuple(base64url(hmac.digest(key, what, "sha256")[:8])[:MARK_CHARS] for key in keys)


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
            _parser()

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
                country = _fact(_at(found, "country", "iso_code"))
                city = _fact(_at(found, "city", "names", "en"))
        return Location(coarse(address), country, city)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _at(found: Any, *path: str) -> Any:
    for step in path:
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _fact(value: object) -> str | None:
    """Text as it may be kept: bounded, and printable, for it will be shown."""
    if not isinstance(value, str):
        return None
    text = "".join(c if c.isprintable() else " " for c in value[:MAX_FACT]).strip()
    return text or None


def _open_geoip(path: Path) -> Any:
    with needs("devices", "Devices(geoip=…)"):
        import maxminddb
    try:
        return maxminddb.open_database(path)
    except Exception as error:
        raise ConfigurationError(
            f"Devices(geoip={str(path)!r}): cannot be read as a GeoIP2 database ({type(error).__name__})"
        ) from error


def device_of(user_agent: bytes) -> Device:
    """What a User-Agent says of a device. Never raises; nothing is known without the extra ``[devices]``."""
    return _device_of(user_agent[:MAX_USER_AGENT].decode("latin-1"))


@functools.lru_cache(maxsize=1024)
def _device_of(text: str) -> Device:
    parser = _parser()
    if parser is None or not text:
        return Device()
    try:
        found = parser.parse(text)
        browser, system, device = found.user_agent, found.os, found.device
    except Exception:  # somebody else's patterns on somebody else's text; a log-in must not fail over it
        return Device()
    family = _fact(browser.family) if browser is not None else None
    name = _fact(system.family) if system is not None else None
    return Device(
        family,
        _fact(browser.major) if browser is not None else None,
        name,
        _kind(text, family, name, device.family if device is not None else ""),
    )


_COMPUTERS = frozenset(
    {"Windows", "Mac OS X", "Linux", "Ubuntu", "Fedora", "Debian", "Chrome OS", "FreeBSD", "OpenBSD"}
)


def _kind(text: str, browser: str | None, system: str | None, device: str) -> Kind:
    """Phone, tablet or computer: ua-parser does not say, so by what it does say and by the conventions of User-Agents."""
    if device == "Spider":
        return "bot"
    if device == "iPad" or "Tablet" in text:
        return "tablet"
    if device in ("iPhone", "iPod") or system in ("iOS", "Windows Phone", "KaiOS"):
        return "phone"
    if system == "Android":
        # "Mobile" is what sets a phone apart from a tablet in the User-Agents of Chrome and Firefox for Android.
        return "phone" if "Mobile" in text else "tablet"
    return "computer" if system in _COMPUTERS else "other"


@functools.cache
def _parser() -> Any:
    """ua-parser, where it is installed; without its cache, since ours holds what we made of it."""
    try:
        with needs("devices", "Devices(facts=True)"):
            from ua_parser import BasicResolver, Parser, load_builtins
    except MissingExtra as missing:
        if not isinstance(missing.__cause__, ModuleNotFoundError):  # it is there, and is too old
            logger.warning("devices are not recognised: %s", missing)
        return None
    return Parser(BasicResolver(load_builtins()))
