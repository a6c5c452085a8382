"""What the page says. Every word of it can be replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from asgi_sessions._core.arguments import expect
from asgi_sessions._core.facts import Location
from asgi_sessions._core.user_agent import Device

DAY = timedelta(days=1)


def ago(time: timedelta) -> str:
    """How long ago something was, in English; activity is noted to the minute, so no seconds."""
    minutes, hours, days = int(time.total_seconds() // 60), int(time.total_seconds() // 3600), time.days
    if minutes < 2:
        return "just now"
    if hours < 1:
        return f"{minutes} minutes ago"
    if days < 1:
        return "an hour ago" if hours == 1 else f"{hours} hours ago"
    return "yesterday" if days == 1 else f"{days} days ago"


def date(moment: datetime) -> str:
    """A moment, in English, UTC."""
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def device(device: Device) -> str:
    """A device, in English."""
    browser = " ".join(filter(None, (device.browser, device.version)))
    return " on ".join(filter(None, (browser, device.system))) or "Unknown device"


def place(location: Location) -> str:
    """A place, in English."""
    return ", ".join(filter(None, (location.city, location.country))) or location.network or "unknown place"


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
    "logged_out": "Logged out",
    "revoked": "Ended from another device",
    "revoked_all": "Ended with all other sessions",
    "idle": "Ended: not used for too long",
    "absolute": "Ended: logged in for too long",
    "limit": "Ended: too many sessions",
    "replaced": "Replaced by another log-in",
    "emptied": "Ended",
    "refresh_reused": "Ended: a key of this device was used twice, it may have been stolen",
    "provider": "Ended: logged out where you sign in",
}


_DONE: Mapping[str, str] = {
    "ended": "The session was ended.",
    "ended-others": "All other sessions were ended.",
    "renamed": "The new name was saved.",
    "bad-name": "That name is too long, or holds characters that cannot be shown.",
    "gone": "There is no such session any more.",
}


@dataclass(frozen=True)
class Strings:
    """Give those that you want to say otherwise: ``Strings(lang="de", title="Ihre Geräte", …)``."""

    lang: str = "en"
    """Of the page; BCP 47."""
    dir: str = "ltr"
    title: str = "Where you are logged in"
    lead: str = (
        "These devices are logged in to your account. End any that you do not recognise, and change your password."
    )
    this_device: str = "This device"
    other_devices: str = "Other devices"
    no_others: str = "You are not logged in anywhere else."
    last_seen: str = "Last seen"
    logged_in: str = "Logged in"
    place_label: str = "Near"
    remembered: str = "stays logged in"
    bound_here: str = "bound to this device"
    """Of the session that shows the page; :attr:`bound` of all others, and in the history."""
    bound: str = "bound to its device"
    app: str = "app"
    end: str = "End this session"
    log_out: str = "Log out"
    end_others: str = "End all other sessions"
    rename: str = "Rename"
    name: str = "Name of this device"
    save: str = "Save"
    history: str = "What happened"
    no_history: str = "Nothing yet."
    kinds: Mapping[str, str] = field(default_factory=dict)
    events: Mapping[str, str] = field(default_factory=dict)
    done: Mapping[str, str] = field(default_factory=dict)
    ago: Callable[[timedelta], str] = ago
    date: Callable[[datetime], str] = date
    device: Callable[[Device], str] = device
    place: Callable[[Location], str] = place

    def __post_init__(self) -> None:
        # Those of a mapping that are not given stay English, so that a new one in a later release breaks no page.
        for name, english in (("kinds", _KINDS), ("events", _EVENTS), ("done", _DONE)):
            given = getattr(self, name)
            expect(f"Strings({name})", given, Mapping)
            object.__setattr__(self, name, {**english, **given})
