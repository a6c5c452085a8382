"""The command line: ``python -m asgi_sessions …`` and ``asgi-sessions …``.

What a command needs beyond the package itself is imported when it runs, so that ``import asgi_sessions`` needs none of it.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

import asgi_sessions

_EXTRAS = frozenset({"uvicorn", "httpx"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 all is well, 1 it failed, 2 it could not begin."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without our characters shows a "?" and goes on
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 2
    try:
        return _demo(options)
    except ModuleNotFoundError as missing:
        if missing.name not in _EXTRAS:
            raise
        return _refuse(f"the demo needs {missing.name}: pip install 'asgi-server-sessions[demo]'")
    except asgi_sessions.ConfigurationError as error:
        return _refuse(str(error))


def _demo(options: argparse.Namespace) -> int:
    if options.tour:
        from asgi_sessions.cli._tour import run

        return run()
    from asgi_sessions.cli._serve import run_shop

    return run_shop(host=options.host, port=options.port, https=options.https)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="asgi-sessions", description="Server-side sessions for ASGI.")
    parser.add_argument("--version", action="version", version=f"asgi-server-sessions {asgi_sessions.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    demo = commands.add_parser(
        "demo",
        help="serve a small shop, or play the life of a session against it",
        description="Serve a small shop behind SessionMiddleware. Sessions are kept in memory, or in Redis or Valkey "
        "where REDIS_URL is set.",
    )
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    demo.add_argument("--port", type=_port, default=8000, help="port; 0 picks a free one (default: %(default)s)")
    demo.add_argument("--https", action="store_true", help="with a throwaway certificate, and the cookie of production")
    demo.add_argument(
        "--tour", action="store_true", help="play the life of a session over real HTTP, check it, and end"
    )
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 0 to 65535")
    return int(text)


def _refuse(why: str) -> int:
    print(f"asgi-sessions: {why}", file=sys.stderr)
    return 2
