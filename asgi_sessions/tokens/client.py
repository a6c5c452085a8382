"""TokenAuth: an ``Auth`` of httpx and httpx2 that refreshes access tokens, once for all concurrent requests.

One request sends the refresh through its own client, with the same transport, proxy and time-outs. The other requests of the
event loop wait and share the outcome. After a failure the next request tries again.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
from anyio.lowlevel import RunVar

from asgi_sessions._core.extras import needs
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions.errors import ConfigurationError, RefreshFailed, TokenError

if TYPE_CHECKING:
    import httpx
    import httpx2  # type: ignore[import-not-found, unused-ignore]  # apps install one of them

    class _Auth(httpx.Auth, httpx2.Auth):  # type: ignore[misc]  # each has the types of its own requests
        """An ``Auth`` for both libraries."""

    class _AsyncByteStream(httpx.AsyncByteStream, httpx2.AsyncByteStream): ...

else:
    _libraries = []
    for _name in ("httpx", "httpx2"):
        try:
            _libraries.append(importlib.import_module(_name))
        except ModuleNotFoundError as _missing:
            if _missing.name != _name:
                raise
    if not _libraries:
        with needs("client", "TokenAuth"):  # no extra installs httpx2
            importlib.import_module("httpx")
    httpx = _libraries[0]
    # Each library accepts only instances of its own class. These classes derive from both.
    _Auth = type("_Auth", tuple(library.Auth for library in _libraries), {})
    _AsyncByteStream = type("_AsyncByteStream", tuple(library.AsyncByteStream for library in _libraries), {})

EARLY: Final = 30.0
"""Seconds before its expiry at which an access token is refreshed. A life under a minute is refreshed at its half."""

UNKNOWN_LIFE: Final = 60.0
"""Seconds for which an access token is used if its expiry is unknown."""

MAX_ANSWER: Final = 65536
"""Bytes read of the answer to a refresh. Our answers have 800."""

TRY_AGAIN: Final = frozenset({408, 425, 429})
"""4xx statuses without a verdict on the refresh token (RFC 9110, section 15.5.9, RFC 8470, RFC 6585)."""

_VISIBLE = re.compile(
    r"[\x21-\x7e]+"
)  # RFC 6749, appendix A.12 and A.17, without the space, which would end the token in a header

Keep = Callable[[str, str], Awaitable[None] | None]
_Origin = tuple[str, bytes, int | None]


class TokenAuth(_Auth):
    """``httpx.AsyncClient(auth=TokenAuth(…))``: sends the access token, and refreshes it before its expiry or after a 401.

    Works with httpx and with httpx2.

    The access token goes only to the servers in ``origins``, also after a redirect, except for httpx's own exception: from
    ``http://`` to ``https://`` of the same host. The refresh token goes only to ``url``: a redirect of the refresh is an error.
    Several clients and event loops can share one TokenAuth. A synchronous ``httpx.Client`` gets a ConfigurationError.

    Args:
        url: the URL of ``/token/refresh``.
        refresh_token: the last refresh token.
        access_token: the last access token, if you have one.
        keep: ``keep(access_token, refresh_token)``, a function or coroutine function. It stores both before they are used. If
            it raises, they are not used, and the next request calls it again. It must use another client for its requests.
        origins: ``scheme://host[:port]`` of each server that gets the access token. Default: the origin of ``url``.

    Raises:
        ConfigurationError: in the constructor, if a URL, an origin or a token cannot be used.
        RefreshFailed: in a request, if a refresh fails for now (no connection, a time-out, 5xx, 429, an answer without
            tokens). The user stays logged in, and the next request tries again.
        TokenError: in a request, if the token endpoint refuses the refresh token (4xx). The user must log in again.
    """

    @forgets_arguments
    def __init__(
        self,
        url: str,
        refresh_token: str,
        *,
        access_token: str = "",
        keep: Keep | None = None,
        origins: Iterable[str] | None = None,
    ) -> None:
        renew_at = time.monotonic() + UNKNOWN_LIFE if access_token else 0.0
        pair = _Pair(access_token, refresh_token, renew_at)
        if not pair.is_usable():
            raise ConfigurationError(
                "TokenAuth(refresh_token, access_token): give both as text of visible ASCII characters"
            )
        if isinstance(origins, str):
            raise ConfigurationError("TokenAuth(origins=…) is a single string: give a list, origins=[origin]")
        self._url = _parsed(url, "TokenAuth(url=…): give the https:// URL of the token endpoint, without a user")
        self._origins = frozenset({_origin(self._url)} if origins is None else map(_origin_given, origins))
        self._pair = self._kept = pair
        self._keep = keep
        # The running refresh of this event loop. Before 4.9, anyio keeps one value for all variables of a name (anyio #880).
        self._turn: RunVar[_Turn] = RunVar(f"TokenAuth {id(self)}")

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Raise ConfigurationError: a synchronous client cannot share a refresh."""
        raise ConfigurationError(
            "TokenAuth works with httpx.AsyncClient only: a synchronous client cannot share a refresh"
        )

    def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Send the access token, and refresh it if needed. httpx calls this for each request."""
        return _Told(self._steps(request))

    async def _steps(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        if _origin(request.url) not in self._origins:
            yield request
            return
        refused: _Pair | None = None
        while True:
            while self._pair is not self._kept or self._is_due(refused):
                running = self._turn.get(None)
                if running is not None:
                    if running in _KEEPING.get():
                        raise ConfigurationError(
                            "TokenAuth(keep=…) sends a request by the client that waits for keep(): use another client there"
                        )
                    if await running.has_succeeded():
                        break
                    continue  # the refreshing request was cancelled: a waiting request takes over
                with _Turn(self._turn) as turn:
                    if self._is_due(refused):
                        sent = self._pair
                        refresh = _refresh(sent, self._url, like=request)
                        response = yield refresh
                        if response.request is not refresh:  # httpx follows a 301, 302 or 303 with a GET
                            raise _redirected()
                        pair = await _pair_in(response, sent)
                        if self._pair is sent:  # otherwise another event loop was faster, and its tokens are newer
                            self._pair = pair
                    await self._keep_pair(turn)
                break
            used = self._pair
            request.headers["authorization"] = f"Bearer {used.access}"
            response = yield request
            if refused is not None or not self._refuses_token(response):
                return
            if not _can_be_sent_again(request):
                used.renew_at = 0.0  # the next request refreshes
                return
            await response.aread()  # frees its connection, which the refresh may need
            refused = used

    def _is_due(self, refused: _Pair | None) -> bool:
        pair = self._pair
        return pair is refused or time.monotonic() >= pair.renew_at

    def _refuses_token(self, response: httpx.Response) -> bool:
        # After a redirect to another origin, the request had no token of ours.
        return (
            response.status_code == 401
            and "invalid_token" in response.headers.get("www-authenticate", "")
            and _origin(response.request.url) in self._origins
        )

    async def _keep_pair(self, turn: _Turn) -> None:
        pair = self._pair
        if self._keep is not None and pair is not self._kept:
            outer = _KEEPING.get()
            _KEEPING.set((*outer, turn))
            try:
                waiting = self._keep(pair.access, pair.refresh)
                if waiting is not None:
                    await waiting
            except Exception as error:
                raise RefreshFailed(f"keep() failed, so the new tokens are not used: {type(error).__name__}") from error
            finally:
                _KEEPING.set(outer)
        self._kept = pair


@dataclass(slots=True, eq=False)
class _Pair:
    """The tokens of the last refresh. An object instead of two strings, because error collectors record local variables."""

    access: str
    refresh: str
    renew_at: float  # by the monotonic clock

    def __repr__(self) -> str:
        return "<tokens>"

    def is_usable(self) -> bool:
        tokens = (self.refresh, self.access) if self.access else (self.refresh,)
        return all(isinstance(token, str) and _VISIBLE.fullmatch(token) for token in tokens)


class _Turn:
    """One refresh in an event loop. The other requests of the loop wait for its end and share its outcome."""

    def __init__(self, running: RunVar[_Turn]) -> None:
        self._running = running
        self._ended = anyio.Event()
        self._succeeded = False
        self._failure: RefreshFailed | TokenError | None = None

    def __enter__(self) -> Self:
        self._before = self._running.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running.reset(self._before)
        self._ended.set()
        if error is None:
            self._succeeded = True
        elif isinstance(error, RefreshFailed | TokenError):
            self._failure = error
        elif isinstance(error, Exception):  # a cancellation concerns this request alone
            self._failure = RefreshFailed(
                f"the access token cannot be refreshed now ({type(error).__name__}); the user stays logged in: try again"
            )
            raise self._failure from error

    async def has_succeeded(self) -> bool:
        """Wait for the end. ``False``: the refreshing request was cancelled before there was an outcome.

        Raises:
            RefreshFailed, TokenError: the refresh failed.
        """
        await self._ended.wait()
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args) from self._failure.__cause__
        return self._succeeded


_KEEPING: Final[ContextVar[tuple[_Turn, ...]]] = ContextVar("asgi_sessions refreshes of this keep()", default=())
"""The refreshes that wait for the keep() which this code is a part of."""


class _Told(AsyncGenerator[httpx.Request, httpx.Response]):
    """Passes the error of a failed request on to the auth flow. httpx only closes the flow, while it handles that error."""

    def __init__(self, steps: AsyncGenerator[httpx.Request, httpx.Response]) -> None:
        self._steps = steps

    async def asend(self, value: httpx.Response, /) -> httpx.Request:
        return await self._steps.asend(value)

    async def athrow(self, *error: Any) -> httpx.Request:
        return await self._steps.athrow(*error)

    async def aclose(self) -> None:
        error = sys.exception()
        if error is None or isinstance(error, StopAsyncIteration):
            await self._steps.aclose()
            return
        try:
            await self._steps.athrow(error)
        except StopAsyncIteration:
            pass
        except BaseException as raised:
            if raised is not error:
                raise


class _Body(_AsyncByteStream):
    """The body of a refresh. It can be read once, so a client that follows a redirect cannot send it again."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._is_spent = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self._is_spent:
            raise _redirected()
        self._is_spent = True
        return self._parts()

    async def _parts(self) -> AsyncIterator[bytes]:
        yield self._content

    async def whole(self) -> bytes:
        self._is_spent = True
        return self._content


def _refresh(pair: _Pair, url: httpx.URL, *, like: httpx.Request) -> httpx.Request:
    """The request that exchanges the refresh token, with the time-outs and the User-Agent of ``like``."""
    headers = {name: like.headers[name] for name in ("user-agent",) if name in like.headers}
    headers |= {"accept": "application/json", "accept-encoding": "identity"}
    extensions = {name: like.extensions[name] for name in ("timeout",) if name in like.extensions}
    request = type(like)("POST", str(url), json={"refresh_token": pair.refresh}, headers=headers, extensions=extensions)
    request.stream = body = _Body(request.content)
    request.aread = body.whole  # type: ignore[method-assign]  # test transports read the body in this way
    return request


async def _pair_in(response: httpx.Response, sent: _Pair) -> _Pair:
    """The tokens of an answer in the form of RFC 6749, section 5.1.

    Raises:
        RefreshFailed: the answer has no tokens. TokenError: the token endpoint refused the refresh token.
    """
    status = response.status_code
    if 400 <= status < 500 and status not in TRY_AGAIN:
        raise TokenError(f"the token endpoint refused the refresh ({status}): log in again")
    if not 200 <= status < 300:
        try:
            response.raise_for_status()
        except Exception as error:
            raise RefreshFailed(f"the token endpoint answered {status}; the user stays logged in: try again") from error
    body = bytearray()
    chunk = b""
    try:
        if "content-encoding" in response.headers:
            raise _nonsense()  # the request forbids compression, since a small answer may expand to a large one
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_ANSWER:
                break
        else:
            pair = _pair_of(body, sent)
            if pair is not None:
                response._content = bytes(body)  # the client reads the answer again before it sends the next request
                return pair
    finally:
        del body, chunk
    raise _nonsense()


def _redirected() -> RefreshFailed:
    return RefreshFailed("the token endpoint redirects, and a refresh token is not sent on: give its final URL")


def _nonsense() -> RefreshFailed:
    return RefreshFailed(
        "the token endpoint answered with something other than tokens; the user stays logged in: try again"
    )


def _pair_of(body: bytearray, sent: _Pair) -> _Pair | None:
    """The tokens in a body, or ``None``. If the server sends no refresh token, the old one stays valid."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or str(said.get("token_type", "bearer")).lower() != "bearer":
        return None
    life = said.get("expires_in", UNKNOWN_LIFE * 2)
    if isinstance(life, bool) or not isinstance(life, int | float) or not 0 <= life < math.inf:
        return None
    renew_at = time.monotonic() + max(life - EARLY, life / 2)
    pair = _Pair(said.get("access_token", ""), said.get("refresh_token", sent.refresh), renew_at)
    return pair if pair.access and pair.is_usable() else None


def _can_be_sent_again(request: httpx.Request) -> bool:
    try:
        return isinstance(request.content, bytes)
    except RuntimeError:  # raised by httpx if the body is a stream, which has been sent
        return False


def _origin(url: httpx.URL) -> _Origin:
    """Scheme, host and port as httpx normalizes them: lower case, IDNA, without the default port."""
    return url.scheme, url.raw_host, url.port


def _origin_given(origin: object) -> _Origin:
    advice = "TokenAuth(origins=[…]): give 'scheme://host' or 'scheme://host:port' each, without a path or a user"
    url = _parsed(origin, advice)
    if url.raw_path != b"/" or url.fragment:
        raise ConfigurationError(advice)
    return _origin(url)


def _parsed(url: object, advice: str) -> httpx.URL:
    try:
        found = httpx.URL(url)  # type: ignore[arg-type]  # it raises a TypeError for a value that is not text
    except (httpx.InvalidURL, TypeError, UnicodeError):
        raise ConfigurationError(advice) from None
    if found.scheme not in ("http", "https") or not found.host or found.userinfo:
        raise ConfigurationError(advice)
    return found
