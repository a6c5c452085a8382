"""Puts ``llms.txt`` and ``SKILL.md`` into the wheel. ``docs/agents.py`` makes them from the pages."""

from __future__ import annotations

import runpy
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    _made: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        write = runpy.run_path(str(Path(self.root) / "docs" / "agents.py"))["write"]
        self._made = Path(tempfile.mkdtemp())
        write(self._made)
        build_data["force_include"][str(self._made)] = "asgi_sessions"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._made is not None:
            shutil.rmtree(self._made)
