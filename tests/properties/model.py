"""What must be true of sessions, in plain Python: a list of lives and what each request may do to them.

No store, no bytes, no cookies, no retries. The machine in ``test_life`` puts the same questions to this and to the real thing.

A commit is a generator. It yields where a write is about to be asked of the store: another request may come in just there. What
follows a ``yield`` takes effect at once, on what is there by then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from asgi_sessions import Timeouts

Data = dict[str, Any]
Steps = Generator[None]

GRACE = 30.0
"""Seconds for which a renewed token's predecessor still leads to the session. Written out here on purpose."""


class Refused(Exception):
    """A log-in beyond the limit."""


@dataclass(eq=False)
class Life:
    """One session, from its first write or its log-in to its end."""

    id: str
    user: str | None
    data: Data
    created_at: float
    authenticated_at: float | None
    remembered: bool
    seen_at: float
    minted_at: float
    version: int = 1
    """Moves with every write."""
    move: int = 0
    """How often its token was replaced."""
    renewed: dict[int, float] = field(default_factory=dict)
    """Which of its earlier tokens still lead here, and when they were replaced."""
    tokens: dict[int, str] = field(default_factory=dict)
    """By move. Some are missing: where the browser was told of a newer one in the same response."""
    ended: bool = False
    name: str = ""
    """What its user calls the device."""

    @property
    def token(self) -> str | None:
        return self.tokens.get(self.move)


@dataclass
class Told:
    """What a response is to tell the browser."""

    life: Life | None
    """Whose token; ``None``: delete the cookie."""
    move: int = 0
    max_age: int | None = None


@dataclass
class Leaving:
    """A session that a verb of this request is to end, as the request knew it."""

    life: Life
    move: int
    version: int
    data: Data | None
    """What was loaded, if the data moves on to the new session."""


@dataclass
class View:
    """A session in the hands of one request."""

    now: float
    active: bool
    """Whether the request is activity: it touches and renews."""
    renews: bool
    id: str = ""
    life: Life | None = None
    move: int = 0
    version: int = 0
    base: Data = field(default_factory=dict)
    """The data as loaded."""
    data: Data = field(default_factory=dict)
    """The data as the app has it now."""
    user: str | None = None
    created_at: float = 0.0
    authenticated_at: float | None = None
    stored_authenticated_at: float | None = None
    remembered: bool = False
    seen_at: float = 0.0
    written: bool = False
    """Whether the app has put in anything since the last commit, be it what was there before."""
    touch_due: bool = False
    renewal_due: bool = False
    asked: Literal["regenerate", "log in", "destroy"] | None = None
    leaving: Leaving | None = None
    others: tuple[str, ...] = ()
    """The users whose other sessions are to end."""
    over: bool = False
    """Nothing that this request still does to it is kept: another one ended it, or it was not kept at all."""
    started: bool = False
    """The response has left."""
    told: Told | None = None

    # ── The verbs ──

    def begin(self, now: float) -> None:
        """Nothing is stored of what the app holds from here on."""
        self.life, self.base, self.over, self.id = None, {}, False, ""
        self.user = self.authenticated_at = self.stored_authenticated_at = None
        self.remembered = self.touch_due = self.renewal_due = False
        self.created_at = now

    def log_in(self, user: str, remember: bool, now: float) -> None:
        keep = self.user in (None, user)
        if not keep:
            self.data = {}
        self.leave(keep=keep)
        if self.asked != "destroy":
            self.asked = "log in"
        self.begin(now)
        self.user, self.authenticated_at, self.remembered = user, now, remember

    def regenerate(self) -> None:
        if self.asked is None:
            self.asked = "regenerate"

    def confirm(self, now: float) -> None:
        self.regenerate()
        self.authenticated_at = now

    def end_others(self) -> None:
        self.regenerate()
        if self.user is not None and self.user not in self.others:
            self.others = (*self.others, self.user)

    def destroy(self, now: float) -> None:
        self.data = {}
        self.leave(keep=False)
        self.asked = None if self.leaving is None else "destroy"
        self.begin(now)

    def leave(self, *, keep: bool) -> None:
        if self.leaving is None:
            if self.life is not None:
                self.leaving = Leaving(self.life, self.move, self.version, deepcopy(self.base) if keep else None)
        elif not keep:
            self.leaving.data = None


class Model:
    """All sessions there ever were."""

    def __init__(
        self,
        limits: Timeouts,
        clock: Callable[[], float],
        note: Callable[[str], None],
        *,
        most: int | None = None,
        refuses: bool = False,
    ) -> None:
        self.clock = clock
        self.note = note
        self.idle = (limits.idle.total_seconds(), limits.remember_idle.total_seconds())
        self.absolute = (limits.absolute.total_seconds(), limits.remember_absolute.total_seconds())
        self.renew = math.inf if limits.renew is None else limits.renew.total_seconds()
        self.touch = limits.touch.total_seconds()
        self.most = most
        """How many sessions a user may have."""
        self.refuses = refuses
        self.lives: list[Life] = []
        self.tokens: dict[str, tuple[Life, int]] = {}
        """Every token that a browser was ever given, dead ones included."""
        self.made_room: dict[str, tuple[str, ...]] = {}
        """By the id of a new session: whom the real store has ended for it. Of equally idle ones it may choose any."""
        self.events: list[tuple[str, str, str]] = []
        """What the app is to hear: event, id, reason."""
        self.outlived: set[str] = set()
        """The ids of sessions begun by a log-out of an expired one. If the store has swept it away, it is lost and not ended."""
        self.writes = 0
        """How often anything but a touch or an ending was tried."""
        self.aliases = 0
        self.warnings = 0

    # ── Time ──

    def ends_at(self, life: Life, seen_at: float) -> float:
        return min(seen_at + self.idle[life.remembered], life.created_at + self.absolute[life.remembered])

    def expires_at(self, life: Life) -> float:
        return self.ends_at(life, life.seen_at)

    def is_expired(self, life: Life) -> bool:
        return self.clock() >= self.expires_at(life)

    def lives_now(self, life: Life) -> bool:
        return not life.ended and not self.is_expired(life)

    def living(self, user: str | None = None) -> list[Life]:
        """All sessions that live; or those of a user."""
        return [life for life in self.lives if user in (None, life.user) and self.lives_now(life)]

    # ── Load ──

    def load(self, token: str | None, *, active: bool, renews: bool = True) -> View:
        """What a request with that token holds."""
        now = self.clock()
        view = View(now, active, renews)
        view.begin(now)
        life = self.find(token)
        if life is not None:
            self.stand_on(view, life)
            view.data = deepcopy(life.data)
        else:
            view.active = view.renews = True
        return view

    def find(self, token: str | None) -> Life | None:
        life, move = self.tokens.get(token or "", (None, 0))
        if life is None:
            return None
        if life.ended or not (move == life.move or move in life.renewed):
            self.note("a dead token was replayed")
            return None
        if move != life.move:
            if self.clock() - life.renewed[move] >= GRACE:
                self.note("found too late by a renewed token")
                return None
            self.note("found by a renewed token")
        if self.is_expired(life):
            absolute = self.clock() >= life.created_at + self.absolute[life.remembered]
            self.note(f"expired: {'absolute' if absolute else 'idle'}{', remembered' if life.remembered else ''}")
            life.ended = True
            return None
        return life

    def stand_on(self, view: View, life: Life) -> None:
        """What is stored now is what the request starts from."""
        view.life, view.move, view.version = life, life.move, life.version
        view.base = deepcopy(life.data)
        view.id, view.user, view.created_at, view.remembered = life.id, life.user, life.created_at, life.remembered
        view.authenticated_at = view.stored_authenticated_at = life.authenticated_at
        view.seen_at = life.seen_at
        due = view.active and not view.started
        view.touch_due = due and view.now - life.seen_at >= self.touch
        view.renewal_due = due and view.renews and view.now - life.minted_at >= self.renew

    # ── Commit ──

    def commit(self, view: View, *, failed: bool = False, is_save: bool = False) -> Steps:
        """Carry out what was asked, and save what changed. ``failed``: only a log-out counts, and that there was activity.

        Raises:
            Refused: there is no room for the session of a log-in.
        """
        if view.over:
            pass
        elif view.life is not None:
            if not failed or view.touch_due:
                yield from self.write(view, view.life, failed=failed, is_save=is_save)
        elif view.asked == "destroy" and (failed or not (view.data or view.user)):
            yield from self.log_out(view)
        elif not failed and (view.data or view.user):
            yield from self.create(view)
        if not failed and not view.over:
            yield from self.end_others(view)
        if view.over and not failed:
            self.warn_of_lost_changes(view)

    def write(self, view: View, life: Life, *, failed: bool = False, is_save: bool = False) -> Steps:
        """The session is stored: keep what this request changed, whatever others did meanwhile."""
        is_due = failed or view.written or view.asked or view.others or view.touch_due or view.renewal_due
        if (is_due or repr(view.data) != repr(view.base)) and self.clock() >= self.ends_at(life, view.seen_at):
            # Others may have been heard from, where this request knows of nobody.
            if self.is_lost(life):
                self.lose(view)
                return
            self.rebase(view, life)
        view.written = view.written and failed
        while True:
            emptied = not failed and not view.data and view.user is None
            changed = not failed and repr(view.data) != repr(view.base)
            if view.started and view.asked == "regenerate":
                view.asked, view.authenticated_at = None, view.stored_authenticated_at
            moves = not failed and (view.asked == "regenerate" or (view.renewal_due and not is_save))
            confirmed = not failed and view.authenticated_at != view.stored_authenticated_at
            if not (emptied or moves or changed or confirmed):
                if not view.touch_due:
                    return
                yield
                view.touch_due = False
                if not self.is_lost(life) and view.move == life.move:
                    self.note("a failed request was activity" if failed else "touched")
                    life.seen_at = max(life.seen_at, view.now)
                    view.seen_at = view.now
                    return
            else:
                self.writes += 1
                yield
            if self.is_lost(life):
                self.lose(view)
                return
            if (view.move, view.version) == (life.move, life.version):
                break
            self.rebase(view, life)
        if emptied:
            self.note("emptied")
            life.ended, view.asked = True, None
            self.tell("session.ended", life.id, "emptied")
            view.begin(view.now)
            view.told = Told(None)
            return
        # Who writes is there, however long the request takes.
        is_activity = view.active and self.clock() - view.seen_at >= self.touch
        seen_at = self.clock() if is_activity else view.seen_at
        life.seen_at = max(life.seen_at, seen_at)
        life.version += 1
        life.data = deepcopy(view.data)
        if moves:
            self.move(view, life)
        elif confirmed:
            self.note("an overtaken confirmation")
            self.tell("session.confirmed", life.id)
        life.authenticated_at = view.authenticated_at
        self.stand_on(view, life)
        view.seen_at = seen_at

    def is_lost(self, life: Life) -> bool:
        if not life.ended and self.is_expired(life):
            self.note("outlived by a request")
            life.ended = True
        return life.ended

    def lose(self, view: View) -> None:
        """The session that the request means is gone."""
        self.note("lost")
        view.over = view.life is not None  # after destroy() the session at hand is another one
        view.asked, view.leaving, view.others, view.told = None, None, (), None
        self.tell("session.lost", view.id)

    def rebase(self, view: View, life: Life) -> None:
        """Another request has saved to it, or given it another token."""
        self.note("merged" if view.move == life.move else "followed")
        if view.asked == "regenerate" and view.move not in (life.move, *life.renewed):
            self.note("an overtaken regeneration")
            view.asked = None
        view.data = merge(view.base, view.data, life.data)
        confirmed_at = view.authenticated_at
        confirmed = confirmed_at != view.stored_authenticated_at
        self.stand_on(view, life)
        if confirmed:
            view.authenticated_at = confirmed_at

    def move(self, view: View, life: Life) -> None:
        done = "session.regenerated"
        if view.asked == "regenerate":
            life.renewed.clear()
        else:
            done = "session.renewed"
            life.renewed[life.move] = self.clock()
        self.tell(done if life.authenticated_at == view.authenticated_at else "session.confirmed", life.id)
        self.aliases += view.asked != "regenerate" or life.user is None
        view.asked = None
        life.move += 1
        life.minted_at = self.clock()
        self.tell_token(view, life)

    def create(self, view: View) -> Steps:
        """A new session; of a log-in, or after a log-out, or the first of a visitor."""
        logs_out, view.written = view.asked == "destroy", False
        if view.started:
            self.note("written to too late")
            self.tell("session.not_saved", view.id)
            self.warnings += 1
            if logs_out:
                yield from self.end_leaving(view, logs_out=True)
                yield from self.end_others(view)
            view.over = True
            return
        self.writes += 1
        yield
        if view.user is not None and not self.make_room(view, view.user):
            yield from self.refuse(view)
        now, leaving = self.clock(), view.leaving
        life = Life(
            view.id,
            view.user,
            deepcopy(view.data),
            view.created_at,
            view.authenticated_at,
            view.remembered,
            seen_at=now,
            minted_at=now,
        )
        self.lives.append(life)
        self.tell("session.created" if life.user is None else "session.logged_in", life.id)
        self.stand_on(view, life)
        view.asked = None
        self.tell_token(view, life)
        # A user who logs in over a session of their own ends it in the same step.
        at_once = leaving is not None and leaving.life.user == life.user is not None
        if (yield from self.end_leaving(view, logs_out=logs_out, at_once=at_once)) and leaving is not None:
            left = leaving.life
            if left.version != leaving.version and leaving.data is not None:
                self.note("brought along")
                view.data = merge(leaving.data, view.data, left.data)
                yield from self.write(view, life, is_save=True)

    def make_room(self, view: View, user: str) -> bool:
        """Whether the user may have one session more. Those that the same log-in ends do not count."""
        for life in self.lives:
            if life.user == user and self.is_expired(life):
                life.ended = True
        if self.most is None or user in view.others:
            return True
        leaving = None if view.leaving is None else view.leaving.life
        there = [life for life in self.living(user) if life is not leaving]
        surplus = max(len(there) - self.most + 1, 0)
        if surplus and self.refuses:
            return False
        out = [life for life in there if life.id in self.made_room.get(view.id, ())]
        assert len(out) == surplus == len(self.made_room.get(view.id, ()))
        kept = [life.seen_at for life in there if life not in out]
        for life in out:
            self.note("ended by the limit")
            assert life.seen_at <= min(kept, default=life.seen_at)
            life.ended = True
            self.tell("session.ended", life.id, "limit")
        return True

    def refuse(self, view: View) -> Steps:
        self.note("refused")
        self.tell("session.refused", "")
        view.user = view.authenticated_at = None
        view.others = ()
        if view.asked == "destroy":
            yield from self.log_out(view)
        view.over, view.asked = True, None
        raise Refused

    def log_out(self, view: View) -> Steps:
        """Ends the session, also for a request that failed."""
        if (yield from self.end_leaving(view, logs_out=True)):
            view.asked, view.told = None, Told(None)
        else:
            self.lose(view)

    def end_leaving(self, view: View, *, logs_out: bool, at_once: bool = False) -> Generator[None, None, bool]:
        """End the session that a verb left behind, wherever it is by now. Whether it was there. ``at_once``: in the last step."""
        leaving, view.leaving = view.leaving, None
        if leaving is None:
            return False
        life, known = leaving.life, (leaving.move, leaving.version)
        while True:
            if not at_once:
                yield
            if life.ended:
                return False
            if self.is_expired(life):
                self.outlived.add(view.id)
            if at_once or known == (life.move, life.version):
                break
            known = (life.move, life.version)
        life.ended = True
        if logs_out:
            self.tell("session.ended", life.id, "destroyed" if life.user is None else "logged_out")
        return True

    def end_others(self, view: View) -> Steps:
        others, id, whose = view.others, view.id, view.user
        for user in others:
            yield
            self.end_all(user, "revoked_all", keep=id if user == whose else None)
        view.others = ()

    def warn_of_lost_changes(self, view: View) -> None:
        """Of an anonymous session that is gone: its browser has another one by now."""
        if view.life is not None and view.user is None and repr(view.data) != repr(view.base):
            self.note("told that changes are lost")
            self.warnings += 1
            view.base = deepcopy(view.data)

    # ── What users do to their sessions ──

    def end_all(self, user: str, reason: str, *, keep: str | None = None, only: str | None = None) -> list[str]:
        """End the session ``only`` of a user, or all but ``keep``."""
        out = [life for life in self.living(user) if only in (None, life.id) and life.id != keep]
        for life in self.lives:
            if life.user == user and self.is_expired(life):
                life.ended = True
        for life in out:
            life.ended = True
            self.tell("session.ended", life.id, reason)
        return [life.id for life in out]

    def rename(self, user: str, id: str, name: str) -> bool:
        for life in self.living(user):
            if life.id == id:
                life.name = name
                life.version += 1
                return True
        return False

    # ── What is told ──

    def tell(self, name: str, id: str, reason: str = "") -> None:
        self.note(f"{name} {reason}".strip())
        self.events.append((name, id, reason))

    def tell_token(self, view: View, life: Life) -> None:
        ends_at = life.created_at + self.absolute[True]
        view.told = Told(life, life.move, math.ceil(ends_at - self.clock()) if life.remembered else None)

    def heard(self, told: Told, token: str) -> None:
        """A browser was given a token."""
        assert told.life is not None
        told.life.tokens[told.move] = token
        self.tokens[token] = (told.life, told.move)


def merge(loaded: Data, mine: Data, theirs: Data) -> Data:
    """What I changed goes on top of theirs."""
    merged = deepcopy(theirs)
    for key in [*loaded, *(key for key in mine if key not in loaded)]:
        if key not in mine:
            merged.pop(key, None)
        elif key not in loaded or repr(mine[key]) != repr(loaded[key]):
            merged[key] = deepcopy(mine[key])
    return merged
