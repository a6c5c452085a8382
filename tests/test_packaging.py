"""What is published: the wheel, the source distribution and their metadata, built twice from this checkout."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from tests.markdown import DOCS, ROOT, blocks, pages

readme_renderer = pytest.importorskip("readme_renderer.markdown")
pytest.importorskip("hatchling")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEN = "1800000000"
"""A time for the files in the archives, in seconds since 1970."""


def built(into: Path) -> list[Path]:
    """The wheel and the source distribution. Nothing is downloaded: the tools are those of this environment."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(into)],
        cwd=ROOT,
        env={**os.environ, "SOURCE_DATE_EPOCH": WHEN},
        capture_output=True,
        check=True,
    )
    return sorted(into.iterdir(), reverse=True)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    wheel, sdist = sorted(built(tmp_path_factory.mktemp("dist")), key=lambda path: path.suffix != ".whl")
    return wheel, sdist


@pytest.fixture(scope="module")
def metadata(archives: tuple[Path, Path]) -> Message:
    with zipfile.ZipFile(archives[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        return email.message_from_bytes(wheel.read(name))


def tracked(*more: str) -> set[str]:
    """The files of the checkout, and with ``--others`` those that are new; without git, the test is left out."""
    words = ["git", "ls-files", "--cached", "--exclude-standard", *more]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("no checkout of git")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def test_two_builds_are_equal(archives: tuple[Path, Path], tmp_path: Path) -> None:
    again = {path.name: path.read_bytes() for path in built(tmp_path)}

    assert again == {path.name: path.read_bytes() for path in archives}


def test_the_wheel_has_the_package_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}

    names -= {name for name in names if name.startswith("asgi_sessions/.agents/") or name == "asgi_sessions/llms.txt"}
    assert names == {name for name in tracked("--others") if name.startswith("asgi_sessions/")}


def test_the_source_distribution_has_every_file_of_the_checkout(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[1]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist if member.isfile()}

    assert tracked() <= names <= tracked("--others") | {"PKG-INFO"}


def test_the_extras_are_for_users(metadata: Message) -> None:
    """What only the project's own work needs is a dependency group."""
    extras = set(metadata.get_all("Provides-Extra") or [])

    assert extras == set(PYPROJECT["project"]["optional-dependencies"])
    assert not extras & set(PYPROJECT["dependency-groups"])
    assert not [need for need in metadata.get_all("Requires-Dist") or [] if re.match(r"ruff|mypy|hypothesis", need)]


def test_an_index_page_can_name_author_licence_and_address(metadata: Message) -> None:
    assert metadata["Author"]
    assert metadata["License-Expression"] == "MIT"
    assert (metadata.get_all("Project-URL") or [""])[0].startswith("Homepage, https://")


def test_the_readme_renders_on_an_index_page(metadata: Message) -> None:
    """It has no files beside it, so each link and picture is absolute, or leads to a heading of the page."""
    said = str(metadata.get_payload())

    html = readme_renderer.render(said)

    assert html is not None
    assert "<table>" in html
    for address in re.findall(r'(?:href|src)="([^"]*)"', html):
        assert re.match(r"https://|#", address), address
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_the_wheel_has_pages_for_coding_assistants(archives: tuple[Path, Path]) -> None:
    """Made from the pages while it is built, so that they cannot be out of date; each link leads to a file in it."""
    with zipfile.ZipFile(archives[0]) as wheel:
        names = set(wheel.namelist())
        index = wheel.read("asgi_sessions/llms.txt").decode()
        folder = "asgi_sessions/.agents/skills/asgi-server-sessions/"
        skill = wheel.read(f"{folder}SKILL.md").decode()

    assert index.startswith("# asgi-server-sessions\n\n> ")
    assert re.match(
        r'---\nname: asgi-server-sessions\ndescription: "[^"\n]+"\n---\n', skill
    )  # YAML: a colon needs quotes
    assert not re.search(r":(meth|attr|class|func):`", skill)
    program = next(block.text for block in blocks(ROOT / "README.md") if block.language == "python")
    assert program in skill
    assert "- `session.log_in(user_id, *, remember=False" in skill
    for name in ("max_sessions", "on_store_failure", "samesite"):
        assert f"| `{name}` |" in skill, name
    for start, text in (("asgi_sessions/", index), (folder, skill)):
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert start + link in names, link
    assert {
        f"{folder}references/{page.relative_to(DOCS).as_posix()}" for page in pages() if DOCS in page.parents
    } - names == {f"{folder}references/{name}" for name in ("api.md", "index.md")}
