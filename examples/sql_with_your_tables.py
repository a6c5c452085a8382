"""Sessions in the app's own database: who is here, a user and their sessions gone in one transaction, all in SQL.

    pip install 'asgi-server-sessions[sql]' aiosqlite
    python examples/sql_with_your_tables.py

``User.session_owner`` is what joins: a store never sees the id of a user, only a hash of it, ``owner_of(user_id)``.
"""

from __future__ import annotations

import asyncio
import sys
import time
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import ForeignKey, String, delete, func, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asgi_sessions import SessionMiddleware, SQLStore
from asgi_sessions.stores.sql import owner_of, session_tables
from asgi_sessions.testing import session_cookie


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    session_owner: Mapped[str] = mapped_column(String(22), unique=True)


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))


# In the metadata that your Alembic looks at: its next autogenerate makes these tables with your own.
sessions, history = session_tables(Base.metadata)

# Who is logged in now, on how many devices, and has never ordered anything.
LURKERS = (
    select(User.name, func.count(sessions.c.id).label("devices"))
    .join(sessions, sessions.c.owner == User.session_owner)
    .where(sessions.c.expires_at > int(time.time() * 1000))
    .where(~select(Order.id).where(Order.user_id == User.id).exists())
    .group_by(User.name)
    .order_by(User.name)
)


async def main(url: str) -> list[Any]:
    engine = create_async_engine(url)
    store = SQLStore(
        engine
    )  # of your engine, as your own queries; or SQLStore.from_url(url), with connections of its own
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        for id, name in ((1, "ada"), (2, "grace"), (3, "alan")):
            user = {"id": id, "name": name, "session_owner": owner_of(str(id))}
            await connection.execute(User.__table__.insert(), user)  # type: ignore[attr-defined]
        await connection.execute(Order.__table__.insert(), {"id": 1, "user_id": 2})  # type: ignore[attr-defined]

    SessionMiddleware(app, store)  # as ever; here we log in without a browser
    for user_id in ("1", "1", "2", "3"):
        await session_cookie(store, user_id)

    shown: list[Any] = []
    async with engine.connect() as connection:
        shown.append([tuple(row) for row in await connection.execute(LURKERS)])

    # The account and its sessions end together, or neither does.
    async with engine.begin() as connection:
        await connection.execute(delete(sessions).where(sessions.c.owner == owner_of("1")))
        await connection.execute(delete(history).where(history.c.owner == owner_of("1")))
        await connection.execute(delete(User).where(User.id == 1))

    async with engine.connect() as connection:
        shown.append([tuple(row) for row in await connection.execute(LURKERS)])
    await engine.dispose()
    return shown


async def app(scope: Any, receive: Any, send: Any) -> None: ...


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        for rows in asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else f"sqlite+aiosqlite:///{folder}/example.db")):
            print(rows)
