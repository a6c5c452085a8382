"""A FastAPI service with cookies for its pages and tokens for its API, on the same sessions.

Run it with ``uvicorn examples.fastapi_tokens:app`` and try::

    curl -X POST localhost:8000/api/log-in/alice
    curl localhost:8000/api/me -H "Authorization: Bearer $ACCESS_TOKEN"
    curl localhost:8000/token/refresh --json "{\\"refresh_token\\": \\"$REFRESH_TOKEN\\"}"
    curl -c jar -b jar -X POST localhost:8000/log-in/alice
    curl -c jar -b jar localhost:8000/devices
"""

from typing import Any

from fastapi import FastAPI, Request

from asgi_sessions import CookieConfig, MemoryStore, SessionMiddleware, Sessions
from asgi_sessions.frameworks.fastapi import CurrentSession, CurrentUser
from asgi_sessions.tokens import BearerMiddleware, SigningKey, TokenEndpoints, Tokens

SECRET = "only for this example, which keeps nothing"
URL = "http://localhost:8000"

# A real one has RedisStore.from_url("redis://…"), SigningKey.from_file("key.pem"), and its secrets from outside.
sessions = Sessions(MemoryStore(), secret_keys=[SECRET])
tokens = Tokens(sessions, keys=[SigningKey.generate()], issuer=URL, audience=URL)

app = FastAPI(title="Pages and an API")
# The last one that is added is the outermost: a request with a token has its session before the cookie is looked at.
app.add_middleware(SessionMiddleware, sessions, cookie=CookieConfig.insecure_development())
app.add_middleware(BearerMiddleware, tokens=tokens)


@app.post("/log-in/{user}", status_code=204)
async def log_in(user: str, session: CurrentSession) -> None:
    """For browsers: a cookie. A password would be checked here."""
    session.log_in(user)


@app.post("/api/log-in/{user}")
async def log_in_for_tokens(user: str, request: Request) -> dict[str, Any]:
    """For apps: a pair of tokens. A password would be checked here as well."""
    pair = await tokens.log_in(user, scope=request.scope)
    return {
        "access_token": pair.access_token,
        "refresh_token": pair.refresh_token,
        "expires_in": pair.expires_in,
        "token_type": "Bearer",
    }


@app.get("/api/me")
async def me(user: CurrentUser) -> dict[str, str]:
    """By cookie or by token; 401 for others."""
    return {"user": user}


@app.get("/devices")
async def devices(user: CurrentUser, session: CurrentSession) -> list[dict[str, Any]]:
    """Browsers and apps, side by side."""
    found = await sessions.list(user, current=session)
    return [{"id": each.id, "kind": each.kind, "device": str(each.device), "this": each.current} for each in found]


@app.delete("/devices/{id}", status_code=204)
async def end(id: str, user: CurrentUser) -> None:
    await sessions.revoke(user, id)


# ``/token/refresh``, ``/token/revoke`` and ``/.well-known/jwks.json``; last, since it takes what is left.
app.mount("/", TokenEndpoints(tokens))
