"""Serves the shop, with a store, a socket, a throwaway certificate, and uvicorn."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from os import environ
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from asgi_sessions import (
    ConfigurationError,
    CookieConfig,
    DeviceBound,
    Event,
    MemoryStore,
    RedisStore,
    StoreError,
    Timeouts,
)
from asgi_sessions._core.token import owner_of
from asgi_sessions._engine.loops import stop
from asgi_sessions.cli._shop import PASSWORDS, USERS, create_shop
from asgi_sessions.cli._stores import run
from asgi_sessions.sessions import SessionsOptions
from asgi_sessions.stores import Store

NAME = "asgi-sessions-demo"
"""The name of the demo's database in the current folder, and the prefix of its keys in Redis."""

SECRET_BYTES = 32

TIMEOUTS = Timeouts(idle=timedelta(minutes=3))
"""Short, so that the warning appears after a minute: it comes two minutes before the end."""


_IN_TWO_MINUTES = """To see in two minutes:
  1. Put tea into the basket, then log in: the basket comes along, and the cookie is a new one.
  2. Account, "Pretend to log in on another device": the sessions page shows both. Log the other one out.
  3. Leave a page alone for a minute: it warns two minutes before the session ends.
  4. """
_BIND = (
    "Start again with --bound: sessions are bound to the device. --tour plays a thief with their cookies in one second."
)
_BOUND = 'In that Chromium, Account says "bound to this device". --tour plays a thief with the cookies in one second.'


def run_shop(*, host: str, port: int, https: bool, bound: bool = False) -> int:
    """Serve the shop until Ctrl-C or SIGTERM.

    Args:
        bound: bind sessions to devices. These sessions are sealed, so they need a store of their own.
    """
    cookie = CookieConfig() if https else CookieConfig.insecure_development()
    name = f"{NAME}-bound" if bound else NAME
    store, where = open_store(environ, prefix=name, file=f"{name}.db")
    try:
        options = SessionsOptions(on_event=_show, timeouts=TIMEOUTS)
        if bound:
            options.update(_bound_options(store, Path(f"{name}.key")))
        run(_prepare(store))
    except StoreError as error:
        print(f"asgi-sessions: sessions cannot be kept {where.partition(' and ')[0]}: {error}", file=sys.stderr)
        in_redis = "Start that server, correct REDIS_URL, or leave it out."
        in_a_file = "Start the demo in a folder where you may write, or set REDIS_URL."
        print(in_redis if environ.get("REDIS_URL") else in_a_file, file=sys.stderr)
        return 1
    try:
        listener = listen(host, port)
    except (OSError, UnicodeError) as error:  # UnicodeError: the name cannot be a host name
        hint = "; try --port 0" if getattr(error, "errno", None) == errno.EADDRINUSE else ""
        print(f"asgi-sessions: cannot listen on {host}, port {port}: {_reason(error)}{hint}", file=sys.stderr)
        return 1
    pem = certificate() if https else None
    print(f"The shop is open at {url_of(listener, https=https)} (Ctrl-C closes it)")
    print(f"Sessions are kept {where}.")
    _say_more(listener, cookie, pem, bound=bound)
    # The event hook and the lines above already show the log's content.
    logging.getLogger("asgi_sessions").setLevel(logging.ERROR)
    shop = create_shop(store, cookie=cookie, **options)
    try:
        run(_until_stopped(shop, listener, pem))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nThe shop is closed.", flush=True)
    return 0


def _say_more(listener: socket.socket, cookie: CookieConfig, pem: tuple[bytes, bytes] | None, *, bound: bool) -> None:
    if pem is None:
        print(f"The cookie is {cookie.name}, over plain http: for development only. --https shows the real one.")
    else:
        print(f"The cookie is {cookie.name}. The certificate was made a moment ago: your browser will ask about it.")
        if bound:
            print(_how_to_bind(pem[0], listener.getsockname()[1]))
    if not _is_loopback(listener):
        print("Other machines may reach this address, and the passwords are no secret: do not leave it open.")
    print(f"Log in as {_either(USERS)}; the password is {_either(PASSWORDS)}.")
    print(_IN_TWO_MINUTES + (_BOUND if bound else _BIND), end="\n\n", flush=True)


async def _prepare(store: Any) -> None:
    """Create missing tables, and check that the store answers."""
    try:
        if hasattr(store, "create_tables"):
            await store.create_tables()
        await store.index(owner_of("alice"))
    finally:
        await store.aclose()


def _bound_options(store: Store, path: Path) -> SessionsOptions:
    """The options of bound sessions. Their secret is in a file, since stored sessions need it again at the next start.

    Raises:
        StoreError: the file cannot be written or read.
    """
    secret = secrets.token_urlsafe(SECRET_BYTES)
    if not isinstance(store, MemoryStore):
        try:
            with suppress(FileExistsError):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(secret)
            secret = path.read_text(encoding="ascii")
        except OSError as error:
            raise StoreError(f"{path.name}: {_reason(error)}") from None
    return {"secret_keys": [secret], "device_bound": DeviceBound()}


def _how_to_bind(pem: bytes, port: int) -> str:
    """The command that starts a Chromium with bound sessions. Chromium binds only if it trusts the certificate."""
    key = x509.load_pem_x509_certificate(pem).public_key()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    trusted = base64.b64encode(hashlib.sha256(der).digest()).decode("ascii")
    return (
        "Sessions are bound to the device by a Chromium from version 146 on that trusts this certificate. Start one so:\n"
        f"  chromium --user-data-dir=$(mktemp -d) --ignore-certificate-errors-spki-list={trusted} "
        "--enable-features=DeviceBoundSessions,EnableBoundSessionCredentialsSoftwareKeysForManualTesting "
        f"https://localhost:{port}/"
    )


async def _until_stopped(shop: Any, listener: socket.socket, pem: tuple[bytes, bytes] | None) -> None:
    this = asyncio.current_task()
    if this is not None:
        with suppress(NotImplementedError):  # on Windows, where Ctrl-C raises a KeyboardInterrupt
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    async with serving(shop, listener, pem=pem) as server:
        await asyncio.wait({server})


def open_store(environment: Mapping[str, str], *, prefix: str = NAME, file: str | None = None) -> tuple[Store, str]:
    """The store of ``REDIS_URL``, or one in a file or in memory, and its place in words, without the password."""
    url = environment.get("REDIS_URL")
    if not url and file is not None:
        with suppress(ImportError, ConfigurationError):  # without the extra [sql] or the driver: in memory
            from asgi_sessions.stores.sql import SQLStore

            store = SQLStore.from_url(f"sqlite+aiosqlite:///{file}")
            return store, f"in {file} and survive a restart; set REDIS_URL to keep them in Redis or Valkey"
    if not url:
        return MemoryStore(), "in memory, and gone when this ends; set REDIS_URL to keep them in Redis or Valkey"
    in_redis = RedisStore.from_url(url, prefix=prefix)
    parts = urlsplit(url)
    where = parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
    return in_redis, f"in Redis at {where} and all keys begin with {prefix}"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Port 0 picks a free port."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.create_server(address[:2], family=family, backlog=128)
    # asyncio turns Nagle's algorithm off only for sockets with the TCP protocol number. With Nagle, each page takes 40 ms.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=made.detach())


def url_of(listener: socket.socket, *, https: bool) -> str:
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:  # it listens on all addresses, and browsers need one
        host = "::1" if listener.family == socket.AF_INET6 else "127.0.0.1"
    return f"{'https' if https else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"


def certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for this machine and one day, and its private key, both as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "asgi-sessions demo")])
    now = datetime.now(UTC)
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), private


@asynccontextmanager
async def serving(
    app: Any, listener: socket.socket, *, pem: tuple[bytes, bytes] | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """Run uvicorn in a task of this event loop. It is ready when the block begins, and stops when the block ends or fails.

    Args:
        pem: certificate and private key, for https.
    """
    options: dict[str, Any] = {"lifespan": "on", "ws": "none", "log_config": None, "access_log": False}
    options.update(log_level="warning", timeout_graceful_shutdown=3, server_header=False)
    with tempfile.TemporaryDirectory(prefix="asgi-sessions-") as directory:
        if pem is not None:
            paths = Path(directory, "certificate.pem"), Path(directory, "key.pem")
            for path, text in zip(paths, pem, strict=True):
                path.write_bytes(text)
            options.update(ssl_certfile=paths[0], ssl_keyfile=paths[1])
        config = uvicorn.Config(app, **options)
        config.load()  # reads the files, so that the key can leave the disk
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        ready = asyncio.create_task(server.ready.wait())
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        await stop(ready)
        yield task
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    """A server that reports when it is ready, and leaves signals to the program."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or type(error).__name__).split(" (", 1)[0]


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def _show(event: Event) -> None:
    facts = {"id": event.session_id, "user": event.user_id}
    facts |= {name: event.details.get(name) for name in ("reason", "verdict")}
    known = "".join(f" {name}={value}" for name, value in facts.items() if value is not None)
    print(f"{event.at:%H:%M:%S} {event.name}{known}", flush=True)
