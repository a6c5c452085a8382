"""All errors of the package."""

from __future__ import annotations


class SessionError(Exception):
    """The base class of all errors of this package."""


class ConfigurationError(SessionError):
    """The app is configured wrongly. Raised when the app is built, with a message that says what to do."""


class MissingExtra(ConfigurationError, ImportError):
    """A module needs a missing extra. The message has the command that installs it."""


class SessionDataError(SessionError):
    """A value in the session cannot be stored unchanged. The message names its key."""


class ResponseStarted(SessionError):
    """A method was called too late: the response had started, so it could not carry the cookie any more."""


class SessionLimitReached(SessionError):
    """A log-in was refused. The user has as many sessions as ``Devices(max_sessions=…, at_limit="refuse")`` allows."""


class StoreError(SessionError):
    """A call of the store failed. The driver's error, if there is one, is the ``__cause__``.

    A store raises a subclass for the reason. A plain StoreError counts as :class:`StoreUnreachable`.
    """

    host: str | None = None
    """The server that failed, if the store has several. Without a password."""

    is_guess: bool = False
    """Whether other calls may succeed although this one had no reply: it had a connection of its own, for example."""


class StoreUnreachable(StoreError):
    """The store is unreachable: no connection, no reply in time, or an invalid reply.

    It counts against the store. After several in a row, calls fail at once for a moment.
    """


class StoreRefused(StoreError):
    """The store refused this call. Other calls may succeed, so this does not count against the store.

    For example: out of memory, read-only, no permission, no free connection, a value too large or impossible to encode.
    """


class TemporarilyUnavailable(StoreRefused):
    """The store refused this call for now. It changed nothing, and other calls still work."""


class RecordExists(StoreError):
    """``create`` or ``rename`` found another record under its key."""


class RecordGone(StoreError):
    """``update`` or ``rename`` found no record: another request ended the session meanwhile."""


class RecordChanged(StoreError):
    """``update``, ``rename`` or ``delete`` found another revision than the expected one.

    ``current`` is the current :class:`Record`, so that the caller can merge and try again without another load.
    """

    def __init__(self, current: object) -> None:
        super().__init__("another request changed the record meanwhile")
        self.current = current


class RecordDamaged(StoreError):
    """The value under the key is not a readable record."""


class EndUnconfirmed(StoreError):
    """The server ended the session, but too few replicas acknowledged it in time.

    It does not count against the store.
    """


class TokenError(SessionError):
    """A refresh or access token was refused."""


class TokenInvalid(TokenError):
    """The token is malformed, forged, from another issuer, or of an ended session."""


class TokenExpired(TokenError):
    """The token has expired."""


class TokenReused(TokenError):
    """A refresh token was used twice. The session has been ended."""


class RefreshFailed(SessionError):
    """A client could not refresh its access token for now. The user stays logged in. Try again later.

    The cause is the error of httpx: a network error, a timeout, or ``HTTPStatusError`` for a status such as 503 or 429.
    """


class SessionReadOnly(SessionError):
    """The app tried to change or end a session of an access token."""


class SessionWarning(UserWarning):
    """The category of all Python warnings of this package."""
