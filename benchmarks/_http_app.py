"""The app of one peer, for a server: ``PEER='ours, Redis' uvicorn benchmarks._http_app:app``, with ``REDIS_URL``.

``NEWER_URL`` is a server of newer commands, for the peer that needs them.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from benchmarks import _peers

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
NEWER_URL = os.environ.get("NEWER_URL", URL)
PEERS: dict[str, Callable[[], _peers.Peer]] = {
    "no session": _peers.no_session,
    "Starlette's signed cookie": _peers.signed_cookie,
    "ours, Redis": lambda: _peers.ours(URL),
    "ours, Redis, not seen before": lambda: _peers.ours_not_seen(URL),
    "ours, Redis, secret_keys": lambda: _peers.ours_with_secrets(URL),
    "ours, Redis, secret_keys, not seen before": lambda: _peers.ours_not_seen(URL, secret_keys=[_peers.KEY]),
    "starsessions + Redis": lambda: _peers.starsessions(URL),
    "Litestar without sessions": lambda: _peers.litestar(URL, sessions=False),
    "Litestar server-side + Redis": lambda: _peers.litestar(URL),
    "FastAPI without sessions": lambda: _peers.fastapi_redis_sdk(NEWER_URL, sessions=False),
    "fastapi-redis-sdk": lambda: _peers.fastapi_redis_sdk(NEWER_URL),
}

app = PEERS[os.environ["PEER"]]().app if "PEER" in os.environ else None
