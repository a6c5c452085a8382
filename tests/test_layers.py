"""The shape of the house: imports go down, the public names are the public names, and nothing heavy is imported for nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import asgi_sessions
from tests.public import Public, callables

PACKAGE = Path(asgi_sessions.__file__).parent
LAYERS = ("core", "engine", "asgi", "public")
"""From the lowest. Each may import itself and what is below it."""

Tree = ast.Module


def layer_of(file: str) -> str:
    """The layer of a file, named by its path in the package."""
    first = file.split("/")[0]
    return first.removeprefix("_") if first in ("_core", "_engine", "_asgi") else "public"


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name within it."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def imports_of(path: Path, *, typing_too: bool = True) -> set[str]:
    """The modules of this package that a file imports at its top level."""
    found: set[str] = set()
    nodes = ast.parse(path.read_text()).body
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and typing_too and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.body
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("asgi_sessions"):
            base = node.module.removeprefix("asgi_sessions").removeprefix(".")
            inner = {f"{base}.{each.name}".removeprefix(".") for each in node.names} & set(modules())
            found |= inner or {base}
        elif isinstance(node, ast.Import):
            found |= {
                each.name.removeprefix("asgi_sessions.") for each in node.names if each.name.startswith("asgi_sessions")
            }
    return found - {""}


def private() -> dict[str, Path]:
    return {name: path for name, path in modules().items() if layer_of(name.replace(".", "/")) != "public"}


@pytest.mark.parametrize("name", sorted(private()))
def test_imports_go_down(name: str) -> None:
    here = LAYERS.index(layer_of(name.replace(".", "/")))
    for imported in imports_of(private()[name]) - {"errors"}:
        assert LAYERS.index(layer_of(imported.replace(".", "/"))) <= here, (
            f"{name} imports {imported}, which is above it"
        )


def test_errors_import_nothing_of_ours() -> None:
    assert imports_of(PACKAGE / "errors.py") <= {"_core.types"}


def test_no_private_module_is_part_of_a_cycle() -> None:
    left = {name: imports_of(path) & set(private()) for name, path in private().items()}
    while leaves := {name for name, imported in left.items() if not imported}:
        left = {name: imported - leaves for name, imported in left.items() if name not in leaves}
    assert not left, f"these import each other: {left}"


@pytest.mark.parametrize("room", ["frameworks", "cli", "stores", "page", "tokens"])
def test_no_part_imports_another(room: str) -> None:
    others = {"frameworks", "cli", "page", "tokens"} - {room}
    if room == "cli":
        others -= {"page", "tokens"}  # the demo shows the page, and keygen makes keys
    for path in (PACKAGE / room).rglob("*.py"):
        for imported in imports_of(path, typing_too=False):
            assert imported.split(".")[0] not in others, f"{path.name} imports {imported}"


def test_a_store_needs_two_imports() -> None:
    """Record and the errors. MemoryStore has more for the history of users, and to tell of their ends."""
    assert imports_of(PACKAGE / "stores" / "memory.py") == {
        "_core.history",
        "_core.record",
        "_engine.contract",
        "errors",
        "stores._listeners",
    }


def test_the_public_names_are_the_public_names() -> None:
    for name in asgi_sessions.__all__:
        assert getattr(asgi_sessions, name, None) is not None
    assert sorted(asgi_sessions.__all__) == [
        "ConfigurationError",
        "CookieConfig",
        "Devices",
        "Event",
        "MemoryStore",
        "RedisStore",
        "ResponseStarted",
        "SQLStore",
        "Session",
        "SessionDataError",
        "SessionError",
        "SessionLimitReached",
        "SessionMiddleware",
        "SessionWarning",
        "StoreError",
        "Timeouts",
        "UserSessions",
    ]


def test_importing_the_package_imports_no_framework_and_no_server() -> None:
    program = (
        "import sys, asgi_sessions; "
        "print(sorted(m for m in ('fastapi', 'litestar', 'quart', 'uvicorn', 'httpx', 'pytest', 'trio') if m in sys.modules))"
    )

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert asgi_sessions.__version__ == version("asgi-server-sessions")


@pytest.mark.parametrize("public", callables(), ids=lambda each: each.name)
def test_everything_public_has_a_docstring(public: Public) -> None:
    """Of its own: an inherited one is that of another class."""
    assert (getattr(public.call, "__doc__", None) or "").strip(), public.name
