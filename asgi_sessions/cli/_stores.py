"""The store that a URL on the command line means; one place for all commands that take one."""

from __future__ import annotations

from asgi_sessions import RedisStore
from asgi_sessions.stores import Store

DATABASE_HELP = "as for SQLStore.from_url()"
URL_HELP = f"redis://, rediss:// (TLS), unix://, redis+cluster:// or rediss+cluster:// (any node), or {DATABASE_HELP}"


def store_of(url: str, name: str | None) -> Store:
    """The store behind ``url``.

    Args:
        name: the prefix of its keys in Redis, or its table; ``None``: as the store itself has it.
    Raises:
        ConfigurationError: the URL is not understood. ModuleNotFoundError: a database, and SQLAlchemy is not there.
    """
    if (node := url_of_a_node(url)) is not None:
        return RedisStore.from_cluster(node, prefix=name or "asgi-sessions")
    if url.startswith(("redis://", "rediss://", "unix://")):
        return RedisStore.from_url(url, prefix=name or "asgi-sessions")
    from asgi_sessions import SQLStore

    return SQLStore.from_url(url, table=name or "asgi_sessions")


def url_of_a_node(url: str) -> str | None:
    """``redis://…`` for ``redis+cluster://…``, and with TLS likewise: the form that redis-py knows; ``None``: no cluster."""
    scheme, _, rest = url.partition("://")
    return f"{scheme.removesuffix('+cluster')}://{rest}" if scheme in ("redis+cluster", "rediss+cluster") else None
