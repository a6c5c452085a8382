"""DeviceBound: the options of device-bound sessions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from asgi_sessions._core.arguments import several
from asgi_sessions._core.timeouts import duration
from asgi_sessions.errors import ConfigurationError

# RFC 3986, section 3.3, without percent-encoding, so the path in a URL equals ASGI's decoded path. Browsers resolve "." and "..".
_PATH: Final = re.compile(r"(?!.*/\.\.?(?:/|\Z))(?:/[A-Za-z0-9\-._~!$&()*+,=:@]+)+")
_HOST: Final = re.compile(r"(?:\*\.)?[a-z0-9\-]+(?:\.[a-z0-9\-]+)*")

_LIFETIMES: Final = (timedelta(minutes=3), timedelta(hours=1))
_GRACES: Final = (timedelta(seconds=1), timedelta(minutes=5))
_SOCKETS: Final = (timedelta(minutes=1), timedelta(hours=24))


@dataclass(frozen=True, slots=True)
class DeviceBound:
    """Options of device-bound sessions: ``Sessions(…, secret_keys=[…], device_bound=DeviceBound())``."""

    lifetime: timedelta = timedelta(minutes=10)
    """How long a proof of the device counts: 3 minutes to 1 hour. Stolen cookies work for this time plus 15 s."""
    path: str = "/dbsc"
    """The path of the endpoints, ``path + "/register"`` and ``path + "/refresh"``. Browsers register and prove their keys there.
    The middleware answers both."""
    exempt: Sequence[str] = ()
    """Paths, with all paths below them, that browsers request without a proof, such as ``/static``. An unproven request has an
    empty session there."""
    refresh_initiators: Sequence[str] = ()
    """Other hosts of the same site whose pages may trigger a proof. Example: ``app.example.org`` if this app is its API.
    ``*.example.org`` means all hosts of the site."""
    grace: timedelta = timedelta(seconds=30)
    """How long after the registration unproven requests pass, since they may have been in flight: 1 second to 5 minutes."""
    sockets: timedelta = timedelta(hours=1)
    """The longest life of a socket or stream of a bound session: 1 minute to 24 hours. This ends one that was opened with stolen
    cookies. Browsers connect again with a proof."""
    enforce: bool = True
    """``False``: let unproven requests pass and report each by the event ``session.unproven``. Use it during a rollout."""

    seconds: float = field(init=False, repr=False, compare=False)
    grace_seconds: float = field(init=False, repr=False, compare=False)
    socket_seconds: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__  # the class is frozen
        put(self, "seconds", _between("lifetime", self.lifetime, *_LIFETIMES))
        put(self, "grace_seconds", _between("grace", self.grace, *_GRACES))
        put(self, "socket_seconds", _between("sockets", self.sockets, *_SOCKETS))
        if not isinstance(self.enforce, bool):
            raise ConfigurationError(f"DeviceBound(enforce={self.enforce!r}): give True or False")
        _check_path("path", self.path)
        exempt = several("DeviceBound(exempt)", self.exempt, "exempt=['/static']")
        for path in exempt:
            _check_path("exempt", path)
        put(self, "exempt", tuple(exempt))
        hosts = several(
            "DeviceBound(refresh_initiators)", self.refresh_initiators, "refresh_initiators=['app.example.org']"
        )
        for host in hosts:
            if not (isinstance(host, str) and len(host) <= 255 and _HOST.fullmatch(host)):
                raise ConfigurationError(
                    f"DeviceBound(refresh_initiators=[{host!r}]): give host names in lower case, without scheme, port or path"
                )
        put(self, "refresh_initiators", tuple(hosts))


def _between(name: str, value: object, least: timedelta, most: timedelta) -> float:
    given = duration(f"DeviceBound({name})", value)
    if not least <= given <= most:
        raise ConfigurationError(f"DeviceBound({name}={given!r}): must lie between {least} and {most}")
    return given.total_seconds()


def _check_path(name: str, path: object) -> None:
    if not (isinstance(path, str) and len(path) <= 200 and _PATH.fullmatch(path)):
        raise ConfigurationError(
            f"DeviceBound({name}={path!r}): write the path as it stands in a URL. It begins with '/', has no '/' at the end, no "
            "segment '.' or '..', and no character that a URL would percent-encode"
        )
