"""The command line: ``python -m asgi_sessions …`` and ``asgi-sessions …``.

It uses argparse; ``docs/operators.md`` has the reason. Each command imports its dependencies when it runs, so that
``import asgi_sessions`` does not need them.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import asgi_sessions
from asgi_sessions._core.arguments import whole
from asgi_sessions._core.extras import needs
from asgi_sessions._core.token import is_id
from asgi_sessions.cli._stores import DATABASE_HELP, URL_HELP


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 success, 1 failure, 2 wrong arguments or settings.

    An error is one line on stderr. A traceback would hide it, and may contain the password of a URL.
    """
    if sys.stderr is None:  # closed by the shell; print() would then write to stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open until the program ends
    if sys.stdout is None:
        return _say("there is no standard output to write to", 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a character shows "?"
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, since an error at the interpreter's exit cannot be reported
    except asgi_sessions.ConfigurationError as error:
        return _say(str(error), 2)
    except asgi_sessions.StoreError as error:
        return _say(str(error), 1)
    except asgi_sessions.SessionDataError as error:
        return _say(str(error), 2)
    except KeyboardInterrupt:
        return _say("interrupted", 1)
    except OSError as error:
        with suppress(OSError, ValueError):  # the interpreter's exit would write once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _say(f"cannot write: {error.strerror or type(error).__name__}", 1)


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    words = sys.argv[1:] if argv is None else argv
    # The id of a session may begin with a dash. With a space in front, argparse does not take it for an option.
    options = parser.parse_args([f" {word}" if word.startswith("-") and is_id(word) else word for word in words])
    if options.command is None:
        parser.print_help()
        return 2
    return _COMMANDS[options.command](options)


def _demo(options: argparse.Namespace) -> int:
    with needs("demo", "the demo"):
        import httpx  # noqa: F401 - all imports are checked together
        import jinja2  # noqa: F401
        import uvicorn  # noqa: F401
    if options.tour:
        from asgi_sessions.cli._tour import run

        return run()
    from asgi_sessions.cli._serve import run_shop

    return run_shop(host=options.host, port=options.port, https=options.https or options.bound, bound=options.bound)


def _make_key(options: argparse.Namespace) -> int:
    from asgi_sessions.cli._keygen import run

    return run(options.alg, options.out)


def _schema(options: argparse.Namespace) -> int:
    from asgi_sessions.cli._settings import NAME
    from asgi_sessions.cli._sql import print_schema

    table = os.environ.get(NAME) or "asgi_sessions" if options.table is None else options.table
    return print_schema(options.dialect, table)


def _imported(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    """A command that imports its module at its first call."""

    def command(options: argparse.Namespace) -> int:
        made: Callable[[argparse.Namespace], int] = getattr(import_module(f"asgi_sessions.cli.{module}"), function)
        return made(options)

    return command


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "doctor": _imported("_doctor", "run"),
    "list": _imported("_sessions", "run_list"),
    "show": _imported("_sessions", "run_show"),
    "history": _imported("_sessions", "run_history"),
    "count": _imported("_sessions", "run_count"),
    "revoke": _imported("_sessions", "run_revoke"),
    "revoke-all": _imported("_sessions", "run_revoke_all"),
    "sweep": _imported("_sql", "sweep"),
    "rekey": _imported("_rekey", "run"),
    "keygen": _make_key,
    "schema": _schema,
    "demo": _demo,
}


class _Parser(argparse.ArgumentParser):
    """A parser that raises an error if it cannot write its help. argparse would ignore that."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="asgi-sessions", description="Server-side sessions for ASGI.")
    parser.add_argument("--version", action="version", version=f"asgi-server-sessions {asgi_sessions.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    demo = commands.add_parser(
        "demo",
        help="serve a small shop, or play the life of a session against it",
        description="Serve a small shop behind SessionMiddleware. Sessions are kept in a file of "
        "SQLite here (the tour's in memory), or in Redis or Valkey where REDIS_URL is set.",
    )
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    demo.add_argument(
        "--port", type=_number("port", 0, 65535), default=8000, help="port; 0 picks a free one (default: %(default)s)"
    )
    demo.add_argument("--https", action="store_true", help="with a throwaway certificate, and the cookie of production")
    demo.add_argument(
        "--bound",
        action="store_true",
        help="bind sessions to the devices of browsers that can do so; implies --https",
    )
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
    schema.add_argument(
        "--table", "--name", help="name of the table of records (default: ASGI_SESSIONS_NAME, or asgi_sessions)"
    )
    _add_operators(commands)
    return parser


def _add_operators(commands: Any) -> None:
    """Add the commands that work on a store."""

    def add(name: str, short: str, description: str = "", **url: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=short, description=description or f"{short}.")
        if url:
            parser.add_argument("url", nargs="?", default=None, **url)
        else:
            parser.add_argument("--url", default=None, help=f"the store: {URL_HELP} (default: ASGI_SESSIONS_URL)")
        parser.add_argument(
            "--name",
            "--prefix",
            "--table",
            help="the prefix of the keys in Redis, or the name of the table (default: ASGI_SESSIONS_NAME, or the store's own)",
        )
        parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
        return parser

    doctor = add(
        "doctor",
        "check a store, and say what to do",
        "Check the store, its server and the secrets. Each finding says what to do. "
        "Exit status: 0 all is well, 1 warnings, 2 problems.",
        help=URL_HELP,
    )
    doctor.add_argument("--read-only", action="store_true", help="begin and end no session of a made-up user")
    add("list", "print the sessions of a user").add_argument("user", help="the id that the app gave to log_in()")
    show = add("show", "print one session", "Print one session: never its token, its key or its data.")
    show.add_argument("id", type=str.strip, help="the id of the session, from a list or a log")
    show.add_argument("--user", help="whose session it is; without it the whole store is searched")
    history = add("history", "print what happened to the sessions of a user")
    history.add_argument("user", help="the id that the app gave to log_in()")
    history.add_argument(
        "--limit", type=_number("number of entries", 1, 10_000), default=50, help="(default: %(default)s)"
    )
    count = add("count", "count sessions and users", "Count sessions and users. A large store is sampled.")
    count.add_argument(
        "--sample",
        type=_number("number of sessions", 100, 10**9),
        default=10_000,
        help="after so many sessions the rest is estimated (default: %(default)s)",
    )
    count.add_argument("--all", action="store_true", help="count all of them; takes about 150 bytes of memory for each")
    revoke = add("revoke", "end one session")
    revoke.add_argument("id", type=str.strip, help="the id of the session, from a list or a log")
    revoke.add_argument("--user", help="whose session it is; without it the whole store is searched")
    revoke_all = add("revoke-all", "end all sessions of a user")
    revoke_all.add_argument("user", nargs="?", help="the id that the app gave to log_in()")
    revoke_all.add_argument("--keep", metavar="ID", type=str.strip, help="a session of the user that stays")
    revoke_all.add_argument(
        "--everyone", action="store_true", help="end the sessions of all users and visitors instead"
    )
    sweep = add(
        "sweep",
        "remove expired sessions from a database",
        "Remove expired sessions and old history from the tables of SQLStore: from cron, where no app does so. If several "
        "run at the same time, one works.",
        help=DATABASE_HELP,
    )
    sweep.add_argument(
        "--history-days",
        type=_number("number of days", 1, 3660),
        default=90,
        metavar="DAYS",
        help="how long history is kept (default: %(default)s)",
    )
    rekey = add(
        "rekey",
        "seal all records with the newest secret",
        "Seal all records with the newest secret, while the app is up. The secrets are taken from "
        "ASGI_SESSIONS_SECRET_KEYS, newest first, with spaces between them.",
        help=URL_HELP,
    )
    rekey.add_argument("--rate", type=float, default=1000.0, help="records per second (default: %(default)s)")
    rekey.add_argument("--from", dest="cursor", default="", metavar="CURSOR", help="go on where it was stopped")


def _number(what: str, least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = whole(text, least, most)
        if number is None:
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is no {what}; give a number from {least} to {most}")
        return number

    return read


def _say(why: str, status: int) -> int:
    print(f"asgi-sessions: {why}", file=sys.stderr)
    return status
