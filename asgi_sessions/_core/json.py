"""Parses JSON from outside."""

from __future__ import annotations

import json
from typing import Any, TypeGuard


def json_in(body: bytes) -> dict[str, Any]:
    """The members of a JSON object in UTF-8 (RFC 8259, section 8.1).

    Raises:
        ValueError: it is not an object, nests too deep, or has a name twice, which parsers read differently (section 4).
    """
    try:
        found = json.loads(body.decode("utf-8"), object_pairs_hook=once, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it nests too deep") from None
    if not isinstance(found, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - about a text, like the others
    return found


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict.

    Raises:
        ValueError: a name is repeated.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is repeated")
    return found


def is_time(value: Any) -> TypeGuard[float]:
    """Whether a value is a NumericDate (RFC 7519, section 2): a number of seconds, and neither a bool nor NaN or infinite."""
    return type(value) in (int, float) and 0 <= value < 2**40


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
