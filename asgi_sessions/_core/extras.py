"""Says what to install when a module needs an extra."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Final

from asgi_sessions.errors import MissingExtra

_PACKAGE_OF: Final = {"jwt": "pyjwt", "opentelemetry": "opentelemetry-api"}
"""Packages whose name differs from that of their module."""


class needs:  # noqa: N801 - reads as a sentence: with needs("page", "asgi_sessions.page"): import jinja2
    """Wraps the imports of an extra. If one fails, the error says what to install.

    Raises:
        MissingExtra: a package is missing or too old, or another package has a module of the same name.
    """

    def __init__(self, extra: str, what: str) -> None:
        self._install = f"pip install 'asgi-server-sessions[{extra}]'"
        self._what = what

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Translate a failed import. Other errors pass."""
        if not isinstance(error, ImportError) or isinstance(error, MissingExtra):
            return
        while error.name is None and isinstance(error.__cause__, ImportError):
            error = error.__cause__  # SQLAlchemy's own, about greenlet
        module = (error.name or "").partition(".")[0]
        if module in ("", "asgi_sessions"):
            return
        package = _PACKAGE_OF.get(module, module.replace("_", "-"))
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise MissingExtra(f"{self._what} needs {package}: {self._install}", name=module) from error
        from importlib.metadata import packages_distributions  # only here: 20 ms

        others = [name for name in packages_distributions().get(module, ()) if name.lower() != package]
        if others:
            advice = f"pip uninstall {' '.join(others)}; pip install --force-reinstall {package}"
        else:
            advice = f"{self._install} --upgrade"
        found = getattr(sys.modules.get(module), "__file__", None)
        raise MissingExtra(
            f"{self._what} needs {package}, but the module {module} in {found} is another one or too old: {advice}",
            name=module,
        ) from error
