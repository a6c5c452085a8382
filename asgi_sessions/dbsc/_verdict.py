"""Verdict: whether a request of a bound session comes from its device. Pure."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any

from asgi_sessions._core.origin import parsed, path_below_root, values_of
from asgi_sessions.dbsc._binding import Binding
from asgi_sessions.dbsc._options import DeviceBound


class Verdict(enum.Enum):
    """The kind of an unproven request of a bound session. It decides the answer."""

    GRACE = "grace"
    """The registration is recent and the request was in flight, or the answer to the registration may have been lost. The app
    gets the session."""
    EXPIRED = "expired"
    """The bound cookie has expired. The answer makes the browser repeat the request without it, after a proof."""
    SKIPPED = "skipped"
    """The browser reports that it could not prove its key now. The answer is 503, and the browser tries again."""
    NAVIGATION = "navigation"
    """A link from another site, for which browsers prove no key. The answer is a page that reloads itself."""
    ELSEWHERE = "elsewhere"
    """Any other request from another origin, or an exempt path. The app gets an empty session, and nothing of it is stored."""
    UNPROVEN = "unproven"
    """A thief, or a browser that lost its key. The app gets an empty session."""


def verdict_on(
    scope: Mapping[str, Any], binding: Binding | None, id: str, now: float, options: DeviceBound, *, is_expired: bool
) -> Verdict:
    """The verdict on an unproven request of the session ``id``.

    Args:
        binding: the binding of the session. ``None``: it is damaged, so no proof can be valid.
        is_expired: whether the request has a genuine bound cookie that has expired.
    """
    if binding is None:
        return Verdict.UNPROVEN
    if now < binding.since + options.grace_seconds or not (binding.is_confirmed or is_expired):
        return Verdict.GRACE
    is_http = scope["type"] == "http"
    if is_expired:
        return Verdict.EXPIRED if is_http else Verdict.UNPROVEN
    if skipped_reason(scope, id) is not None:
        return Verdict.SKIPPED
    sites, modes = values_of(scope, b"sec-fetch-site", b"sec-fetch-mode")
    if is_exempt(scope, options):
        return Verdict.ELSEWHERE
    if not sites or sites == [b"same-origin"]:
        return Verdict.UNPROVEN
    is_page = is_http and scope["method"] == "GET" and modes == [b"navigate"]
    if is_page:
        return Verdict.NAVIGATION
    # "none": the user caused the request without a page. A browser with the key would have proved it first.
    return Verdict.UNPROVEN if sites == [b"none"] else Verdict.ELSEWHERE


def skipped_reason(scope: Mapping[str, Any], id: str) -> str | None:
    """The browser's reason for a missing proof, or ``None`` if it reports none.

    ``Secure-Session-Skipped`` is a list of tokens, each with the identifier of a session as its parameter. Chromium sends
    ``server_error``, ``unreachable`` and ``quota_exceeded``. Another word is returned if it has at most 40 letters.
    """
    for value in values_of(scope, b"secure-session-skipped")[0]:
        for member in value.split(b","):
            if id.encode("ascii") in member:
                word = re.match(rb"[ \t]*([a-z_]{1,40})[ \t]*(?:;|\Z)", member)
                return "" if word is None else word[1].decode("ascii")
    return None


def origin_of(scope: Mapping[str, Any]) -> str | None:
    """The origin whose page caused a request, by its ``Origin`` header, or ``None`` if that names none."""
    found = [parsed(value) for value in values_of(scope, b"origin")[0]]
    if len(found) != 1 or found[0] is None:
        return None
    scheme, host, port = found[0]
    return f"{scheme}://{host}{port and f':{port}'}"


def is_exempt(scope: Mapping[str, Any], options: DeviceBound) -> bool:
    """Whether browsers send this request without a proof."""
    path = path_below_root(scope)
    return any(path == each or path.startswith(each + "/") for each in options.exempt)
