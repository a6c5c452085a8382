"""User-Agent: what a browser says of itself, and as much of it as is kept."""

from __future__ import annotations

import functools
import logging
from typing import Any, Final, Literal

import msgspec

from asgi_sessions._core.extras import needs
from asgi_sessions.errors import MissingExtra

logger = logging.getLogger("asgi_sessions")

MAX_USER_AGENT: Final = 512
"""Bytes of a User-Agent that are looked at. Browsers send 80 to 250; patterns over 64 kB of somebody's making take seconds."""

MAX_FACT: Final = 64
"""Characters of any one fact."""

Kind = Literal["computer", "phone", "tablet", "bot", "other"]


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


def fact(value: object) -> str | None:
    """Text as it may be kept: bounded, and printable, for it will be shown."""
    if not isinstance(value, str):
        return None
    text = "".join(c if c.isprintable() else " " for c in value[:MAX_FACT]).strip()
    return text or None


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
    family = fact(browser.family) if browser is not None else None
    name = fact(system.family) if system is not None else None
    return Device(
        family,
        fact(browser.major) if browser is not None else None,
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


def prepare() -> None:
    """Load the patterns, once per process: a tenth of a second, and not of somebody's log-in."""
    _parser()
