"""starlette-flash and starlette-wtf on our session."""

from __future__ import annotations

import tests.apps

tests.apps.needs("starlette_flash", "starlette_wtf")

from typing import Any

import starlette_flash
import starlette_wtf
import wtforms
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from asgi_sessions import SessionMiddleware
from asgi_sessions.stores import Store
from tests.apps.site import ME, routes, served


def a_site(store: Store, *more: Route, inside: tuple[Middleware, ...] = ()) -> Starlette:
    return Starlette(routes=[*routes(), *more], middleware=[Middleware(SessionMiddleware, store=store), *inside])


async def test_starlette_flash(store: Store) -> None:
    async def say(request: Request) -> Response:
        starlette_flash.flash(request).success("saved").error("and not")
        return PlainTextResponse("ok")

    async def hear(request: Request) -> Response:
        return JSONResponse([each["message"] for each in starlette_flash.flash(request)])

    async with served(a_site(store, Route("/say", say), Route("/hear", hear))) as browser:
        await browser.log_in()
        await browser.get("/say")
        await browser.get("/say")
        assert (await browser.get("/hear")).json() == ["saved", "and not"] * 2
        assert (await browser.get("/hear")).json() == []
        assert await browser.me() == {**ME, "data": {"basket": ["tea"], "flash_messages": []}}

        await browser.get("/say")
        await browser.log_out()
        assert (await browser.get("/hear")).json() == []


async def test_looking_for_flash_messages_begins_a_session(store: Store) -> None:
    """The package puts an empty list into the session when it is asked for messages. The documentation says so."""

    async def hear(request: Request) -> Response:
        return JSONResponse(list(starlette_flash.flash(request)))

    async with served(a_site(store, Route("/hear", hear))) as browser:
        await browser.get("/hear")
        assert browser.names == {"__Host-Http-session"}


class ProductForm(starlette_wtf.StarletteForm):
    name = wtforms.StringField("name", validators=[wtforms.validators.DataRequired()])


async def test_starlette_wtf(store: Store) -> None:
    """The token of the form is bound to the session: another session's is refused, and a log-in keeps it."""

    async def form(request: Request) -> Response:
        form: Any = await ProductForm.from_formdata(request)
        if await form.validate_on_submit():
            return PlainTextResponse(f"saved {form.name.data}")
        return JSONResponse({"token": form.csrf_token.current_token, "errors": form.errors})

    csrf = Middleware(starlette_wtf.CSRFProtectMiddleware, csrf_secret="a secret of the forms, long enough")
    app = a_site(store, Route("/form", form, methods=["GET", "POST"]), inside=(csrf,))
    async with served(app) as browser:
        token = (await browser.get("/form")).json()["token"]
        sent = {"name": "tea", "csrf_token": token}
        assert (await browser.post("/form", data=sent)).text == "saved tea"

        await browser.log_in()
        assert (await browser.post("/form", data=sent)).text == "saved tea"
        assert "csrf_token" in (await browser.post("/form", data={"name": "tea"})).json()["errors"]

        await browser.log_out()
        assert "csrf_token" in (await browser.post("/form", data=sent)).json()["errors"]
