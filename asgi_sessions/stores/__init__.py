"""Where records are kept. Each store fulfils :class:`asgi_sessions.stores.Store`, and nothing else knows it."""

from asgi_sessions._store import Store

__all__ = ["Store"]
