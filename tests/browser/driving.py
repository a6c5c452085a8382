"""A real browser, Debian's chromium driven over WebDriver, and an app behind uvicorn for it to visit."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from selenium import webdriver

from asgi_sessions.cli._serve import certificate
from tests.conftest import require
from tests.ports import free_port

PEM = certificate()


def require_a_browser() -> None:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        require("no chromium and chromedriver; on Debian: apt-get install chromium chromium-driver")


@contextmanager
def served(
    factory: str, directory: Path, *, tls: bool = True, port: int = 0, http2: bool = False, **environment: str
) -> Iterator[str]:
    """An app, made by ``module:function``, in a process of its own; its URL under ``localhost``.

    ``http2``: by hypercorn, of an app ``module:name``. ``environment``: variables of the process.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", factory, f"--port={port}", "--log-level=warning"]
    options = ["--ws=websockets-sansio"]
    if http2:
        command, options = [sys.executable, "-m", "hypercorn", factory, f"--bind=127.0.0.1:{port}", "--workers=0"], []
    if tls:
        for name, text in zip(("cert.pem", "key.pem"), PEM, strict=True):
            (directory / name).write_bytes(text)
        prefix = "--" if http2 else "--ssl-"
        options += [f"{prefix}certfile={directory}/cert.pem", f"{prefix}keyfile={directory}/key.pem"]
    root = Path(__file__).parents[2]
    server = subprocess.Popen([*command, *options], cwd=root, env={**os.environ, **environment})
    try:
        assert until(lambda: answers(port), 20), "the server did not start"
        yield f"{'https' if tls else 'http'}://localhost:{port}"
    finally:
        server.kill()  # browsers keep connections open, and it would wait for them
        server.wait()


def answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def a_browser(
    agent: str | None = None, *, dark: bool = False, size: str = "1000,1100", arguments: Sequence[str] = ()
) -> Any:
    """A browser of its own, with a profile of its own. Every name under ``.test`` leads to this machine.

    ``arguments``: more of them for its command line.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--window-size={size}",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP *.test 127.0.0.1",
        # Not --ignore-certificate-errors: what comes with such an error is kept in no cache.
        f"--ignore-certificate-errors-spki-list={_key_of(PEM[0])}",
        *arguments,
    ):
        options.add_argument(argument)
    if agent:
        options.add_argument(f"--user-agent={agent}")
    if dark:
        options.add_argument("--force-dark-mode")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def _key_of(pem: bytes) -> str:
    key = x509.load_pem_x509_certificate(pem).public_key()
    return base64.b64encode(
        hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    ).decode()


def text_of(browser: Any) -> str:
    return str(browser.execute_script("return document.body?.innerText ?? ''"))


def until(condition: Callable[[], Any], seconds: float = 5.0) -> bool:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if condition():
            return True
        time.sleep(0.02)
    return False
