"""The documents say what is so: their programs run, what they claim to print is printed, their tables agree with the code."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import os
import re
import socket
import subprocess
import sys
import textwrap
import time
import types
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

import asgi_sessions
from asgi_sessions import Timeouts, errors
from asgi_sessions._core.plan import COMMIT_TABLE
from tests.failover.test_failover import ROWS
from tests.markdown import DOCS, ROOT, Block, agrees, anchors, blocks, compiled, links, name_of, pages, prose, rows, run
from tests.ports import free_port
from tests.test_layers import layer_of

README = ROOT / "README.md"
DESIGN = DOCS / "design.md"

each_page = pytest.mark.parametrize("page", pages(), ids=name_of)


def of_language(page: Path, language: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == language]


WITH_PYTHON = [page for page in pages() if of_language(page, "python")]


# ── Programs ──


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
async def test_the_programs_of_a_page_run_and_print_what_it_says(
    page: Path, monkeypatch: pytest.MonkeyPatch, valkey_url: str
) -> None:
    """Top to bottom, as one program. A ``fragment`` is only compiled; a ``pytest`` block is run by pytest, see below.

    An ``apps`` block needs packages of another environment, and is run in ``tests/apps/test_page.py``.
    """
    monkeypatch.setenv("REDIS_URL", valkey_url)
    module = types.ModuleType("a_page")  # a real one: frameworks look up where a function came from
    module.__file__ = str(page)
    monkeypatch.setitem(sys.modules, "a_page", module)
    names = vars(module)
    printed: str | None = None

    for block in blocks(page):
        if block.language == "python" and not block.marks:
            assert not printed, f"{block.where}: something was printed before this, and the page does not say so"
            printed = await run(block, names)
        elif block.language == "python":
            assert block.marks <= {"fragment", "pytest", "apps"}, block.where
            compiled(block)
        elif "output" in block.marks:
            assert printed is not None, f"{block.where}: the output of nothing"
            assert agrees(block.text, printed), f"{block.where} claims\n{block.text}\nbut there came\n{printed}"
            printed = None
    assert not printed, f"{name_of(page)}: something was printed that the page does not tell of:\n{printed}"


def test_the_tests_that_pages_show_pass(tmp_path: Path) -> None:
    """All in one go, as their reader would run them: pytest with anyio's plugin, and warnings are errors."""
    for page in WITH_PYTHON:
        tests = [block.text for block in of_language(page, "python") if "pytest" in block.marks]
        if tests:
            (tmp_path / f"test_{page.stem}.py").write_text("\n\n".join(tests), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nanyio_mode = auto\nfilterwarnings =\n"
        "    error\n"
        # Starlette's TestClient prefers another client now; which one a reader has is no matter of ours.
        "    ignore:Using .httpx. with .starlette.testclient. is deprecated\n",
        encoding="utf-8",
    )

    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "anyio.pytest_plugin", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {path.stem for path in tmp_path.glob("test_*.py")} == {"test_pytest", "test_own-store", "test_testing"}


def test_what_a_page_shows_of_the_example_of_a_store_is_in_it() -> None:
    example = (ROOT / "examples" / "file_store.py").read_text(encoding="utf-8")
    shown = [block.text for block in of_language(DOCS / "own-store.md", "python") if "fragment" in block.marks]

    assert len(shown) == 2
    for text in shown:
        assert textwrap.indent(text, "    ") in example


# ── What README shows ──


class Served:
    """A program of a page behind uvicorn, as its reader would start it."""

    def __init__(self, program: str, directory: Path) -> None:
        (directory / "app.py").write_text(program, encoding="utf-8")
        self.port = free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "app:app", "--port", str(self.port), "--log-level", "warning"],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def __enter__(self) -> Self:
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            time.sleep(0.02)
        raise RuntimeError("uvicorn did not start")

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()

    def ask(self, path: str, cookie: str = "") -> str:
        """The response as ``curl -i`` shows it."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
        response = connection.getresponse()
        head = "".join(f"{name}: {value}\n" for name, value in response.getheaders())
        body = response.read().decode("utf-8")
        connection.close()
        return f"HTTP/1.1 {response.status} {response.reason}\n{head}\n{body}" + ("" if body.endswith("\n") else "\n")


TOKEN = re.compile(r"(?<==)[A-Za-z0-9_-]{46}(?=;)")


def unlike(text: str) -> str:
    """What differs from one run to the next, made alike."""
    return re.sub(r"^date: .*$", "date: now", TOKEN.sub("token", text), flags=re.MULTILINE)


@pytest.mark.parametrize("kept_in", ["memory", "valkey"])
def test_readme_shows_what_its_program_really_sends(
    kept_in: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    program = of_language(README, "python")[0].text
    if kept_in == "valkey":  # as the text below the program says
        url = request.getfixturevalue("valkey_url")
        program = program.replace("MemoryStore()", f'RedisStore.from_url("{url}")').replace("MemoryStore", "RedisStore")
    (shown,) = of_language(README, "console")
    command, claimed = shown.text.split("\n", 1)

    with Served(program, tmp_path) as server:
        first = server.ask(urlsplit(command.removeprefix("$ curl -i ")).path)
        cookie = re.findall(r"^set-cookie: ([^;]+)", first, flags=re.MULTILINE)[0]
        second = server.ask("/", cookie)

    assert unlike(first) == unlike(claimed)
    assert "set-cookie" not in second
    assert second.endswith('\n{"tea":2}\n')


def test_readme_begins_with_its_program() -> None:
    """The first screen is a program that runs, and what it prints."""
    first, second = blocks(README)[:2]

    assert first.language == "python"
    assert len([line for line in first.text.splitlines() if line]) <= 15
    assert second.language == "console"
    assert second.line + second.text.count("\n") < 45


def test_the_program_of_readme_is_the_one_that_the_type_checkers_see() -> None:
    checked = (ROOT / "tests" / "typing" / "readme.py").read_text(encoding="utf-8")

    assert checked.partition('"""\n\n')[2] == of_language(README, "python")[0].text


def test_readme_compares_with_the_versions_that_are_tested() -> None:
    """A new version of another package is a reason to look at its column again."""
    groups = "".join((ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[dependency-groups]")[2])

    for package, version in re.findall(
        r"(starsessions|fastapi-redis-sdk) (\d[\d.]+)", README.read_text(encoding="utf-8")
    ):
        assert re.search(rf'"{package}(\[\w+\])?=={re.escape(version)}"', groups), package


# ── Links and names ──


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link}"


def test_every_page_can_be_reached_from_readme() -> None:
    """In two steps: ``docs/index.md`` lists them all."""
    index = DOCS / "index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}

    assert "docs/index.md" in links(README)
    assert {page for page in pages() if DOCS in page.parents} <= linked | {index}


def test_every_public_name_is_documented() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))

    for name in (*asgi_sessions.__all__, *importlib.import_module("asgi_sessions.testing").__all__):
        assert re.search(rf"\b{name}\b", text), name


@each_page
def test_commands_that_are_shown_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8") if (ROOT / "Makefile").exists() else ""
    text = page.read_text(encoding="utf-8")

    for target in re.findall(r"\bmake ([a-z]+)\b(?=`|\s+#|$)", text, flags=re.MULTILINE):
        assert not makefile or re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


# ── Tables that repeat what the code says ──


def test_the_commit_table_of_the_design_is_that_of_the_code() -> None:
    expected = [
        [
            ", ".join(was.value for was in row.was),
            ", ".join(data.value for data in row.data),
            ", ".join(asked.value for asked in row.asked),
            ", ".join(phase.value for phase in row.phase),
            row.store.value,
            row.cookie.value,
        ]
        for row in COMMIT_TABLE
    ]

    assert rows(DESIGN, "The commit table") == expected


def test_the_layout_is_that_of_the_code() -> None:
    package = Path(asgi_sessions.__file__).parent
    real = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}

    listed = {cells[0].strip("`"): cells[1] for cells in rows(DESIGN, "The layout")}

    assert set(listed) == real
    for name, layer in listed.items():
        assert layer == ("" if name == "__init__.py" else layer_of(name)), name


def test_the_numbers_of_the_design_are_those_of_the_code() -> None:
    for name, said, *_ in rows(DESIGN, "Numbers"):
        module, _, constant = name.strip("`").rpartition(".")
        real = getattr(importlib.import_module(f"asgi_sessions.{module}"), constant)
        assert float(said.split(" ")[0].replace(",", "")) == float(real), name


OPTIONS = {
    "Sessions": asgi_sessions.Sessions,
    "SessionMiddleware": asgi_sessions.SessionMiddleware,
    "CookieConfig": asgi_sessions.CookieConfig,
    "Timeouts": Timeouts,
    "Devices": asgi_sessions.Devices,
    "DeviceBound": asgi_sessions.DeviceBound,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_page_of_the_options_has_each_option_and_its_default(name: str) -> None:
    names = {**vars(asgi_sessions), "timedelta": timedelta, "time": time}
    parameters = inspect.signature(OPTIONS[name]).parameters.values()
    real = {each.name: each.default for each in parameters if each.kind is not each.VAR_KEYWORD}

    said = {
        cells[0].strip("`"): inspect.Parameter.empty if cells[1] == "required" else eval(cells[1].strip("`"), names)
        for cells in rows(DOCS / "options.md", name)
    }

    assert said == real


def promises() -> list[tuple[int, str]]:
    """Number and text of each promise in the design."""
    text = DESIGN.read_text(encoding="utf-8").partition("## The promises")[2].partition("\n## ")[0]
    return [
        (int(number), said)
        for number, said in re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |^### |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    ]


def functions(path: Path) -> set[str]:
    """The names of all tests in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def known_to_fail(path: Path) -> set[str]:
    """The tests in a file of which some case is marked ``xfail``, by itself or by a name that stands for the mark."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    marks = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and "xfail" in ast.dump(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(
            (isinstance(part, ast.Attribute) and part.attr == "xfail")
            or (isinstance(part, ast.Name) and part.id in marks)
            for decorator in node.decorator_list
            for part in ast.walk(decorator)
        )
    }


def test_every_promise_is_stated_once_and_names_the_tests_that_hold_it() -> None:
    tests = ROOT / "tests" / "test_promises.py"
    held = functions(tests) - known_to_fail(tests)

    assert [number for number, _ in promises()] == list(range(1, 22))
    for number, said in promises():
        named = re.findall(r"`(test_\w+)`", said)
        assert named, f"promise {number} names no test"
        assert all(name.startswith(f"test_promise_{number:02d}_") for name in named), named
        assert set(named) <= held, set(named) - held


def test_every_threat_names_its_promise_its_file_and_its_test() -> None:
    named: set[str] = set()
    for _, promise, where, test in rows(DOCS / "security.md", "Threats"):
        assert all(1 <= int(number) <= 21 for number in promise.split(", ")), promise
        for file in re.findall(r"`([^`]+)`", where):
            assert (ROOT / "asgi_sessions" / file).exists(), file
        for held in re.findall(r"`([^`]+)`", test):
            file, _, name = held.partition("::")
            assert name in functions(ROOT / "tests" / file), held
            assert name not in known_to_fail(ROOT / "tests" / file), held
            named.add(file)

    assert {f"threats/{path.name}" for path in (ROOT / "tests" / "threats").glob("test_*.py")} <= named


def test_every_error_is_explained() -> None:
    real = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
    }
    explained = re.findall(r"^### `(\w+)`$", prose(DOCS / "errors.md"), flags=re.MULTILINE)

    assert sorted(explained) == sorted(real)


def test_every_event_is_explained() -> None:
    package = Path(asgi_sessions.__file__).parent
    real: set[str] = set()
    for path in package.rglob("*.py"):
        if "cli" not in path.parts:
            real |= set(
                re.findall(
                    r'"((?:session|cookie|store|provider)\.[a-z_]+)(?=[": ])(?! =)', path.read_text(encoding="utf-8")
                )
            )
    explained = {cells[0].strip("`") for cells in rows(DOCS / "errors.md", "Events")}
    explained |= {cells[0].strip("`") for cells in rows(DOCS / "errors.md", "Log lines that are no events")}

    assert explained == real


def test_the_table_of_failovers_has_the_rows_that_are_played() -> None:
    assert [cells[0] for cells in rows(DOCS / "stores.md", "What a failover costs")] == [row.what for row in ROWS]


def test_the_timeouts_page_has_the_figures_of_the_code() -> None:
    for cells in rows(DOCS / "timeouts.md", "Profiles"):
        made: Timeouts = eval(cells[0].strip("`"), {"Timeouts": Timeouts})
        said = (made.idle, made.absolute, made.remember_idle, made.remember_absolute)
        assert [in_words(value.total_seconds()) for value in said] == cells[1:5], cells[0]


def in_words(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds % size == 0 and (seconds > size or size == 60):
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def test_where_to_look_names_what_is_there() -> None:
    for cells in rows(DESIGN, "Where to look"):
        for cell in cells[1:]:
            for name, file in re.findall(r"`([A-Za-z_.]+)`[^`]* in `(_\w+/\w+\.py)`", cell):
                module = importlib.import_module("asgi_sessions." + file.removesuffix(".py").replace("/", "."))
                found: object = module
                for part in name.split("."):
                    found = getattr(found, part)
