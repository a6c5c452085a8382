"""CrossOriginProtection: requests that another site made the browser send do not reach the app.

``SameSite=Lax`` keeps the session cookie out of most of them, but not out of what a sibling subdomain sends, nor out of WebSocket
handshakes from there. This middleware looks at what the browser itself says about where a request comes from. It needs no
token in the forms and keeps no state::

    app = CrossOriginProtection(app, trusted_origins=["https://partner.example"])

The rules are those of ``net/http.CrossOriginProtection`` in Go's standard library, which follow "Cross-Site Request Forgery" by
Filippo Valsorda (2025), with two additions: WebSocket handshakes are judged too, since no browser asks before it makes one; and
headers that come twice, where one is due, are refused.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from asgi_sessions._errors import ConfigurationError
from asgi_sessions._types import Message, Scope, Send

logger = logging.getLogger("asgi_sessions")

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, section 9.2.1) and pass, wherever they come from. Let none of yours change anything."""

# RFC 6454, section 7.1, as browsers write it. Whatever does not match is no origin, and so nobody's.
_ORIGIN = re.compile(r"([a-z][a-z0-9+.\-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._\-]+)(?::([0-9]{1,5}))?", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_LONGEST = 300
"""Characters of an Origin or Host that are looked at: a host name has 253 at most (RFC 1035, section 2.3.4)."""


class CrossOriginProtection:
    """Refuses what changes something and was sent by another origin: ``403``, or a WebSocket that is not accepted.

    Put it outside of everything that acts on a request; inside or outside of ``SessionMiddleware`` makes no difference.

    A request passes, in this order,

    1. if its method is safe and it is no WebSocket handshake;
    2. if ``Sec-Fetch-Site`` says ``same-origin`` or ``none`` (the user typed it, or clicked a bookmark);
    3. if its ``Origin`` is trusted, or ``skip`` says so;
    4. if it has neither ``Sec-Fetch-Site`` nor ``Origin``: then no browser of the last years sent it;
    5. if it has no ``Sec-Fetch-Site``, and its ``Origin`` names the host of its ``Host``. The scheme is not compared, since a
       proxy may hide it: serve with ``Strict-Transport-Security``, so that nobody can put a page under ``http://`` your host.

    Args:
        app: the ASGI app to wrap.
        trusted_origins: ``scheme://host[:port]`` each; nothing else is in an origin.
        skip: ``skip(scope) -> bool``: requests that are let through unseen, such as a webhook's with a signature of its own.
    Raises:
        ConfigurationError: a trusted origin is none.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        trusted_origins: Iterable[str] = (),
        skip: Callable[[Scope], bool] | None = None,
    ) -> None:
        if not callable(app):
            raise ConfigurationError(f"CrossOriginProtection(app={app!r}): give an ASGI app")
        if isinstance(trusted_origins, str):
            raise ConfigurationError(
                "CrossOriginProtection(trusted_origins=…) is a single string: give a list, trusted_origins=[origin]"
            )
        if skip is not None and (not callable(skip) or inspect.iscoroutinefunction(skip)):
            raise ConfigurationError("CrossOriginProtection(skip=…): give a plain function")
        self.app = app
        self._trusted = frozenset(map(_trusted, trusted_origins))
        self._skip = skip

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3; typed loosely, since frameworks type their scopes differently."""
        kind = scope["type"]
        judged = kind == "websocket" or (kind == "http" and scope["method"] not in SAFE_METHODS)
        reason = self._reason_against(scope) if judged else None
        if reason is None:
            await self.app(scope, receive, send)
            return
        logger.info("cross-origin %s refused: %s", "handshake" if kind == "websocket" else "request", reason)
        await _refuse(scope, send)

    def _reason_against(self, scope: Scope) -> str | None:
        """Why the request is refused, if it is."""
        found: dict[bytes, list[bytes]] = {b"sec-fetch-site": [], b"origin": [], b"host": []}
        for name, value in scope.get("headers", ()):
            if name in found:
                found[name].append(value)
        sites, origins, hosts = found.values()
        site = sites[0] if sites else b""
        reason: str | None
        if len(sites) > 1 or len(origins) > 1 or len(hosts) > 1:
            reason = "Sec-Fetch-Site, Origin or Host comes twice"
        elif site:
            reason = None if site in (b"same-origin", b"none") else "Sec-Fetch-Site names another origin"
        elif not origins or not origins[0]:
            reason = None
        else:
            origin = _parsed(origins[0])
            same = origin is not None and bool(hosts) and _authority(hosts[0], origin[0]) == origin[1:]
            reason = None if same else "Origin is not the Host"
        if reason is None:
            return None
        if len(origins) == 1 and self._trusted and _parsed(origins[0]) in self._trusted:
            return None
        return None if self._skip is not None and self._skip(scope) else reason


def _parsed(origin: bytes) -> tuple[str, str, str] | None:
    """Scheme, host and port, in lower case and with the scheme's own port left out; ``None`` for ``null`` and all else."""
    if len(origin) > _LONGEST:
        return None
    match = _ORIGIN.fullmatch(origin.decode("latin-1").lower())
    if match is None:
        return None
    scheme, host, port = match[1], match[2], match[3] or ""
    return scheme, host, "" if port == _DEFAULT_PORTS.get(scheme) else port


def _authority(host: bytes, scheme: str) -> tuple[str, str] | None:
    """Host and port of a Host header, as an origin of that scheme would have them."""
    parsed = _parsed(scheme.encode("ascii") + b"://" + host)
    return None if parsed is None else parsed[1:]


def _trusted(origin: object) -> tuple[str, str, str]:
    parsed = _parsed(origin.encode("utf-8")) if isinstance(origin, str) else None
    if parsed is None:
        raise ConfigurationError(
            f"CrossOriginProtection(trusted_origins=[{origin!r}]): give 'scheme://host' or 'scheme://host:port', without a "
            "path, a slash at the end, a user or a wildcard; 'null' is anybody's"
        )
    return parsed


async def _refuse(scope: Scope, send: Send) -> None:
    websocket = scope["type"] == "websocket"
    if websocket and "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008, "reason": ""})  # before accept: servers answer 403
        return
    text = b"Forbidden: the request comes from another origin"
    kind = "websocket.http.response" if websocket else "http.response"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(text))]
    start: Message = {"type": f"{kind}.start", "status": 403, "headers": headers}
    await send(start)
    await send({"type": f"{kind}.body", "body": text})
