"""The shape of the package: imports go down, the public names are the public names, and nothing heavy is imported for nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import asgi_sessions
from tests.public import Public, callables

PACKAGE = Path(asgi_sessions.__file__).parent
LAYERS = ("core", "engine", "sessions", "asgi", "public")
"""From the lowest. Each may import itself and what is below it. ``sessions.py`` is a layer: what all of ``_asgi`` is given."""

DBSC = {"_keeper": "engine", "_binder": "asgi", "_answers": "asgi"}
"""The layers of the modules of ``dbsc`` that are not pure."""

MAX_CLASS = 300
MAX_FUNCTION = 40

LONG_CLASSES = {
    "_core/session.py::Session": "what apps read: its attributes and verbs, two thirds of it docstrings",
}
"""Classes of more than ``MAX_CLASS`` lines, and why."""

LONG_FUNCTIONS = {
    "_asgi/middleware.py::SessionMiddleware.__call__": "the way to the app in one frame: another one costs every await 0.15 µs",
    "_engine/commit.py::Committer.commit": "from the request to the calls in one frame: two more cost 1.5 % of a write",
    "_core/cookie.py::CookieConfig.__post_init__": "one check for each attribute, each with its message",
    "_engine/load.py::Loader.load": "one question and a plain answer in one frame: six more cost 3 µs of 12",
    "_core/planner.py::Planner._next": "the fields of a record and its body, in one place and one frame",
}
"""Functions of more than ``MAX_FUNCTION`` lines, and why."""

SIZES = {
    "_core": (4912, 2000),
    "_engine": (4106, 1300),
    "_asgi": (1028, 750),
}
"""Lines of each private package: the bound, which gets larger only with a new feature, and the target of the design."""


def layer_of(file: str) -> str:
    """The layer of a file, named by its path in the package."""
    first, _, rest = file.partition("/")
    if first == "dbsc":  # its pure parts and its ASGI parts, apart
        return DBSC.get(rest.removesuffix(".py"), "core")
    if first.removesuffix(".py") == "sessions":
        return "sessions"
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


def lengths(*kinds: type[ast.AST]) -> dict[str, int]:
    """The lines of every class or function of the private packages, without its decorators."""
    found: dict[str, int] = {}

    def visit(node: ast.AST, name: str, mark: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = f"{name}{mark}{child.name}"
                if isinstance(child, kinds):
                    found[inner] = (child.end_lineno or child.lineno) - child.lineno + 1
                visit(child, inner, ".")
            else:
                visit(child, name, mark)

    for path in private().values():
        visit(ast.parse(path.read_text()), path.relative_to(PACKAGE).as_posix(), "::")
    return found


@pytest.mark.parametrize(
    ("kinds", "most", "allowed"),
    [
        pytest.param((ast.ClassDef,), MAX_CLASS, LONG_CLASSES, id="classes"),
        pytest.param((ast.FunctionDef, ast.AsyncFunctionDef), MAX_FUNCTION, LONG_FUNCTIONS, id="functions"),
    ],
)
def test_what_is_long_has_a_reason(kinds: tuple[type[ast.AST], ...], most: int, allowed: dict[str, str]) -> None:
    """The list is exact: what got shorter leaves it. With ``-s`` this prints the ten longest."""
    found = lengths(*kinds)
    longest = sorted(found, key=lambda name: found[name], reverse=True)
    for name in longest[:10]:
        print(f"{found[name]:5} {name}")

    assert {name for name in longest if found[name] > most} == set(allowed)


@pytest.mark.parametrize("package", SIZES)
def test_the_private_packages_only_shrink(package: str) -> None:
    bound, target = SIZES[package]
    size = sum(len(path.read_text().splitlines()) for path in (PACKAGE / package).rglob("*.py"))
    print(f"{package}: {size} lines, the bound is {bound}, the target {target}")

    assert size <= max(bound, target), (
        f"{package} has {size} lines; where code moved between packages, move the bounds by as much"
    )


@pytest.mark.parametrize("part", ["activity", "frameworks", "cli", "identity", "stores", "page", "tokens"])
def test_no_part_imports_another(part: str) -> None:
    others = {"activity", "frameworks", "cli", "identity", "page", "tokens"} - {part}
    if part == "cli":
        others -= {
            "activity",
            "page",
            "tokens",
        }  # the demo shows the page and warns before the end, and keygen makes keys
    for path in (PACKAGE / part).rglob("*.py"):
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
        "DeviceBound",
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
        "Sessions",
        "StoreError",
        "Timeouts",
        "UserSessions",
    ]


@pytest.mark.parametrize(
    ("program", "imported"),
    [
        ("import asgi_sessions", ""),
        ("import asgi_sessions.cli", ""),
        ("import asgi_sessions; asgi_sessions.RedisStore", "redis"),
        ("import asgi_sessions; asgi_sessions.SQLStore", "sqlalchemy"),
    ],
)
def test_what_takes_long_to_import_is_imported_when_it_is_asked_for(program: str, imported: str) -> None:
    heavy = "fastapi litestar quart uvicorn httpx pytest trio jinja2 redis sqlalchemy"
    program += f"; import sys; print(*(name for name in {heavy.split()} if name in sys.modules))"

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == imported


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert asgi_sessions.__version__ == version("asgi-server-sessions")


@pytest.mark.parametrize("public", callables(), ids=lambda each: each.name)
def test_everything_public_has_a_docstring(public: Public) -> None:
    """Of its own: an inherited one is that of another class."""
    assert (getattr(public.call, "__doc__", None) or "").strip(), public.name
