"""CrossOriginProtection: requests that another site made the browser send do not reach the app.

``SameSite=Lax`` keeps the session cookie out of most of them, but not out of what a sibling subdomain sends, nor out of WebSocket
handshakes from there. This middleware looks at what the browser itself says about where a request comes from. It needs no
token in the forms and keeps no state::

    app = CrossOriginProtection(app, trusted_origins=["https://partner.example"])

The rules are those of ``net/http.CrossOriginProtection`` in Go's standard library, which follow "Cross-Site Request Forgery" by
Filippo Valsorda (2025), with three additions. WebSocket handshakes are judged too, since no browser asks before it makes one.
Headers that come twice, where one is due, are refused. And browsers may prove the keys of device-bound sessions.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from asgi_sessions._asgi.foreign import binders_inside
from asgi_sessions._asgi.responses import answer
from asgi_sessions._core.arguments import expect_app, several
from asgi_sessions._core.origin import SAFE_METHODS, authority, parsed, values_of
from asgi_sessions._core.types import Scope
from asgi_sessions.errors import ConfigurationError

if TYPE_CHECKING:
    from asgi_sessions.dbsc._binder import Binder

_logger = logging.getLogger("asgi_sessions")


class CrossOriginProtection:
    """Refuses what changes something and was sent by another origin: ``403``, or a WebSocket that is not accepted.

    Put it outside of everything that acts on a request; inside or outside of ``SessionMiddleware`` makes no difference.

    A request passes, in this order,

    1. if its method is safe and it is no WebSocket handshake;
    2. if ``Sec-Fetch-Site`` says ``same-origin`` or ``none`` (the user typed it, or clicked a bookmark);
    3. if its ``Origin`` is trusted, or ``skip`` says so;
    4. if it has neither ``Sec-Fetch-Site`` nor ``Origin``: then no browser of the last years sent it;
    5. if it has no ``Sec-Fetch-Site``, and its ``Origin`` names the host of its ``Host``. The scheme is not compared, since a
       proxy may hide it: serve with ``Strict-Transport-Security``, so that nobody can put a page under ``http://`` your host;
    6. if it is a ``POST`` to one of the two endpoints of device-bound sessions of a ``SessionMiddleware`` inside of this. Only a
       signature counts there, and ``DeviceBound(refresh_initiators=…)`` lets browsers send it from other hosts.

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
        expect_app("CrossOriginProtection", app, skip=skip)
        given = several("CrossOriginProtection(trusted_origins=…)", trusted_origins, "trusted_origins=[origin]")
        self.app = app
        self._trusted = frozenset(map(_trusted, given))
        self._skip = skip
        self._binders: tuple[Binder, ...] = ()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3; typed loosely, since frameworks type their scopes differently."""
        kind = scope["type"]
        judged = kind == "websocket" or (kind == "http" and scope["method"] not in SAFE_METHODS)
        reason = self._reason_against(scope) if judged else None
        if reason is None or self._is_for_binder(scope):
            await self.app(scope, receive, send)
            return
        _logger.info("cross-origin %s refused: %s", "handshake" if kind == "websocket" else "request", reason)
        await answer(scope, send, 403, b"Forbidden: the request comes from another origin")

    def _is_for_binder(self, scope: Scope) -> bool:
        """Whether a browser proves a key, by the path. A page of another origin could send the headers of a proof to any path."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return False
        if not self._binders:  # asked each time until there are some: Starlette builds its middlewares late
            self._binders = tuple(binders_inside(self.app))
        return any(binder.answers(scope) for binder in self._binders)

    def _reason_against(self, scope: Scope) -> str | None:
        """Why the request is refused, if it is."""
        sites, origins, hosts = values_of(scope, b"sec-fetch-site", b"origin", b"host")
        site = sites[0] if sites else b""
        reason: str | None
        if len(sites) > 1 or len(origins) > 1 or len(hosts) > 1:
            reason = "Sec-Fetch-Site, Origin or Host comes twice"
        elif site:
            reason = None if site in (b"same-origin", b"none") else "Sec-Fetch-Site names another origin"
        elif not origins or not origins[0]:
            reason = None
        else:
            origin = parsed(origins[0])
            same = origin is not None and bool(hosts) and authority(hosts[0], origin[0]) == origin[1:]
            reason = None if same else "Origin is not the Host"
        if reason is None:
            return None
        if len(origins) == 1 and self._trusted and parsed(origins[0]) in self._trusted:
            return None
        return None if self._skip is not None and self._skip(scope) else reason


def _trusted(origin: object) -> tuple[str, str, str]:
    found = parsed(origin.encode("utf-8", "replace")) if isinstance(origin, str) else None
    if found is None:
        raise ConfigurationError(
            f"CrossOriginProtection(trusted_origins=[{origin!r}]): give 'scheme://host' or 'scheme://host:port', without a "
            "path, a slash at the end, a user or a wildcard; 'null' is anybody's"
        )
    return found
