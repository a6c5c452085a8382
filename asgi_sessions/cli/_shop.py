"""A small shop that shows what a session does: a basket before the log-in, an account behind it, a preference beside both.

Plain HTML. State changes by POST only, everything that is shown is escaped, and redirects lead to places of a fixed list.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Unpack

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from asgi_sessions import CookieConfig, Session, SessionMiddleware, Sessions
from asgi_sessions._forms import FORM, NeverArrived, TooLong, body_of, form_in, kind_of
from asgi_sessions.activity import ActivityEndpoints
from asgi_sessions.page import SessionsPage
from asgi_sessions.sessions import SessionsOptions
from asgi_sessions.stores import Store


@dataclass(frozen=True, slots=True)
class Good:
    name: str
    cents: int
    about: str
    picture: str


GOODS: Mapping[str, Good] = {
    "earl-grey": Good("Earl Grey", 640, "Black tea and bergamot, 100 g", "🍵"),
    "honey": Good("Heather honey", 890, "From the hills, 250 g", "🍯"),
    "shortbread": Good("Shortbread", 425, "Butter, flour, sugar, nothing else", "🍪"),
    "lemons": Good("Lemons", 310, "Four of them, unwaxed", "🍋"),
    "mug": Good("A plain mug", 1200, "Stoneware, holds a third of a litre", "☕"),
    "cake": Good("Slice of cake", 475, "Yesterday's is half the price; there is none", "🍰"),
}
USERS: Mapping[str, str] = {"ada": "Ada", "grace": "Grace", "alan": "Alan"}
PASSWORDS = ("teapot", "kettle", "samovar")
THEMES: Mapping[str, str] = {"paper": "Paper", "night": "Night"}
PLACES: Mapping[str, str] = {
    "shelf": "/",
    "basket": "/basket",
    "account": "/account",
    "sessions": "/account/sessions/",
}
"""Where a form may lead back to. A name, never a URL: so nobody can make it lead to another site."""

MAX_BODY = 4096
"""Bytes of a form; the longest of this shop has fewer than 200."""
MAX_OF_ONE = 99
MAX_HOLD = 5.0
"""Seconds for which the gate of the tour holds a request at most."""

Form = Mapping[str, str]
Handler = Callable[[Request, Form], Awaitable[Response]]


class Gate:
    """Holds one request between its change and its answer, until it is told to go on. For the tour."""

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
    """The shop behind its sessions.

    Args:
        gate: with it, the shop also has ``POST /basket/add-slowly``, which waits there.
        options: of :class:`Sessions`.
    """
    sessions = Sessions(store, **options)
    routes = [
        Route("/", shelf),
        Route("/basket", basket),
        Route("/login", log_in_page),
        Route("/account", account),
        Mount("/account/sessions", SessionsPage(sessions, log_in_url="/login?next=sessions")),
        Mount("/session", ActivityEndpoints()),
        Route("/account/clock", clock),
        Route("/session.json", raw_session),
        _post("/basket/add", add),
        _post("/basket/remove", remove),
        _post("/theme", choose_theme),
        _post("/login", log_in),
        _post("/logout", log_out),
    ]
    if gate is not None:

        async def add_slowly(request: Request, form: Form) -> Response:
            response = await add(request, form)
            await gate.pass_through()
            return response

        routes.append(_post("/basket/add-slowly", add_slowly))
    shop = Starlette(routes=routes, exception_handlers={HTTPException: refused})
    return SessionMiddleware(shop, sessions, cookie=cookie)


# ── Pages ──


async def shelf(request: Request) -> Response:
    goods = "".join(
        f"""<li><span class="picture" aria-hidden="true">{escape(good.picture)}</span><h2>{escape(good.name)}</h2>
<p>{escape(good.about)}</p><p class="price">{_money(good.cents)}</p>
{_button("/basket/add", "Add to basket", item=slug)}</li>"""
        for slug, good in GOODS.items()
    )
    lead = "<p>Fill your basket first and log in later: it comes along.</p>"
    return _page(session_of(request), "The shelf", f'{lead}<ul class="shelf">{goods}</ul>')


async def basket(request: Request) -> Response:
    session = session_of(request)
    lines, total = "", 0
    for slug, count in session.get("basket", {}).items():
        if (good := GOODS.get(slug)) is not None:
            total += good.cents * count
            lines += (
                f"<tr><td>{escape(good.picture)} {escape(good.name)}</td><td>{count}</td>"
                f"<td>{_money(good.cents * count)}</td>"
                f"<td>{_button('/basket/remove', 'Remove', kind='quiet', item=slug)}</td></tr>"
            )
    if not lines:
        empty = '<p>There is nothing in it yet. <a href="/">To the shelf</a></p>'
        return _page(session, "Your basket", empty, here="basket")
    body = f"""<table><thead><tr><th>What</th><th>How many</th><th>Price</th><th></th></tr></thead><tbody>{lines}</tbody>
<tfoot><tr><td>Together</td><td></td><td>{_money(total)}</td><td></td></tr></tfoot></table>"""
    return _page(session, "Your basket", body, here="basket")


async def log_in_page(request: Request) -> Response:
    return _log_in_form(session_of(request), next=request.query_params.get("next", ""))


def _log_in_form(session: Session, *, user: str = "", next: str, problem: str = "", status: int = 200) -> Response:
    note = f'<p class="problem">{escape(problem)}</p>' if problem else ""
    if session.user_id is not None:
        note += f"<p>You are {escape(_name(session))}. Somebody else begins with an empty basket.</p>"
    body = f"""{note}<form method="post" action="/login" class="card">
<label>Name <input name="user" value="{escape(user)}" autocomplete="username" required autofocus></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<label class="line"><input name="remember" type="checkbox" value="yes"> Keep me logged in on this machine</label>
<input type="hidden" name="next" value="{escape(next if next in PLACES else "account")}">
<button>Log in</button></form>
<p class="hint">This is a demo. Names: {_codes(USERS)}. Password: any of {_codes(PASSWORDS)}.</p>"""
    return _page(session, "Log in", body, status=status)


async def account(request: Request) -> Response:
    session = session_of(request)
    if session.user_id is None or session.authenticated_at is None:
        return RedirectResponse("/login?next=account", 303)
    body = f"""<dl class="card"><dt>Who</dt><dd>{escape(_name(session))}</dd>
<dt>Logged in since</dt><dd>{_time(session.authenticated_at)}</dd>
<dt>Ends, if nothing more is heard</dt><dd>{_time(session.expires_at)}</dd>
<dt>Session id</dt><dd><code>{escape(session.id)}</code></dd>{_device(session)}</dl>
<p class="hint">The id is public: fit for logs and listings, useless for logging in. The secret is the cookie's token.</p>
<p><a href="/account/sessions/">Where you are logged in</a></p>
{_button("/logout", "Log out")}"""
    return _page(session, "Your account", body, here="account", headers={"cache-control": "no-store"})


async def clock(request: Request) -> Response:
    """The time, over and over (Server-Sent Events), for as long as the session lasts."""
    if session_of(request).user_id is None:
        raise HTTPException(401, "Log in first.")

    async def ticks() -> AsyncIterator[str]:
        while True:
            yield f"data: {datetime.now(UTC):%H:%M:%S}\n\n"
            await anyio.sleep(1)

    return StreamingResponse(ticks(), media_type="text/event-stream")


async def raw_session(request: Request) -> Response:
    """What this session holds, for whoever wants to look behind the pages."""
    session = session_of(request)
    facts = {
        "id": None if session.is_new else session.id,
        "user_id": session.user_id,
        "device_bound": session.is_device_bound,
        "data": session.copy(),
        "expires_at": None if session.is_new else session.expires_at.isoformat(timespec="seconds"),
    }
    return JSONResponse(facts, headers={"cache-control": "no-store"})


# ── Changes ──


async def add(request: Request, form: Form) -> Response:
    item = form.get("item", "")
    if item not in GOODS:
        raise HTTPException(400, "There is no such thing on the shelf.")
    # A nested change, noticed without any flag.
    counts = session_of(request).setdefault("basket", {})
    counts[item] = min(counts.get(item, 0) + 1, MAX_OF_ONE)
    return RedirectResponse("/", 303)


async def remove(request: Request, form: Form) -> Response:
    session = session_of(request)
    counts = session.get("basket", {})
    counts.pop(form.get("item", ""), None)
    if not counts:
        # Nothing left at all: an anonymous session then ends by itself, in the store and in the browser.
        session.pop("basket", None)
    return RedirectResponse("/basket", 303)


async def choose_theme(request: Request, form: Form) -> Response:
    theme = form.get("theme", "")
    if theme not in THEMES:
        raise HTTPException(400, "There is no such theme.")
    # A top-level key of its own: changed while another request fills the basket, both changes survive.
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
        # Browsers say where a request comes from (W3C Fetch Metadata). Older ones do not: there SameSite=Lax has to do.
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise HTTPException(403, "This form was sent by another site.")
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
    body = f'<p>{escape(detail)}</p><p><a href="/">To the shelf</a></p>'
    return _page(None, f"That did not work ({status})", body, status=status, headers=headers)


# ── HTML ──

_STYLE = """
:root{--ink:#2b2622;--soft:#756b62;--line:#e3dbd1;--ground:#faf7f2;--card:#fff;--accent:#1f6f5c;--on:#fff;--bad:#a3322b}
:root.night{--ink:#ece7e1;--soft:#a39a91;--line:#3a3633;--ground:#1c1a19;--card:#272423;--accent:#79cbb4;--on:#14211d;--bad:#f0938a}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main,footer{max-width:60rem;margin:0 auto;padding:0 1.25rem}
header{display:flex;flex-wrap:wrap;gap:.5rem 1.5rem;align-items:center;padding-top:1.25rem;padding-bottom:1.25rem;
border-bottom:1px solid var(--line)}
header .name{font:600 1.3rem Georgia,serif;color:var(--ink);margin-right:auto}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
h1{font:600 1.9rem/1.2 Georgia,serif;margin:1.75rem 0 .5rem}
h2{font-size:1.05rem;margin:.5rem 0 0}
.shelf{list-style:none;margin:1.25rem 0;padding:0;display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr))}
.shelf li,.card{background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:1.1rem}
.shelf li{display:flex;flex-direction:column}
.shelf p{margin:.15rem 0;color:var(--soft);font-size:.93rem}
.shelf .price{color:var(--ink);font-weight:600;margin:auto 0 .6rem;padding-top:.5rem}
.picture{font-size:2.3rem;line-height:1.2}
form{margin:0}
button{font:inherit;font-weight:600;cursor:pointer;border:1px solid var(--accent);border-radius:.5rem;padding:.42rem .9rem;
background:var(--accent);color:var(--on)}
button:hover{filter:brightness(1.08)}
button.quiet{background:none;color:var(--accent);font-weight:400;padding:.2rem .6rem}
button:focus-visible,input:focus-visible,a:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.card{max-width:30rem;margin:1rem 0}
form.card{display:grid;gap:.9rem}
label{display:grid;gap:.25rem;font-size:.93rem}
label.line{display:flex;gap:.5rem;align-items:center}
input:not([type=checkbox]){font:inherit;padding:.45rem .6rem;border:1px solid var(--line);border-radius:.5rem;
background:var(--ground);color:var(--ink)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.25rem;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;max-width:42rem;margin:1rem 0}
td,th{text-align:left;padding:.55rem .75rem .55rem 0;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:400;font-size:.93rem}tfoot td{font-weight:600;border:0}
.hint{color:var(--soft);font-size:.93rem}.problem{color:var(--bad);font-weight:600}
code{font:.92em ui-monospace,Menlo,Consolas,monospace}
footer{margin-top:2.5rem;padding-top:1rem;padding-bottom:2rem;border-top:1px solid var(--line);font-size:.88rem}
footer h2{font-size:.93rem;margin:0 0 .5rem}
dialog{border:1px solid var(--line);border-radius:.75rem;padding:1.25rem 1.5rem;background:var(--ground);color:var(--ink)}
footer .themes{display:flex;gap:.5rem;align-items:center;margin-top:1rem;color:var(--soft)}
@media(max-width:30rem){dl{grid-template-columns:1fr}dd{margin-bottom:.5rem}}
"""

_ICON = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ctext y='13' font-size='13'%3E%F0%9F%8D%B5%3C/text%3E%3C/svg%3E"  # noqa: E501

_HEADERS = {
    # One script of ours, which warns before the session ends, and no style but ours.
    "content-security-policy": "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def _page(
    session: Session | None,
    title: str,
    body: str,
    *,
    here: str = "shelf",
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> HTMLResponse:
    theme, links, footer, script = "paper", "", "", ""
    if session is not None:
        theme = session.get("theme", theme)
        count = sum(session.get("basket", {}).values())
        who = '<a href="/login">Log in</a>'
        if session.user_id is not None:
            script = '<script src="/session/activity.js" defer data-expired="/login"></script>'
            who = f'<a href="/account">{escape(_name(session))}</a>{_button("/logout", "Log out", kind="quiet")}'
        links = f'<a href="/basket">Basket ({count})</a>{who}'
        footer = f"<footer>{_what_the_server_sees(session)}{_theme_buttons(theme, here)}</footer>"
    html = f"""<!doctype html>
<html lang="en" class="{escape(theme)}"><head><meta charset="utf-8"><title>{escape(title)} · Tea and so on</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="{_ICON}">
<style>{_STYLE}</style>{script}</head><body>
<header><a class="name" href="/">Tea and so on</a>{links}</header>
<main><h1>{escape(title)}</h1>{body}</main>{footer}</body></html>
"""
    return HTMLResponse(html, status, headers={**_HEADERS, **(headers or {})})


def _what_the_server_sees(session: Session) -> str:
    heading = "<h2>Your session, as the server sees it</h2>"
    if session.is_new:
        return f"{heading}<p>There is none: no cookie, and nothing stored. Put something into your basket.</p>"
    keys = ", ".join(f"<code>{escape(key)}</code>" for key in session) or "nothing"
    who = "nobody" if session.user_id is None else escape(_name(session))
    return f"""{heading}<dl><dt>Id</dt><dd><code>{escape(session.id)}</code></dd><dt>Logged in</dt><dd>{who}</dd>
<dt>Holds</dt><dd>{keys} (<a href="/session.json">all of it</a>)</dd>
<dt>Ends</dt><dd>{_time(session.expires_at)}, if nothing more is heard</dd>{_device(session)}</dl>"""


def _device(session: Session) -> str:
    return "<dt>Device</dt><dd>bound to this device</dd>" if session.is_device_bound else ""


def _theme_buttons(current: str, here: str) -> str:
    others = "".join(
        _button("/theme", label, kind="quiet", theme=theme, back=here)
        for theme, label in THEMES.items()
        if theme != current
    )
    return f'<div class="themes">Theme: {escape(THEMES.get(current, ""))}{others}</div>'


def _button(action: str, label: str, *, kind: str = "", **fields: str) -> str:
    hidden = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">' for name, value in fields.items()
    )
    return f'<form method="post" action="{action}">{hidden}<button class="{kind}">{escape(label)}</button></form>'


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"<code>{escape(word)}</code>" for word in words)


def _name(session: Session) -> str:
    return USERS.get(session.user_id or "", session.user_id or "nobody")


def _money(cents: int) -> str:
    return f"€ {cents // 100}.{cents % 100:02d}"


def _time(moment: datetime) -> str:
    return f'<time datetime="{moment.isoformat(timespec="seconds")}">{moment:%d %b %Y, %H:%M} UTC</time>'
