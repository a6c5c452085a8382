"""SessionsPage: an ASGI app to mount, on which users see and end their sessions. The same data is available as JSON.

::

    Mount("/account/sessions", SessionsPage(sessions, log_in_url="/login"))

Needs the extra ``[page]`` and the app's SessionMiddleware around it. The page works without JavaScript. One small script writes
times in the reader's time zone. The Content-Security-Policy allows only that script and one stylesheet. Forms of other origins
are refused (:class:`~asgi_sessions.cross_origin.CrossOriginProtection`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from os import PathLike
from os.path import isdir
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route, Router

from asgi_sessions._core.arguments import path_in, whole
from asgi_sessions._core.extras import needs
from asgi_sessions._core.facts import Location
from asgi_sessions._core.json import json_in
from asgi_sessions._core.origin import path_below_root
from asgi_sessions._core.session import OURS, Session
from asgi_sessions._core.timeouts import duration
from asgi_sessions._core.types import Receive, Scope, Send
from asgi_sessions._forms import FORM, JSON, NeverArrived, TooLong, body_of, form_in, kind_of
from asgi_sessions.cross_origin import CrossOriginProtection
from asgi_sessions.errors import ConfigurationError, SessionDataError, StoreError
from asgi_sessions.page._openapi import openapi
from asgi_sessions.page._strings import Strings, place
from asgi_sessions.sessions import HistoryEntry, SessionInfo, Sessions, refuse_no_users

with needs("page", "asgi_sessions.page"):
    from jinja2 import (
        BaseLoader,
        ChoiceLoader,
        Environment,
        FileSystemLoader,
        PackageLoader,
        PrefixLoader,
        StrictUndefined,
        Template,
    )
    from markupsafe import Markup

__all__ = ["SessionsPage", "Strings"]

MAX_BODY: Final = 4096
"""Bytes of a form or a JSON body. The longest valid one has fewer than 400."""

MAX_ENTRIES: Final = 200
"""Entries of the history in one answer."""

FIRST_ENTRIES: Final = 8
"""Entries of the history on the page, before "more"."""
MORE_ENTRIES: Final = 20
ALL_ENTRIES: Final = 10_000
"""As many as ``Devices(history_entries=…)`` may keep."""

MANY: Final = 6
"""With at least this many devices, the page has columns if the window is wide."""


def _template(*first: BaseLoader) -> Template:
    """The template of the page. ``first``: loaders for templates of the app, which replace ours.

    Ours are also available as ``built-in/…``, so that a template of the same name can extend them.
    """
    ours = PackageLoader("asgi_sessions.page", "templates/asgi_sessions")
    loader = ChoiceLoader([*first, PrefixLoader({"asgi_sessions": ours, "built-in": ours})])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("asgi_sessions/sessions.html")


_own_template = cache(_template)
"""Compiles the built-in template once, which takes 20 ms."""

_STYLE = (Path(__file__).parent / "style.css").read_bytes()
_SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_OWN_ASSETS = "script-src 'sha256-{}' 'self'; connect-src 'self'; img-src 'self'; font-src 'self'"
"""The policy with templates of the app. It allows the app's logo, fonts and scripts, such as ``activity.js``."""


def _policy(scripts: str) -> str:
    return (
        f"default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; {scripts}"
    )


_HEADERS = {
    "content-security-policy": _policy(f"script-src 'sha256-{_HASH}'"),
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}

# RFC 9470, section 3, with a scheme of ours: the session is valid, but the last proof of the user's identity is too old.
_STEP_UP = "{} error=insufficient_user_authentication, max_age={:.0f}"


class SessionsPage:
    """A page with the sessions of the logged-in user.

    Args:
        sessions: the :class:`Sessions` of the app's SessionMiddleware.
        log_in_url: visitors without a log-in are redirected to this URL. Without it they get 401.
        within: the greatest age of the user's last log-in or ``confirm()`` for ending and renaming sessions.
        confirm_url: users with an older proof are redirected to this URL, with ``next=`` and the page's path added. Without it
            they get 401.
        after_log_out: users are redirected to this URL after they have ended the session of this request.
        back_url: a link at the top of the page, for example back to the account.
        password_url: a link to your page for a new password.
        trusted_origins: other origins that may send forms and requests, as in :class:`CrossOriginProtection`.
        strings: the texts of the page, for other languages.
        templates: a directory with your own ``asgi_sessions/base.html`` or ``asgi_sessions/sessions.html``, which replace ours.
            Each may extend ours: ``built-in/base.html``, ``built-in/sessions.html``.
        context: ``context(request) -> dict``: more variables for these templates.
    Raises:
        ConfigurationError: an argument is wrong.
    """

    def __init__(
        self,
        sessions: Sessions,
        *,
        log_in_url: str | None = None,
        within: timedelta | None = None,
        confirm_url: str | None = None,
        after_log_out: str = "/",
        back_url: str | None = None,
        password_url: str | None = None,
        trusted_origins: Iterable[str] = (),
        strings: Strings = Strings(),  # noqa: B008 - frozen
        templates: str | PathLike[str] | None = None,
        context: Callable[[Request], Mapping[str, Any]] | None = None,
    ) -> None:
        if not isinstance(sessions, Sessions):
            raise ConfigurationError(f"SessionsPage({type(sessions).__name__}): give the Sessions of the app")
        refuse_no_users("SessionsPage", sessions.store)
        if not isinstance(strings, Strings):
            raise ConfigurationError(
                "SessionsPage(strings=…): give a Strings, for example Strings(title='Ihre Geräte')"
            )
        for name, url in (
            ("log_in_url", log_in_url),
            ("confirm_url", confirm_url),
            ("after_log_out", after_log_out),
            ("back_url", back_url),
            ("password_url", password_url),
        ):
            if url is not None and not (isinstance(url, str) and url.isascii() and url.isprintable() and url):
                raise ConfigurationError(f"SessionsPage({name}={url!r}): give a URL")
        if templates is not None and not isdir(path_in("SessionsPage(templates)", templates)):
            raise ConfigurationError(f"SessionsPage(templates={str(templates)!r}): there is no such directory")
        self._sessions = sessions
        self._log_in_url = log_in_url
        self._within = None if within is None else duration("SessionsPage(within)", within)
        self._confirm_url = confirm_url
        self._after_log_out = after_log_out
        self._links = {"back_url": back_url, "password_url": password_url}
        self._strings = strings
        self._template = _own_template() if templates is None else _template(FileSystemLoader(templates))
        if context is not None and not callable(context):
            raise ConfigurationError(f"SessionsPage(context={context!r}): give a function of the request")
        self._context = context
        self._headers = _HEADERS
        if templates is not None:
            self._headers = {**_HEADERS, "content-security-policy": _policy(_OWN_ASSETS.format(_HASH))}
        router = Router(
            [
                Route("/", self._page),
                Route("/style.css", _style),
                Route("/end", self._end, methods=["POST"]),
                Route("/end-others", self._end_others, methods=["POST"]),
                Route("/rename", self._rename, methods=["POST"]),
                Route("/api/sessions", self._api_list, methods=["GET"]),
                Route("/api/sessions", self._api_end_others, methods=["DELETE"]),
                Route("/api/sessions/{id:str}", self._api_end, methods=["DELETE"]),
                Route("/api/sessions/{id:str}", self._api_rename, methods=["PATCH"]),
                Route("/api/history", self._api_history, methods=["GET"]),
                Route("/api/openapi.json", self._api_document, methods=["GET"]),
            ]
        )
        self._app = CrossOriginProtection(router, trusted_origins=trusted_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # a mounted app gets none
            await _lifespan(receive, send)
            return
        if scope["type"] == "http":
            # At the path of a mount, some frameworks add a slash at the end and some remove it.
            asked, path = _asked(scope), "/" + path_below_root(scope).strip("/")
            if path == "/" and not asked.endswith("/"):
                # The links of the page are relative, so they work at any mount path and behind any proxy.
                again = RedirectResponse(f"{asked.rpartition('/')[2]}/", 307, headers=_HEADERS)
                await again(scope, receive, send)
                return
            scope = {**scope, "path": path, "root_path": "", "asgi_sessions.asked": asked}
        try:
            await self._app(scope, receive, send)
        except _Answer as answer:
            await answer.response(scope, receive, send)
        except StoreError:
            retry = {"retry-after": str(self._sessions._manager.guard.retry_after)}
            await _problem(503, "The sessions cannot be read now.", retry)(scope, receive, send)
        except HTTPException as error:  # no framework around this app has a page for it
            problem = _problem(error.status_code, error.detail, dict(error.headers or {}))
            await problem(scope, receive, send)

    # ── The page ──

    async def _page(self, request: Request) -> Response:
        session, user_id = self._user(request)
        found = await self._sessions.list(user_id, current=session)
        found.sort(key=lambda each: not each.current)  # this device first, the others in their order
        history = await self._sessions.history(user_id, ALL_ENTRIES)
        shown = whole(request.query_params.get("entries", ""), 1, ALL_ENTRIES) or FIRST_ENTRIES
        strings, now = self._strings, _now(found)
        devices = _by_device([each for each in found if not each.current], strings, now)
        html = self._template.render(
            request=request,
            strings=strings,
            sessions=[_card(each, strings, now) for each in found],
            current=_by_device([each for each in found if each.current], strings, now),
            devices=devices,
            many=len(devices) > MANY,
            history=[_happening(entry, strings, session) for entry in _told(history)[:shown]],
            more=shown + MORE_ENTRIES if shown < len(history) else 0,
            others=sum(not each.current for each in found),
            done=strings.done.get(request.query_params.get("done", ""), ""),
            script=Markup(_SCRIPT),  # noqa: S704 - ours
            **self._links,
            **({} if self._context is None else self._context(request)),
        )
        return HTMLResponse(html, headers=self._headers)

    async def _end(self, request: Request) -> Response:
        session, user_id = self._fresh_user(request)
        id = (await _form(request)).get("id", "")
        is_this = id == session.id  # read first, because the session has another id afterwards
        found = await self._ended(session, user_id, id)
        if is_this:
            return RedirectResponse(self._after_log_out, 303, headers=_HEADERS)
        return _back("ended" if found else "gone")

    async def _end_others(self, request: Request) -> Response:
        session, user_id = self._fresh_user(request)
        await _form(request)
        await self._sessions.revoke_all(user_id, keep=session)
        return _back("ended-others")

    async def _rename(self, request: Request) -> Response:
        _, user_id = self._fresh_user(request)
        form = await _form(request)
        try:
            found = await self._sessions.rename(user_id, form.get("id", ""), form.get("name", ""))
        except SessionDataError:
            return _back("bad-name")
        return _back("renamed" if found else "gone")

    # ── The same as JSON ──

    async def _api_list(self, request: Request) -> Response:
        session, user_id = self._user(request, api=True)
        return _json({"sessions": [_plain(each) for each in await self._sessions.list(user_id, current=session)]})

    async def _api_end(self, request: Request) -> Response:
        session, user_id = self._fresh_user(request, api=True)
        if not await self._ended(session, user_id, request.path_params["id"]):
            raise _api_error(404, "There is no such session.")
        return Response(status_code=204, headers=_HEADERS)

    async def _api_end_others(self, request: Request) -> Response:
        session, user_id = self._fresh_user(request, api=True)
        return _json({"ended": await self._sessions.revoke_all(user_id, keep=session)})

    async def _api_rename(self, request: Request) -> Response:
        _, user_id = self._fresh_user(request, api=True)
        if kind_of(request) != JSON:
            raise _api_error(415, "Send JSON.")
        try:
            name = json_in(await _body(request, api=True))["name"]
        except (ValueError, KeyError):
            raise _api_error(422, 'Send {"name": "…"}.') from None
        try:
            found = await self._sessions.rename(user_id, request.path_params["id"], name)
        except SessionDataError as error:
            raise _api_error(422, str(error)) from None
        if not found:
            raise _api_error(404, "There is no such session.")
        return Response(status_code=204, headers=_HEADERS)

    async def _api_history(self, request: Request) -> Response:
        _, user_id = self._user(request, api=True)
        given = request.query_params.getlist("limit") or ["50"]
        limit = whole(given[0], 1, MAX_ENTRIES) if len(given) == 1 else None
        if limit is None:
            raise _api_error(422, f"limit is a number from 1 to {MAX_ENTRIES}.")
        return _json({"history": [_entry_as_json(entry) for entry in await self._sessions.history(user_id, limit)]})

    async def _api_document(self, request: Request) -> Response:
        base = str(request.scope["asgi_sessions.asked"]).rstrip("/").removesuffix("/api/openapi.json")
        return JSONResponse(openapi(base), headers=_HEADERS)

    async def _ended(self, session: Session, user_id: str, id: str) -> bool:
        """End the session ``id`` of a user. Returns whether there was such a session."""
        # A session with an access token is read-only and has no cookie to delete.
        if id != session.id or session.is_bearer:
            return await self._sessions.revoke(user_id, id)
        session.destroy()
        return True

    # ── Who is asking ──

    def _user(self, request: Request, *, api: bool = False) -> tuple[Session, str]:
        session: Session | None = request.scope.get(OURS)
        if session is None:
            raise ConfigurationError("SessionsPage: this request has no session; put SessionMiddleware around the app")
        if session.is_degraded:
            raise StoreError("the store could not be asked who is logged in")
        user_id = session.user_id
        if user_id is not None:
            return session, user_id
        refusal = (401, "Not logged in.", {"www-authenticate": "Cookie"})
        if api:
            raise _api_error(*refusal)
        if self._log_in_url is None:
            raise HTTPException(*refusal)
        raise _Answer(RedirectResponse(self._log_in_url, 303, headers=_HEADERS))

    def _fresh_user(self, request: Request, *, api: bool = False) -> tuple[Session, str]:
        session, user_id = self._user(request, api=api)
        if session.actor_id is not None:
            refused = (403, "You act as this user. Stop that first.")
            raise _api_error(*refused) if api else HTTPException(*refused)
        if self._within is None or session.is_fresh(self._within):
            return session, user_id
        refusal = (
            401,
            "Confirm who you are.",
            {"www-authenticate": _STEP_UP.format(session.scheme, self._within.total_seconds())},
        )
        if api:
            raise _api_error(*refusal)
        if self._confirm_url is None:
            raise HTTPException(*refusal)
        here = str(request.scope["asgi_sessions.asked"]).rstrip("/").rpartition("/")[0]
        raise _Answer(RedirectResponse(_with_next(self._confirm_url, f"{here}/"), 303, headers=_HEADERS))


def _with_next(url: str, path: str) -> str:
    """``url`` with a parameter ``next``, which is always a path of this site. An existing ``next`` stays."""
    asked = urlsplit(url)
    if any(name == "next" for name, _ in parse_qsl(asked.query, keep_blank_values=True)):
        return url
    # For browsers, "//x" and "/\\x" name another host.
    query = urlencode({"next": "/" + quote(path, safe="/%~!$&'()*+,;=:@").lstrip("/")})
    return asked._replace(query=f"{asked.query}&{query}" if asked.query else query).geturl()


def _asked(scope: Scope) -> str:
    """The path that the client requested."""
    raw = scope.get("raw_path")
    return str(scope.get("path", "/")) if raw is None else bytes(raw).partition(b"?")[0].decode("latin-1")


class _Answer(Exception):
    """Carries an answer out of nested calls. Frameworks would handle an HTTPException themselves."""

    def __init__(self, response: Response) -> None:
        self.response = response


def _api_error(status: int, detail: str, headers: dict[str, str] | None = None) -> _Answer:
    return _Answer(_problem(status, detail, headers or {}))


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _style(request: Request) -> Response:
    headers = {**_HEADERS, "cache-control": "public, max-age=3600"}
    return Response(_STYLE, media_type="text/css", headers=headers)


def _back(done: str) -> Response:
    # Relative, so it works at any mount path and behind any proxy.
    return RedirectResponse(f"./?done={done}", 303, headers=_HEADERS)


def _json(content: Any) -> Response:
    return JSONResponse(content, headers=_HEADERS)


def _problem(status: int, detail: str, headers: dict[str, str]) -> Response:
    """An answer with problem details (RFC 9457)."""
    content = {"title": detail, "status": status}
    return JSONResponse(content, status, {**_HEADERS, **headers}, media_type="application/problem+json")


async def _body(request: Request, *, api: bool = False) -> bytes:
    try:
        return await body_of(request, MAX_BODY)
    except TooLong:
        raise (_api_error(413, "That is too long.") if api else HTTPException(413, "That is too long.")) from None
    except NeverArrived:
        raise HTTPException(400, "The request never arrived.") from None


async def _form(request: Request) -> dict[str, str]:
    body = await _body(request)
    if not body:
        return {}
    if kind_of(request) != FORM:
        raise HTTPException(415, "Send a form.")
    try:
        return form_in(body, max_fields=9)
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None


def _now(found: list[SessionInfo]) -> datetime:
    """The time to which phrases like "2 minutes ago" refer. The clock of a test may be ahead of the machine's."""
    return max([datetime.now(UTC), *(each.last_seen_at for each in found)])


def _by_device(found: Sequence[SessionInfo], strings: Strings, now: datetime) -> list[dict[str, Any]]:
    """The sessions, grouped by device, in the order of each device's first session."""
    groups: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for info in found:
        device = info.device
        key = (info.name, info.kind, device.browser, device.system, device.kind, info.is_impersonated)
        groups.setdefault(key, []).append(_card(info, strings, now))
    return [
        {
            **{name: cards[0][name] for name in ("title", "device", "kind", "kind_said")},
            "count": strings.count(len(cards)) if len(cards) > 1 else "",
            "sessions": cards,
        }
        for cards in groups.values()
    ]


def _placed(location: Location, strings: Strings) -> dict[str, Any]:
    # The script replaces the country's code by its name, unless the app has its own texts for places.
    country = location.country if strings.place is place else None
    network = strings.network(location.network) if location.network else ""
    return {"place": strings.place(location) or network, "country": country or "", "network": network}


def _card(info: SessionInfo, strings: Strings, now: datetime) -> dict[str, Any]:
    device = strings.impersonated if info.is_impersonated else strings.device(info.device)
    return {
        "id": info.id,
        "current": info.current,
        "title": info.name or device,
        "device": device if info.name else "",
        "name": info.name,
        "kind": info.device.kind,
        "kind_said": strings.kinds[info.device.kind],
        "browser": " ".join(filter(None, (info.device.browser, info.device.version))),
        **_placed(info.location, strings),
        "last_seen_at": info.last_seen_at.isoformat(timespec="seconds"),
        "last_seen": strings.ago(now - info.last_seen_at),
        "created_at": info.created_at.isoformat(timespec="seconds"),
        "created": strings.date(info.created_at),
        "remembered": info.remembered,
        "bound": "" if not info.device_bound else strings.bound_here if info.current else strings.bound,
        "app": info.kind == "token",
    }


_NEWS: Final = frozenset({"refresh_reused", "impersonated"})
"""Events and reasons at which a user should look twice."""


class _Told(NamedTuple):
    entry: HistoryEntry
    is_news: bool
    """Whether the page highlights the entry."""


def _told(history: Sequence[HistoryEntry]) -> list[_Told]:
    """The history with highlights. The very first log-in is not highlighted, although its device is new."""
    first = next((entry for entry in reversed(history) if entry.event == "logged_in"), None)
    return [
        _Told(entry, (entry.new_device and entry is not first) or (entry.reason or entry.event) in _NEWS)
        for entry in history
    ]


def _happening(told: _Told, strings: Strings, session: Session) -> dict[str, Any]:
    entry, is_news = told
    key = entry.reason or ("new_device" if entry.new_device and is_news else entry.event)
    by_actor = key in ("impersonated", "impersonation_ended")  # nothing is kept of where the actor is
    return {
        "at": entry.at.isoformat(timespec="minutes"),
        "when": strings.date(entry.at),
        "what": strings.events[key],
        "device": "" if by_actor else strings.device(entry.device),
        **_placed(entry.location, strings),
        "notable": is_news and entry.session_id != session.id,
        "ended": entry.event == "ended",
        "bound": strings.bound if entry.device_bound else "",
        "current": entry.session_id == session.id,
    }


def _plain(info: SessionInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "current": info.current,
        "name": info.name,
        "kind": info.kind,
        "remembered": info.remembered,
        "device_bound": info.device_bound,
        "is_impersonated": info.is_impersonated,
        "created_at": info.created_at.isoformat(),
        "last_seen_at": info.last_seen_at.isoformat(),
        "authenticated_at": info.authenticated_at.isoformat(),
        "expires_at": info.expires_at.isoformat(),
        **_where(info),
    }


def _entry_as_json(entry: HistoryEntry) -> dict[str, Any]:
    return {
        "at": entry.at.isoformat(),
        "event": entry.event,
        "reason": entry.reason,
        "session_id": entry.session_id,
        "new_device": entry.new_device,
        "device_bound": entry.device_bound,
        **_where(entry),
    }


def _where(what: SessionInfo | HistoryEntry) -> dict[str, Any]:
    device, location = what.device, what.location
    return {
        "device": {
            "browser": device.browser,
            "version": device.version,
            "system": device.system,
            "kind": device.kind,
        },
        "location": {"network": location.network, "country": location.country, "city": location.city},
    }
