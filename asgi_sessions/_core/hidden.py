"""Secrets on their way through our code.

Error collectors record the local variables of every function that an exception leaves, and the whole of its ``repr``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, Generic, ParamSpec, TypeVar, cast

from asgi_sessions.errors import SessionError

P = ParamSpec("P")
T = TypeVar("T")


class Hidden(Generic[T]):
    """A secret in a local variable: its ``repr`` tells nothing."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<hidden>"


def forgets_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """A decorator for functions and coroutine functions that are given secrets.

    An error of ours leaves them without the frames below, which hold the arguments.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except SessionError as error:
            raise _without_frames(error)  # noqa: B904 - the cause it has stays
        finally:
            del args, kwargs

    @wraps(function)
    async def call_later(*args: P.args, **kwargs: P.kwargs) -> Any:
        running: Any = function(*args, **kwargs)
        del args, kwargs
        try:
            return await running
        except SessionError as error:
            raise _without_frames(error)  # noqa: B904 - likewise

    return cast("Callable[P, T]", call_later) if iscoroutinefunction(function) else call


def _without_frames(error: SessionError) -> SessionError:
    if error.__suppress_context__:
        error.__context__ = None
    return error.with_traceback(None)
