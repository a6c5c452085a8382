"""Maps options and attributes of other session libraries to ours, for error messages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Final, NoReturn, ParamSpec

from asgi_sessions.errors import ConfigurationError

P = ParamSpec("P")

_TIMES = (
    "timeouts=Timeouts(idle=…, absolute=…), and session.log_in(…, remember=True) for a cookie that outlives the browser"
)

OPTIONS: Final = {
    # Starlette's SessionMiddleware
    "secret_key": "secret_keys=[…], a list, newest first",
    "session_cookie": "cookie=CookieConfig(name=…)",
    "max_age": _TIMES,
    "path": "cookie=CookieConfig(path=…)",
    "same_site": "cookie=CookieConfig(samesite=…)",
    "https_only": "cookie=CookieConfig(secure=…); True is the default",
    "domain": "cookie=CookieConfig(domain=…)",
    "partitioned": "cookie=CookieConfig(partitioned=True, samesite='none')",
    # starsessions, and what others add
    "backend": "store=…",
    "cookie_domain": "cookie=CookieConfig(domain=…)",
    "cookie_https_only": "cookie=CookieConfig(secure=…); True is the default",
    "cookie_name": "cookie=CookieConfig(name=…)",
    "cookie_path": "cookie=CookieConfig(path=…)",
    "cookie_same_site": "cookie=CookieConfig(samesite=…)",
    "lifetime": _TIMES,
    "rolling": "timeouts=Timeouts(idle=…); activity always moves the idle timeout",
    "secure": "cookie=CookieConfig(secure=…); True is the default",
    "samesite": "cookie=CookieConfig(samesite=…)",
    "ttl": _TIMES,
}
"""Options of other session middleware, and our replacements."""

NAMES: Final = {
    "changed": "changes are noticed; mark_modified() is for those past the session's methods",
    "create": "a session is stored when something is put into it",
    "created": "use created_at",
    "cycle_key": "use regenerate()",
    "delete": "use destroy()",
    "empty": "use `not session`",
    "flush": "use destroy()",
    "identity": "use id",
    "invalidate": "use destroy()",
    "is_empty": "use `not session`",
    "new": "use is_new",
    "permanent": "use log_in(user_id, remember=True)",
    "session_id": "use id",
    "session_key": "use id",
    "set_expiry": "use SessionMiddleware(timeouts=Timeouts(…)) and log_in(user_id, remember=True)",
    "sid": "use id",
}
"""Attributes of sessions of Django, Flask, Pyramid and aiohttp-session, and our replacements."""


class Elsewhere:
    """An attribute of :data:`NAMES`, which fails with the advice when it is read or set.

    Raises:
        AttributeError: always. So ``hasattr()`` is false, and a template looks for data of this name next.
    """

    def __init__(self, name: str) -> None:
        self._error = f"a session has no {name!r} here: {NAMES[name]}"

    def __get__(self, session: object, owner: type | None = None) -> NoReturn:
        raise AttributeError(self._error)

    def __set__(self, session: object, value: object) -> NoReturn:
        raise AttributeError(self._error)


def explains_options(build: Callable[P, None]) -> Callable[P, None]:
    """Decorate a function that takes a store and the options of the middleware, and keep its type.

    It then raises ConfigurationError for options of :data:`OPTIONS`, and without a store.
    """
    name = build.__qualname__.removesuffix(".__init__")
    parameters = list(inspect.signature(build).parameters)

    @wraps(build)
    def explained(*args: P.args, **kwargs: P.kwargs) -> None:
        foreign = [each for each in kwargs if each in OPTIONS and each not in parameters]
        has_store = "store" in kwargs or len(args) > parameters.index("store")
        if foreign or not has_store:
            given = ", ".join(f"{each}=…" for each in foreign)
            advice = [f"Instead of {each}: {OPTIONS[each]}." for each in foreign]
            if not has_store:
                advice.insert(0, "Give a store: store=MemoryStore(), or store=RedisStore.from_url('redis://…').")
            raise ConfigurationError(f"{name}({given}): sessions are kept in a store. {' '.join(advice)}")
        build(*args, **kwargs)

    return explained
