"""ActivityEndpoints: an ASGI app for front ends, with the time until the session ends, and "stay logged in".

Mount it inside of the SessionMiddleware.

::

    app.mount("/session", ActivityEndpoints())

    <script src="/session/activity.js" defer></script>

``GET /session/`` answers the seconds until the session ends, and counts as no activity. ``POST /session/`` counts as activity.
The script warns the user in all tabs before the session ends (WCAG 2.2, success criterion 2.2.1 "Timing Adjustable").
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from asgi_sessions._asgi.responses import JAVASCRIPT, answer
from asgi_sessions._core.origin import is_cross_site, path_below_root
from asgi_sessions._core.session import OURS, Session
from asgi_sessions.errors import ConfigurationError

__all__ = ["ActivityEndpoints"]

_SOURCE = (Path(__file__).parent / "activity.js").read_text(encoding="utf-8")
SCRIPT: Final = "\n".join(line.strip() for line in _SOURCE.splitlines() if not line.startswith("//")).encode("ascii")
"""The script without its comments and indentation: 2 kB."""


class ActivityEndpoints:
    """``GET`` and ``POST`` on the path of the mount, with a slash at its end, and ``GET …/activity.js``.

    The answer is JSON: ``{"logged_in": true, "idle_in": 3540, "absolute_in": 86000}``. Both times are whole seconds, rounded
    down, or ``null`` if no session is stored. ``GET`` changes nothing. ``POST`` counts as activity of the user, like any other
    request, and then answers the same. Without the slash, frameworks redirect, and a redirect counts as activity.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3."""
        if scope["type"] != "http":
            raise ConfigurationError(f"ActivityEndpoints answers HTTP requests, and got a {scope['type']}")
        below, method = path_below_root(scope), scope["method"]
        if below.endswith("/activity.js"):
            await self._script(scope, send)
        elif below.strip("/"):
            await answer(scope, send, 404)
        elif method not in ("GET", "HEAD", "POST"):
            await answer(scope, send, 405, b"", (b"allow", b"GET, HEAD, POST"))
        elif method == "POST" and is_cross_site(scope):
            await answer(scope, send, 403, b"Forbidden: the request comes from another site")
        else:
            await self._status(scope, send)

    async def _status(self, scope: Any, send: Any) -> None:
        session: Session | None = scope.get(OURS)
        if session is None:
            raise ConfigurationError("ActivityEndpoints: there is no session; mount it inside of SessionMiddleware")
        if session.is_degraded:
            await answer(scope, send, 503)  # the session may be alive: the script asks again
            return
        if scope["method"] == "POST":
            await session.touch()
        else:
            session.mark_passive()
        text = json.dumps(status_of(session)).encode("ascii")
        await answer(scope, send, 200, text, kind=b"application/json")

    async def _script(self, scope: Any, send: Any) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await answer(scope, send, 405, b"", (b"allow", b"GET, HEAD"))
            return
        nosniff = (b"x-content-type-options", b"nosniff")
        await answer(scope, send, 200, SCRIPT, nosniff, kind=JAVASCRIPT, cache=b"public, max-age=3600")


def status_of(session: Session) -> dict[str, Any]:
    """The answer of ``GET`` for a session."""
    if session.is_new:
        return {"logged_in": False, "idle_in": None, "absolute_in": None}
    now = session._keeper.clock()
    idle, absolute = (max(0, int(at.timestamp() - now)) for at in (session.expires_at, session.ends_at))
    return {"logged_in": session.user_id is not None, "idle_in": idle, "absolute_in": absolute}
