"""The app of one peer, for a server: ``PEER='ours, Redis' uvicorn benchmarks._http_app:app``, with ``REDIS_URL``."""

from __future__ import annotations

import os

from benchmarks import _peers

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
PEERS = {
    "no session": _peers.no_session,
    "Starlette's signed cookie": _peers.signed_cookie,
    "ours, Redis": lambda: _peers.ours(URL),
    "ours, Redis, secret_keys": lambda: _peers.ours_with_secrets(URL),
    "starsessions + Redis": lambda: _peers.starsessions(URL),
    "Litestar without sessions": lambda: _peers.litestar(URL, sessions=False),
    "Litestar server-side + Redis": lambda: _peers.litestar(URL),
}

app = PEERS[os.environ["PEER"]]().app if "PEER" in os.environ else None
