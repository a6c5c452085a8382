"""What must be true of sessions, in plain Python: a list of lives and what each request may do to them.

No store, no bytes, no cookies, no retries. The machine in ``test_life`` puts the same questions to this and to the real thing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from asgi_sessions import Timeouts

Data = dict[str, Any]

GRACE = 30.0
"""Seconds for which a renewed token's predecessor still leads to the session. Written out here on purpose."""


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
    """By move. Some are missing: a request that crashes after a save tells nobody."""
    ended: bool = False

    @property
    def token(self) -> str | None:
        return self.tokens.get(self.move)

    def reachable(self, move: int) -> bool:
        """Whether a request that found it after so many moves still finds it."""
        return not self.ended and (move == self.move or move in self.renewed)


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
    minted_at: float = 0.0
    asked: Literal["regenerate", "log in", "destroy"] | None = None
    leaving: Leaving | None = None
    over: bool = False
    """Somebody else ended it: nothing that this request still does to it is kept."""
    started: bool = False
    """The response has left."""
    told: Told | None = None

    # ── The verbs ──

    def begin(self, now: float) -> None:
        """Nothing is stored of what the app holds from here on."""
        self.life, self.base, self.over = None, {}, False
        self.user = self.authenticated_at = self.stored_authenticated_at = None
        self.remembered, self.created_at = False, now

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

    def __init__(self, limits: Timeouts, clock: Callable[[], float], note: Callable[[str], None]) -> None:
        self.clock = clock
        self.note = note
        self.idle = (limits.idle.total_seconds(), limits.remember_idle.total_seconds())
        self.absolute = (limits.absolute.total_seconds(), limits.remember_absolute.total_seconds())
        self.renew = math.inf if limits.renew is None else limits.renew.total_seconds()
        self.touch = limits.touch.total_seconds()
        self.lives: list[Life] = []
        self.tokens: dict[str, tuple[Life, int]] = {}
        """Every token that a browser was ever given, dead ones included."""
        self.writes = 0
        """How often anything but a touch or an ending was tried."""
        self.renewals = 0
        self.warnings = 0

    # ── Time ──

    def expires_at(self, life: Life) -> float:
        return min(life.seen_at + self.idle[life.remembered], life.created_at + self.absolute[life.remembered])

    def lives_now(self, life: Life) -> bool:
        return not life.ended and self.clock() < self.expires_at(life)

    def living(self) -> list[Life]:
        return [life for life in self.lives if self.lives_now(life)]

    def touch_due(self, view: View) -> bool:
        return view.active and not view.started and view.life is not None and view.now - view.seen_at >= self.touch

    def renewal_due(self, view: View) -> bool:
        return view.active and not view.started and view.now - view.minted_at >= self.renew

    # ── Load ──

    def load(self, token: str | None, *, active: bool) -> View:
        """What a request with that token holds."""
        now = self.clock()
        view = View(now, active)
        view.begin(now)
        life = self.find(token)
        if life is not None:
            self.stand_on(view, life)
            view.data = deepcopy(life.data)
        else:
            view.active = True
        return view

    def find(self, token: str | None) -> Life | None:
        life, move = self.tokens.get(token or "", (None, 0))
        if life is None or not life.reachable(move):
            if life is not None:
                self.note("a dead token was replayed")
            return None
        if move != life.move:
            if self.clock() - life.renewed[move] >= GRACE:
                del life.renewed[move]
                self.note("found too late by a renewed token")
                return None
            self.note("found by a renewed token")
        if not self.lives_now(life):
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
        view.seen_at, view.minted_at = life.seen_at, life.minted_at

    # ── Commit ──

    def commit(self, view: View, *, failed: bool = False) -> None:
        if view.over:
            return
        if view.asked == "destroy":
            self.destroy(view, failed=failed)
        elif failed:
            if self.touch_due(view):
                self.note("a failed request was activity")
                self.do_touch(view)
        elif view.asked == "log in":
            self.create(view)
        elif view.life is not None:
            self.write(view, view.life)
        elif view.data:
            self.create(view)

    def destroy(self, view: View, *, failed: bool) -> None:
        """Ends the session, also for a request that failed; what was written afterwards is a session of its own."""
        assert view.leaving is not None
        found = self.end(view.leaving)
        view.asked = view.leaving = None
        if failed or not (view.data or view.user):
            view.told = Told(None) if found else None
            self.note(f"destroyed{'' if found else ' what was gone'}{', failed' if failed else ''}")
        else:
            self.note("destroyed, then written to")
            view.told = None
            self.create(view)

    def end(self, leaving: Leaving) -> bool:
        """Ends what a request loaded, wherever it is by now; an anonymous one has no index to be found by."""
        life = leaving.life
        if life.ended or (life.user is None and not life.reachable(leaving.move)):
            return False
        if not life.reachable(leaving.move):
            self.note("ended through the index")
        life.ended = True
        return True

    def create(self, view: View) -> None:
        if view.started:
            self.note("written to too late")
            self.warnings += 1
            view.over = True
            return
        self.writes += 1
        now = self.clock()
        data = deepcopy(view.data)
        life = Life(view.id, view.user, data, view.created_at, view.authenticated_at, view.remembered, now, now)
        leaving, view.leaving, view.asked = view.leaving, None, None
        if leaving is not None:
            version = leaving.life.version
            if self.end(leaving) and version != leaving.version and leaving.data is not None:
                self.note("brought along")
                life.data = merge(leaving.data, view.data, leaving.life.data)
                life.version += repr(life.data) != repr(view.data)
        self.lives.append(life)
        self.stand_on(view, life)
        view.data = deepcopy(life.data)
        self.tell_token(view, life)

    def outlived(self, view: View) -> bool:
        """Whether a request took longer than its session was allowed to live, and nobody else was heard from meanwhile."""
        life = view.life
        assert life is not None
        if life.ended or life.move != view.move or self.lives_now(life):
            return False
        self.note("outlived by a request")
        life.ended = True
        self.lose(view)
        return True

    def lose(self, view: View) -> None:
        view.over, view.asked, view.told = True, None, None

    def write(self, view: View, life: Life) -> None:
        """The session is stored: keep what this request changed, whatever others did meanwhile."""
        while True:
            emptied = not view.data and view.user is None
            moves = view.asked == "regenerate" or self.renewal_due(view)
            if not (emptied or moves or repr(view.data) != repr(view.base)):
                if self.touch_due(view):
                    self.do_touch(view)
                return
            self.writes += 1
            if self.outlived(view):
                return
            if not life.reachable(view.move):
                self.note("lost: ended or moved by somebody else")
                self.lose(view)
                return
            if view.version == life.version:
                break
            self.note("merged")
            view.data = merge(view.base, view.data, life.data)
            confirmed_at = view.authenticated_at
            confirmed = confirmed_at != view.stored_authenticated_at
            self.stand_on(view, life)
            if confirmed:
                view.authenticated_at = confirmed_at
        if emptied:
            self.note("emptied")
            life.ended = True
            view.asked = None
            view.begin(view.now)
            view.told = Told(None)
            return
        if view.active and self.clock() - view.seen_at >= self.touch:
            life.seen_at = max(life.seen_at, self.clock())  # whoever writes is there, however long the request takes
        life.version += 1
        life.data = deepcopy(view.data)
        if moves:
            self.move(view, life)
        self.stand_on(view, life)

    def move(self, view: View, life: Life) -> None:
        if view.asked == "regenerate":
            self.note("confirmed" if life.authenticated_at != view.authenticated_at else "regenerated")
            life.renewed.clear()
        else:
            self.note("renewed")
            self.renewals += 1
            life.renewed[life.move] = self.clock()
        view.asked = None
        life.move += 1
        life.minted_at = self.clock()
        life.authenticated_at = view.authenticated_at
        self.tell_token(view, life)

    def do_touch(self, view: View) -> None:
        life = view.life
        assert life is not None
        if self.outlived(view):
            return
        view.seen_at = view.now
        if not life.reachable(view.move):
            self.lose(view)
        elif view.move == life.move:
            self.note("touched")
            life.seen_at = max(life.seen_at, view.now)

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
