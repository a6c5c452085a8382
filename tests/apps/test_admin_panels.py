"""sqladmin and starlette-admin: with a session of their own inside ours, and on ours."""

from __future__ import annotations

import tests.apps

tests.apps.needs("sqladmin", "starlette_admin")

import re
from typing import Any

import pytest
import sqladmin
import sqladmin.authentication
import starlette_admin.auth
import starlette_admin.contrib.sqla
from sqlalchemy import String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware as SignedCookie

from asgi_sessions import SessionMiddleware
from asgi_sessions.stores import Store
from tests.apps.site import ME, Browser, routes, served

KEY = "a key of the admin panel, long enough"


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))


def an_engine() -> Any:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    return engine


class Backend(sqladmin.authentication.AuthenticationBackend):
    """As sqladmin's documentation shows it."""

    async def login(self, request: Any) -> bool:
        form = await request.form()
        request.session.update({"token": str(form["username"])})
        return True

    async def logout(self, request: Any) -> bool:
        request.session.clear()
        return True

    async def authenticate(self, request: Any) -> bool:
        return bool(request.session.get("token") == "root")


class OnOurs(Backend):
    """The panel's key in the app's session; leaving the panel is no log-out of the app."""

    def __init__(self) -> None:
        super().__init__(secret_key=KEY)
        self.middlewares: list[Middleware] = []

    async def logout(self, request: Any) -> bool:
        request.session.pop("token", None)
        return True


def with_sqladmin(store: Store, backend: Any) -> Starlette:
    app = Starlette(routes=routes(), middleware=[Middleware(SessionMiddleware, store=store)])
    admin = sqladmin.Admin(app, an_engine(), authentication_backend=backend)

    class ProductAdmin(sqladmin.ModelView, model=Product):  # type: ignore[call-arg]  # of sqladmin's metaclass
        column_list = ("name",)

    admin.add_view(ProductAdmin)
    return app


@pytest.mark.parametrize(
    ("backend", "cookies"),
    [
        pytest.param(lambda: Backend(secret_key=KEY), {"__Host-Http-session", "session"}, id="a session of its own"),
        pytest.param(OnOurs, {"__Host-Http-session"}, id="on our session"),
    ],
)
async def test_sqladmin(store: Store, backend: Any, cookies: set[str]) -> None:
    async with served(with_sqladmin(store, backend())) as browser:
        await browser.log_in()
        assert (await browser.get("/admin/")).headers["location"].endswith("/admin/login")
        assert await browser.me() == ME

        await browser.post("/admin/login", data={"username": "root", "password": "x"})
        created = await browser.post("/admin/product/create", data={"name": "green tea", "save": "Save"})
        listed = await browser.get("/admin/product/list")
        assert created.status_code == 302
        assert "green tea" in listed.text
        assert browser.names == cookies
        await still_alice(browser)

        await browser.get("/admin/nothing-here")
        await browser.get("/admin/logout")
        assert (await browser.get("/admin/product/list")).status_code == 302
        assert await browser.me() == ME

        await browser.log_out()
        assert (await browser.me())["user"] is None


async def test_logging_out_of_the_site_leaves_the_panels_own_session(store: Store) -> None:
    """Two sessions are two log-ins. The documentation says so."""
    async with served(with_sqladmin(store, Backend(secret_key=KEY))) as browser:
        await browser.log_in()
        await browser.post("/admin/login", data={"username": "root", "password": "x"})

        await browser.log_out()

        assert (await browser.get("/admin/product/list")).status_code == 200


class Provider(starlette_admin.auth.AuthProvider):
    """As starlette-admin's documentation shows it."""

    async def login(self, username: str, password: str, remember_me: bool, request: Any) -> None:
        request.session["admin"] = username

    async def authenticate(self, request: Any) -> Any:
        name = request.session.get("admin")
        return None if name is None else starlette_admin.auth.AdminUser(username=name)

    async def logout(self, request: Any) -> None:
        request.session.pop("admin", None)


def with_starlette_admin(store: Store, middlewares: list[Middleware]) -> Starlette:
    app = Starlette(routes=routes(), middleware=[Middleware(SessionMiddleware, store=store)])
    admin = starlette_admin.contrib.sqla.Admin(
        an_engine(), auth_provider=Provider(), secret_key=KEY, middlewares=middlewares
    )
    admin.add_view(starlette_admin.contrib.sqla.ModelView(Product))
    admin.mount_to(app)
    return app


@pytest.mark.parametrize(
    ("middlewares", "own"),
    [
        pytest.param([Middleware(SignedCookie, secret_key=KEY)], {"session"}, id="a session of its own"),
        pytest.param([], set(), id="on our session"),
    ],
)
async def test_starlette_admin(store: Store, middlewares: list[Middleware], own: set[str]) -> None:
    async with served(with_starlette_admin(store, middlewares)) as browser:
        await browser.log_in()
        login = await browser.get("/admin/login")
        assert await browser.me() == ME

        token = re.search(r'name="csrftoken"[^>]*value="([^"]+)"', login.text)
        assert token is not None, login.text
        entered = await browser.post("/admin/login", data={"username": "root", "password": "x", "csrftoken": token[1]})
        assert entered.status_code == 303
        created = await browser.post("/admin/product/create", data={"name": "green tea", "csrftoken": token[1]})
        assert created.status_code == 303, created.text
        assert "root" in (await browser.get("/admin/")).text
        assert own <= browser.names
        await still_alice(browser)

        await browser.get("/admin/nothing-here")
        await browser.post("/admin/logout", data={"csrftoken": token[1]})
        assert (await browser.get("/admin/")).status_code == 303
        assert await browser.me() == ME

        await browser.log_out()
        assert (await browser.me())["user"] is None


async def still_alice(browser: Browser) -> None:
    """The panel may have a key of its own in our session; what was there is there."""
    me = await browser.me()
    assert me["user"] == "alice"
    assert me["data"]["basket"] == ["tea"]
