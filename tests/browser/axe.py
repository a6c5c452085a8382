"""axe-core in the page that a browser shows. ``make axe`` installs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import require

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def violations(driver: Any) -> list[str]:
    """What axe-core finds against WCAG 2.2 at the levels A and AA, and against its own good practice."""
    if not AXE.exists():
        require("no axe-core; make axe installs it")
    driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")})
    found = driver.execute_async_script(
        "const [tags, done] = arguments; axe.run(document, {runOnly: tags}).then(done, error => done({error: `${error}`}))",
        WCAG,
    )
    assert len(found["passes"]) > 15, found
    return [f"{each['id']}: {node['html'][:120]}" for each in found["violations"] for node in each["nodes"]]
