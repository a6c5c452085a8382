"""The demo in a real browser: what it promises to show in two minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from selenium.webdriver.common.by import By

from asgi_sessions import MemoryStore, Timeouts
from asgi_sessions.cli._serve import TIMEOUTS
from asgi_sessions.cli._shop import create_shop
from tests.browser import showcase
from tests.browser.axe import violations
from tests.browser.driving import require_a_browser, served, text_of, until

pytestmark = pytest.mark.timeout(120)
APP = "tests.browser.test_demo_in_a_browser:an_app"


def an_app() -> Any:
    """The shop, whose sessions end so soon that the warning comes within seconds."""
    return create_shop(MemoryStore(), timeouts=Timeouts(idle=timedelta(seconds=140), touch=timedelta(0)))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require_a_browser()
    with served(APP, tmp_path_factory.mktemp("tls")) as url:
        yield url


def put_into_basket(driver: Any, url: str) -> None:
    driver.get(url)
    driver.find_element(By.CSS_SELECTOR, ".shelf button").click()
    assert until(lambda: "Basket (1)" in text_of(driver))


def log_in(driver: Any, url: str, user: str) -> None:
    driver.get(f"{url}/login")
    driver.find_element(By.NAME, "user").send_keys(user)
    driver.find_element(By.NAME, "password").send_keys("teapot\n")
    assert until(lambda: driver.current_url.endswith("/account"))


def errors_of(driver: Any) -> list[Any]:
    return [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]


def test_what_the_demo_promises_is_seen(browser: Callable[..., Any], url: str) -> None:
    laptop = browser()
    put_into_basket(laptop, url)
    log_in(laptop, url, "ada")
    assert "Basket (1)" in text_of(laptop)

    laptop.find_element(By.CSS_SELECTOR, ".try button").click()
    assert until(lambda: "Firefox on Windows" in text_of(laptop))
    laptop.find_element(By.CSS_SELECTOR, ".device:not(.current) .end").click()
    assert until(lambda: "You are not logged in anywhere else." in text_of(laptop))

    assert until(lambda: laptop.find_elements(By.CSS_SELECTOR, "dialog[open]"), 60)
    assert "Are you still there?" in text_of(laptop)
    laptop.find_element(By.CSS_SELECTOR, "dialog button").click()
    assert until(lambda: not laptop.find_elements(By.CSS_SELECTOR, "dialog[open]"))
    assert errors_of(laptop) == []


def test_the_warning_of_the_demo_comes_after_a_minute() -> None:
    assert TIMEOUTS.idle - timedelta(seconds=120) == timedelta(minutes=1)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_pages_of_the_shop_meet_wcag_2_2_aa(browser: Callable[..., Any], url: str, dark: bool) -> None:
    laptop = browser(dark=dark)
    found = []
    for path in ("/", "/login", "/nowhere"):
        laptop.get(url + path)
        found += violations(laptop)
    put_into_basket(laptop, url)
    log_in(laptop, url, "grace")
    for path in ("/basket", "/account", "/account/sessions/"):
        laptop.get(url + path)
        found += violations(laptop)
    showcase.as_a_phone(laptop)
    laptop.get(f"{url}/account")
    found += violations(laptop)

    assert found == []
    assert laptop.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    ground = laptop.execute_script("return getComputedStyle(document.body).backgroundColor")
    laptop.get(f"{url}/account/sessions/")
    assert laptop.execute_script("return getComputedStyle(document.body).backgroundColor") == ground


@pytest.mark.parametrize(("theme", "ground"), [("Light", "rgb(250, 248, 244)"), ("Dark", "rgb(23, 22, 21)")])
def test_the_chosen_theme_counts_on_all_pages(browser: Callable[..., Any], url: str, theme: str, ground: str) -> None:
    laptop = browser(dark=theme == "Light")  # the other one than the system's
    log_in(laptop, url, "alan")
    laptop.find_element(By.XPATH, f"//footer//button[text()='{theme}']").click()
    assert until(lambda: f"Theme: {theme}" in text_of(laptop))

    for path in ("/", "/account/sessions/"):
        laptop.get(url + path)
        assert laptop.execute_script("return getComputedStyle(document.body).backgroundColor") == ground
