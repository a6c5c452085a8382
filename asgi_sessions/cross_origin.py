"""CrossOriginProtection: refuses requests that another site made the browser send (CSRF).

``SameSite=Lax`` keeps the session cookie out of most of them, but not out of requests and WebSocket handshakes from a sibling
subdomain. This middleware checks the browser's own headers for the origin of a request. It needs no token in forms and no
state::

    app = CrossOriginProtection(app, trusted_origins=["https://partner.example"])

The rules are those of ``net/http.CrossOriginProtection`` in Go's standard library, which follow "Cross-Site Request Forgery" by
Filippo Valsorda (2025), with three additions. WebSocket handshakes are checked too, since browsers send them to any origin.
A repeated header is refused if only one is allowed. Browsers may prove the keys of device-bound sessions.
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
    """Refuses requests from other origins that may change something, with ``403``. It refuses such WebSocket handshakes too.

    Make it the outermost middleware. It may also be inside of ``SessionMiddleware``.

    A request passes, in this order,

    1. if its method is safe and it is not a WebSocket handshake;
    2. if ``Sec-Fetch-Site`` is ``same-origin`` or ``none`` (the user typed the address, or clicked a bookmark);
    3. if its ``Origin`` is trusted, or ``skip`` returns true;
    4. if it has neither ``Sec-Fetch-Site`` nor ``Origin``: then it is not from a browser of the last years;
    5. if it has no ``Sec-Fetch-Site``, and its ``Origin`` has the same host as its ``Host``. The scheme is not compared, since a
       proxy may hide it. Serve with ``Strict-Transport-Security``, so that no page under ``http://`` has your host;
    6. if it is a ``POST`` to one of the two endpoints of device-bound sessions of a ``SessionMiddleware`` inside of this one.
       They accept only a signature, and ``DeviceBound(refresh_initiators=…)`` lets browsers send it from other hosts.

    Args:
        app: the ASGI app to wrap.
        trusted_origins: ``scheme://host[:port]`` each, without a path.
        skip: ``skip(scope) -> bool``: lets requests pass unchecked, for example webhooks with their own signature.
    Raises:
        ConfigurationError: a trusted origin is not of this form.
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
        """The ASGI 3 entry point, typed loosely, since frameworks type their scopes differently."""
        kind = scope["type"]
        judged = kind == "websocket" or (kind == "http" and scope["method"] not in SAFE_METHODS)
        reason = self._reason_against(scope) if judged else None
        if reason is None or self._is_for_binder(scope):
            await self.app(scope, receive, send)
            return
        _logger.info("cross-origin %s refused: %s", "handshake" if kind == "websocket" else "request", reason)
        await answer(scope, send, 403, b"Forbidden: the request comes from another origin")

    def _is_for_binder(self, scope: Scope) -> bool:
        """Whether the path is one where browsers prove keys. Headers do not count: other origins can send them to any path."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return False
        if not self._binders:  # looked up until found: Starlette builds its middleware late
            self._binders = tuple(binders_inside(self.app))
        return any(binder.answers(scope) for binder in self._binders)

    def _reason_against(self, scope: Scope) -> str | None:
        """The reason to refuse the request, or None."""
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
            "path, a slash at the end, a user or a wildcard. 'null' would trust any site"
        )
    return found
