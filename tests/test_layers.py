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
LAYERS = {
    "_errors": 0,
    "_hidden": 0.5,  # it forgets the frames of our errors
    "_hmac": 0,
    "_loops": 0,
    "_origin": 0,
    "_processes": 0,
    "_types": 0,
    "_arguments": 0.5,  # these two raise errors
    "_extras": 0.5,
    "_address": 1,
    "_breaker": 1,
    "_deadline": 1,
    "_elsewhere": 1,
    "_failures": 1,
    "_token": 1,
    "_cookie": 1,
    "_timeouts": 1,
    "_cipher": 1,
    "_forms": 1,
    "_devices": 1.5,  # facts are sealed by the cipher, come from an address and end with the clock
    "_record": 1.5,  # a record is sealed by the cipher and names its owner as tokens do
    "_store": 2,
    "_session": 3,
    "_watch": 3,
    "_plan": 3.5,  # what one commit does to a session
    "_manager": 4,
    "_upkeep": 4.5,  # sweeps by a manager's rules
    "_middleware": 5,
}


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports when it runs."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in tree.body:  # what stands under TYPE_CHECKING or inside a function does not count
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("asgi_sessions"):
            found.add(node.module.removeprefix("asgi_sessions").removeprefix("."))
        elif isinstance(node, ast.Import):
            found.update(
                alias.name.removeprefix("asgi_sessions.")
                for alias in node.names
                if alias.name.startswith("asgi_sessions")
            )
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_the_core_imports_only_lower_layers(name: str) -> None:
    for imported in imports_of(PACKAGE / f"{name}.py"):
        assert imported in LAYERS, f"{name} imports {imported}, which is not of the core"
        assert LAYERS[imported] < LAYERS[name], f"{name} imports {imported}, which is not lower"


def test_every_file_of_the_core_has_its_layer() -> None:
    assert {path.stem for path in PACKAGE.glob("_*.py")} - {"__init__", "__main__"} == set(LAYERS)


@pytest.mark.parametrize("room", ["frameworks", "cli", "stores", "page", "tokens"])
def test_no_room_imports_another(room: str) -> None:
    others = {"frameworks", "cli", "page", "tokens"} - {room}
    if room == "cli":
        others -= {"page", "tokens"}  # the demo shows the page, and keygen makes keys
    for path in (PACKAGE / room).rglob("*.py"):
        for imported in imports_of(path):
            assert imported.split(".")[0] not in others, f"{path.name} imports {imported}"


def test_a_store_needs_two_imports() -> None:
    """Record and the errors. MemoryStore has two more for the sessions of users, and one to tell of their ends."""
    assert imports_of(PACKAGE / "stores" / "memory.py") == {
        "_devices",
        "_errors",
        "_record",
        "_store",
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
