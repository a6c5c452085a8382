"""The two tables of SQLStore and the statements on them, in portable SQL.

Two traps of databases are avoided here:

* Our text is ASCII and compared byte by byte. By default MySQL and MariaDB ignore case, and two tokens that differ only in case
  would be one session.
* MySQL and MariaDB execute the assignments of an UPDATE from left to right, and each sees those before it. So
  ``ordered_values`` assigns a column after the comparisons with it.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    LargeBinary,
    MetaData,
    String,
    Table,
    and_,
    bindparam,
    case,
    delete,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import mysql

from asgi_sessions._core.arguments import expect
from asgi_sessions._core.history import FINGERPRINT_CHARS
from asgi_sessions._core.token import ID_CHARS, KEY_CHARS, OWNER_CHARS
from asgi_sessions.errors import ConfigurationError

MAX_BODY: Final = 2**24 - 1
"""Bytes of a MEDIUMBLOB. A BLOB of MySQL and MariaDB ends at 64 kB, and a payload may have a megabyte."""

SWEEPER: Final = "~sweeper"
"""The owner of the row that holds the end of the sweeper's turn. No user has it: ``~`` is not in the alphabet of owners."""

BATCH: Final = 500
"""Rows that one statement removes. Its locks last some milliseconds."""


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,40}")
"""A name of a table or schema. Names of indexes are made from it, and PostgreSQL cuts names after 63 characters."""


def _text(chars: int) -> Any:
    return (
        String(chars)
        .with_variant(String(chars, collation="C"), "postgresql")
        .with_variant(mysql.VARCHAR(chars, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
    )


def _bytes() -> Any:
    """The type of bytes. MEDIUMBLOB by name, because Alembic would report a change for BLOB(n) on every run."""
    return LargeBinary(MAX_BODY).with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def session_tables(
    metadata: MetaData | None = None, *, table: str = "asgi_sessions", schema: str | None = None
) -> tuple[Table, Table]:
    """Return the table of records and the table of the history, in ``metadata``, so that your Alembic migrates them too.

    Tables that ``metadata`` has already are returned as they are. Times are milliseconds since the epoch. The records have:

    * ``key``: the primary key; useless for logging in
    * ``rev``: the revision, from 1; 0 for an alias
    * ``seen_at``, ``expires_at``: the last recorded activity; the expiry without further activity
    * ``id``: the public id of the session
    * ``owner``: :func:`owner_of` the user, or NULL; for joins with your own tables
    * ``body``: everything else, opaque; sealed if there are ``secret_keys``

    Raises:
        ConfigurationError: a name has more than 41 characters, or characters other than letters, digits and ``_``.
    """
    if metadata is not None:
        expect("session_tables(metadata)", metadata, MetaData)
    for what, value in (("table", table), ("schema", schema)):
        if not (isinstance(value, str) and _NAME.fullmatch(value)) and not (what == "schema" and value is None):
            raise ConfigurationError(
                f"SQLStore({what}={value!r}): use at most 41 letters, digits and _, no digit first"
            )
    metadata = metadata if metadata is not None else MetaData()
    name = table if schema is None else f"{schema}.{table}"
    if name in metadata.tables:
        return metadata.tables[name], metadata.tables[f"{name}_history"]
    records = Table(
        table,
        metadata,
        Column("key", _text(KEY_CHARS), primary_key=True),
        Column("rev", BigInteger, nullable=False),
        Column("seen_at", BigInteger, nullable=False),
        Column("expires_at", BigInteger, nullable=False, index=True),
        Column("id", _text(ID_CHARS), nullable=False),
        Column("owner", _text(OWNER_CHARS), nullable=True, index=True),
        Column("body", _bytes(), nullable=False),
        schema=schema,
    )
    history = Table(
        f"{table}_history",
        metadata,
        # Row 0 of each owner is no entry but the lock: every change to an owner's rows updates it first.
        Column("owner", _text(OWNER_CHARS), primary_key=True),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        Column("at", BigInteger, nullable=False, index=True),
        Column("what", _text(1), nullable=False),
        Column("id", _text(ID_CHARS), nullable=False),
        Column("fingerprint", _text(FINGERPRINT_CHARS), nullable=False),
        Column("facts", _bytes(), nullable=False),
        schema=schema,
    )
    return records, history


class Statements:
    """All statements of SQLStore, built once. SQLAlchemy compiles each once and caches it."""

    def __init__(self, records: Table, history: Table) -> None:
        r, h = records.c, history.c
        key: Any = bindparam("key_")
        owner: Any = bindparam("owner_")
        seen: Any = bindparam("seen_")
        expires: Any = bindparam("expires_")
        now: Any = bindparam("now_")
        whole = (r.key, r.rev, r.seen_at, r.expires_at, r.id, r.owner, r.body)
        later_seen = case((r.seen_at > seen, r.seen_at), else_=seen)
        later_expires = case((r.expires_at > expires, r.expires_at), else_=expires)

        self.load = select(*whole).where(r.key == key)
        # The primary key keeps this from overwriting.
        self.create = insert(records)
        # update, touch and rename never create. An update with an old revision changes no row.
        self.update = (
            update(records)
            .where(r.key == key, r.rev == bindparam("rev_"))
            .ordered_values(
                (r.expires_at, later_expires),
                (r.seen_at, later_seen),
                (r.rev, bindparam("new_rev")),
                (r.body, bindparam("body_")),
            )
        )
        self.touch = (
            update(records)
            .where(r.key == key, r.rev != 0)
            .ordered_values(
                (r.expires_at, case((r.seen_at < seen, expires), else_=r.expires_at)),
                (r.seen_at, later_seen),
            )
        )
        self.load_locked = self.load.with_for_update()
        self.delete = delete(records).where(r.key == key)
        self.index = select(r.id, r.key).where(r.owner == owner)
        self.of_owner = select(*whole).where(r.owner == owner)
        self.heads_locked = (
            select(r.key, r.id, r.seen_at, r.expires_at).where(r.owner == owner).order_by(r.key).with_for_update()
        )
        self.any_over = select(r.key).where(r.owner == owner, r.expires_at <= now).limit(1)
        self.delete_these = delete(records).where(r.key.in_(bindparam("keys_", expanding=True)))
        self.delete_all = delete(records).where(r.owner == owner)

        self.lock = update(history).where(h.owner == owner, h.seq == 0).values(at=now)
        self.entries = (
            select(h.at, h.what, h.id, h.fingerprint, h.facts).where(h.owner == owner, h.seq > 0).order_by(h.seq.desc())
        )
        self.past = select(h.seq, h.at, h.what, h.id, h.fingerprint).where(h.owner == owner, h.seq > 0)
        self.add_entry = insert(history)
        self.trim = delete(history).where(
            h.owner == owner, h.seq > 0, or_(h.seq <= bindparam("far_end"), h.at < bindparam("horizon"))
        )
        self.forget = delete(history).where(h.owner == owner)

        # For the sweeper. A record is removed only if it is still expired: it may have been touched meanwhile.
        self.owners_over = (
            select(r.owner).where(r.expires_at <= now, r.owner.is_not(None)).distinct().limit(bindparam("some"))
        )
        self.keys_over = select(r.key).where(r.expires_at <= now, r.owner.is_(None)).limit(bindparam("some"))
        self.delete_over = delete(records).where(
            r.key.in_(bindparam("keys_", expanding=True)), r.expires_at <= now, r.owner.is_(None)
        )
        old = history.alias("old")
        self.old_entries = select(h.owner, h.seq).where(h.at < bindparam("horizon"), h.seq > 0).limit(bindparam("some"))
        self.delete_entry = delete(history).where(and_(h.owner == owner, h.seq == bindparam("seq_")))
        others = select(old.c.seq).where(old.c.owner == h.owner, old.c.seq > 0).exists()
        self.old_locks = (
            select(h.owner)
            .where(h.at < bindparam("horizon"), h.seq == 0, h.owner != SWEEPER, ~others)
            .limit(bindparam("some"))
        )
        self.delete_lock = delete(history).where(h.owner == owner, h.seq == 0, h.at < bindparam("horizon"))
        self.keys_after = select(r.key).where(r.key > key).order_by(r.key).limit(bindparam("some"))
        self.take_turn = (
            update(history).where(h.owner == SWEEPER, h.seq == 0, h.at <= now).values(at=bindparam("until_"))
        )
