"""A small shop to demonstrate sessions: a basket before the log-in, an account after it, and a preference.

The shop and its sessions page share a frame and a stylesheet. State changes by POST only, all output is escaped, and redirects
lead only to a fixed list of pages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Unpack

import anyio
import httpx
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from asgi_sessions import CookieConfig, Session, SessionMiddleware, Sessions
from asgi_sessions._forms import FORM, NeverArrived, TooLong, body_of, form_in, kind_of
from asgi_sessions.activity import ActivityEndpoints
from asgi_sessions.cross_origin import CrossOriginProtection
from asgi_sessions.page import SessionsPage
from asgi_sessions.sessions import SessionsOptions
from asgi_sessions.stores import Store


@dataclass(frozen=True, slots=True)
class Good:
    name: str
    cents: int
    about: str


GOODS: Mapping[str, Good] = {
    "earl-grey": Good("Earl Grey", 640, "Black tea and bergamot, 100 g"),
    "honey": Good("Heather honey", 890, "From the hills, 250 g"),
    "shortbread": Good("Shortbread", 425, "Butter, flour, sugar, nothing else"),
    "lemons": Good("Lemons", 310, "Four of them, unwaxed"),
    "mug": Good("A plain mug", 1200, "Stoneware, holds a third of a litre"),
    "cake": Good("Slice of cake", 475, "Yesterday's is half the price, and sold out"),
}
USERS: Mapping[str, str] = {"ada": "Ada", "grace": "Grace", "alan": "Alan"}
PASSWORDS = ("teapot", "kettle", "samovar")
OTHERS: Final = (
    (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/18.1 Mobile/15E148 Safari/604.1",
        "203.0.113.7",
    ),
    ("Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101 Firefox/133.0", "198.51.100.20"),
    (
        "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Mobile Safari/537.36",
        "192.0.2.99",
    ),
)
"""Fictional devices for the sessions page. Each has a User-Agent and an address."""
THEMES: Mapping[str, str] = {"auto": "as this device", "paper": "Light", "night": "Dark"}
PLACES: Mapping[str, str] = {
    "shelf": "/",
    "basket": "/basket",
    "account": "/account",
    "sessions": "/account/sessions/",
}
"""The pages to which a form may redirect. A form sends a name instead of a URL, so it cannot lead to another site."""

MAX_BODY = 4096
"""Bytes of a form. The longest of this shop has fewer than 200."""
MAX_OF_ONE = 99
MAX_HOLD = 5.0
"""The longest time, in seconds, for which the gate of the tour holds a request."""

Form = Mapping[str, str]
Handler = Callable[[Request, Form], Awaitable[Response]]


class Gate:
    """Holds one request of the tour between its change and its answer, until the gate opens."""

    def __init__(self) -> None:
        self.arrived = anyio.Event()
        self.opened = anyio.Event()

    async def pass_through(self) -> None:
        self.arrived.set()
        with anyio.move_on_after(MAX_HOLD):
            await self.opened.wait()


def create_shop(
    store: Store,
    *,
    cookie: CookieConfig = CookieConfig(),  # noqa: B008 - frozen
    gate: Gate | None = None,
    **options: Unpack[SessionsOptions],
) -> SessionMiddleware:
    """The shop inside of its SessionMiddleware. Forms of other origins are refused.

    Args:
        gate: adds ``POST /basket/add-slowly``, which waits at this gate.
        options: the options of :class:`Sessions`.
    """
    sessions = Sessions(store, **options)
    page = SessionsPage(
        sessions,
        log_in_url="/login?next=sessions",
        back_url="/account",
        templates=TEMPLATES,
        context=lambda request: _frame(session_of(request), "sessions"),
    )

    async def log_in_elsewhere(request: Request, form: Form) -> Response:
        """Log this user in from a fictional device, by a request to the shop."""
        user = session_of(request).user_id
        if user is not None:
            agent, address = OTHERS[await sessions.count(user) % len(OTHERS)]
            transport = httpx.ASGITransport(app=shop, client=(address, 50_000))
            async with httpx.AsyncClient(transport=transport, headers={"user-agent": agent}) as device:
                await device.post("https://shop/login", data={"user": user, "password": PASSWORDS[0]})
        return RedirectResponse(PLACES["sessions"], 303)

    routes = [
        Route("/", shelf),
        Route("/basket", basket),
        Route("/login", log_in_page),
        Route("/account", account),
        Mount("/account/sessions", page),
        Mount("/session", ActivityEndpoints()),
        Route("/account/clock", clock),
        Route("/session.json", raw_session),
        Route("/shop.css", style),
        Route("/icon.svg", icon),
        _post("/basket/add", add),
        _post("/basket/remove", remove),
        _post("/theme", choose_theme),
        _post("/login", log_in),
        _post("/logout", log_out),
        _post("/account/elsewhere", log_in_elsewhere),
    ]
    if gate is not None:

        async def add_slowly(request: Request, form: Form) -> Response:
            response = await add(request, form)
            await gate.pass_through()
            return response

        routes.append(_post("/basket/add-slowly", add_slowly))
    app = Starlette(routes=routes, exception_handlers={HTTPException: refused})
    shop = SessionMiddleware(CrossOriginProtection(app), sessions, cookie=cookie)
    return shop


# ── Pages ──


async def shelf(request: Request) -> Response:
    return _page(session_of(request), "shelf", "The shelf", goods=GOODS)


async def basket(request: Request) -> Response:
    session = session_of(request)
    counts = session.get("basket", {})
    lines = [(slug, GOODS[slug], count) for slug, count in counts.items() if slug in GOODS]
    total = sum(good.cents * count for _, good, count in lines)
    return _page(session, "basket", "Your basket", lines=lines, total=total)


async def log_in_page(request: Request) -> Response:
    return _log_in_form(session_of(request), next=request.query_params.get("next", ""))


def _log_in_form(session: Session, *, user: str = "", next: str, problem: str = "", status: int = 200) -> Response:
    about: dict[str, Any] = {"user": user, "next": next if next in PLACES else "account", "problem": problem}
    return _page(session, "login", "Log in", status, users=USERS, passwords=PASSWORDS, **about)


async def account(request: Request) -> Response:
    session = session_of(request)
    if session.user_id is None or session.authenticated_at is None:
        return RedirectResponse("/login?next=account", 303)
    return _page(session, "account", "Your account", headers={"cache-control": "no-store"})


async def clock(request: Request) -> Response:
    """Send the time repeatedly (Server-Sent Events), until the session ends."""
    if session_of(request).user_id is None:
        raise HTTPException(401, "Log in first.")

    async def ticks() -> AsyncIterator[str]:
        while True:
            yield f"data: {datetime.now(UTC):%H:%M:%S}\n\n"
            await anyio.sleep(1)

    return StreamingResponse(ticks(), media_type="text/event-stream")


async def raw_session(request: Request) -> Response:
    """The content of this session as JSON."""
    session = session_of(request)
    facts = {
        "id": None if session.is_new else session.id,
        "user_id": session.user_id,
        "device_bound": session.is_device_bound,
        "data": session.copy(),
        "expires_at": None if session.is_new else session.expires_at.isoformat(timespec="seconds"),
    }
    return JSONResponse(facts, headers={"cache-control": "no-store"})


async def style(request: Request) -> Response:
    return Response(_STYLE, media_type="text/css", headers=_HEADERS)


async def icon(request: Request) -> Response:
    return Response(_ICON, media_type="image/svg+xml", headers=_HEADERS)


# ── Changes ──


async def add(request: Request, form: Form) -> Response:
    item = form.get("item", "")
    if item not in GOODS:
        raise HTTPException(400, "There is no such thing on the shelf.")
    # A nested change needs no flag.
    counts = session_of(request).setdefault("basket", {})
    counts[item] = min(counts.get(item, 0) + 1, MAX_OF_ONE)
    return RedirectResponse("/", 303)


async def remove(request: Request, form: Form) -> Response:
    session = session_of(request)
    counts = session.get("basket", {})
    counts.pop(form.get("item", ""), None)
    if not counts:
        # An empty anonymous session ends by itself, in the store and in the browser.
        session.pop("basket", None)
    return RedirectResponse("/basket", 303)


async def choose_theme(request: Request, form: Form) -> Response:
    theme = form.get("theme", "")
    if theme not in THEMES:
        raise HTTPException(400, "There is no such theme.")
    # A separate top-level key, so that a concurrent request that fills the basket keeps its change.
    session_of(request)["theme"] = theme
    return RedirectResponse(PLACES.get(form.get("back", ""), "/"), 303)


async def log_in(request: Request, form: Form) -> Response:
    session = session_of(request)
    user, next = form.get("user", "").strip(), form.get("next", "")
    if user not in USERS or form.get("password") not in PASSWORDS:
        problem = "That name and password do not belong together."
        return _log_in_form(session, user=user[:100], next=next, problem=problem, status=403)
    session.log_in(user, remember="remember" in form)
    return RedirectResponse(PLACES.get(next, "/account"), 303)


async def log_out(request: Request, form: Form) -> Response:
    session_of(request).destroy()
    return RedirectResponse("/", 303)


# ── Requests ──


def session_of(request: Request) -> Session:
    session: Session = request.scope["session"]
    return session


def _post(path: str, handler: Handler) -> Route:
    async def endpoint(request: Request) -> Response:
        return await handler(request, await _form(request))

    return Route(path, endpoint, methods=["POST"])


async def _form(request: Request) -> Form:
    try:
        body = await body_of(request, MAX_BODY)
    except TooLong:
        raise HTTPException(413, "That is too long for a form of this shop.") from None
    except NeverArrived:
        raise HTTPException(400, "The form never arrived.") from None
    if not body:
        return {}
    if kind_of(request) != FORM:
        raise HTTPException(415, "Send the form as application/x-www-form-urlencoded.")
    try:
        return form_in(body, max_fields=10)
    except ValueError:
        raise HTTPException(400, "The form cannot be read, or says something twice.") from None


async def refused(request: Request, error: Exception) -> Response:
    status, detail, headers = 500, "", None
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, error.detail, error.headers
    return _page(None, "refused", f"That did not work ({status})", status, headers, detail=detail)


# ── HTML ──

TEMPLATES: Final = Path(__file__).parent / "templates"
_STYLE = (Path(__file__).parent / "shop.css").read_bytes()
_ICON = (Path(__file__).parent / "icon.svg").read_bytes()

_environment = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)

_HEADERS = {
    # Allows only our stylesheet and our script, which warns before the session ends.
    "content-security-policy": "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'; style-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def _page(
    session: Session | None,
    template: str,
    title: str,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **variables: Any,
) -> HTMLResponse:
    here = template if template in PLACES else "shelf"
    html = _environment.get_template(f"shop/{template}.html").render(title=title, **_frame(session, here), **variables)
    return HTMLResponse(html, status, headers={**_HEADERS, **(headers or {})})


def _frame(session: Session | None, here: str) -> dict[str, Any]:
    """The variables for the frame of each page, also of the sessions page. ``here``: the page after a form of the frame."""
    theme = "auto" if session is None else session.get("theme", "auto")
    theme = theme if theme in THEMES else "auto"
    return {"session": session, "theme": theme, "themes": THEMES, "here": here, "name_of": _name, "money": _money}


def _name(session: Session) -> str:
    return USERS.get(session.user_id or "", session.user_id or "nobody")


def _money(cents: int) -> str:
    return f"€ {cents // 100}.{cents % 100:02d}"
