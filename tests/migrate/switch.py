"""The switch of an app under load: everybody comes back with the cookies of the old app, and is counted."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import anyio

from asgi_sessions import MemoryStore, Session
from asgi_sessions.migrate import Reader
from asgi_sessions.stores import Store
from tests.migrate.world import Site, Visitor

TABS = 5
"""Requests that each browser sends at the same time, before it has heard of the new cookie."""

LATER = 3
"""Requests of each tab after that, some with other writes at the same time."""

USERS = 60


@dataclass
class Person:
    """Somebody with a session of the old app."""

    cookies: dict[str, str]
    user: str | None
    data: dict[str, Any]


@dataclass
class Counted:
    """What came of the switch."""

    people: int = 0
    requests: int = 0
    failures: int = 0
    log_outs: int = 0
    lost_keys: int = 0
    sessions: int = 0
    adopted: int = 0

    @property
    def is_clean(self) -> bool:
        return not (self.failures or self.log_outs or self.lost_keys)


def cookies_in(headers: Iterable[str]) -> dict[str, str]:
    """The cookies of some Set-Cookie headers, as a browser keeps and sends them."""
    found: dict[str, str] = {}
    for header in headers:
        pair = header.partition(";")[0]
        name, _, value = pair.partition("=")
        found[name.strip()] = value.strip()
    return found


async def switch(people: list[Person], *readers: Reader, store: Store | None = None) -> Counted:
    """Everybody at once: each tab writes a key of its own, and at the end everything is looked at."""
    site = Site(store or MemoryStore(), time.time, *readers, store_deadline=timedelta(seconds=20))  # type: ignore[arg-type]
    counted = Counted(people=len(people))
    order = [(person, tab) for person in people for tab in range(TABS)]
    random.Random(7).shuffle(order)
    browsers = {id(person): browser(site, person) for person in people}

    async with anyio.create_task_group() as tasks:
        for person, tab in order:
            tasks.start_soon(at_a_tab, browsers[id(person)], person, tab, counted)
    for person in people:
        seen = await browsers[id(person)].sees()
        counted.requests += 1
        # A visitor's parallel requests may each begin a session, if the old cookie was signed: see docs/switching.md.
        tabs = {f"tab {tab}": LATER - 1 for tab in range(TABS)} if person.user is not None else {}
        count(counted, seen["status"], seen.get("user"), seen.get("data", {}), person, tabs)
        if person.user is not None:
            counted.sessions += await site.sessions.count(person.user)
    counted.adopted = len(site.said("session.adopted"))
    for reader in readers:
        await reader.aclose()
    return counted


def browser(site: Site, person: Person) -> Visitor:
    visitor = site.visitor()
    visitor.jar.update({name: value.encode() for name, value in person.cookies.items()})
    return visitor


async def at_a_tab(jar: Visitor, person: Person, tab: int, counted: Counted) -> None:
    """One tab: its first request leaves with the cookies of the old app."""
    site = jar.site
    mine = browser(site, person)
    for number in range(LATER):
        seen: dict[str, Any] = {}

        def handler(session: Session, number: int = number, seen: dict[str, Any] = seen) -> None:
            seen.update(user=session.user_id, data=dict(session))
            session[f"tab {tab}"] = number

        response = await mine.do(handler)
        counted.requests += 1
        count(counted, response.status, seen.get("user"), seen.get("data", {}), person, {})
        jar.hear(response)  # tabs share a jar; a tab that was slow is not the one that decides
        mine.jar = dict(jar.jar)


def count(counted: Counted, status: int, user: Any, data: Any, person: Person, more: dict[str, Any]) -> None:
    counted.failures += status != 200
    counted.log_outs += user != person.user
    counted.lost_keys += sum(data.get(key) != value for key, value in {**person.data, **more}.items())
