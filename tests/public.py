"""What the package offers: every public callable, found by looking. For tests that must hold for all of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import asgi_sessions


def modules() -> Iterator[ModuleType]:
    """The modules that an app may import: no part of their name begins with an underscore."""
    yield asgi_sessions
    for found in pkgutil.walk_packages(asgi_sessions.__path__, "asgi_sessions."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def names(module: ModuleType) -> list[str]:
    """What a module exports: ``__all__``, or else the public names of what it defines."""
    if (exported := getattr(module, "__all__", None)) is not None:
        return list(exported)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


@dataclass(frozen=True)
class Public:
    """One public function, class or method."""

    name: str
    """``Sessions.list``"""
    call: Callable[..., Any]
    owner: type | None
    """The class that an instance is needed of; ``None``: of none."""


def callables() -> list[Public]:
    """Each once, under the first module that exports it."""
    found: dict[int, Public] = {}
    for module in modules():
        for name in names(module):
            value = getattr(module, name)
            if not callable(value) or id(value) in found or not _is_ours(value):
                continue
            found[id(value)] = Public(name, value, None)
            if inspect.isclass(value):
                for each in _methods(value):
                    found[id(each)] = each
    return list(found.values())


def _methods(owner: type) -> Iterator[Public]:
    for name in dir(owner):
        kept = inspect.getattr_static(owner, name)
        function = getattr(kept, "__func__", kept)
        if name.startswith("_") or not inspect.isfunction(function) or not _is_ours(function):
            continue
        bound = isinstance(kept, classmethod | staticmethod)
        yield Public(f"{owner.__name__}.{name}", getattr(owner, name), None if bound else owner)


def _is_ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] == "asgi_sessions"
