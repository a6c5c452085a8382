"""Hidden: keeps secrets out of error reports.

Error collectors record the ``repr`` of all local variables of every function in a traceback.
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
    """A secret in a local variable, with a ``repr`` that does not show it."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<hidden>"


def forgets_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function or coroutine function with secrets as arguments.

    Our errors leave it without the inner frames, since these hold the arguments.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except SessionError as error:
            raise _without_frames(error)  # noqa: B904 - its cause stays
        finally:
            del args, kwargs

    @wraps(function)
    async def call_later(*args: P.args, **kwargs: P.kwargs) -> Any:
        running: Any = function(*args, **kwargs)
        del args, kwargs
        try:
            return await running
        except SessionError as error:
            raise _without_frames(error)  # noqa: B904 - its cause stays

    return cast("Callable[P, T]", call_later) if iscoroutinefunction(function) else call


def _without_frames(error: SessionError) -> SessionError:
    if error.__suppress_context__:
        error.__context__ = None
    return error.with_traceback(None)
