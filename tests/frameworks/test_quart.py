"""Quart: what only Quart has."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from markupsafe import Markup
from quart import (
    Quart,
    copy_current_request_context,
    flash,
    get_flashed_messages,
    jsonify,
    render_template_string,
    session,
    websocket,
)

from asgi_sessions import (
    ConfigurationError,
    CookieConfig,
    MemoryStore,
    Session,
    SessionError,
    SessionMiddleware,
    Sessions,
)
from asgi_sessions.activity import ActivityEndpoints
from asgi_sessions.frameworks.quart import (
    current_session,
    init_app,
    mount,
    require_device_bound,
    require_fresh,
    require_user,
)
from asgi_sessions.page import SessionsPage
from asgi_sessions.testing import log_in
from tests.frameworks.client import NAME, Client


@pytest.fixture
def app(memory: MemoryStore) -> Quart:
    app = Quart(__name__)
    init_app(app, memory)

    @app.get("/session")
    async def read() -> Any:
        return jsonify(dict(session))

    return app


async def do(client: Client, app: Quart, handler: Callable[[], Any]) -> Any:
    """One request whose view is ``handler``."""
    if "view" not in app.view_functions:
        app.add_url_rule("/view", "view", handler)
    app.view_functions["view"] = handler
    response = await client.get("/view")
    assert response.status_code == 200, response.text
    return response


# ── quart.session ──


async def test_quart_session_behaves_like_a_dict(app: Quart) -> None:
    seen: dict[str, Any] = {}

    async def view() -> str:
        session["a"] = 1
        session.update(b=2, c=3)
        seen["in"] = "a" in session, "z" in session
        seen["get"] = session.get("z", "nothing"), session.pop("b"), session.pop("z", None)
        del session["c"]
        seen["len"] = len(session), list(session), session == {"a": 1}, bool(session)
        seen["keys"] = list(session.items()), list(session.keys()), list(session.values())
        with pytest.raises(KeyError):
            session["z"]
        return "ok"

    client = Client(app)
    await do(client, app, view)

    assert seen == {
        "in": (True, False),
        "get": ("nothing", 2, None),
        "len": (1, ["a"], True, True),
        "keys": ([("a", 1)], ["a"], [1]),
    }
    assert await client.session() == {"a": 1}


async def test_quart_session_has_the_verbs_and_attributes_of_ours(app: Quart, memory: MemoryStore) -> None:
    seen: list[Any] = []

    async def view() -> str:
        ours: Any = session
        ours.log_in("alice")
        seen.extend([ours.user_id, ours.is_fresh(timedelta(minutes=1)), ours.id, ours.copy()])
        return "ok"

    client = Client(app)
    await do(client, app, view)

    assert seen[:2] == ["alice", True]
    assert client.token is not None
    assert len(seen[2]) == 16
    assert type(seen[3]) is dict


async def test_quart_session_and_current_session_are_one(app: Quart) -> None:
    async def view() -> str:
        ours = current_session()
        assert isinstance(ours, Session)
        ours["from"] = "ours"
        session["from"] += " and quart's"
        assert ours["from"] == "ours and quart's"
        return "ok"

    client = Client(app)
    await do(client, app, view)

    assert await client.session() == {"from": "ours and quart's"}


async def test_asking_whether_a_key_is_there_counts_as_reading(app: Quart) -> None:
    async def view() -> str:
        return str("a" in session)

    response = await do(Client(app), app, view)

    assert response.headers["vary"] == "Cookie"


async def test_a_view_and_a_template_that_leave_the_session_alone_do_not_read_it(app: Quart) -> None:
    async def view() -> str:
        return await render_template_string("{{ 1 + 1 }}")

    response = await do(Client(app), app, view)

    assert response.text == "2"
    assert "vary" not in response.headers


async def test_a_template_finds_data_and_the_user(app: Quart, memory: MemoryStore) -> None:
    async def view() -> str:
        return await render_template_string("{{ session.user_id }} has {{ session['basket'] | join(', ') }}")

    client = Client(app)
    await log_in(client, memory, "alice", data={"basket": ["apple", "pear"]})

    assert (await do(client, app, view)).text == "alice has apple, pear"


async def test_what_an_after_request_function_writes_is_saved(app: Quart) -> None:
    @app.after_request
    async def note(response: Any) -> Any:
        session["visits"] = session.get("visits", 0) + 1
        return response

    client = Client(app)
    await client.get("/session")

    assert await client.session() == {"visits": 1}


async def test_a_copied_request_context_has_the_same_session(app: Quart) -> None:
    async def view() -> str:
        @copy_current_request_context
        async def elsewhere() -> None:
            session["from"] = "the copy"

        await elsewhere()
        return "ok"

    client = Client(app)
    await do(client, app, view)

    assert await client.session() == {"from": "the copy"}


async def test_a_shallow_copy_of_quart_session_does_not_recurse(app: Quart) -> None:
    async def view() -> str:
        session["a"] = 1
        return str(copy.copy(session._get_current_object())["a"])  # type: ignore[attr-defined]  # it is a LocalProxy

    assert (await do(Client(app), app, view)).text == "1"


async def test_flags_of_other_session_interfaces_do_no_harm(app: Quart) -> None:
    async def view() -> str:
        session["basket"] = []
        session["basket"].append("apple")
        session.modified = True
        return "ok"

    client = Client(app)
    await do(client, app, view)

    assert await client.session() == {"basket": ["apple"]}


async def test_quart_writes_no_cookie_of_its_own(app: Quart) -> None:
    app.secret_key = "a secret that Quart would sign its own cookie with"

    async def view() -> str:
        session["a"] = 1
        session.permanent = True
        return "ok"

    response = await do(Client(app), app, view)

    (cookie,) = response.headers.get_list("set-cookie")
    assert cookie.startswith(f"{NAME}=")
    assert "Expires" not in cookie


# ── flash() ──


async def test_a_flashed_message_is_there_in_the_next_request_once(app: Quart) -> None:
    async def say() -> str:
        await flash("saved")
        await flash("but late", "warning")
        return "ok"

    async def hear() -> Any:
        return jsonify(get_flashed_messages(with_categories=True))

    client = Client(app)
    await do(client, app, say)

    assert (await do(client, app, hear)).json() == [["message", "saved"], ["warning", "but late"]]
    assert (await do(client, app, hear)).json() == []


async def test_flashed_messages_are_pairs_as_ever(app: Quart) -> None:
    """Templates unpack them, and some compare them."""
    seen = []

    async def say_and_hear() -> str:
        await flash("saved", "info")
        seen.append(session["_flashes"])
        seen.append(get_flashed_messages(with_categories=True, category_filter=["info"]))
        return "ok"

    await do(Client(app), app, say_and_hear)

    assert seen == [[("info", "saved")], [("info", "saved")]]


async def test_markup_stays_markup_and_text_stays_text_in_a_flashed_message(app: Quart) -> None:
    class Snippet:
        def __html__(self) -> str:
            return "<u>snippet</u>"

        def __str__(self) -> str:
            return "<script>"

    async def say() -> str:
        await flash(Markup("<b>bold</b>"))
        await flash("<i>not italic</i>")
        await flash(Snippet())  # type: ignore[arg-type]  # what template filters and form libraries give
        return "ok"

    async def hear() -> str:
        return await render_template_string("{% for message in get_flashed_messages() %}{{ message }}\n{% endfor %}")

    client = Client(app)
    await do(client, app, say)

    assert (await do(client, app, hear)).text.splitlines() == [
        "<b>bold</b>",
        "&lt;i&gt;not italic&lt;/i&gt;",
        "<u>snippet</u>",
    ]


async def test_nothing_but_flashes_is_converted_on_the_way(app: Quart) -> None:
    async def view() -> str:
        session["pair"] = (1, 2)
        return "ok"

    app.add_url_rule("/pair", "pair", view)

    response = await Client(app).get("/pair")

    assert response.status_code == 500


# ── WebSockets ──


async def test_quart_session_works_in_a_websocket(app: Quart) -> None:
    @app.websocket("/ws")
    async def ws() -> None:
        session["seen"] = True
        await websocket.accept()
        await websocket.send_json(dict(session))
        session["after"] = True

    client = Client(app)
    async with client.websocket("/ws") as socket:
        assert len(socket.headers("set-cookie")) == 1
        assert json.loads((await socket.next())["text"]) == {"seen": True}
        assert (await socket.next())["type"] == "websocket.close"

        assert await client.session() == {"seen": True, "after": True}


# ── Requirements ──


async def test_a_requirement_keeps_name_and_arguments_of_its_view(app: Quart, memory: MemoryStore) -> None:
    @app.get("/orders/<int:number>")
    @require_fresh(timedelta(minutes=5))
    @require_user
    def order(number: int) -> dict[str, Any]:
        """One order."""
        return {"number": number}

    client = Client(app)
    await log_in(client, memory, "alice")

    assert order.__name__ == "order"
    assert (await client.get("/orders/7")).json() == {"number": 7}


async def test_a_view_that_needs_a_bound_session_keeps_its_name_and_says_why_not(
    app: Quart, memory: MemoryStore
) -> None:
    @app.get("/keys/<int:number>")
    @require_device_bound
    async def key(number: int) -> str:
        raise AssertionError("no session is bound here")

    client = Client(app)
    await log_in(client, memory, "alice")
    refused = await client.get("/keys/7")

    assert key.__name__ == "key"
    assert refused.status_code == 403
    assert "This needs a session that is bound to its device" in refused.text


# ── Set up ──


async def test_options_reach_the_middleware(memory: MemoryStore) -> None:
    app = Quart(__name__)
    init_app(app, memory, cookie=CookieConfig(name="sid"))

    async def view() -> str:
        session["a"] = 1
        return "ok"

    response = await do(Client(app), app, view)

    assert isinstance(app.asgi_app, SessionMiddleware)
    assert response.headers["set-cookie"].startswith("sid=")


def test_setting_up_twice_is_a_clear_error(app: Quart, memory: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        init_app(app, memory)


async def test_a_path_that_is_left_out_works_until_it_asks_for_the_session(memory: MemoryStore) -> None:
    app = Quart(__name__)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    init_app(app, memory, skip=lambda scope: True)

    @app.get("/untouched")
    async def untouched() -> str:
        return "ok"

    @app.get("/session")
    async def read() -> Any:
        return jsonify(dict(session))

    @app.get("/account")
    @require_user
    async def account() -> str:
        raise AssertionError

    assert (await Client(app).get("/untouched")).text == "ok"
    for path in ("/session", "/account"):
        # Some versions of Quart run a request in a task group, and then it comes in a group.
        with pytest.raises((ConfigurationError, ExceptionGroup)) as caught:
            await Client(app, raise_app_exceptions=True).get(path)
        error: Any = caught.value
        while isinstance(error, ExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, ConfigurationError)
        assert "skip=" in str(error)


async def test_quarts_own_test_client_keeps_the_session_over_https(app: Quart) -> None:
    @app.post("/basket")
    async def basket() -> str:
        session["basket"] = ["apple"]
        return "ok"

    client = app.test_client()
    await client.post("/basket", scheme="https")
    response = await client.get("/session", scheme="https")

    assert await response.get_json() == {"basket": ["apple"]}


# ── Quart's own tools for tests ──


async def said(client: Any, path: str = "/session") -> Any:
    return await (await client.get(path, scheme="https")).get_json()


async def test_session_transaction_puts_data_into_a_session_and_finds_it_again(app: Quart) -> None:
    client = app.test_client()

    async with client.session_transaction() as transaction:
        assert not transaction
        transaction["basket"] = ["apple"]
    async with client.session_transaction() as transaction:
        transaction["basket"].append("pear")
        transaction["more"] = 1

    assert await said(client) == {"basket": ["apple", "pear"], "more": 1}


async def test_session_transaction_sees_what_a_request_has_stored(app: Quart) -> None:
    @app.post("/basket")
    async def basket() -> str:
        session["basket"] = ["apple"]
        return "ok"

    client = app.test_client()
    await client.post("/basket", scheme="https")

    async with client.session_transaction() as transaction:
        assert dict(transaction) == {"basket": ["apple"]}
        del transaction["basket"]

    assert await said(client) == {}
    assert not list(client.cookie_jar or ())


async def test_session_transaction_has_the_verbs(app: Quart, memory: MemoryStore) -> None:
    @app.get("/user")
    async def user() -> Any:
        return jsonify(current_session().user_id)

    client = app.test_client()
    transaction: Any
    async with client.session_transaction() as transaction:
        transaction.log_in("alice")
    logged_in = await said(client, "/user")
    async with client.session_transaction() as transaction:
        transaction.destroy()

    assert logged_in == "alice"
    assert await said(client, "/user") is None
    assert len(memory) == 0


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        (
            "http",
            {
                "secret_keys": ["an excellent secret of at least 32 bytes"],
                "cookie": CookieConfig.insecure_development(),
            },
        ),
        ("https", {"realm": lambda scope: dict(scope["headers"])[b"host"].decode()}),
    ],
    ids=["secrets and another cookie", "a realm for each host"],
)
async def test_session_transaction_works_with(memory: MemoryStore, scheme: str, options: dict[str, Any]) -> None:
    app = Quart(__name__)
    init_app(app, memory, **options)

    @app.get("/session")
    async def read() -> Any:
        return jsonify(dict(session))

    client = app.test_client()
    async with client.session_transaction() as transaction:
        transaction["a"] = 1

    assert await (await client.get("/session", scheme=scheme)).get_json() == {"a": 1}
    async with app.test_client().session_transaction() as other:
        assert not other


async def test_quarts_proxy_of_a_session_is_no_session_for_a_listing(memory: MemoryStore) -> None:
    """It has no id that equals one of the list. So no session would be the current one, without an error."""
    app, sessions = Quart(__name__), Sessions(memory)
    init_app(app, sessions)
    app.config["PROPAGATE_EXCEPTIONS"] = True

    @app.get("/")
    async def sessions_of_alice() -> Any:
        current_session().log_in("alice")
        with pytest.raises(SessionError, match=r"current_session\(\)"):
            await sessions.list("alice", current=session)  # type: ignore[arg-type]
        with pytest.raises(SessionError, match=r"current_session\(\)"):
            await sessions.revoke_all("alice", keep=session)  # type: ignore[arg-type]
        return "refused"

    assert await (await app.test_client().get("/", scheme="https")).get_data(as_text=True) == "refused"


async def test_a_transaction_that_fails_saves_nothing(app: Quart, memory: MemoryStore) -> None:
    async def fail() -> None:
        async with app.test_client().session_transaction() as transaction:
            transaction["a"] = 1
            raise RuntimeError("meant to happen")

    with pytest.raises(RuntimeError):
        await fail()

    assert len(memory) == 0


async def test_a_transaction_that_only_reads_stores_nothing(app: Quart, memory: MemoryStore) -> None:
    async with app.test_client().session_transaction() as transaction:
        assert transaction.get("a") is None

    assert len(memory) == 0


async def test_flashed_messages_of_a_transaction_are_shown(app: Quart) -> None:
    @app.get("/messages")
    async def messages() -> Any:
        return jsonify(get_flashed_messages(with_categories=True))

    client = app.test_client()
    async with client.session_transaction() as transaction:
        transaction["_flashes"] = [("info", "saved")]

    assert await said(client, "/messages") == [["info", "saved"]]


async def test_a_test_request_context_has_a_session(app: Quart, memory: MemoryStore) -> None:
    client = app.test_client()
    async with client.session_transaction() as transaction:
        transaction["a"] = 1
    (cookie,) = client.cookie_jar or []

    async with app.test_request_context("/", headers={"cookie": f"{cookie.name}={cookie.value}"}):
        assert session["a"] == 1
        await flash("saved")
        assert get_flashed_messages() == ["saved"]
    async with app.test_request_context("/"):
        assert not session


async def test_a_path_without_a_session_has_none_in_a_test_either(memory: MemoryStore) -> None:
    app = Quart(__name__)
    init_app(app, memory, skip=lambda scope: True)

    async with app.test_client().session_transaction() as transaction:
        with pytest.raises(ConfigurationError, match="skip="):
            transaction["a"] = 1


# ── What Flask's sessions have ──


async def test_marks_are_those_of_our_session(app: Quart, memory: MemoryStore) -> None:
    seen: list[Any] = []

    async def view() -> str:
        ours = session._get_current_object()  # type: ignore[attr-defined]  # it is a LocalProxy
        seen.append((ours.accessed, ours.new, ours.modified, ours.permanent))
        session["basket"] = []
        seen.append((ours.accessed, ours.new, ours.modified, ours.permanent))
        return "ok"

    client = Client(app)
    await do(client, app, view)
    await log_in(client, memory, "alice", data={"basket": []}, remember=True)
    await do(client, app, view)

    assert seen == [
        (False, True, False, False),
        (True, True, True, False),
        (False, False, False, True),
        (True, False, False, True),
    ]


async def test_permanent_stores_nothing_and_says_so(
    app: Quart, memory: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def view() -> str:
        session.permanent = True
        return "ok"

    response = await do(Client(app), app, view)

    assert "set-cookie" not in response.headers
    assert len(memory) == 0
    assert "log_in(user_id, remember=True)" in caplog.text


@pytest.mark.parametrize("name", ["user_id", "id", "sauce"])
async def test_setting_what_is_no_mark_is_an_error(app: Quart, name: str) -> None:
    """It would be found again in this request, and lost after it."""

    async def view() -> str:
        with pytest.raises(AttributeError):
            setattr(session, name, "mallory")
        return str(current_session().user_id)

    assert (await do(Client(app), app, view)).text == "None"


async def test_merging_works_as_with_any_dict(app: Quart) -> None:
    async def view() -> Any:
        ours = session._get_current_object()  # type: ignore[attr-defined]  # it is a LocalProxy
        ours |= {"a": 1}
        return jsonify(ours | {"b": 2}, {"a": 0, "c": 3} | ours)

    client = Client(app)

    assert (await do(client, app, view)).json() == [{"a": 1, "b": 2}, {"a": 1, "c": 3}]
    assert await client.session() == {"a": 1}


# ── Mounted apps ──


@pytest.mark.parametrize("first", ["mount", "init_app"])
async def test_an_asgi_app_can_be_mounted_and_has_the_session(memory: MemoryStore, first: str) -> None:
    app, sessions = Quart(__name__), Sessions(memory)
    steps = {
        "init_app": lambda: init_app(app, sessions),
        "mount": lambda: mount(app, "/account/sessions", SessionsPage(sessions)),
    }
    for name in sorted(steps, key=lambda name: name != first):
        steps[name]()
    mount(app, "/session", ActivityEndpoints())

    @app.get("/login")
    async def begin() -> str:
        current_session().log_in("alice")
        return "in"

    @app.get("/account/sessionsfoo")
    async def another() -> str:
        return "another"

    async with Client(app) as client:
        await client.get("/login")
        page = await client.get("/account/sessions/")
        status = await client.get("/session/")

        assert "This device" in page.text
        assert (await client.get("/account/sessions")).headers["location"] == "sessions/"
        assert (await client.get("/account/sessions/style.css")).status_code == 200
        assert (await client.post("/account/sessions/end-others")).headers["location"] == "./?done=ended-others"
        assert status.json()["logged_in"] is True
        assert (await client.get("/account/sessionsfoo")).text == "another"


@pytest.mark.parametrize("path", ["/api/account/sessions/api/sessions", "/account/sessions/api/sessions"])
async def test_a_mounted_app_is_found_below_a_root_path(memory: MemoryStore, path: str) -> None:
    app, seen = Quart(__name__), []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["root_path"], scope["path"]))

    mount(app, "/account/sessions", inside)
    await app.asgi_app({"type": "http", "path": path, "root_path": "/api"}, None, None)  # type: ignore[arg-type]

    assert seen == [("/api/account/sessions", "/api/account/sessions/api/sessions")]


@pytest.mark.parametrize("path", ["", "account", "/account/", "/", None])
async def test_a_path_that_is_none_is_refused(path: Any) -> None:
    with pytest.raises(ConfigurationError, match="give a path"):
        mount(Quart(__name__), path, SessionsPage(Sessions(MemoryStore())))
