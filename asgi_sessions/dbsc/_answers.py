"""Answers that make a browser prove its key and repeat the request."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from asgi_sessions._asgi.responses import JAVASCRIPT, answer
from asgi_sessions._core.types import Scope, Send

SCRIPT: Final = b"location.reload()\n"
# A script and not <meta http-equiv="refresh">, which loads nothing if the URL has a fragment. The script is a separate file and
# the link is visible, because a proxy may add a Content-Security-Policy against inline scripts or against all scripts.
PAGE: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    '<title>One moment</title><script src="{}"></script><p><a href="">Continue</a></p></html>'
)
POLICY: Final = b"default-src 'none'; script-src 'self'; base-uri 'none'; form-action 'none'"

_SAFE: Final = "/:@!$&'()*+,;=~-._"  # in a path (RFC 3986, section 3.3)


async def reload_page(scope: Scope, send: Send, script: str) -> None:
    """Answer with a page that reloads itself. The second request has this origin, so the browser proves its key first.

    The reload keeps query, fragment and history.
    """
    page = PAGE.format(script).encode("ascii")
    headers = ((b"content-security-policy", POLICY), (b"referrer-policy", b"same-origin"))
    await answer(scope, send, 200, page, *headers, kind=b"text/html; charset=utf-8")


async def reload_script(scope: Scope, send: Send) -> None:
    """Answer with the script of :func:`reload_page`."""
    if scope["method"] not in ("GET", "HEAD"):
        await answer(scope, send, 405, b"", (b"allow", b"GET, HEAD"))
        return
    nosniff = (b"x-content-type-options", b"nosniff")
    await answer(scope, send, 200, SCRIPT, nosniff, kind=JAVASCRIPT, cache=b"public, max-age=86400")


async def repeat(scope: Scope, send: Send, cookie: tuple[bytes, bytes]) -> None:
    """Make the browser repeat the request (RFC 9110, section 15.4.8) after it has processed ``cookie``, a Set-Cookie header.

    The target is relative, because a proxy may have removed a part of the path.
    """
    raw = scope.get("raw_path")
    path = quote(raw, safe=_SAFE + "%") if isinstance(raw, bytes) else quote(str(scope.get("path", "")), safe=_SAFE)
    last = path.rpartition("/")[2]
    query = quote(scope.get("query_string", b""), safe=_SAFE + "%?")
    target = f"./{last}" + (f"?{query}" if query else "")
    await answer(scope, send, 307, b"", (b"location", target.encode("ascii")), cookie)
