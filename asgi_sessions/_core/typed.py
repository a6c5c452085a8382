"""Typed values: converts objects of the app to payload types and back, with msgspec or pydantic."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from asgi_sessions.errors import SessionDataError

T = TypeVar("T")

_KEPT = (bytes, datetime)
"""Types of a payload beyond JSON."""


def to_plain(value: object) -> Any:
    """Convert a value to JSON types, ``bytes`` and ``datetime``.

    Raises:
        SessionDataError: neither msgspec nor pydantic can convert it.
    """
    try:
        return _listed(msgspec.to_builtins(value, builtin_types=_KEPT, str_keys=True, enc_hook=_of_pydantic))
    except (TypeError, ValueError, RecursionError, NotImplementedError) as error:
        raise SessionDataError(f"a value of type {type(value).__name__} cannot be kept in a session: {error}") from None


def from_plain(value: object, kind: type[T]) -> T:
    """Convert a value of :func:`to_plain` to an object of this type.

    Raises:
        SessionDataError: the value does not fit the type.
    """
    try:
        if _is_pydantic(kind):
            found: T = _adapter(kind).validate_python(value)
            return found
        return msgspec.convert(value, kind, builtin_types=_KEPT, strict=False, str_keys=True, dec_hook=_to_pydantic)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        # The text of pydantic's errors contains the value. It must not reach logs and error collectors.
        why = f"{error.error_count()} errors" if hasattr(error, "error_count") else str(error)
        raise SessionDataError(f"what is stored does not fit {getattr(kind, '__name__', kind)}: {why}") from None
    except TypeError as error:
        raise SessionDataError(f"{kind!r} is no type that msgspec or pydantic can convert to: {error}") from None


def _listed(value: Any) -> Any:
    """Return the value with lists instead of tuples, since msgspec leaves tuples as they are."""
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value


def _is_pydantic(kind: object) -> bool:
    return hasattr(kind, "__pydantic_validator__")


def _of_pydantic(value: Any) -> Any:
    """Convert a pydantic model or dataclass within another object."""
    if not _is_pydantic(type(value)):
        raise NotImplementedError(f"msgspec does not know a {type(value).__name__}")
    return _adapter(type(value)).dump_python(value, mode="json")


def _to_pydantic(kind: type, value: Any) -> Any:
    if not _is_pydantic(kind):
        raise TypeError(f"msgspec does not know {kind.__name__}")
    return _adapter(kind).validate_python(value)


def _made(kind: Any) -> Any:
    from pydantic import TypeAdapter  # installed, since the type is pydantic's

    return TypeAdapter(kind)


_adapter: Callable[[Any], Any] = lru_cache(maxsize=256)(_made)
