"""The built documentation site, in a real browser. ``make test-docs`` builds it first; without it, these tests are skipped."""

from __future__ import annotations

import functools
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.browser.driving import until
from tests.markdown import ROOT, pages
from tests.public import callables

SITE = ROOT / "build" / "docs"

pytestmark = pytest.mark.skipif(
    not (SITE / "index.html").exists() and os.environ.get("SITE") != "required",
    reason="no documentation site; make test-docs builds it",
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_reader_searches_and_follows_a_link(url: str, browser: Callable[..., Any]) -> None:
    reader = browser()
    reader.get(f"{url}/")
    assert until(lambda: reader.current_url.endswith("/docs/index.html"), 10)

    assert until(lambda: reader.find_elements("css selector", "input[name=q]"), 10)
    box = reader.find_element("css selector", "input[name=q]")
    box.send_keys("no_store_when_logged_in")
    box.submit()
    assert until(lambda: reader.find_elements("css selector", "ul.search li a"), 20)
    found = {
        link.get_attribute("href").partition("?")[0] for link in reader.find_elements("css selector", "ul.search li a")
    }
    assert f"{url}/docs/options.html" in found

    reader.get(f"{url}/docs/options.html")
    reader.find_element("link text", "Stores").click()
    assert until(lambda: reader.current_url == f"{url}/docs/stores.html", 10)
    assert reader.find_element("tag name", "h1").text.startswith("Stores")


def test_no_page_logs_an_error_or_scrolls_sideways_on_a_phone(url: str, browser: Callable[..., Any]) -> None:
    reader = browser(size="500,900")

    for name in ("index", "options", "quickstart", "api"):
        reader.get(f"{url}/docs/{name}.html")
        wide = reader.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide == 0, name
    assert [entry for entry in reader.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_reference_shows_every_public_method() -> None:
    """From the list of names that other projects' documentation links to."""
    packed = (SITE / "objects.inv").read_bytes().split(b"\n", 4)[4]
    shown = {
        re.sub(r"^asgi_sessions\.", "", line.split(" ")[0]) for line in zlib.decompress(packed).decode().splitlines()
    }

    missing = {
        public.name
        for public in callables()
        if (public.owner is None or public.name.partition(".")[2] in vars(public.owner))
        and not any(each == public.name or each.endswith(f".{public.name}") for each in shown)
    }

    assert missing == set()


def test_the_site_has_its_pages_as_text() -> None:
    index = (SITE / "llms.txt").read_text(encoding="utf-8")

    listed = re.findall(r"\]\((docs/[^)]+)\)", index)

    assert set(listed) >= {page.relative_to(ROOT).as_posix() for page in pages() if page.parent.name == "recipes"}
    for name in listed:
        assert (SITE / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8")
