"""How many access tokens are verified in a second, beside others, in one run: ``python -m benchmarks.tokens [--quick]``.

The others do what their documentation shows: PyJWT as in FastAPI's, joserfc and Authlib with the registered claims. They check
less than we do (see ``docs/tokens.md``). Rounds are interleaved; the median counts.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import joserfc.jwk
import joserfc.jwt
import jwt
import redis

from asgi_sessions import RedisStore
from asgi_sessions.tokens import SigningKey, Tokens
from benchmarks._work import parser

URL = "https://api.example.org"
REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
PREFIX = "benchmark-tokens"
SECRET = "an excellent secret of at least 32 bytes"


def contenders(tokens: Tokens, key: SigningKey, token: str) -> dict[str, Callable[[], Any]]:
    loaded: Any = key._public
    members = (
        dict(key.jwk)
        if key.jwk is not None
        else {"kty": "oct", "k": jwt.utils.base64url_encode(loaded).decode(), "kid": key.kid}
    )
    key_set = joserfc.jwk.KeySet([joserfc.jwk.import_key(members)])
    claims = joserfc.jwt.JWTClaimsRegistry(iss={"value": URL}, aud={"value": URL}, exp={"essential": True})

    def with_joserfc() -> None:
        claims.validate(joserfc.jwt.decode(token, key_set, algorithms=[key.alg]).claims)

    found: dict[str, Callable[[], Any]] = {
        "ours": lambda: tokens.verify(token),
        "PyJWT": lambda: jwt.decode(token, loaded, algorithms=[key.alg], audience=URL, issuer=URL),
        "joserfc": with_joserfc,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from authlib.jose import JsonWebToken

            authlib, authlib_key = JsonWebToken([key.alg]), members
        if key.alg != "EdDSA":
            found["Authlib"] = lambda: authlib.decode(token, authlib_key).validate()
    except ImportError:
        pass
    return found


def per_second(check: Callable[[], Any], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        check()
    return times / (time.perf_counter() - began)


async def strict(tokens: Tokens, token: str, times: int) -> float:
    """64 at a time, as a server under load has them."""
    began = time.perf_counter()
    for _ in range(times // 10):
        await asyncio.gather(*(tokens.living(tokens.verify(token)) for _ in range(64)))
    return times // 10 * 64 / (time.perf_counter() - began)


async def measure(rounds: int, times: int) -> None:
    store = RedisStore.from_url(REDIS, prefix=PREFIX)
    print(
        f"{'':10}{'ours':>9}{'strict':>9}{'PyJWT':>9}{'joserfc':>9}{'Authlib':>9}   tokens verified per second, one core"
    )
    for key in (SigningKey.generate("EdDSA"), SigningKey.generate("ES256"), SigningKey.secret(SECRET)):
        tokens = Tokens(store, keys=[key], secret_keys=[SECRET], issuer=URL, audience=URL)
        token = (await tokens.log_in("alice")).access_token
        runs: dict[str, list[float]] = {}
        checks = contenders(tokens, key, token)
        for _ in range(rounds):
            for name, check in checks.items():
                runs.setdefault(name, []).append(per_second(check, times))
            runs.setdefault("strict", []).append(await strict(tokens, token, times))
        cells = [
            f"{statistics.median(runs[n]):>9,.0f}" if n in runs else f"{'–':>9}"
            for n in ("ours", "strict", "PyJWT", "joserfc", "Authlib")
        ]
        print(f"{key.alg:10}{''.join(cells)}")
    await store.aclose()


def main(argv: list[str] | None = None) -> None:
    rounds, times = (1, 10) if parser(__doc__, keeps=False).parse_args(argv).quick else (15, 300)
    warnings.simplefilter("ignore")
    try:
        asyncio.run(measure(rounds, times))
    finally:
        with redis.Redis.from_url(REDIS) as admin:
            if keys := list(admin.scan_iter(f"{PREFIX}:*", count=1000)):
                admin.delete(*keys)


if __name__ == "__main__":
    main()
