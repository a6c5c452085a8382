"""Parts: what a load and a commit work with."""

from __future__ import annotations

from typing import Protocol

from asgi_sessions._core.planner import Planner
from asgi_sessions._engine.contract import Store
from asgi_sessions._engine.events import Events
from asgi_sessions._engine.guard import Guard
from asgi_sessions._engine.opened import OpenedRecords
from asgi_sessions._engine.providers import Providers
from asgi_sessions._engine.resolve import Resolver


class Parts(Protocol):
    """The parts of the manager of one cookie."""

    store: Store
    guard: Guard
    planner: Planner
    resolver: Resolver
    events: Events
    cache: OpenedRecords
    providers: Providers
