"""The texts of the page. Each of them can be replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_network

from asgi_sessions._core.arguments import expect
from asgi_sessions._core.facts import Location
from asgi_sessions._core.user_agent import Device

DAY = timedelta(days=1)


def ago(time: timedelta) -> str:
    """An age in English. Activity is recorded to the minute, so there are no seconds."""
    minutes, hours, days = int(time.total_seconds() // 60), int(time.total_seconds() // 3600), time.days
    if minutes < 2:
        return "just now"
    if hours < 1:
        return f"{minutes} minutes ago"
    if days < 1:
        return "an hour ago" if hours == 1 else f"{hours} hours ago"
    return "yesterday" if days == 1 else f"{days} days ago"


def date(moment: datetime) -> str:
    """A date and time in English, in UTC."""
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def count(sessions: int) -> str:
    """The number of sessions of a device, in English."""
    return f"{sessions} sessions"


_SYSTEMS: Mapping[str, str] = {"Mac OS X": "macOS", "Chrome OS": "ChromeOS"}

# Networks without a place (RFC 1918, RFC 4193, RFC 6890), as coarse as the records hold them.
_LOCAL = tuple(
    map(
        ip_network,
        (
            "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
            "::/48", "fc00::/7", "fe80::/10",
        ),
    )
)  # fmt: skip


def device(device: Device) -> str:
    """The common name of a device in English: ``Safari on iPhone``. The details show versions."""
    # ua-parser's names have editions: "Mobile Safari", "Chrome Mobile iOS", "Firefox Mobile".
    browser = " ".join(word for word in (device.browser or "").split() if word not in ("Mobile", "iOS"))
    system = _SYSTEMS.get(device.system or "", device.system or "")
    if system == "iOS" and device.kind in ("phone", "tablet"):
        system = "iPhone" if device.kind == "phone" else "iPad"
    return " on ".join(filter(None, (browser, system))) or "Unknown device"


def network(network: str) -> str:
    """The name of a network in English, without CIDR notation."""
    try:
        found = ip_network(str(network))
    except ValueError:
        return network
    if any(found.version == local.version and found.subnet_of(local) for local in _LOCAL):  # type: ignore[arg-type]  # same version
        return "Local network"
    address = f"{found.network_address}"
    beginning = address.rpartition(".")[0] + "." if found.version == 4 else address.removesuffix(":")
    return f"IP address {beginning}*"


def place(location: Location) -> str:
    """A place in English, or an empty text if it is unknown. Then the page shows the network."""
    return ", ".join(filter(None, (location.city, location.country)))


_KINDS: Mapping[str, str] = {
    "computer": "Computer",
    "phone": "Phone",
    "tablet": "Tablet",
    "bot": "Program",
    "other": "Device",
}


_EVENTS: Mapping[str, str] = {
    "logged_in": "Logged in",
    "new_device": "Logged in on a new device",
    "stepped_up": "Confirmed who you are",
    "regenerated": "Session renewed",
    "impersonated": "Support staff began to act as you",
    "impersonation_ended": "Support staff stopped acting as you",
    "logged_out": "Logged out",
    "revoked": "Logged out from another device",
    "revoked_all": "Logged out with all other devices",
    "idle": "Logged out: not used for too long",
    "absolute": "Logged out: time for a new log-in",
    "limit": "Logged out: too many devices",
    "replaced": "Replaced by a new log-in",
    "emptied": "Logged out",
    "refresh_reused": "Logged out: a key of this device was used twice. It may have been stolen.",
    "provider": "Logged out by the service that you sign in with",
}


_DONE: Mapping[str, str] = {
    "ended": "The device was logged out.",
    "ended-others": "All other devices were logged out.",
    "renamed": "The new name was saved.",
    "bad-name": "That name is too long, or has characters that cannot be shown.",
    "gone": "That device is no longer logged in.",
}


@dataclass(frozen=True)
class Strings:
    """The texts of the page. Give only the texts to replace: ``Strings(lang="de", title="Ihre Geräte", …)``."""

    lang: str = "en"
    """The language of the page (BCP 47). The script of the page writes times in this language."""
    dir: str = "ltr"
    title: str = "Where you are logged in"
    lead: str = (
        "These devices are logged in to your account. If you do not recognise one, log it out and change your password."
    )
    back: str = "Back"
    change_password: str = "Change your password"  # noqa: S105 - a label
    this_device: str = "This device"
    other_devices: str = "Other devices"
    no_others: str = "You are not logged in anywhere else."
    last_seen: str = "Active"
    logged_in: str = "Logged in"
    browser: str = "Browser"
    place_label: str = "Place"
    network_label: str = "Network"
    remembered: str = "stays logged in"
    bound_here: str = "bound to this device"
    """For the session of this request. :attr:`bound` is for all others and for the history."""
    bound: str = "bound to its device"
    impersonated: str = "Support staff acts as you"
    """The text in place of the device for a session from :meth:`Session.impersonate`."""
    app: str = "app"
    end: str = "Log out"
    log_out: str = "Log out"
    end_others: str = "Log out all other devices"
    sure: str = "All other devices are logged out at once. They need a new log-in."
    end_others_now: str = "Yes, log them out"
    name: str = "Name of this device"
    save: str = "Save"
    history: str = "What happened"
    no_history: str = "Nothing yet."
    more: str = "Show older entries"
    kinds: Mapping[str, str] = field(default_factory=dict)
    events: Mapping[str, str] = field(default_factory=dict)
    done: Mapping[str, str] = field(default_factory=dict)
    ago: Callable[[timedelta], str] = ago
    date: Callable[[datetime], str] = date
    device: Callable[[Device], str] = device
    place: Callable[[Location], str] = place
    network: Callable[[str], str] = network
    count: Callable[[int], str] = count

    def __post_init__(self) -> None:
        # Missing entries of a mapping stay English, so that a new entry in a later release breaks no page.
        for name, english in (("kinds", _KINDS), ("events", _EVENTS), ("done", _DONE)):
            given = getattr(self, name)
            expect(f"Strings({name})", given, Mapping)
            object.__setattr__(self, name, {**english, **given})
