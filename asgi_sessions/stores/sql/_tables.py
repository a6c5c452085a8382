"""The two tables of SQLStore, and the statements on them. Portable SQL, so that one text serves every database.

What holds a promise is marked where it stands. Two traps of databases are answered here once:

* Text of ours is ASCII and compared byte by byte. MySQL and MariaDB compare text without regard to case unless told otherwise,
  and two tokens that differ in case only would be one session.
* MySQL and MariaDB carry out the assignments of an UPDATE from left to right, each seeing those before it. Hence
  ``ordered_values``: what is compared is assigned last.
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
"""Bytes: the next larger kind of BLOB of MySQL and MariaDB, whose smallest ends at 64 kB. A payload has a megabyte at most."""

SWEEPER: Final = "~sweeper"
"""Stands where an owner stands, and is none: it is of no owner's alphabet. Its row says until when somebody sweeps."""

BATCH: Final = 500
"""Rows that one statement removes. Locks are held for the time of that, milliseconds."""


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,40}")
"""Of a table or a schema: the names of indexes are made from it, and PostgreSQL cuts names off after 63 characters."""


def _text(chars: int) -> Any:
    return (
        String(chars)
        .with_variant(String(chars, collation="C"), "postgresql")
        .with_variant(mysql.VARCHAR(chars, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
    )


def _bytes() -> Any:
    """By its own name where BLOB(n) becomes another: Alembic would find a change each time that it looks."""
    return LargeBinary(MAX_BODY).with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def session_tables(
    metadata: MetaData | None = None, *, table: str = "asgi_sessions", schema: str | None = None
) -> tuple[Table, Table]:
    """The table of records and that of history, in ``metadata``: yours, so that your Alembic migrates them with your own.

    The same tables are returned if they are there already. Times are milliseconds since the epoch. Of the records:

    * ``key``: what the record lies under; useless for logging in
    * ``rev``: its revision, from 1; 0 for an alias
    * ``seen_at``, ``expires_at``: last recorded activity; when it ends if nothing more is heard
    * ``id``: the public id of the session
    * ``owner``: :func:`owner_of` the user, or NULL; to join your own tables by
    * ``body``: everything else; opaque, and sealed where there are ``secret_keys``

    Raises:
        ConfigurationError: a name has more than 41 characters, or others than letters, digits and ``_``.
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
        # Line 0 of each owner holds no event. Who changes what is the owner's changes it first: the lock of all that is theirs.
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
    """Everything that SQLStore says, built once: SQLAlchemy knows them again by what they are and compiles them once."""

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
        # create never overwrites: the primary key says so.
        self.create = insert(records)
        # update, touch and rename never create; who has seen another revision changes nothing.
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

        # The sweeper's. What was found is removed only if it is still over: it may have been touched meanwhile.
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
