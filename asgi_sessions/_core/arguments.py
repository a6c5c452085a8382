"""Checks of arguments, shared by several public functions."""

from __future__ import annotations

import os
from collections.abc import Iterable
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

from asgi_sessions.errors import ConfigurationError


def several(name: str, value: Any, advice: str) -> tuple[Any, ...]:
    """Check an argument that takes a list, and return its members.

    A single string is refused, since its members are characters. The message never quotes the value, which may be a secret.

    Raises:
        ConfigurationError: it is not a list. The message ends with ``advice``.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        what = "a single string" if isinstance(value, str | bytes) else f"of type {type(value).__name__}"
        raise ConfigurationError(f"{name} is {what}: give a list, {advice}")
    return tuple(value)


def expect(name: str, value: object, *kinds: type) -> None:
    """Check the type of an argument.

    Raises:
        ConfigurationError: it has none of these types.
    """
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigurationError(f"{name} is of type {type(value).__name__}: give one of type {wanted}")


def expect_app(called: str, app: object, **predicates: object) -> None:
    """Check that the ``app`` and the predicates of a middleware can be called.

    Raises:
        ConfigurationError: one cannot. The message only has the type, since an argument in the wrong place may be a secret.
    """
    if not callable(app):
        raise ConfigurationError(f"{called}(app=<{type(app).__name__}>): give an ASGI app; it comes first")
    for name, predicate in predicates.items():
        if predicate is not None and (not callable(predicate) or iscoroutinefunction(predicate)):
            raise ConfigurationError(f"{called}({name}=…): give a plain function, not a coroutine function")


def whole(text: str, least: int, most: int) -> int | None:
    """Parse a whole number: ASCII digits only, without sign, space, ``_`` or leading zero.

    Returns ``None`` for other text and for a number out of bounds. Its time does not grow with the text.
    """
    if not (0 < len(text) <= len(str(most)) and text.isascii() and text.isdigit()) or (text[0] == "0" and text != "0"):
        return None
    return number if least <= (number := int(text)) <= most else None


def path_in(name: str, value: object) -> Path:
    """Check a path and return it.

    Raises:
        ConfigurationError: it is not a path, or contains NUL or a lone surrogate.
    """
    try:
        path = Path(value)  # type: ignore[arg-type]  # Path() checks it
        if b"\0" in os.fsencode(path):
            raise ValueError
    except (TypeError, ValueError):
        raise ConfigurationError(f"{name}: give a path, not {type(value).__name__} {ascii(value)[:60]}") from None
    return path
