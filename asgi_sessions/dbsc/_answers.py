"""The answers that make a browser prove its key and come again."""

from __future__ import annotations

import base64
import hashlib
from typing import Final
from urllib.parse import quote

from asgi_sessions._asgi.responses import answer
from asgi_sessions._core.types import Scope, Send

_SCRIPT: Final = "location.reload()"
# Not <meta http-equiv="refresh">: with a fragment in the URL that loads nothing.
PAGE: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>One moment</title>'
    f'<script>{_SCRIPT}</script><noscript><a href="">Continue</a></noscript></html>'
).encode("ascii")
_HASH: Final = base64.b64encode(hashlib.sha256(_SCRIPT.encode("ascii")).digest()).decode("ascii")
POLICY: Final = f"default-src 'none'; script-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'".encode("ascii")


async def reload_page(send: Send) -> None:
    """A page that loads itself again: that request comes from this origin, so the browser proves its key first.

    It keeps query, fragment and history.
    """
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", b"%d" % len(PAGE)),
        (b"content-security-policy", POLICY),
        (b"referrer-policy", b"same-origin"),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": PAGE})


async def repeat(scope: Scope, send: Send, cookie: tuple[bytes, bytes]) -> None:
    """Have the browser send the same request once more (RFC 9110, section 15.4.8), with ``cookie`` changed before.

    The target is relative, since a proxy may have taken a part of the path away.
    """
    raw = scope.get("raw_path")
    path = raw.decode("latin-1") if isinstance(raw, bytes) else quote(str(scope.get("path", "")), safe="/%")
    last = path.partition("?")[0].rpartition("/")[2]
    query = scope.get("query_string", b"").decode("latin-1")
    target = f"./{last}" + (f"?{query}" if query else "")
    location = quote(target, safe="/%:?#[]@!$&'()*+,;=~-._").encode("ascii")
    await answer(scope, send, 307, b"", (b"location", location), cookie)
