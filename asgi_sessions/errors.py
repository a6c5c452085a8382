"""The tree of errors."""

from __future__ import annotations


class SessionError(Exception):
    """Everything this package raises on purpose is one of these."""


class ConfigurationError(SessionError):
    """The app was put together wrongly; raised while it is being built, with what to do about it."""


class MissingExtra(ConfigurationError, ImportError):
    """A module was imported whose extra is not installed; the message has the command that installs it."""


class SessionDataError(SessionError):
    """A value in the session cannot be kept faithfully; the message names its key."""


class ResponseStarted(SessionError):
    """A verb came too late: the response, and with it the cookie, was already on its way to the browser."""


class SessionLimitReached(SessionError):
    """A log-in was refused: the user has as many sessions as ``Devices(max_sessions=…, at_limit="refuse")`` allows."""


class StoreError(SessionError):
    """The store did not do what it was asked. The driver's error, if there was one, is the cause.

    A store raises a subclass, which says who caused the failure. A plain StoreError counts as :class:`StoreUnreachable`.
    """

    host: str | None = None
    """The server that failed, where a store has several; without a password."""

    is_guess: bool = False
    """Whether the server may answer other calls, though this one had no answer: on a connection of its own, for example."""


class StoreUnreachable(StoreError):
    """The store cannot be asked: no connection, no reply in time, or a reply that makes no sense.

    It counts against the store. After several in a row the store is left alone for a moment.
    """


class StoreRefused(StoreError):
    """The store refused this call. Other calls may succeed, so this does not count against the store.

    For example: out of memory, read-only, no permission, no free connection, a value that is too large or cannot be encoded.
    """


class TemporarilyUnavailable(StoreRefused):
    """Temporarily refused. Nothing changed, and other commands still work."""


class RecordExists(StoreError):
    """``create`` or ``rename`` found a record where it was to put one."""


class RecordGone(StoreError):
    """``update`` or ``rename`` found no record: the session was ended by someone else meanwhile."""


class RecordChanged(StoreError):
    """``update``, ``rename`` or ``delete`` found another revision than the one it was told to expect.

    ``current`` is the :class:`Record` as it is now, so that the caller can merge and try again without asking twice.
    """

    def __init__(self, current: object) -> None:
        super().__init__("the record was changed by someone else meanwhile")
        self.current = current


class RecordDamaged(StoreError):
    """There is something under the key, but it is not a record this package can read."""


class EndUnconfirmed(StoreError):
    """The server that was asked has ended the session. Too few replicas acknowledged in time.

    It does not count against the store.
    """


class TokenError(SessionError):
    """A refresh or access token that does not do."""


class TokenInvalid(TokenError):
    """It is none of ours, malformed, forged, or of a session that has ended."""


class TokenExpired(TokenError):
    """It was ours, and its time is over."""


class TokenReused(TokenError):
    """A refresh token that was spent before: the session has been ended."""


class RefreshFailed(SessionError):
    """A client could not refresh its access token for the moment. The user stays logged in: try again later.

    The cause is the error of httpx: of the network, a time-out, or ``HTTPStatusError`` for a status such as 503 or 429.
    """


class SessionReadOnly(SessionError):
    """The app tried to change or end a session that came with an access token."""


class SessionWarning(UserWarning):
    """The category of every Python warning of this package."""
