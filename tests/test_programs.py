"""Every command that the documents show, every target of the Makefile and every benchmark runs; here on a small scale.

Each test says by a pattern which commands it runs. A command that no pattern matches fails
:func:`test_every_command_is_run_by_a_test`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from asgi_sessions import RedisStore, SQLStore
from asgi_sessions.testing import session_cookie
from benchmarks import report
from tests.browser.driving import require_a_browser
from tests.conftest import Server
from tests.failover.test_failover import ROWS
from tests.markdown import ROOT, blocks, name_of, pages, prose

pytestmark = pytest.mark.timeout(180)

PROGRAMS = {"make", "python", "pip", "pytest", "uvicorn", "asgi-sessions", "curl", "redis-cli", "export", ".ci/run"}
"""What the commands of the documents begin with."""
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8") if (ROOT / "Makefile").exists() else ""
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8") if (ROOT / ".ci" / "run").exists() else ""
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYPROJECT = CONFIGURATION["project"]


def commands() -> dict[str, str]:
    """Every command in a block of shell and in the text, without its comment, and a page that shows it."""
    found: dict[str, str] = {}
    for page in [*pages(), ROOT / "benchmarks" / "RESULTS.md"]:
        shown: list[str] = []
        for block in blocks(page):
            if block.language == "sh":
                shown += block.text.splitlines()
            elif block.language == "console":
                shown += [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
        for code in re.findall(r"`([^`]+)`", prose(page)):
            words = code.split()
            name = next((word for word in words if "=" not in word), "")
            if name in PROGRAMS and (len(words) > 1 or "/" in name):
                shown.append(" ".join(words))
        for line in shown:
            found.setdefault(re.sub(r"\s+#.*$", "", line).strip(), name_of(page))
    return {command: page for command, page in found.items() if command}


COMMANDS = commands()
TARGETS = re.findall(r"\S+", "".join(re.findall(r"^\.PHONY:(.*)$", MAKEFILE, flags=re.MULTILINE)))
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))
PATTERNS: list[str] = []


def each_command(pattern: str) -> pytest.MarkDecorator:
    """Run a test for each of the documented commands that match. There must be one."""
    PATTERNS.append(pattern)
    return pytest.mark.parametrize("command", [each for each in COMMANDS if re.fullmatch(pattern, each)] or ["none"])


def test_every_command_is_run_by_a_test() -> None:
    untested = {
        command: page
        for command, page in COMMANDS.items()
        if not any(re.fullmatch(pattern, command) for pattern in PATTERNS)
    }
    stale = [pattern for pattern in PATTERNS if not any(re.fullmatch(pattern, command) for command in COMMANDS)]

    assert untested == {}, "give each of them a test in this file"
    assert stale == [], "no document shows such a command"


def run(*words: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints, once it has ended well."""
    ended = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout + ended.stderr


# ── Benchmarks ──


@pytest.fixture
def kept() -> Iterator[None]:
    """The results, pages and plots of the project are the same after the test."""

    def state() -> dict[Path, bytes]:
        files = [
            *(ROOT / "benchmarks").rglob("*.json"),
            *(ROOT / "docs").rglob("*.*"),
            ROOT / "benchmarks" / "RESULTS.md",
        ]
        return {file: file.read_bytes() for file in files if file.is_file() and "node_modules" not in file.parts}

    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "report"])
def test_every_benchmark_runs_quickly(name: str, kept: None, valkey_url: str) -> None:
    said = run(sys.executable, "-m", f"benchmarks.{name}", "--quick", REDIS_URL=valkey_url)

    assert "Traceback" not in said


def test_a_quick_report_keeps_nothing(
    kept: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With two of its parts; the test above runs each of them."""
    monkeypatch.setattr(report, "PARTS", {name: report.PARTS[name] for name in ("growth", "prices")})

    report.main(["--quick"])

    assert "## How cost grows" in capfd.readouterr().out


def test_the_pages_are_those_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m benchmarks.report --only-write``, in a copy; the plots apart, which need matplotlib."""
    monkeypatch.setattr(report, "has_matplotlib", lambda: False)
    for path in (report.RESULTS, report.CAPACITY.parent):
        shutil.copytree(ROOT / path, tmp_path / path)

    report.write(tmp_path)

    for page in (report.PAGE, report.CAPACITY):
        assert (tmp_path / page).read_text(encoding="utf-8") == (ROOT / page).read_text(encoding="utf-8")


def test_the_page_about_the_benchmarks_names_each_of_them() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")

    named = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)

    assert sorted([*named, "report"]) == BENCHMARKS


@each_command(r"python -m benchmarks\.(\w+|…)")
def test_a_benchmark_that_is_shown_exists(command: str) -> None:
    assert command.endswith("…") or command.rpartition(".")[2] in BENCHMARKS


# ── Make ──


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project, whose virtual environments are there already: this one, by another name."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("asgi_sessions", "benchmarks", "tests", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in set(re.findall(r"\.venv[\w-]*(?=/ready)", MAKEFILE)):
        python = tmp_path / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
        python.chmod(0o755)
        (tmp_path / name / "ready").touch()
    return tmp_path


def make(tree: Path, *words: str) -> str:
    """``PYTHON=false``: nothing is installed, come what may."""
    return run("make", "PYTHON=false", "--old-file=browser", "--old-file=axe", *words, cwd=tree)


BY_HAND = {
    *("demo", "check", "bench", "bench-in-process", "debian"),
    *("properties", "chaos", "failover", "dist", "clean", "coverage"),
}
"""Targets that CI does not use. They are tried here."""


def test_every_target_is_run_by_ci_or_tried_here() -> None:
    in_ci = {word for line in re.findall(r"make (.*)", CI) for word in line.split()}
    needed = {
        word
        for target in in_ci
        for line in re.findall(rf"^{target}:(.*)$", MAKEFILE, re.MULTILINE)
        for word in line.split()
    }

    assert set(TARGETS) == BY_HAND | ((in_ci | needed) & set(TARGETS))


@each_command(r"make( [\w-]+)+( \w+=.*)?")
def test_a_target_that_is_shown_exists(command: str) -> None:
    assert {word for word in shlex.split(command)[1:] if "=" not in word} <= set(TARGETS)


@each_command(r"make test PYTEST_ARGS=.*")
def test_a_part_of_the_suite_can_be_run(command: str, tree: Path) -> None:
    _, target, arguments = shlex.split(command)

    said = make(tree, target, f"{arguments} --collect-only -q -n 0")

    assert re.search(r"\d+(/\d+)? tests collected", said)


@pytest.mark.parametrize(("arguments", "scheme"), [("", "http"), ("--https", "https"), ("--bound", "https")])
def test_make_demo_opens_the_shop_until_it_is_interrupted(tree: Path, arguments: str, scheme: str) -> None:
    with subprocess.Popen(
        ["make", "PYTHON=false", "demo", f"DEMO_ARGS=--port 0 {arguments}"],
        cwd=tree,
        env={**os.environ, "REDIS_URL": ""},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            opened = any(f"The shop is open at {scheme}://127.0.0.1:" in line for line in process.stdout)
        finally:
            os.killpg(process.pid, signal.SIGINT)

    assert opened


@each_command(r"make bench BENCH_ARGS=.*")
def test_make_bench_takes_its_arguments(command: str, tree: Path) -> None:
    said = make(tree, *shlex.split(command)[1:2], f"{shlex.split(command)[2]} --help")

    assert "--only-write" in said


def test_make_bench_in_process_runs_two_parts_only(tree: Path) -> None:
    said = make(tree, "bench-in-process", "BENCH_ARGS=--help")

    assert "report --only in_process interpreters" in said


def test_a_debian_that_is_not_here_is_left_out(tree: Path) -> None:
    assert "no environment with /nowhere/python3: left out" in make(tree, "debian", "DEBIAN=/nowhere/python3")


def test_make_failover_plays_every_row(tree: Path) -> None:
    said = make(tree, "failover", "FAILOVER_ROUNDS=2", "PYTEST_ARGS=--collect-only -q")

    assert said.count("test_what_was_acknowledged_holds[") == len(ROWS)


def test_make_properties_plays_every_triple(tree: Path) -> None:
    said = make(tree, "properties", "PYTEST_ARGS=-n 0 -k memory-nobody-destroy")

    assert "EVERY_TRIPLE=1" in said
    assert "1 passed" in said


def test_make_coverage_has_a_bound(tree: Path) -> None:
    arguments = "tests/test_cookie_config.py -n 0 -p no:cacheprovider"

    said = make(tree, "coverage", f"PYTEST_ARGS={arguments} --cov-fail-under=1")

    assert "Required test coverage of 1% reached" in said


def test_make_chaos_takes_its_time(tree: Path) -> None:
    said = make(tree, "chaos", "CHAOS_SECONDS=0.1", "PYTEST_ARGS=--collect-only -q")

    assert "CHAOS_SECONDS=0.1" in said
    assert "test_killed.py: 1" in said or "tests collected" in said


def test_make_check_lints_and_needs_no_database(tree: Path) -> None:
    said = make(tree, "check", "--old-file=lint", "PYTEST_ARGS=--collect-only -n 0")

    assert "[valkey" in said
    assert "[sqlite" in said
    assert not re.search(r"\[(postgresql|mariadb|redis)", said)


def test_make_dist_is_a_program_that_needs_its_tools(tree: Path) -> None:
    """``make dist`` downloads; ``test_packaging.py`` builds without."""
    run("bash", "-n", ROOT / ".ci" / "dist")

    assert ".ci/dist .venv-dist/bin 3.11 3.12 3.13 3.14" in make(tree, "--dry-run", "dist")


def test_make_clean_leaves_no_environment(tree: Path) -> None:
    make(tree, "clean")

    assert [path.name for path in tree.glob(".*")] == []
    assert (tree / "Makefile").exists()


@each_command(r"python -m tests\.cost( --record)?")
def test_the_calls_of_the_hot_paths_can_be_recorded(command: str, tree: Path) -> None:
    (tree / "tests").unlink()
    (tree / "tests").mkdir()
    for path in (*(ROOT / "tests").glob("*.py"), ROOT / "tests" / "baseline.json"):
        if not path.name.startswith("test_"):
            shutil.copy(path, tree / "tests")

    said = run(sys.executable, *shlex.split(command)[1:], cwd=tree)

    assert "memory: read" in said


def test_a_python_is_found_although_its_shim_fails(tmp_path: Path) -> None:
    shim, there = tmp_path / "shims" / "python3.99", tmp_path / "pyenv" / "versions" / "3.99.1" / "bin" / "python"
    for file, text in ((shim, "exit 127"), (there, 'echo "3.99 $0"')):
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        file.chmod(0o755)

    found = run(
        *(ROOT / ".ci" / "find-python", "3.99"),
        PATH=f"{shim.parent}:{os.environ['PATH']}",
        PYENV_ROOT=str(tmp_path / "pyenv"),
    )

    assert found.strip() == str(there)


def test_a_python_that_is_not_here_is_left_out(tree: Path) -> None:
    (tree / ".ci").symlink_to(ROOT / ".ci")

    said = make(tree, "test-versions", "VERSIONS=3.98")

    assert "Python 3.98 is not here: left out" in said


@each_command(r"\.ci/run")
def test_what_ci_runs_is_a_program(command: str) -> None:
    assert os.access(ROOT / command, os.X_OK)
    run("bash", "-n", ROOT / command)


# ── The command line of the package ──


@each_command(r"python -m asgi_sessions demo --tour")
def test_the_tour_is_played(command: str) -> None:
    run(sys.executable, *shlex.split(command)[1:], REDIS_URL="")


@each_command(r"(make demo DEMO_ARGS=|python -m asgi_sessions demo )--bound")
def test_the_demo_of_bound_sessions_is_run(command: str) -> None:
    """By :func:`test_make_demo_opens_the_shop_until_it_is_interrupted`; ``test_demo.py`` uses it."""
    assert command.endswith("--bound")


@each_command(r"python -m asgi_sessions demo")
def test_the_demo_is_the_one_of_the_makefile(command: str) -> None:
    """:func:`test_make_demo_opens_the_shop_until_it_is_interrupted` runs it."""
    assert command in MAKEFILE.replace(".venv-demo/bin/", "")


@each_command(r"python -m asgi_sessions")
def test_the_command_line_says_what_there_is(command: str) -> None:
    said = run(sys.executable, *shlex.split(command)[1:], "--help")

    assert {"demo", "doctor", "keygen", "list", "rekey", "revoke-all", "schema", "sweep"} <= set(said.split())


@each_command(r"asgi-sessions (rekey|sweep|keygen|schema)\b.*")
async def test_a_command_of_the_package_runs(command: str, tmp_path: Path, own_server: Server) -> None:
    own_server.start()
    secrets, database = ["new" * 11, "old" * 11], f"sqlite+aiosqlite:///{tmp_path}/sessions.db"
    words = shlex.split(command.replace("redis://localhost:6379/0", own_server.url).replace("URL", database))[1:]
    if len(words) == 1:  # the name alone, as text mentions it
        words += {"rekey": [own_server.url], "sweep": [database], "keygen": [], "schema": []}[words[0]]
    elif words[-1] == "--table":
        words.append("mine")
    if words[0] == "sweep":
        store = SQLStore.from_url(database)
        await store.create_tables()
        await store.aclose()
    elif words[0] == "rekey":
        there = RedisStore.from_url(own_server.url)
        await session_cookie(there, "alice", secret_keys=secrets[1:])
        await there.aclose()

    run(
        *(sys.executable, "-m", "asgi_sessions", *words),
        cwd=tmp_path,
        ASGI_SESSIONS_SECRET_KEYS=" ".join(secrets),
        PYTHONPATH=str(ROOT),
    )


@each_command(r'export ASGI_SESSIONS_SECRET_KEYS="[^"]+"')
def test_secrets_that_are_exported_are_read(command: str) -> None:
    """:func:`test_a_command_of_the_package_runs` has them."""
    code = f"{command}; {shlex.quote(sys.executable)} -c 'import os; print(os.environ[\"ASGI_SESSIONS_SECRET_KEYS\"])'"

    assert run("sh", "-c", code).split() == ["new", "old"]


# ── Others' programs ──


@each_command(r"pip install .+")
def test_what_is_to_be_installed_is_this_project_with_extras_that_it_has(command: str) -> None:
    """Nothing is downloaded in tests."""
    extras = PYPROJECT["optional-dependencies"]
    wishes = [text for texts in (*extras.values(), *CONFIGURATION["dependency-groups"].values()) for text in texts]
    known = {Requirement(text).name for text in wishes if isinstance(text, str)}

    for word in shlex.split(command)[2:]:
        wanted = Requirement(
            f"{PYPROJECT['name']}{word[1:]}" if word.startswith(".") else word
        )  # a checkout, or by name
        assert wanted.name in known | {PYPROJECT["name"]}
        assert wanted.name != PYPROJECT["name"] or wanted.extras <= extras.keys()


@each_command(r"pip list")
def test_what_is_installed_can_be_listed(command: str) -> None:
    assert PYPROJECT["name"] in run(sys.executable, "-m", *shlex.split(command), "--disable-pip-version-check")


@each_command(r"python -c '.*'")
def test_a_line_of_python_runs(command: str) -> None:
    assert run(sys.executable, *shlex.split(command)[1:]).strip()


@each_command(r"python -m asyncio")
def test_a_page_can_be_tried_line_by_line(command: str) -> None:
    assert "asyncio" in run(sys.executable, *shlex.split(command)[1:], PYTHONSTARTUP="")


@each_command(r"python -m tests\.browser\.showcase .*")
def test_the_picture_of_the_sessions_page_can_be_taken(command: str, tmp_path: Path) -> None:
    require_a_browser()
    picture = tmp_path / "sessions.png"

    run(sys.executable, *shlex.split(command)[1:-1], picture)

    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 150_000


ELSEWHERE = {
    r"asgi-sessions (doctor|list|show|history|count|revoke|revoke-all|demo)\b.*|export ASGI_SESSIONS_URL=.*": (
        "test_operator_commands.py::test_the_page_shows_what_the_commands_print"
    ),
    r"(uvicorn|gunicorn) app:app --workers .*": "apps/test_recipes.py::test_several_workers_share_the_sessions",
    r"uvicorn app:app|curl -i http://127\.0\.0\.1:8000/": "test_docs.py::test_readme_shows_what_its_program_really_sends",
    r"redis-cli .*|owner=.*|shard=.*|record=.*|echo .*": "test_operators.py::test_the_commands_of_the_page_read_a_record",
}


@each_command("|".join(ELSEWHERE))
def test_commands_that_are_run_elsewhere_are(command: str) -> None:
    (where,) = [test for pattern, test in ELSEWHERE.items() if re.fullmatch(pattern, command)]
    file, _, name = where.partition("::")

    assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
