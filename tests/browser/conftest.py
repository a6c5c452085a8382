from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.browser.driving import a_browser, require_a_browser


@pytest.fixture
def browser() -> Iterator[Callable[..., Any]]:
    """Makes browsers, and closes them after the test."""
    require_a_browser()
    open_ones: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        open_ones.append(a_browser(*args, **options))
        return open_ones[-1]

    yield make
    for one in open_ones:
        one.quit()
