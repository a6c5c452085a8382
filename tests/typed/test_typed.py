"""Typed values: what is put in comes back as what it was."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_sessions import Session, SessionDataError
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass
class Item:
    sku: UUID
    price: Decimal
    size: Size = Size.SMALL
    tags: set[str] = field(default_factory=set)
    spans: tuple[int, str] = (0, "")


@dataclass
class Cart:
    items: list[Item]
    opened: date
    until: datetime
    at: time
    lasts: timedelta
    raw: bytes = b""
    by_number: dict[int, str] = field(default_factory=dict)


class StructItem(msgspec.Struct):
    sku: UUID
    price: Decimal


class Typed(TypedDict):
    sku: UUID
    tags: frozenset[str]


class Model(pydantic.BaseModel):
    sku: UUID
    price: Decimal
    size: Size
    tags: set[str]
    until: datetime


@dataclass
class WithModel:
    model: Model


SKU = UUID(int=7)
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
ITEM = Item(SKU, Decimal("1.10"), Size.LARGE, {"a", "b"}, (3, "x"))
MODEL = Model(sku=SKU, price=Decimal("1.10"), size=Size.LARGE, tags={"a"}, until=NOON)
CART = Cart([ITEM], date(2026, 11, 28), NOON, time(8, 30), timedelta(minutes=5), b"\x00\xff", {7: "seven"})

VALUES: dict[str, tuple[Any, Any]] = {
    "a dataclass": (CART, Cart),
    "a struct": (StructItem(SKU, Decimal("0.10")), StructItem),
    "a TypedDict": (Typed(sku=SKU, tags=frozenset({"a"})), Typed),
    "a pydantic model": (MODEL, Model),
    "a pydantic model in a dataclass": (WithModel(MODEL), WithModel),
    "a list": ([ITEM, ITEM], list[Item]),
    "a set": ({SKU}, set[UUID]),
    "a tuple": ((1, Decimal(2)), tuple[int, Decimal]),
    "a dict": ({date(2026, 1, 1): ITEM}, dict[date, Item]),
    "a plain value": (7, int),
}


@pytest.fixture
def browser(store: Store, clock: FakeClock) -> Browser:
    return Browser(app_with(store, clock=clock))


async def both(browser: Browser, put: Any, get: Any) -> Any:
    found: list[Any] = []
    await browser.do(lambda session: put(session))
    await browser.do(lambda session: found.append(get(session)))
    return found[0]


@pytest.mark.parametrize("kind", VALUES)
async def test_a_typed_value_comes_back_as_what_it_was(browser: Browser, kind: str) -> None:
    value, its_type = VALUES[kind]

    found = await both(
        browser, lambda session: session.set_as("x", value), lambda session: session.get_as("x", its_type)
    )

    assert found == value
    assert type(found) is type(value)


@given(
    st.builds(
        Item,
        st.uuids(),
        st.decimals(allow_nan=False, allow_infinity=False),
        st.sampled_from(Size),
        st.sets(st.text(max_size=5)),
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(max_size=5)),
    )
)
def test_every_item_comes_back(item: Item) -> None:
    session = Session()

    dict.__setitem__(session, "x", None)
    from asgi_sessions._core.payload import MessagePackCodec
    from asgi_sessions._core.typed import from_plain, to_plain

    codec = MessagePackCodec()
    assert from_plain(codec.decode(codec.encode({"x": to_plain(item)}))["x"], Item) == item


@pytest.mark.parametrize("model", [CART, MODEL, StructItem(SKU, Decimal(1))], ids=["dataclass", "pydantic", "struct"])
async def test_a_model_of_the_whole_session(browser: Browser, model: Any) -> None:
    def put(session: Session) -> None:
        session["of another package"] = 1
        session.write_model(model)

    found = await both(browser, put, lambda session: (session.read_model(type(model)), session["of another package"]))

    assert found == (model, 1)


async def test_fields_with_defaults_may_be_missing(browser: Browser) -> None:
    @dataclass
    class Shop:
        theme: str = "light"
        visits: int = 0

    found = await both(browser, lambda session: session.update(visits=3), lambda session: session.read_model(Shop))

    assert found == Shop("light", 3)


# ── Models that changed ──


@pytest.mark.parametrize("kind", [Item, Model, StructItem, list[int], set[UUID]], ids=str)
async def test_what_no_longer_fits_is_an_error_or_the_default(browser: Browser, kind: Any) -> None:
    secret = "s3cret"

    def look(session: Session) -> Any:
        with pytest.raises(SessionDataError, match=r"session\['x'\]: what is stored does not fit") as raised:
            session.get_as("x", kind)
        assert secret not in str(raised.value)
        return session.get_as("x", kind, None), session.get_as("x", kind, "default")

    found = await both(browser, lambda session: session.update(x={"sku": secret}), look)

    assert found == (None, "default")


async def test_what_is_not_there_is_none_or_the_default(browser: Browser) -> None:
    await browser.do(lambda session: (session.get_as("x", Item), session.get_as("x", Item, ITEM)))

    assert browser.token is None
    found: list[Any] = []
    await browser.do(lambda session: found.extend((session.get_as("x", Item), session.get_as("x", Item, ITEM))))
    assert found == [None, ITEM]


class Unknown:
    """Neither msgspec nor pydantic knows it."""


@pytest.mark.parametrize("value", [Unknown(), [Unknown()], {"a": object()}, lambda: 1], ids=["a", "b", "c", "d"])
def test_what_cannot_be_converted_is_refused_at_once(value: Any) -> None:
    session = Session()

    with pytest.raises(SessionDataError, match="cannot be kept in a session"):
        session.set_as("x", value)


def test_a_type_that_is_none_says_so() -> None:
    from asgi_sessions._core.typed import from_plain

    with pytest.raises(SessionDataError, match="Unknown"):
        from_plain({}, Unknown)


def test_a_model_without_fields_is_refused() -> None:
    with pytest.raises(SessionDataError, match="has no fields"):
        Session().write_model([1])


async def test_reading_a_typed_value_says_vary(browser: Browser) -> None:
    await browser.do(lambda session: session.set_as("x", ITEM))

    response = await browser.do(lambda session: bool(session.get_as("x", Item)))

    assert response.get("vary") == "Cookie"


async def test_a_copy_changes_nothing_until_it_is_stored(browser: Browser) -> None:
    await browser.do(lambda session: session.set_as("x", ITEM))

    def change(session: Session) -> None:
        item = session.get_as("x", Item)
        assert item is not None
        item.tags.add("new")

    def change_and_store(session: Session) -> None:
        item = session.get_as("x", Item)
        assert item is not None
        item.tags.add("new")
        session.set_as("x", item)

    found: list[Any] = []
    for handler in (change, change_and_store):
        await browser.do(handler)
        await browser.do(lambda session: found.append(session.get_as("x", Item)))

    assert [item.tags for item in found] == [{"a", "b"}, {"a", "b", "new"}]
