"""``docs/other-packages.md``: its programs run with the real packages, and it names the versions that are tested."""

from __future__ import annotations

import tests.apps

tests.apps.needs("sqladmin", "socketio")

import sys
import types
from importlib.metadata import version
from typing import Any

import pytest

from tests.apps.site import served
from tests.markdown import DOCS, blocks, rows, run

PAGE = DOCS / "other-packages.md"
DISTRIBUTIONS = {"authlib, Starlette client": "authlib", "FastHTML": "python-fasthtml", "NiceGUI": "nicegui"}


async def test_the_programs_of_the_page_run(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("a_page")
    monkeypatch.setitem(sys.modules, "a_page", module)
    names = vars(module)
    apps: list[Any] = []

    for block in blocks(PAGE):
        if block.language == "python" and block.marks <= {"apps"}:
            assert await run(block, names) == ""
            apps += [names["app"]] if "\napp = " in block.text else []

    panel, sockets = apps
    async with served(panel) as browser:
        await browser.post("/admin/login", data={"username": "root", "password": "wrong"})
        assert (await browser.get("/admin/")).status_code == 302
        await browser.post("/admin/login", data={"username": "root", "password": "swordfish"})
        assert (await browser.get("/admin/")).status_code == 200
        await browser.get("/admin/logout")
        assert (await browser.get("/admin/")).status_code == 302
    async with served(sockets) as browser:
        assert (await browser.get("/socket.io/?EIO=4&transport=polling")).status_code == 200


def test_the_page_names_the_versions_that_are_tested() -> None:
    said = {row[0]: row[1] for row in rows(PAGE, "What was tested")}

    assert len(said) == 11
    assert said == {name: version(DISTRIBUTIONS.get(name, name)) for name in said}
