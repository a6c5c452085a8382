"""The command line: ``python -m asgi_sessions …`` and ``asgi-sessions …``.

What a command needs beyond the package itself is imported when it runs, so that ``import asgi_sessions`` needs none of it.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence

import asgi_sessions
from asgi_sessions.cli._stores import DATABASE_HELP, URL_HELP

_EXTRAS = frozenset({"uvicorn", "httpx", "jinja2"})


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
        return _COMMANDS[options.command](options)
    except ModuleNotFoundError as missing:
        if missing.name == "jwt":
            return _refuse("keygen needs PyJWT: pip install 'asgi-server-sessions[tokens]'")
        if missing.name in ("sqlalchemy", "greenlet"):
            return _refuse(f"{options.command} needs SQLAlchemy: pip install 'asgi-server-sessions[sql]'")
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


def _make_key(options: argparse.Namespace) -> int:
    from asgi_sessions.cli._keygen import run

    return run(options.alg, options.out)


def _schema(options: argparse.Namespace) -> int:
    from asgi_sessions.cli._sql import print_schema

    return print_schema(options.dialect, options.table)


def _sweep(options: argparse.Namespace) -> int:
    from asgi_sessions.cli._sql import sweep

    return sweep(options.url, options.table, options.history_days)


def _rekey(options: argparse.Namespace) -> int:
    from asgi_sessions.cli._rekey import run

    return run(options.url, options.name, options.rate, options.cursor)


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "keygen": _make_key,
    "rekey": _rekey,
    "schema": _schema,
    "sweep": _sweep,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="asgi-sessions", description="Server-side sessions for ASGI.")
    parser.add_argument("--version", action="version", version=f"asgi-server-sessions {asgi_sessions.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    demo = commands.add_parser(
        "demo",
        help="serve a small shop, or play the life of a session against it",
        description="Serve a small shop behind SessionMiddleware. Sessions are kept in a file of "
        "SQLite here (the tour's in memory), or in Redis or Valkey where REDIS_URL is set.",
    )
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    demo.add_argument("--port", type=_port, default=8000, help="port; 0 picks a free one (default: %(default)s)")
    demo.add_argument("--https", action="store_true", help="with a throwaway certificate, and the cookie of production")
    demo.add_argument(
        "--tour", action="store_true", help="play the life of a session over real HTTP, check it, and end"
    )
    keygen = commands.add_parser(
        "keygen",
        help="make a key for access tokens",
        description="Make a private key for access tokens, as PEM. Its public JWK goes to stderr.",
    )
    keygen.add_argument("--alg", choices=["EdDSA", "ES256"], default="EdDSA", help="(default: %(default)s)")
    keygen.add_argument("--out", help="a file that does not exist yet; without it the key is printed")
    schema = commands.add_parser(
        "schema",
        help="print the tables of SQLStore as SQL",
        description="Print the statements that make the tables of SQLStore, for a migration of your own.",
    )
    schema.add_argument("--dialect", choices=["postgresql", "mysql", "mariadb", "sqlite"], default="postgresql")
    schema.add_argument("--table", default="asgi_sessions", help="name of the table of records (default: %(default)s)")
    sweep = commands.add_parser(
        "sweep",
        help="remove from a database what is over",
        description="Remove sessions that are over, and old history, from the tables of SQLStore: from cron, where no app "
        "does so by itself. Of many that run, one works.",
    )
    sweep.add_argument("url", help=DATABASE_HELP)
    sweep.add_argument("--table", default="asgi_sessions", help="name of the table of records (default: %(default)s)")
    sweep.add_argument(
        "--history-days", type=int, default=90, metavar="DAYS", help="how long history is kept (default: %(default)s)"
    )
    rekey = commands.add_parser(
        "rekey",
        help="seal all records with the newest secret",
        description="Seal all records with the newest secret, while the app is up. The secrets are taken from "
        "ASGI_SESSIONS_SECRET_KEYS, newest first, with spaces between them.",
    )
    rekey.add_argument("url", help=URL_HELP)
    rekey.add_argument("--name", help="the prefix of the keys in Redis, or the name of the table")
    rekey.add_argument("--rate", type=float, default=1000.0, help="records per second (default: %(default)s)")
    rekey.add_argument("--from", dest="cursor", default="", metavar="CURSOR", help="go on where it was stopped")
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 0 to 65535")
    return int(text)


def _refuse(why: str) -> int:
    print(f"asgi-sessions: {why}", file=sys.stderr)
    return 2
