"""FastHTML, mounted in our app with the session that it brings, and on our session. Run by ``test_fasthtml``."""

from __future__ import annotations

import tests.apps

tests.apps.needs("fasthtml")

from typing import Any

import pytest
from fasthtml.common import FastHTML, P
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from asgi_sessions import SessionMiddleware
from asgi_sessions.stores import Store
from tests.apps.site import ME, routes, served

KEY = "a key of FastHTML's, long enough"


def pages(**options: Any) -> Any:
    app = FastHTML(secret_key=KEY, **options)

    @app.route("/count")
    def count(session) -> Any:  # type: ignore[no-untyped-def]  # an annotation would make it a field of a form
        session["n"] = session.get("n", 0) + 1
        return P(f"count {session['n']}")

    @app.route("/clear")
    def clear(session) -> Any:  # type: ignore[no-untyped-def]  # likewise
        session.clear()
        return P("cleared")

    return app


async def test_its_own_session_inside_ours(store: Store) -> None:
    app = Starlette(
        routes=[*routes(), Mount("/pages", pages())], middleware=[Middleware(SessionMiddleware, store=store)]
    )
    async with served(app) as browser:
        await browser.log_in()
        counts = [(await browser.get("/pages/count")).text for _ in range(2)]
        assert "count 1" in counts[0]
        assert "count 2" in counts[1]
        assert browser.names == {"__Host-Http-session", "session_"}
        assert await browser.me() == ME

        await browser.get("/pages/nothing-here")
        await browser.get("/pages/clear")
        assert "count 1" in (await browser.get("/pages/count")).text
        assert await browser.me() == ME

        await browser.log_out()
        assert (await browser.me())["user"] is None
        assert "count 2" in (await browser.get("/pages/count")).text


async def test_on_our_session(store: Store) -> None:
    """``sess_cls=None`` leaves its own out; ours comes with ``middleware=``."""
    app = pages(sess_cls=None, middleware=[Middleware(SessionMiddleware, store=store)], routes=routes())
    async with served(app) as browser:
        await browser.log_in()
        await browser.get("/count")
        assert "count 2" in (await browser.get("/count")).text
        assert browser.names == {"__Host-Http-session"}
        assert await browser.me() == {"user": "alice", "data": {"basket": ["tea"], "n": 2}}

        await browser.log_out()
        assert "count 1" in (await browser.get("/count")).text


@pytest.mark.parametrize("order", ["before", "after"])
async def test_both_in_one_app_are_told_apart_or_refused(store: Store, order: str) -> None:
    """FastHTML appends its own to the list, so ours is outside. Added later, ours is outside as well."""
    if order == "before":
        app = pages(middleware=[Middleware(SessionMiddleware, store=store)], routes=routes())
    else:
        app = pages(routes=routes())
        app.add_middleware(SessionMiddleware, store=store)
    async with served(app) as browser:
        assert "count 1" in (await browser.get("/count")).text
        assert browser.names == {"session_"}
