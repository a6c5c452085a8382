"""Verdict: whether a request of a bound session comes from its device. Pure."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any

from asgi_sessions._core.origin import path_below_root, values_of
from asgi_sessions.dbsc._binding import Binding
from asgi_sessions.dbsc._options import DeviceBound


class Verdict(enum.Enum):
    """What a request of a bound session is that does not prove its device, and so how it is answered."""

    GRACE = "grace"
    """The browser has registered its key a moment ago, and this was under way. Or it has not shown yet that it knows of its
    registration, whose answer may have been lost: the session."""
    EXPIRED = "expired"
    """It brought the cookie of a while ago: the same request once more, without it, so that the browser proves its key first."""
    SKIPPED = "skipped"
    """The browser could not prove its key now: 503, and it tries again."""
    NAVIGATION = "navigation"
    """A link from elsewhere, for which browsers prove nothing: a page that loads itself once more."""
    ELSEWHERE = "elsewhere"
    """Anything else that a page from elsewhere caused, or an exempt path: an empty session, of which nothing is stored."""
    UNPROVEN = "unproven"
    """A thief, or a browser that lost its key: an empty session."""


def verdict_on(
    scope: Mapping[str, Any], binding: Binding | None, id: str, now: float, options: DeviceBound, *, is_expired: bool
) -> Verdict:
    """The verdict on a request of the session ``id`` that does not prove its device.

    Args:
        binding: of the session; ``None``: it is damaged, and nothing is a proof.
        is_expired: whether the request has a bound cookie of ours whose time is over.
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
    # "none" is what the user did without a page: such a request would have been held.
    return Verdict.UNPROVEN if sites == [b"none"] else Verdict.ELSEWHERE


def skipped_reason(scope: Mapping[str, Any], id: str) -> str | None:
    """Why the browser did not prove the key of a session; ``None``: it does not say so.

    ``Secure-Session-Skipped`` is a list of tokens, each with the identifier of a session as its parameter. Chromium says
    ``server_error``, ``unreachable`` and ``quota_exceeded``. Other words are passed on, cut to 40 letters.
    """
    for value in values_of(scope, b"secure-session-skipped")[0]:
        for member in value.split(b","):
            if id.encode("ascii") in member:
                word = re.match(rb"[ \t]*([a-z_]{1,40})[ \t]*(?:;|\Z)", member)
                return "" if word is None else word[1].decode("ascii")
    return None


def is_exempt(scope: Mapping[str, Any], options: DeviceBound) -> bool:
    """Whether browsers send this request without a proof."""
    path = path_below_root(scope)
    return any(path == each or path.startswith(each + "/") for each in options.exempt)
