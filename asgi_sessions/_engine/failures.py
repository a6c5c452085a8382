"""Failures of the store: the reason as safe text, and a log without repetitions.

Messages of drivers quote URLs with passwords, statements with parameters, and keys. So the message is cut at the first quote,
bracket with data, or ``password=``, unless it is followed by a name that is known to be harmless.
"""

from __future__ import annotations

import re
import threading
from asyncio import CancelledError
from collections.abc import Hashable, Iterator
from ipaddress import ip_address
from typing import Any, Final

from asgi_sessions.errors import SessionError

LONGEST_REASON: Final = 400
"""Characters of a reason. A log line of this length is still useful."""

LONGEST_MESSAGE: Final = 240
"""Characters of one error's message."""

MOST_CAUSES: Final = 8
"""The most errors of a chain that are read."""

QUIET: Final = 10.0
"""Seconds of the app's clock for which the same failure is only counted, not logged."""

MOST_KINDS: Final = 64
"""The most kinds of failures that are counted separately, so that ever new messages cannot fill the memory."""

CUT: Final = "…"

_CLASS_IN_FRONT = re.compile(r"^<class '[\w.]+'>: ")  # SQLAlchemy's adapter for asyncpg
_USER_INFO = re.compile(r"(\w://).*@", re.DOTALL)  # to the last @: a password may contain any character, even a newline
_LOCAL_PART = re.compile(r"[^\s@'\"`(),/]+@")
_LONELY_USER = re.compile(
    r"\w://[^\s/@]*:(?!\d{1,5}(?:[/?]|[.,;:)\]'\"]*(?:\s|$)))"
)  # a password instead of a port, without @ after it
_QUERY = re.compile(r"(\w://[^\s?]*\?).*")  # to the end: the end of an option is unknown
_DATA = re.compile(
    r"\[SQL:|\[parameters:|\(Background on|DETAIL:|Failing row|with args beginning|[{»«„“”‘’‚‹›]|\)=\(|"
    r"(?<![A-Za-z])(?:\w+[_-])?(?:password|passwd|passphrase|pwd|secret|token|cookie|session|auth|authorization|credentials?|api[_-]?key|key)"
    r"s?\b\s*[=:]\s*(?!(?:YES|NO)(?:\)|$)|…)(?=\S)",
    re.IGNORECASE,
)
_QUOTE = re.compile(r"(?<!\w)[bBrRuUfF]{0,2}(['\"`])")
_NAME = re.compile(r"[A-Za-z0-9_.$-]{1,64}")
_ADDRESS = re.compile(r"[A-Za-z0-9.-]{1,253}:\d{1,5}")
_NAMED_BEFORE = re.compile(
    r"(?:^|\W)(?:relation|table|database|schema|column|role|user|host|server on|server at|to server|command|plugin|module|"
    r"has no attribute|option|parameter|argument|extension|used memory >) $",
    re.IGNORECASE,
)
_NAMED_AFTER = (" object", " command")
_RUN = re.compile(r"[A-Za-z0-9_+/=~-]{12,}")
_WORD = r"(?:[a-z]+\d{0,3}|[A-Z]+|[A-Z]?[a-z]{2,}(?:[A-Z][a-z]{2,})*|\d{1,5})"
_WORDS = re.compile(rf"[/~-]*{_WORD}(?:[_+/=~-]+{_WORD})*[/~-]*")


_OUT_OF_TIME = (TimeoutError, CancelledError)
"""Errors that add no information to the error that they caused."""


def reason_of(error: BaseException) -> str:
    """The classes and messages of an error and its causes, on one line, without secrets and data.

    For example ``Redis is unreachable: ConnectionError: Error 111 connecting to 10.0.0.1:6379.``
    """
    reason = ""
    for each in _causes(error):
        message = _message_of(each)
        if isinstance(each, SessionError) and message:
            part = message = cleaned(str(each), LONGEST_REASON)  # our messages need no class in front
        else:
            part = f"{type(each).__name__}: {message}" if message else type(each).__name__
        part, message = part.removesuffix("."), message.removesuffix(".")
        if (
            part in reason
            or (message and message in reason)
            or (reason and not message and isinstance(each, _OUT_OF_TIME))
        ):
            continue
        reason = f"{reason}: {part}" if reason else part
    return _bounded(reason, LONGEST_REASON)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, without errors that only wrap another one."""
    seen: set[int] = set()
    current: Any = error
    while isinstance(current, BaseException) and id(current) not in seen and len(seen) < MOST_CAUSES:
        seen.add(id(current))
        if isinstance(current, BaseExceptionGroup):
            current = current.exceptions[0]
            continue
        wrapped = getattr(current, "orig", None)
        if isinstance(wrapped, BaseException) and hasattr(current, "statement"):
            current = wrapped  # SQLAlchemy's error quotes the statement and its parameters
            continue
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _message_of(error: BaseException) -> str:
    args = error.args
    try:
        if len(args) == 2 and type(args[0]) is int and isinstance(args[1], str) and not isinstance(error, OSError):
            return cleaned(f"{args[0]} {args[1]}")  # drivers for MySQL: str() would show a tuple
        return cleaned(str(error))
    except Exception:  # a faulty __str__
        return ""


def cleaned(message: str, longest: int = LONGEST_MESSAGE) -> str:
    """The first line of a driver's message, cut before the first part that may be a secret or data."""
    lines = _USER_INFO.sub(rf"\1{CUT}@", message[: longest * 8]).strip().splitlines()
    text = " ".join("".join(c if c.isprintable() else " " for c in lines[0]).split()) if lines else ""
    text = _CLASS_IN_FRONT.sub("", text)
    text = _up_to(_DATA, text)
    text = _up_to(_LONELY_USER, text)
    text = _LOCAL_PART.sub(f"{CUT}@", text)
    text = _QUERY.sub(rf"\1{CUT}", text)
    text = _without_quotes(text)
    text = _RUN.sub(lambda found: found[0] if _WORDS.fullmatch(found[0]) else CUT, text)
    return _bounded(text, longest)


def _up_to(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return f"{text[: found.start()]}{CUT}" if found else text


def _without_quotes(text: str) -> str:
    """``text`` up to the first quote, except for quoted names that are known to be harmless."""
    at, after_name = 0, -1
    while found := _QUOTE.search(text, at):
        end = text.find(found[1], found.end())
        quoted = text[found.end() : end] if end >= 0 else ""
        before = text[: found.start()]
        goes_on = before[-1:] in ("@", ".") and len(before) - 1 == after_name  # user 'app'@'10.0.0.1', table `a`.`b`
        is_name = _NAME.fullmatch(quoted) is not None and (
            goes_on or _NAMED_BEFORE.search(before) is not None or text[end + 1 :].startswith(_NAMED_AFTER)
        )
        if not (is_name or _ADDRESS.fullmatch(quoted) or _is_ip(quoted)):
            return f"{before}{CUT}"
        at = after_name = end + 1
    return text


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _bounded(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}{CUT}"


class FailureLog:
    """Counts the failures of one store, so that the log does not repeat them.

    The first failure of a kind is logged at once. Later there is at most one log line per :data:`QUIET` seconds, with the number
    of failures left out. Times are seconds of the app's clock, given by the caller. Several threads may use it.
    """

    __slots__ = ("_kinds", "_lock", "_outages", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        """Whether a kind of call failed and has not been answered since."""
        self._kinds: dict[Hashable, list[float]] = {}  # the time of the last log line, and the number left out since
        self._outages: dict[str, list[float]] = {}  # by way: the begin, the number of failures, whether one was logged
        self._lock = threading.Lock()

    def count(self, kind: tuple[str, ...], now: float) -> int | None:
        """The number of this kind that was left out since the last log line, or ``None`` to leave this one out too."""
        with self._lock:
            return self._count(kind, now)

    def failed(self, way: str, kind: tuple[str, ...], now: float) -> int | None:
        """As :meth:`count`, for a ``way`` of calls that may recover, such as reading."""
        with self._lock:
            left_out = self._count((way, *kind), now)
            outage = self._outages.setdefault(way, [now, 0, False])
            outage[1] += 1
            outage[2] = outage[2] or left_out is not None
            self.is_open = True
            return left_out

    def _count(self, kind: tuple[str, ...], now: float) -> int | None:
        name = tuple(re.sub(r"\d+", "0", part) for part in kind)
        if name not in self._kinds and len(self._kinds) >= MOST_KINDS:
            name = kind[:1]
        logged = self._kinds.get(name)
        if logged is None:
            self._kinds[name] = [now, 0]
            return 0
        if 0 <= now - logged[0] < QUIET:
            logged[1] += 1
            return None
        left_out = int(logged[1])
        logged[:] = now, 0
        return left_out

    def answered(self, way: str, now: float) -> tuple[float, int] | None:
        """For how many seconds a way had failed, and how often, or ``None`` for no log line.

        A store that fails now and then has no such line each time: only if its failure was logged, or after a while.
        """
        with self._lock:
            outage = self._outages.get(way)
            if outage is None or not (outage[2] or now - outage[0] >= QUIET):
                return None
            del self._outages[way]
            self.is_open = bool(self._outages)
            for name, logged in self._kinds.items():
                if isinstance(name, tuple) and name[0] == way:
                    logged[1] = 0  # the recovery line has the number
            return max(now - outage[0], 0.0), int(outage[1])
