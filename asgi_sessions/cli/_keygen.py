"""``asgi-sessions keygen``: makes a key for access tokens."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def run(alg: str, path: str | None) -> int:
    """Print a private key as PEM, or write it to a file that only its owner can read. Its public JWK goes to stderr."""
    from asgi_sessions.tokens import SigningKey

    key = SigningKey.generate(alg)  # type: ignore[arg-type]  # argparse has checked it
    if path is None:
        print(key.pem(), end="")
    else:
        try:
            descriptor = os.open(Path(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            print(f"asgi-sessions: cannot write {path}: {error.strerror}", file=sys.stderr)
            return 1
        with os.fdopen(descriptor, "w") as file:
            file.write(key.pem())
    print(json.dumps(key.jwk), file=sys.stderr)
    return 0
