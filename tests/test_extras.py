"""Modules that need an extra, on machines that lack it: the error names the extra and the command that installs it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.public import modules

ROOT = Path(__file__).parent.parent

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
try:
    {code}
except Exception as error:
    print(type(error).__name__, isinstance(error, ImportError), error)
else:
    print("imported")
"""


def said(code: str, *missing: str, path: Path | None = None) -> str:
    """What a fresh Python says that lacks these modules, and finds others in ``path`` first."""
    program = WITHOUT.format(missing=missing, code=code)
    environment = {"PYTHONPATH": f"{path}:{ROOT}"} if path is not None else {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return ended.stdout.strip()


@pytest.mark.parametrize(
    ("code", "missing", "package", "extra"),
    [
        ("import asgi_sessions.tokens", "jwt", "pyjwt", "tokens"),
        ("import asgi_sessions.tokens.client", "httpx httpx2", "httpx", "client"),
        ("import asgi_sessions.telemetry", "opentelemetry", "opentelemetry-api", "otel"),
        ("import asgi_sessions.page", "jinja2", "jinja2", "page"),
        ("import asgi_sessions.identity", "jwt", "pyjwt", "identity"),
        ("import asgi_sessions.identity", "httpx", "httpx", "identity"),
        ("from asgi_sessions.migrate import *; FromFlask(secret_key='x', user=None)", "itsdangerous", "itsdangerous", "migrate"),
        ("from asgi_sessions import SQLStore", "sqlalchemy", "sqlalchemy", "sql"),
        ("import asgi_sessions.stores.sql", "sqlalchemy", "sqlalchemy", "sql"),
        ("from asgi_sessions import SQLStore; SQLStore.from_url('sqlite+aiosqlite:///a.db')", "greenlet", "greenlet", "sql"),
        ("import asgi_sessions.frameworks.fastapi", "fastapi", "fastapi", "fastapi"),
        ("import asgi_sessions.frameworks.litestar", "litestar", "litestar", "litestar"),
        ("import asgi_sessions.frameworks.quart", "quart", "quart", "quart"),
        ("from asgi_sessions import Devices; Devices(geoip='a.mmdb')", "maxminddb", "maxminddb", "devices"),
        ("from asgi_sessions.cli import _run; _run(['demo'])", "uvicorn", "uvicorn", "demo"),
        ("from asgi_sessions.cli import _run; _run(['demo', '--tour'])", "httpx", "httpx", "demo"),
        ("from asgi_sessions.cli import _run; _run(['demo'])", "jinja2", "jinja2", "demo"),
        ("from asgi_sessions.cli import _run; _run(['schema'])", "sqlalchemy", "sqlalchemy", "sql"),
        ("import asgi_sessions.cli._sql", "sqlalchemy", "sqlalchemy", "sql"),
        ("import asgi_sessions.cli._keygen as k; k.run('EdDSA', None)", "jwt", "pyjwt", "tokens"),
    ],
    ids=lambda value: value if " " in value else None,
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(code: str, missing: str, package: str, extra: str) -> None:
    answer = said(code, *missing.split())

    assert answer.startswith("MissingExtra True "), answer
    assert f" needs {package}" in answer
    assert answer.endswith(f"pip install 'asgi-server-sessions[{extra}]'")


@pytest.mark.parametrize(
    ("driver", "url"),
    [
        ("asyncpg", "postgresql+asyncpg://root@localhost/test"),
        ("asyncmy", "mysql+asyncmy://root@localhost/test"),
        ("aiomysql", "mariadb+aiomysql://root@localhost/test"),
        ("aiosqlite", "sqlite+aiosqlite:///a.db"),
    ],
)
def test_a_missing_driver_is_named(driver: str, url: str) -> None:
    """The one in the URL, and not the one that we would have taken."""
    answer = said(f"from asgi_sessions import SQLStore; SQLStore.from_url({url!r})", driver)

    assert answer == f"MissingExtra True SQLStore.from_url(): the driver {driver} is missing: pip install {driver}"


def another(folder: Path, module: str, package: str) -> Path:
    """A package that is not ours to use, with a module of the same name."""
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text("def encode(): ...\n")
    info = folder / f"{package}-1.3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.3.1\n")
    (info / "top_level.txt").write_text(f"{module}\n")
    return folder


def test_another_package_with_the_same_module_is_recognised(tmp_path: Path) -> None:
    """``pip install jwt`` is what people try when they read "no module named jwt"."""
    answer = said("import asgi_sessions.tokens", path=another(tmp_path, "jwt", "jwt"))

    assert answer.startswith("MissingExtra True asgi_sessions.tokens needs pyjwt, but the module jwt in ")
    assert str(tmp_path) in answer
    assert answer.endswith("pip uninstall jwt; pip install --force-reinstall pyjwt")


def test_a_file_of_the_app_that_hides_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "quart.py").write_text("app = None\n")

    answer = said("import asgi_sessions.frameworks.quart", path=tmp_path)

    assert answer.startswith("MissingExtra True asgi_sessions.frameworks.quart needs quart, but the module quart in ")
    assert str(tmp_path / "quart.py") in answer


def test_an_old_ua_parser_leaves_devices_unknown_and_says_so(tmp_path: Path) -> None:
    """Version 0.18 has another interface; a log-in must not fail over it."""
    code = "import asgi_sessions._core.facts as d; d.Devices().prepare(); print(d.device_of(b'Mozilla/5.0'))"

    assert said(code, path=another(tmp_path, "ua_parser", "ua-parser")).splitlines()[0] == "unknown device"


def test_without_ua_parser_devices_are_unknown() -> None:
    code = "import asgi_sessions._core.facts as d; d.Devices().prepare(); print(d.device_of(b'Mozilla/5.0'))"

    assert said(code, "ua_parser").splitlines()[0] == "unknown device"


def test_the_core_needs_no_extra() -> None:
    everything = (
        "jwt",
        "httpx",
        "jinja2",
        "opentelemetry",
        "sqlalchemy",
        "greenlet",
        "fastapi",
        "litestar",
        "quart",
        "maxminddb",
        "ua_parser",
    )

    assert (
        said("import asgi_sessions, asgi_sessions.testing, asgi_sessions.rekey, asgi_sessions.cli", *everything)
        == "imported"
    )


def test_every_extra_that_is_named_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [path.read_text() for path in (ROOT / "asgi_sessions").rglob("*.py")]
    named = {found for text in texts for found in re.findall(r'needs\("(\w+)"', text)}

    assert named <= set(extras)
    assert len(list(modules())) > 15
    assert {"client", "demo", "devices", "fastapi", "litestar", "otel", "page", "quart", "sql", "tokens"} <= named
