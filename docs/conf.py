"""The documentation site: ``make docs`` builds it from the pages as they are, and from the docstrings. A warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import agents  # noqa: E402
from sphinx.util import logging  # noqa: E402 - what follows is of this checkout

import asgi_sessions  # noqa: E402
from tests.public import modules, names  # noqa: E402

project = "asgi-server-sessions"
author = "The asgi-server-sessions authors"
copyright = f"2026, {author}"
release = asgi_sessions.__version__

# The source is the whole checkout, so that a link from a page to CHANGELOG.md or a benchmark is a link in the site, too.
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    *("CHANGELOG.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md"),
    "benchmarks/*.md",
]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["misc.highlighting_failure"]  # a program may await at its top level

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
autoclass_content = "class"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sourcelink = False
html_extra_path = ["site"]
html_favicon = "site/favicon.svg"


_plain: dict[str, list[str]] = {}


def _before_napoleon(_app: Any, what: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in the docstring of an attribute for its type. It is text here."""
    if what in ("attribute", "data", "property"):
        _plain[name] = list(lines)


def _after_napoleon(_app: Any, _what: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    if (plain := _plain.pop(name, None)) is not None:
        lines[:] = plain


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=600)
    app.connect("env-check-consistency", _miss_public_names)
    app.connect("build-finished", lambda app, error: error or agents.write_site(Path(app.outdir)))


def _miss_public_names(_app: Any, env: Any) -> None:
    """A public name that the reference does not show, because it has no docstring or is on no page, is a warning."""
    shown = {name.removeprefix("asgi_sessions.").rpartition(".")[2] for name in env.domains["py"].objects}
    for module in modules():
        for name in sorted(set(names(module)) - shown):
            if isinstance(getattr(module, name), TypeVar):
                continue
            logging.getLogger(__name__).warning(
                "%s.%s is not in docs/api.md, or has no docstring", module.__name__, name
            )
