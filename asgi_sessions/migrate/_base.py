"""What all readers share: the old cookie, the user, and the way back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from asgi_sessions._core.adoption import OldSession
from asgi_sessions._core.cookie import CookieConfig
from asgi_sessions._core.token import user_id_in
from asgi_sessions._core.types import Headers
from asgi_sessions.errors import ConfigurationError, SessionDataError

logger = logging.getLogger("asgi_sessions")

UserOf = Callable[[Mapping[str, Any]], str | int | None]
"""Finds the user in the data of an old session; ``None`` for an anonymous one."""


class ReaderBase:
    """A reader of old sessions."""

    name = ""
    is_stored = False

    def __init__(
        self,
        *,
        cookie: str,
        user: UserOf | None,
        path: str = "/",
        domain: str | None = None,
        drop: tuple[str, ...] = (),
        keep_old: bool = False,
    ) -> None:
        called = type(self).__name__
        if user is not None and not callable(user):
            raise ConfigurationError(
                f"{called}(user=…): give a function of the old data, such as lambda data: data.get('user_id')"
            )
        if not isinstance(keep_old, bool):
            raise ConfigurationError(f"{called}(keep_old={keep_old!r}): give True or False")
        # Their own attributes need not be ours: browsers delete by name, path and domain.
        self._cookie = CookieConfig(name=cookie, path=path, domain=domain, secure=True)
        self.cookie = cookie
        self._user = user
        self._drop = frozenset(drop)
        self._keep_old = keep_old

    def delete_cookie(self) -> Headers:
        """The header that removes the old cookie; none with ``keep_old``."""
        return [] if self._keep_old else [self._cookie.delete()]

    def session(self, data: Mapping[str, Any], **more: Any) -> OldSession | None:
        """An old session with this data; ``None`` if ``user`` fails on it."""
        try:
            found = None if self._user is None else self._user(data)
            user_id = None if found is None else user_id_in(f"{type(self).__name__}(user=…)", str(found))
        except SessionDataError as error:
            logger.warning("an old session is not adopted: %s", error)
            return None
        except Exception as error:  # of the app's own function
            logger.warning(
                "an old session is not adopted: %s(user=…) failed (%s)", type(self).__name__, type(error).__name__
            )
            return None
        return OldSession({key: value for key, value in data.items() if key not in self._drop}, user_id, **more)
