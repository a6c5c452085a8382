"""User-Agent: recognises the browser, the system and the kind of device."""

from __future__ import annotations

import functools
import logging
from typing import Any, Final, Literal

import msgspec

from asgi_sessions._core.extras import needs
from asgi_sessions.errors import MissingExtra

logger = logging.getLogger("asgi_sessions")

MAX_USER_AGENT: Final = 512
"""Bytes of a User-Agent that are read. Browsers send 80 to 250. The patterns take seconds on a crafted one of 64 kB."""

MAX_FACT: Final = 64
"""Characters of one fact."""

Kind = Literal["computer", "phone", "tablet", "bot", "other"]


class Device(msgspec.Struct, frozen=True):
    """The device that began a session, by its User-Agent. ``None`` means unknown."""

    browser: str | None = None
    """The family of the browser: ``Firefox``, ``Mobile Safari``, ``Chrome`` …"""
    version: str | None = None
    """The major version of the browser."""
    system: str | None = None
    """``Windows``, ``Mac OS X``, ``Android``, ``iOS`` …"""
    kind: Kind = "other"

    def __str__(self) -> str:
        browser = " ".join(filter(None, (self.browser, self.version)))
        return " on ".join(filter(None, (browser, self.system))) or "unknown device"


def fact(value: object) -> str | None:
    """Text for storage and display: printable and at most :data:`MAX_FACT` characters. ``None`` for other values."""
    if not isinstance(value, str):
        return None
    text = "".join(c if c.isprintable() else " " for c in value[:MAX_FACT]).strip()
    return text or None


def device_of(user_agent: bytes) -> Device:
    """The device of a User-Agent. Never raises. Without the extra ``[devices]`` the device is unknown."""
    return _device_of(user_agent[:MAX_USER_AGENT].decode("latin-1"))


@functools.lru_cache(maxsize=1024)
def _device_of(text: str) -> Device:
    parser = _parser()
    if parser is None or not text:
        return Device()
    try:
        found = parser.parse(text)
        browser, system, device = found.user_agent, found.os, found.device
    except Exception:  # third-party patterns on text from outside must not fail a log-in
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
    """Phone, tablet or computer. ua-parser has no such field, so this uses its others and conventions of User-Agents."""
    if device == "Spider":
        return "bot"
    if device == "iPad" or "Tablet" in text:
        return "tablet"
    if device in ("iPhone", "iPod") or system in ("iOS", "Windows Phone", "KaiOS"):
        return "phone"
    if system == "Android":
        # In User-Agents of Chrome and Firefox for Android, only phones have "Mobile".
        return "phone" if "Mobile" in text else "tablet"
    return "computer" if system in _COMPUTERS else "other"


@functools.cache
def _parser() -> Any:
    """ua-parser, or None if it is not installed. Without its cache, since we cache the result."""
    try:
        with needs("devices", "Devices(facts=True)"):
            from ua_parser import BasicResolver, Parser, load_builtins
    except MissingExtra as missing:
        if not isinstance(missing.__cause__, ModuleNotFoundError):  # installed, but too old
            logger.warning("devices are not recognised: %s", missing)
        return None
    return Parser(BasicResolver(load_builtins()))


def prepare() -> None:
    """Load the patterns once per process: it takes 0.1 s, which would delay the first log-in."""
    _parser()
