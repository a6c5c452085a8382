"""Binder: checks requests of bound sessions for the middleware, and answers the endpoints of browsers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from asgi_sessions._asgi.responses import answer, unavailable
from asgi_sessions._core.cookie import CookieConfig, values_called
from asgi_sessions._core.intent import Leaving, displaced_by, leaving_at
from asgi_sessions._core.origin import path_below_root, values_of
from asgi_sessions._core.session import Session
from asgi_sessions._core.types import Headers, Scope, Send
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.resolve import Found
from asgi_sessions.dbsc import is_confirmed
from asgi_sessions.dbsc._answers import reload_page, reload_script, repeat
from asgi_sessions.dbsc._binding import (
    LEEWAY,
    LONGEST_COOKIE,
    Binding,
    Identifiers,
    shown,
    shown_before,
    unpack_binding,
)
from asgi_sessions.dbsc._keeper import Keeper
from asgi_sessions.dbsc._options import DeviceBound
from asgi_sessions.dbsc._proof import ALGORITHMS, Proof, ProofInvalid, unquoted
from asgi_sessions.dbsc._verdict import Verdict, origin_of, skipped_reason, verdict_on
from asgi_sessions.errors import ConfigurationError, StoreError

QUOTA_SECONDS: Final = 60
"""Seconds until a browser with an exhausted quota of proofs tries again. Chromium counts its proofs over nine minutes."""

_PREFIX: Final = re.compile(r"__(?:host|secure|http)-(?:http-)?", re.IGNORECASE)


class Reply(NamedTuple):
    """The answer of an endpoint."""

    status: int
    text: bytes = b""
    headers: Sequence[tuple[bytes, bytes]] = ()
    kind: bytes = b"text/plain; charset=utf-8"


class Binder:
    """Device-bound sessions behind one cookie."""

    def __init__(self, options: DeviceBound, manager: Manager, cookie: CookieConfig) -> None:
        """
        Raises:
            ConfigurationError: browsers bind no session with this cookie.
        """
        _refuse_cookie(cookie)
        self.path: str = options.path
        self._options = options
        self._manager = manager
        self._cookie = cookie
        self._identifiers = Identifiers(manager.secrets, cookie.name)
        self._keeper = Keeper(manager)
        self._name = f"__Host-{_PREFIX.sub('', cookie.name, count=1)}-bound-"
        self._prefix = self._name.encode("ascii")
        # Header and instructions share this text. If they differed, browsers would prove the key before every request.
        samesite = "None" if cookie.samesite == "none" else "Lax"
        self._attributes = f"Path=/; Secure; HttpOnly; SameSite={samesite}"
        self._endpoints = {f"{options.path}/register": self._register, f"{options.path}/refresh": self._refresh}
        self._script = f"{options.path}/reload.js"
        self._shown = shown_before if manager.cache.is_on else shown

    # ── A request of a bound session ──

    def is_proven(self, scope: Scope, session: Session) -> bool:
        """Whether the request may pass: it proves the device, or its session is not bound."""
        if session._actor is not None:
            session = session._actor  # an impersonated session needs the proof of its actor's session
        stored, record = session._stored, session._record
        if stored is None or record is None or not stored.device:
            return True
        for value in values_called(scope.get("headers", ()), b"%b%b=" % (self._prefix, record.id.encode("ascii"))):
            cookie = self._shown(stored.device, record.id, value) if len(value) <= LONGEST_COOKIE else None
            if cookie is not None and session._now <= cookie.expires_at + LEEWAY:
                session._is_device_bound = True
                return cookie.is_confirmed
        if record.owner is None:
            session._unproven = displaced_by(stored.device)
            return True
        return False

    async def judge(self, scope: Scope, send: Send, session: Session) -> Session | None:
        """The session for the app, after :meth:`is_proven` refused the request, or ``None`` if this call has answered it."""
        bound = _bound(session)
        stored, record = bound._stored, bound._record
        if stored is None or record is None:
            return session
        if bound._is_device_bound:
            await self._confirm(bound, Found(record, stored))
            return session
        values = values_called(scope.get("headers", ()), f"{self._name}{record.id}=".encode("ascii"))
        is_expired = any(shown(stored.device, record.id, value) is not None for value in values)
        binding = unpack_binding(stored.device)
        verdict = verdict_on(scope, binding, record.id, session._now, self._options, is_expired=is_expired)
        if verdict is Verdict.GRACE:
            return session
        path, reason = str(scope.get("path", "")), skipped_reason(scope, record.id) or ""
        details: dict[str, Any] = {"verdict": verdict.value, "path": path, "enforced": self._options.enforce}
        if verdict in (Verdict.SKIPPED, Verdict.ELSEWHERE):
            details |= {"reason": reason} if verdict is Verdict.SKIPPED else {"origin": origin_of(scope)}
        events = self._manager.events
        await events.emit(events.event("session.unproven", session_id=record.id, user_id=stored.user_id, **details))
        if not self._options.enforce:
            return session
        if verdict is Verdict.EXPIRED:
            await repeat(scope, send, self._set(record.id, "", 0))
        elif verdict is Verdict.SKIPPED:
            after = QUOTA_SECONDS if reason == "quota_exceeded" else self._manager.guard.retry_after
            await unavailable(scope, send, after)
        elif verdict is Verdict.NAVIGATION:
            await reload_page(scope, send, self._below_root(scope, self._script))
        else:
            empty = self._manager.begin()
            left = [Leaving(record, stored.user_id, None), *map(leaving_at, stored.parked)]
            if bound is not session and session._record is not None:
                left.append(Leaving(session._record, session._user_id, None, stored.user_id))
            empty._unproven = tuple(left)
            empty._is_withheld = verdict is Verdict.ELSEWHERE
            return empty
        return None

    async def _confirm(self, session: Session, known: Found) -> None:
        """Note that the browser has shown its first bound cookie. If the store fails, the next request does it."""
        try:
            async with self._manager.asking("device"):
                found = await self._keeper.confirm(known)
        except StoreError:
            return
        if found is not None and found.record.rev == known.record.rev + 1:
            session._adopt(found.record, found.body)

    def closes_after(self, session: Session) -> float | None:
        """Seconds until a socket or stream of this session is closed, or ``None`` for no limit."""
        stored = _bound(session)._stored
        is_bound = stored is not None and stored.user_id is not None and bool(stored.device)
        return self._options.socket_seconds if is_bound and self._options.enforce else None

    def offer(self, scope: Scope, session: Session) -> Headers:
        """The header that offers the browser to bind the session, for the response to a log-in; else no header."""
        stored, record = session._stored, session._record
        if stored is None or record is None or record.owner is None or stored.authenticated_at is None:
            return []
        if is_confirmed(stored.device) or stored.actor is not None:
            return []
        if scope["type"] != "http" or stored.authenticated_at < session._now:
            return []  # not proved in this request
        now = self._manager.clock()
        path, challenge = self._url(scope, "register"), self._identifiers.offer(record.owner, record.id, now)
        value = f'({" ".join(ALGORITHMS)});path="{path}";challenge="{challenge}"'
        return [(b"secure-session-registration", value.encode("ascii"))]

    # ── The endpoints ──

    def answers(self, scope: Scope) -> bool:
        """Whether a request is for one of the endpoints."""
        path = path_below_root(scope)
        return path in self._endpoints or path == self._script

    async def answer(self, scope: Scope, send: Send) -> None:
        """Answer a request for one of the endpoints."""
        if path_below_root(scope) == self._script:
            await reload_script(scope, send)
            return
        if scope["method"] != "POST":
            await answer(scope, send, 405, b"", (b"allow", b"POST"))
            return
        try:
            async with self._manager.asking("device"):
                reply = await self._endpoints[path_below_root(scope)](scope)
        except StoreError:
            # After a 4xx the browser would drop its key (``docs/device-bound.md``).
            await unavailable(scope, send, self._manager.guard.retry_after)
        else:
            await answer(scope, send, reply.status, reply.text, *reply.headers, kind=reply.kind)

    async def _register(self, scope: Scope) -> Reply:
        (proofs, modes) = values_of(scope, b"secure-session-response", b"sec-fetch-mode")
        if modes not in ([], [b"no-cors"]):
            # A script of the page sent this header. Browsers register in a mode in which scripts cannot set it.
            return Reply(400, b"Only the browser itself registers a key")
        now = self._manager.clock()
        try:
            proof = _proof_in(proofs)
            offered = self._identifiers.offered(proof.challenge, now)
            if offered is None:
                raise ProofInvalid("its challenge was not offered a moment ago")
            if proof.key is None or not proof.is_signed_by(proof.key):
                raise ProofInvalid("its signature does not match")
            found = await self._keeper.find(offered, self._keys(scope), is_signed=True)
            if found is None:
                raise ProofInvalid("the session has ended")
            was_bound = bool(found.body.device)
            binding = await self._keeper.register(found, proof.key, now)
            if binding is None:
                raise ProofInvalid("the session is bound to another key, or has ended")
        except ProofInvalid as refused:
            return await self._refused(401, "register", None, refused)
        if not was_bound:
            events, body = self._manager.events, found.body
            details = {"algorithm": proof.algorithm}
            await events.emit(
                events.event("session.bound", session_id=found.record.id, user_id=body.user_id, **details)
            )
        identifier = self._identifiers.identifier(found.record.owner or "", found.record.id)
        return self._proven(scope, found, binding, identifier, now)

    async def _refresh(self, scope: Scope) -> Reply:
        (ids, proofs) = values_of(scope, b"sec-secure-session-id", b"secure-session-response")
        now, found, binding = self._manager.clock(), None, None
        # Each answer repeats the browser's identifier, even if another secret signs now. Otherwise browsers drop the key.
        identifier = unquoted(ids[0]).decode("latin-1") if len(ids) == 1 else ""
        identity, is_signed = self._identifiers.named_in(identifier)
        if identity is not None:
            found = await self._keeper.find(identity, self._keys(scope), is_signed=is_signed)
            binding = None if found is None else unpack_binding(found.body.device)
        if found is None or binding is None:
            # The session has ended or is not bound, so the browser may drop its key.
            return Reply(401)
        if not proofs:
            return _challenge(binding, identifier, now)
        try:
            proof = _proof_in(proofs)
            if proof.key is not None:
                raise ProofInvalid("it brings a key of its own")
            generation = binding.generation_in(proof.challenge, now, self._options.seconds)
            if generation is None or generation < binding.generation - 1:
                return _challenge(binding, identifier, now)
            if not proof.is_signed_by(binding.key):
                raise ProofInvalid("its signature does not match")
        except ProofInvalid as refused:
            return await self._refused(400, "refresh", found, refused)
        spent = await self._keeper.spend(found, generation, now)
        if spent is None:
            return _challenge(binding, identifier, now)
        return self._proven(scope, found, spent, identifier, now)

    def _proven(self, scope: Scope, found: Found, binding: Binding, identifier: str, now: float) -> Reply:
        """The reply to a valid proof: the bound cookie, the instructions and the next challenge."""
        instructions: dict[str, Any] = {
            "session_identifier": identifier,
            "refresh_url": self._url(scope, "refresh"),
            "scope": {
                "include_site": False,
                "scope_specification": [
                    {"type": "exclude", "domain": "*", "path": self._below_root(scope, path)}
                    for path in self._options.exempt
                ],
            },
            "credentials": [
                {"type": "cookie", "name": f"{self._name}{found.record.id}", "attributes": self._attributes}
            ],
        }
        if self._options.refresh_initiators:
            instructions["allowed_refresh_initiators"] = list(self._options.refresh_initiators)
        value = binding.cookie(found.record.id, int(now + self._options.seconds))
        cookie = self._set(found.record.id, value, int(self._options.seconds))
        text = json.dumps(instructions, separators=(",", ":")).encode("ascii")
        return Reply(200, text, (cookie, _challenge_header(binding, identifier, now)), b"application/json")

    async def _refused(self, status: int, step: str, found: Found | None, refused: ProofInvalid) -> Reply:
        events = self._manager.events
        id, user_id = (None, None) if found is None else (found.record.id, found.body.user_id)
        await events.emit(
            events.event("session.proof_refused", session_id=id, user_id=user_id, step=step, reason=str(refused))
        )
        return Reply(status)

    def _keys(self, scope: Scope) -> list[str]:
        return self._manager.recognise(self._cookie.read(scope.get("headers", ())), scope)

    def _set(self, id: str, value: str, max_age: int) -> tuple[bytes, bytes]:
        return b"set-cookie", f"{self._name}{id}={value}; Max-Age={max_age}; {self._attributes}".encode("ascii")

    def _url(self, scope: Scope, endpoint: str) -> str:
        return self._below_root(scope, f"{self._options.path}/{endpoint}")

    def _below_root(self, scope: Scope, path: str) -> str:
        return quote(str(scope.get("root_path", "")).rstrip("/"), safe="/%") + path


def _bound(session: Session) -> Session:
    """The session whose device a request must prove: that of the actor, if a user acts as another one."""
    return session if session._actor is None else session._actor


def _proof_in(values: list[bytes]) -> Proof:
    if len(values) != 1:
        raise ProofInvalid("there is no proof" if not values else "there are two proofs")
    return Proof(values[0])


def _challenge(binding: Binding, identifier: str, now: float) -> Reply:
    """The reply that asks for a proof. Nothing is written."""
    return Reply(403, headers=(_challenge_header(binding, identifier, now),))


def _challenge_header(binding: Binding, identifier: str, now: float) -> tuple[bytes, bytes]:
    return b"secure-session-challenge", f'"{binding.challenge(now)}";id="{identifier}"'.encode("ascii")


def _refuse_cookie(cookie: CookieConfig) -> None:
    if not cookie.secure:
        raise ConfigurationError(
            "Sessions(device_bound=…): browsers bind sessions over https only, and CookieConfig has secure=False. For "
            "development, serve https on localhost, or leave device_bound out."
        )
    for name, value, usual in (("domain", cookie.domain, None), ("path", cookie.path, "/")):
        if value != usual:
            raise ConfigurationError(
                f"Sessions(device_bound=…) with CookieConfig({name}={value!r}): a session is bound for the whole of one host. "
                f"Leave {name} out, or device_bound."
            )
    if cookie.partitioned:
        raise ConfigurationError(
            "Sessions(device_bound=…) with CookieConfig(partitioned=True): browsers bind no partitioned cookie. Leave "
            "one of them out."
        )
