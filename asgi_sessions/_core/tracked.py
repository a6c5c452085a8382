"""TrackedDict: a dict that notes reads and possible changes.

Loaded data can change unnoticed only in a list or dict that the app got from it. An app that reads one str changes nothing, so
nothing is compared (1.4 µs of the 15 of a read). An app that writes one key cannot have stored a refused value under another
(3.5 of the 34 of a write).
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from copy import deepcopy
from typing import Any, ClassVar, NoReturn, Self

_MUTABLE = frozenset((dict, list))
"""The types in a decoded payload that can be changed in place."""


class TrackedDict(dict[str, Any]):
    """A dict that notes each kind of read and write."""

    __slots__ = ("_accessed", "_dirty", "_maybe_changed", "_written")

    _accessed: bool
    """Whether the app has read or written anything."""
    _maybe_changed: set[str] | bool
    """Keys that were set, removed, or read as a list or dict. ``True`` means any key, ``False`` none."""
    _written: bool
    """Whether a method of the dict has set a value since it was last encoded."""
    _dirty: bool
    """Whether a method of the dict has set or removed a value since then."""

    _taken_names: ClassVar[frozenset[str]] = frozenset()
    """Keys that the app should not use for data."""

    def _warn_of_taken_name(self, name: str) -> None:
        """Called when the app sets such a key."""

    def _may_change(self, key: str) -> None:
        """Note that the value of this key may change from now on."""
        changed = self._maybe_changed
        if changed is False:
            self._maybe_changed = {key}
        elif changed is not True:
            changed.add(key)

    def _note_saved(self) -> None:
        """Note that the last encoded data is stored. From now on only lists and dicts can change unnoticed."""
        changed = self._maybe_changed
        if changed is not False and not self._dirty:
            keys = dict.keys(self) if changed is True else changed
            self._maybe_changed = {key for key in keys if type(dict.get(self, key)) in _MUTABLE} or False

    def __getitem__(self, key: str) -> Any:
        self._accessed = True
        value = dict.__getitem__(self, key)
        if type(value) in _MUTABLE:
            self._may_change(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._accessed = self._written = self._dirty = True
        self._may_change(key)
        if key in self._taken_names:
            self._warn_of_taken_name(key)
        dict.__setitem__(self, key, value)

    def __delitem__(self, key: str) -> None:
        self._accessed = self._dirty = True
        self._may_change(key)
        dict.__delitem__(self, key)

    def __contains__(self, key: object) -> bool:
        self._accessed = True
        return dict.__contains__(self, key)

    def __len__(self) -> int:
        self._accessed = True
        return dict.__len__(self)

    def __iter__(self) -> Iterator[str]:
        self._accessed = True
        return dict.__iter__(self)

    def __reversed__(self) -> Iterator[str]:
        self._accessed = True
        return dict.__reversed__(self)

    def __eq__(self, other: object) -> bool:
        self._accessed = True
        return dict.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        self._accessed = True
        return dict.__ne__(self, other)

    __hash__ = None

    def __or__(self, other: Any) -> Any:
        self._accessed = self._maybe_changed = True
        return dict.copy(self) | other

    def __ror__(self, other: Any) -> Any:
        self._accessed = self._maybe_changed = True
        return other | dict.copy(self)

    def __ior__(self, other: Any) -> Self:  # type: ignore[override]  # it stays a session
        self.update(other)
        return self

    def get(self, key: str, default: Any = None, /) -> Any:
        """As ``dict``. Noted as a read."""
        self._accessed = True
        value = dict.get(self, key, default)
        if type(value) in _MUTABLE:
            self._may_change(key)
        return value

    def keys(self) -> KeysView[str]:  # type: ignore[override]  # dict's own view type cannot be named
        """As ``dict``. Noted as a read."""
        self._accessed = True
        return dict.keys(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]  # dict's own view type cannot be named
        """As ``dict``. Noted as a read, and as a possible change of nested values."""
        self._accessed = self._maybe_changed = True
        return dict.values(self)

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]  # dict's own view type cannot be named
        """As ``dict``. Noted as a read, and as a possible change of nested values."""
        self._accessed = self._maybe_changed = True
        return dict.items(self)

    def copy(self) -> dict[str, Any]:
        """A plain dict with the same items. It is not a session, and changes to it are not saved."""
        self._accessed = self._maybe_changed = True
        return dict.copy(self)

    def clear(self) -> None:
        """Remove all data. That ends an anonymous session. A user stays logged in (see :meth:`destroy`)."""
        self._accessed = self._maybe_changed = self._dirty = True
        dict.clear(self)

    def pop(self, key: str, /, *default: Any) -> Any:
        """As ``dict``. Noted as a change of this key."""
        self._accessed = self._dirty = True
        self._may_change(key)
        return dict.pop(self, key, *default)

    def popitem(self) -> tuple[str, Any]:
        """As ``dict``. Noted as a change."""
        self._accessed = self._maybe_changed = self._dirty = True
        return dict.popitem(self)

    def setdefault(self, key: str, default: Any = None, /) -> Any:
        """As ``dict``. Noted as a change of this key."""
        self._accessed = self._written = self._dirty = True
        self._may_change(key)
        if key in self._taken_names:
            self._warn_of_taken_name(key)
        return dict.setdefault(self, key, default)

    def update(  # type: ignore[override]  # five overloads in typeshed, one method here
        self, other: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any
    ) -> None:
        """As ``dict``. Noted as a change."""
        self._accessed = self._maybe_changed = self._written = self._dirty = True
        dict.update(self, other, **more)
        for name in self._taken_names & dict.keys(self):
            self._warn_of_taken_name(name)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return deepcopy(self.copy(), memo)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled; use dict(session)")
