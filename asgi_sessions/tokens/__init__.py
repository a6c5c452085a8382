"""Tokens for clients without a cookie jar: access JWTs and rotating refresh tokens, on the sessions of the same store.

::

    sessions = Sessions(store, secret_keys=[secret])
    tokens = Tokens(
        sessions,
        keys=[SigningKey.from_file("key.pem")],
        issuer="https://api.example.org",
        audience="https://api.example.org",
    )
    pair = await tokens.log_in("alice", scope=request.scope)
    app = BearerMiddleware(app, tokens)

Use cookies for browsers, because scripts cannot read them. Needs the extra ``[tokens]``.
"""

from __future__ import annotations

from asgi_sessions._core.extras import needs
from asgi_sessions.errors import RefreshFailed, SessionReadOnly, TokenError, TokenExpired, TokenInvalid, TokenReused

with needs("tokens", "asgi_sessions.tokens"):
    from asgi_sessions.tokens._bearer import BearerMiddleware, BearerSession
    from asgi_sessions.tokens._endpoints import TokenEndpoints
    from asgi_sessions.tokens._jwt import Claims
    from asgi_sessions.tokens._keys import SigningKey
    from asgi_sessions.tokens._tokens import TokenPair, Tokens

__all__ = [
    "BearerMiddleware",
    "BearerSession",
    "Claims",
    "RefreshFailed",
    "SessionReadOnly",
    "SigningKey",
    "TokenEndpoints",
    "TokenError",
    "TokenExpired",
    "TokenInvalid",
    "TokenPair",
    "TokenReused",
    "Tokens",
]
