"""The store and the secrets of a command, from options and from ``ASGI_SESSIONS_*`` variables."""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

from asgi_sessions import ConfigurationError, Event, Sessions
from asgi_sessions.cli._stores import run, store_of
from asgi_sessions.sessions import UNKNOWN, SessionsOptions
from asgi_sessions.stores import Store

T = TypeVar("T")

URL: Final = "ASGI_SESSIONS_URL"
NAME: Final = "ASGI_SESSIONS_NAME"
SECRET_KEYS: Final = "ASGI_SESSIONS_SECRET_KEYS"  # noqa: S105 - a name
"""The variable with the secrets. It is no option, because other users of the machine can read a command line."""

PATIENCE: Final = timedelta(seconds=10)
"""How long a command waits for one answer of the store. It is long, because no browser waits for it."""


def url_in(options: argparse.Namespace) -> str:
    """The URL of the store.

    Raises:
        ConfigurationError: it is missing.
    """
    url: str | None = options.url
    if url is None:
        url = os.environ.get(URL)
    if not url:
        raise ConfigurationError(f"no URL of a store: give it as an argument, or put it into {URL}")
    return url


def name_in(options: argparse.Namespace) -> str | None:
    """The prefix of the keys or the name of the table, or ``None`` for the store's own default."""
    return options.name or os.environ.get(NAME) or None


def secrets_in_environment() -> list[str]:
    """The secrets, newest first."""
    return os.environ.get(SECRET_KEYS, "").split()


class Opened:
    """The sessions of a command."""

    def __init__(self, store: Store) -> None:
        options: SessionsOptions = {
            **UNKNOWN,
            "secret_keys": secrets_in_environment(),
            "store_deadline": PATIENCE,
            "on_event": self._hear,
        }
        self.sessions = Sessions(store, **options)
        self.damaged = 0
        """Number of records that did not open. The command reports it, since its answer may be incomplete."""

    def _hear(self, event: Event) -> None:
        self.damaged += event.name == "session.damaged"


def work_on(options: argparse.Namespace, work: Any) -> Any:
    """Run ``work(opened)``, a coroutine function, on the store of a command, and close the store.

    Raises:
        ConfigurationError, StoreError, SessionDataError: from the store or the work.
    """
    store = store_of(url_in(options), name_in(options))

    async def all_of_it() -> Any:
        try:
            return await work(Opened(store))
        finally:
            await store.aclose()

    return quietly(all_of_it())


def quietly(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine without the log and the warnings of the package. The command prints its own report."""
    with _silence():
        return run(work)


@contextmanager
def _silence() -> Iterator[None]:
    logger = logging.getLogger("asgi_sessions")
    was = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was
