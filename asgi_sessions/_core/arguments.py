"""Checks of arguments that several public functions share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

from asgi_sessions.errors import ConfigurationError


def several(name: str, value: Any, advice: str) -> tuple[Any, ...]:
    """The members of an argument that takes a list.

    A single string is refused: its members would be characters. The message never quotes the value, which may be a secret.

    Raises:
        ConfigurationError: it is none, with ``advice``.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        what = "a single string" if isinstance(value, str | bytes) else f"a {type(value).__name__}"
        raise ConfigurationError(f"{name} is {what}: give a list, {advice}")
    return tuple(value)


def expect(name: str, value: object, *kinds: type) -> None:
    """Refuse an argument of another type.

    Raises:
        ConfigurationError: it is none of ``kinds``.
    """
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigurationError(f"{name} is a {type(value).__name__}: give a {wanted}")


def expect_app(called: str, app: object, **predicates: object) -> None:
    """Refuse the ``app`` or a predicate of a middleware if they cannot be called.

    Raises:
        ConfigurationError: with the type only, since an argument in the wrong place may be a secret.
    """
    if not callable(app):
        raise ConfigurationError(f"{called}(app=<{type(app).__name__}>): give an ASGI app; it comes first")
    for name, predicate in predicates.items():
        if predicate is not None and (not callable(predicate) or iscoroutinefunction(predicate)):
            raise ConfigurationError(f"{called}({name}=…): give a plain function, not a coroutine function")


def whole(text: str, least: int, most: int) -> int | None:
    """The whole number that ``text`` writes: decimal digits of ASCII and nothing else, so no sign, space, ``_`` or leading zero.

    ``None`` for anything else, and for a number out of bounds. No text takes longer than the largest number that is allowed.
    """
    if not (0 < len(text) <= len(str(most)) and text.isascii() and text.isdigit()) or (text[0] == "0" and text != "0"):
        return None
    return number if least <= (number := int(text)) <= most else None


def path_in(name: str, value: object) -> Path:
    """A path that the system can be asked for.

    Raises:
        ConfigurationError: it is no path, or holds what no path can (NUL, a lone surrogate).
    """
    try:
        path = Path(value)  # type: ignore[arg-type]  # what it takes is what is to be found out
        if b"\0" in os.fsencode(path):
            raise ValueError
    except (TypeError, ValueError):
        raise ConfigurationError(f"{name}: give a path; {type(value).__name__} {ascii(value)[:60]} is none") from None
    return path
