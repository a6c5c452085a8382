"""The httpx client: a refresh may end in any way, and the next request still works. Under asyncio and trio."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest
from anyio.lowlevel import RunVar

from asgi_sessions import ConfigurationError
from asgi_sessions.tokens import RefreshFailed, TokenError
from asgi_sessions.tokens.client import EARLY, MAX_ANSWER, TokenAuth

API = "https://api.example/me"
TOKEN_URL = "https://api.example/token/refresh"

GRANTED = {"access_token": "A1", "refresh_token": "R2", "expires_in": 900, "token_type": "Bearer"}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Server:
    """The API, and its token endpoint, which does what is next in ``script`` and then grants each refresh."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.sent: list[str] = []  # refresh tokens
        self.seen: list[tuple[str, str | None]] = []  # URLs, and the Authorization that came with them
        self.asked = anyio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if str(request.url) != TOKEN_URL:
            self.seen.append((str(request.url), request.headers.get("authorization")))
            return httpx.Response(200, text=request.headers.get("authorization", "nobody"))
        self.sent.append(request.content.decode())
        self.asked.set()
        step = self.script.pop(0) if self.script else GRANTED
        if callable(step):
            step = await step(request)
        if isinstance(step, BaseException):
            raise step
        return step if isinstance(step, httpx.Response) else httpx.Response(200, json=step)

    def client(self, auth: httpx.Auth, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self), auth=auth, **options)


def some_auth(**options: Any) -> TokenAuth:
    return TokenAuth(TOKEN_URL, "R1", **options)


async def outcome(call: Callable[[], Awaitable[httpx.Response]]) -> str:
    try:
        return (await call()).text
    except Exception as error:
        return type(error).__name__


# ── One refresh that ends badly ──

NONSENSE: dict[str, Any] = {
    "no JSON": httpx.Response(200, text="hello"),
    "HTML of a hotel's network": httpx.Response(200, html="<html>log in to the Wi-Fi</html>"),
    "nothing": httpx.Response(200),
    "204": httpx.Response(204),
    "a list": httpx.Response(200, json=[GRANTED]),
    "null": httpx.Response(200, json=None),
    "deep": httpx.Response(200, text="[" * 60000),
    "not UTF-8": httpx.Response(200, content=b'{"access_token": "\xff"}'),
    "no access token": {"refresh_token": "R2", "expires_in": 900},
    "an empty access token": {**GRANTED, "access_token": ""},
    "a number for an access token": {**GRANTED, "access_token": 5},
    "an access token with a line break": {**GRANTED, "access_token": "A\r\nX: y"},
    "a list for a refresh token": {**GRANTED, "refresh_token": ["R2"]},
    "null for a refresh token": {**GRANTED, "refresh_token": None},
    "an empty refresh token": {**GRANTED, "refresh_token": ""},
    "text for a lifetime": {**GRANTED, "expires_in": "soon"},
    "true for a lifetime": {**GRANTED, "expires_in": True},
    "a negative lifetime": {**GRANTED, "expires_in": -1},
    "no number for a lifetime": httpx.Response(200, text='{"access_token": "A", "expires_in": NaN}'),
    "an endless lifetime": httpx.Response(200, text='{"access_token": "A", "expires_in": 1e999}'),
    "another kind of token": {**GRANTED, "token_type": "DPoP"},
    "compressed without being asked": httpx.Response(
        200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"\x1f\x8b")
    ),
}
TEMPORARY: dict[str, Any] = {
    **NONSENSE,
    "no connection": httpx.ConnectError("the network was away"),
    "a time-out": httpx.ReadTimeout("too slow"),
    "a connection that breaks": httpx.RemoteProtocolError("broken"),
    "a transport's own error": OSError("no route"),
    "500": httpx.Response(500),
    "502 with HTML": httpx.Response(502, html="<h1>Bad Gateway</h1>"),
    "503": httpx.Response(503, headers={"retry-after": "1"}),
    "429": httpx.Response(429),
    "408": httpx.Response(408),
    "a redirect that is not followed": httpx.Response(307, headers={"location": "https://evil.example/"}),
}
FINAL: dict[str, Any] = {
    "invalid_grant": httpx.Response(400, json={"error": "invalid_grant"}),
    "invalid_client": httpx.Response(401, json={"error": "invalid_client"}),
    "403": httpx.Response(403),
    "404": httpx.Response(404),
}


def fresh(step: Any) -> Any:
    """An answer can be given once."""
    if isinstance(step, httpx.Response) and isinstance(step.stream, httpx.ByteStream) and hasattr(step, "_content"):
        return httpx.Response(step.status_code, headers=step.headers, content=step.content)
    return step


@pytest.mark.parametrize("step", TEMPORARY.values(), ids=TEMPORARY.keys())
async def test_a_refresh_that_cannot_be_done_now_is_temporary_and_the_next_request_tries_again(step: Any) -> None:
    server = Server(fresh(step))
    async with server.client(some_auth()) as client:
        with pytest.raises(RefreshFailed) as raised:
            await client.get(API)
        assert not isinstance(raised.value, TokenError)
        assert "log in again" not in str(raised.value)
        assert server.seen == []

        assert (await client.get(API)).text == "Bearer A1"
    assert len(server.sent) == 2


@pytest.mark.parametrize(
    ("step", "cause"),
    [
        (httpx.ConnectError("away"), httpx.ConnectError),
        (httpx.ReadTimeout("slow"), httpx.ReadTimeout),
        (httpx.Response(503, headers={"retry-after": "7"}), httpx.HTTPStatusError),
        (httpx.Response(429), httpx.HTTPStatusError),
    ],
    ids=["no connection", "time-out", "503", "429"],
)
async def test_the_error_of_httpx_is_the_cause(step: Any, cause: type[Exception]) -> None:
    server = Server(fresh(step))
    async with server.client(some_auth()) as client:
        with pytest.raises(RefreshFailed) as raised:
            await client.get(API)

    assert type(raised.value.__cause__) is cause
    if isinstance(raised.value.__cause__, httpx.HTTPStatusError) and raised.value.__cause__.response.status_code == 503:
        assert raised.value.__cause__.response.headers["retry-after"] == "7"


@pytest.mark.parametrize("step", FINAL.values(), ids=FINAL.keys())
async def test_a_refused_refresh_token_means_log_in_again(step: Any) -> None:
    async with Server(fresh(step)).client(some_auth()) as client:
        with pytest.raises(TokenError, match="log in again"):
            await client.get(API)

        assert (await client.get(API)).text == "Bearer A1"  # it may have been a mistake of the server's


async def test_an_answer_that_breaks_off_in_its_body_is_temporary() -> None:
    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield b'{"access_token": "A'
            raise httpx.ReadError("gone")

    server = Server(httpx.Response(200, stream=Broken()))
    async with server.client(some_auth()) as client:
        with pytest.raises(RefreshFailed) as raised:
            await client.get(API)
        assert isinstance(raised.value.__cause__, httpx.ReadError)

        assert (await client.get(API)).text == "Bearer A1"


@pytest.mark.parametrize(
    "anyio_backend", ["asyncio"]
)  # trio dislikes generators that are left early, as httpx leaves its own
async def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    read = 0

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            nonlocal read
            while True:
                read += 1000
                yield b" " * 1000

    async with Server(httpx.Response(200, stream=Endless())).client(some_auth()) as client:
        with pytest.raises(RefreshFailed):
            await client.get(API)

    assert read < 2 * MAX_ANSWER


async def test_an_answer_in_many_pieces_is_read() -> None:
    class Pieces(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            for character in b'{"access_token": "A9", "expires_in": 900}':
                yield bytes([character])

    server = Server(httpx.Response(200, stream=Pieces()))
    async with server.client(some_auth()) as client:
        assert (await client.get(API)).text == "Bearer A9"


# ── Many at once ──


class Gate:
    """Holds a refresh until it is opened, and then lets it end with ``step``."""

    def __init__(self, step: Any) -> None:
        self.step = step
        self.opened = anyio.Event()

    async def __call__(self, request: httpx.Request) -> Any:
        await self.opened.wait()
        return self.step


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (GRANTED, "Bearer A1"),
        (httpx.ConnectError("away"), "RefreshFailed"),
        (httpx.Response(503), "RefreshFailed"),
        (httpx.Response(200, text="hello"), "RefreshFailed"),
        (httpx.Response(400), "TokenError"),
    ],
    ids=["granted", "no connection", "503", "nonsense", "refused"],
)
async def test_requests_that_wait_share_one_outcome(step: Any, expected: str) -> None:
    gate = Gate(fresh(step))
    server = Server(gate)
    seen: list[str] = []
    async with server.client(some_auth()) as client:

        async def one() -> None:
            seen.append(await outcome(lambda: client.get(API)))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(one)
                await anyio.wait_all_tasks_blocked()
                gate.opened.set()
        assert seen == [expected] * 20
        assert len(server.sent) == 1

        assert (await client.get(API)).text == "Bearer A1"


class OldRunVar(RunVar[Any]):
    """That of anyio before 4.9, where variables of one name share their value (anyio #880)."""

    def __hash__(self) -> int:
        return hash(self._name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OldRunVar) and self._name == other._name


@pytest.mark.parametrize("run_var", [RunVar, OldRunVar], ids=["anyio", "anyio 4.4"])
async def test_the_outcome_for_one_user_is_none_for_another(run_var: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_sessions.tokens.client.RunVar", run_var)
    gate = Gate(httpx.Response(400))
    server, seen = Server(gate), []
    alice, bob = some_auth(), some_auth()
    async with server.client(alice) as client:

        async def one(auth: httpx.Auth) -> None:
            seen.append(await outcome(lambda: client.get(API, auth=auth)))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one, alice)
                await server.asked.wait()
                tasks.start_soon(one, bob)
                await anyio.wait_all_tasks_blocked()
                gate.opened.set()

    assert seen == ["Bearer A1", "TokenError"]


async def test_a_cancelled_waiter_takes_nobody_along() -> None:
    gate = Gate(GRANTED)
    server, seen = Server(gate), []
    async with server.client(some_auth()) as client:

        async def one() -> None:
            seen.append(await outcome(lambda: client.get(API)))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one)
                await server.asked.wait()
                with anyio.move_on_after(math.inf) as scope:
                    async with anyio.create_task_group() as waiting:
                        waiting.start_soon(one)
                        await anyio.wait_all_tasks_blocked()
                        scope.cancel()
                tasks.start_soon(one)
                await anyio.wait_all_tasks_blocked()
                gate.opened.set()

    assert seen == ["Bearer A1"] * 2
    assert len(server.sent) == 1


async def test_if_the_request_that_refreshes_is_cancelled_one_of_the_others_goes_on() -> None:
    gates = [Gate(GRANTED), Gate(GRANTED)]
    server, seen = Server(*gates), []
    async with server.client(some_auth()) as client:

        async def one() -> None:
            seen.append(await outcome(lambda: client.get(API)))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as first:
                        first.start_soon(one)
                        await server.asked.wait()
                        for _ in range(5):
                            tasks.start_soon(one)
                        await anyio.wait_all_tasks_blocked()
                        scope.cancel()
                await anyio.wait_all_tasks_blocked()
                gates[1].opened.set()

    assert seen == ["Bearer A1"] * 5
    assert len(server.sent) == 2


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("at", range(12))
async def test_a_cancellation_at_any_await_leaves_it_usable(at: int) -> None:
    """``task.cancel()`` after so many turns of the loop: in the refresh, in reading its answer, in ``keep``, in the request."""
    kept: list[str] = []

    async def keep(access: str, refresh: str) -> None:
        await asyncio.sleep(0)
        kept.append(refresh)

    async def slowly(request: httpx.Request) -> Any:
        for _ in range(3):
            await asyncio.sleep(0)
        return GRANTED

    server = Server(slowly)
    async with server.client(some_auth(keep=keep)) as client:
        task = asyncio.ensure_future(client.get(API))
        for _ in range(at):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=10)

        async with asyncio.timeout(10):
            assert (await client.get(API)).text == "Bearer A1"
    assert kept[-1:] == ["R2"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_timeout_around_a_request_leaves_it_usable() -> None:
    server = Server(Gate(GRANTED))
    async with server.client(some_auth()) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await client.get(API)

        assert (await client.get(API)).text == "Bearer A1"


async def test_an_error_that_the_caller_is_handling_is_not_taken_for_one_of_the_request() -> None:
    async with Server().client(some_auth()) as client:
        try:
            raise ValueError("of the app's own")
        except ValueError:
            assert (await client.get(API)).text == "Bearer A1"


async def test_an_error_of_the_request_itself_is_the_error_of_httpx() -> None:
    async def away(request: httpx.Request) -> httpx.Response:
        if str(request.url) == TOKEN_URL:
            return httpx.Response(200, json=GRANTED)
        raise httpx.ConnectError("away")

    async with httpx.AsyncClient(transport=httpx.MockTransport(away), auth=some_auth()) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(API)


# ── When ──


@pytest.mark.parametrize("life", [0, 1, EARLY, 2 * EARLY, 900])
async def test_a_short_life_means_no_endless_refreshing(life: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("asgi_sessions.tokens.client.time.monotonic", lambda: now)
    server = Server(*[{**GRANTED, "expires_in": life}] * 4)
    async with server.client(some_auth()) as client:
        await client.get(API)
        assert len(server.sent) == 1
        await client.get(API)
        assert len(server.sent) == (1 if life else 2)
        now += life
        await client.get(API)
        assert len(server.sent) == (2 if life else 3)


async def test_a_server_that_says_neither_life_nor_refresh_token_leaves_the_old_one_valid() -> None:
    server = Server({"access_token": "A5"})
    async with server.client(some_auth()) as client:
        assert (await client.get(API)).text == "Bearer A5"
        assert (await client.get(API)).text == "Bearer A5"
    assert len(server.sent) == 1


class Refusing(Server):
    """Takes one access token only."""

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        response = await super().__call__(request)
        if str(request.url) != TOKEN_URL and response.text != "Bearer A1":
            return httpx.Response(401, headers={"www-authenticate": 'Bearer error="invalid_token"'})
        return response


async def test_a_refused_token_is_exchanged_once_and_the_request_sent_again() -> None:
    server = Refusing()
    async with server.client(some_auth(access_token="A0")) as client:
        assert (await client.post(API, content=b"body")).text == "Bearer A1"
        assert len(server.sent) == 1

        server.script = [{**GRANTED, "access_token": "A7"}] * 3
        auth = some_auth(access_token="A0")
        assert (await client.get(API, auth=auth)).status_code == 401  # the new one is refused, too: once is enough
    assert len(server.sent) == 2


async def test_a_body_that_cannot_be_sent_again_is_not_and_the_next_request_works() -> None:
    async def body() -> Any:
        yield b"once"

    class Streaming(Refusing, httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            async for _ in request.stream:  # type: ignore[union-attr]  # of an asynchronous client
                pass
            return await self(request)

    async with httpx.AsyncClient(transport=Streaming(), auth=some_auth(access_token="A0")) as client:
        assert (await client.post(API, content=body())).status_code == 401

        assert (await client.get(API)).text == "Bearer A1"


async def test_tokens_that_could_not_be_kept_are_not_used_until_they_are() -> None:
    calls: list[str] = []

    def keep(access: str, refresh: str) -> None:
        calls.append(refresh)
        if len(calls) == 1:
            raise OSError("the disk is full")

    server = Server()
    async with server.client(some_auth(keep=keep)) as client:
        with pytest.raises(RefreshFailed, match="keep") as raised:
            await client.get(API)
        assert isinstance(raised.value.__cause__, OSError)
        assert server.seen == []

        assert (await client.get(API)).text == "Bearer A1"
    assert (calls, len(server.sent)) == (["R2", "R2"], 1)


@pytest.mark.parametrize("in_a_task", [False, True], ids=["itself", "in a task"])
async def test_keep_cannot_use_the_client_that_waits_for_it(in_a_task: bool) -> None:
    async def ask() -> None:
        with pytest.raises(ConfigurationError, match="another client"):
            await client.get(API)

    async def keep(access: str, refresh: str) -> None:
        async with anyio.create_task_group() as tasks:
            if in_a_task:
                tasks.start_soon(ask)
            else:
                await ask()

    server = Server()
    async with server.client(some_auth(keep=keep)) as client:
        with anyio.fail_after(5):
            assert (await client.get(API)).text == "Bearer A1"


async def test_what_keep_leaves_running_can_use_the_client_later(anyio_backend_name: str) -> None:
    async def keep(access: str, refresh: str) -> None:
        tasks.start_soon(later)

    async def later() -> None:
        await kept.wait()
        assert (await client.get(API)).text == "Bearer A1"

    kept = anyio.Event()
    async with Server().client(some_auth(keep=keep)) as client, anyio.create_task_group() as tasks:
        assert (await client.get(API)).text == "Bearer A1"
        kept.set()


async def test_the_refresh_has_the_time_outs_of_the_request() -> None:
    found: list[Any] = []

    async def look(request: httpx.Request) -> Any:
        found.append((request.extensions.get("timeout"), request.headers["user-agent"], request.headers.get("cookie")))
        return GRANTED

    async with Server(look).client(
        some_auth(), timeout=3, headers={"user-agent": "shop/1"}, cookies={"a": "b"}
    ) as client:
        await client.get(API)

    assert found == [({"connect": 3, "read": 3, "write": 3, "pool": 3}, "shop/1", None)]


# ── Where to ──

ELSEWHERE = {
    "another host": "https://evil.example/me",
    "a host that begins alike": "https://api.example.evil.example/me",
    "a subdomain": "https://a.api.example/me",
    "another scheme": "http://api.example/me",
    "another port": "https://api.example:8443/me",
    "a user that looks like it": "https://api.example@evil.example/me",
    "a dot at the end": "https://api.example./me",
}
SAME = {
    "another path": "https://api.example/other",
    "in capitals": "https://API.Example/me",
    "with the port of its scheme": "https://api.example:443/me",
}


@pytest.mark.parametrize("url", ELSEWHERE.values(), ids=ELSEWHERE.keys())
async def test_another_origin_gets_no_token(url: str) -> None:
    server = Server()
    async with server.client(some_auth(access_token="A0")) as client:
        assert (await client.get(url)).text == "nobody"
    assert server.sent == []


@pytest.mark.parametrize("url", SAME.values(), ids=SAME.keys())
async def test_other_spellings_of_the_origin_get_it(url: str) -> None:
    async with Server().client(some_auth(access_token="A0")) as client:
        assert (await client.get(url)).text == "Bearer A0"


async def test_the_origins_can_be_others_than_that_of_the_token_endpoint() -> None:
    auth = some_auth(
        access_token="A0", origins=["https://one.example", "http://localhost:8000/", "https://bücher.example"]
    )
    async with Server().client(auth) as client:
        for url in ("https://one.example/x", "http://localhost:8000/", "https://xn--bcher-kva.example/"):
            assert (await client.get(url)).text == "Bearer A0"
        for url in (API, "https://localhost:8000/", "http://localhost/"):
            assert (await client.get(url)).text == "nobody"


@pytest.mark.parametrize("url", ELSEWHERE.values(), ids=ELSEWHERE.keys())
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_origin_carries_no_token(url: str, status: int) -> None:
    seen: list[str | None] = []

    async def redirecting(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200) if len(seen) > 1 else httpx.Response(status, headers={"location": url})

    auth = some_auth(access_token="A0")
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(redirecting), auth=auth, follow_redirects=True
    ) as client:
        await client.get(API)

    assert seen == ["Bearer A0", None]


async def test_another_origin_cannot_make_it_refresh() -> None:
    async def evil(request: httpx.Request) -> httpx.Response:
        assert str(request.url) != TOKEN_URL
        if request.url.host == "evil.example":
            return httpx.Response(401, headers={"www-authenticate": 'Bearer error="invalid_token"'})
        return httpx.Response(302, headers={"location": "https://evil.example/"})

    auth = some_auth(access_token="A0")
    async with httpx.AsyncClient(transport=httpx.MockTransport(evil), auth=auth, follow_redirects=True) as client:
        assert (await client.get(API)).status_code == 401


async def asgi_redirect(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/token/refresh":
        headers = [(b"location", scope["redirect_to"])]
        await send({"type": "http.response.start", "status": scope["status"], "headers": headers})
        await send({"type": "http.response.body"})
    else:
        scope["stolen"].append((await receive())["body"])
        await send({"type": "http.response.start", "status": scope["answer"].status_code, "headers": []})
        await send({"type": "http.response.body", "body": scope["answer"].content})


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # see above
@pytest.mark.parametrize("transport", ["reads before it sends", "sends as a stream"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["https://evil.example/x", "https://api.example/token/refresh/"])
@pytest.mark.parametrize("there", [200, 401, 503], ids=["tokens", "a refusal", "no answer"])
async def test_a_redirected_refresh_takes_no_token_along_and_the_answer_there_does_not_count(
    transport: str, status: int, to: str, there: int
) -> None:
    stolen: list[bytes] = []
    answer = httpx.Response(there, json={"access_token": "EVIL", "refresh_token": "EVIL", "expires_in": 900})

    async def mocked(request: httpx.Request) -> httpx.Response:
        if str(request.url) == TOKEN_URL:
            return httpx.Response(status, headers={"location": to})
        stolen.append(request.content)
        return fresh(answer)  # type: ignore[no-any-return]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = {"redirect_to": to.encode(), "status": status, "stolen": stolen, "answer": answer}
        await asgi_redirect({**scope, **more}, receive, send)

    way: Any = httpx.MockTransport(mocked) if transport == "reads before it sends" else httpx.ASGITransport(app)
    auth = some_auth()
    async with httpx.AsyncClient(transport=way, auth=auth, follow_redirects=True) as client:
        with pytest.raises(RefreshFailed, match="redirects"):
            await client.get(API)

    assert auth._pair.refresh == "R1"
    assert b"R1" not in b"".join(stolen)


async def test_a_hook_of_the_client_can_look_at_the_refresh() -> None:
    bodies: list[bytes] = []

    async def hook(request: httpx.Request) -> None:
        bodies.append(request.content)

    async with Server().client(some_auth(), event_hooks={"request": [hook]}) as client:
        assert (await client.get(API)).text == "Bearer A1"
    assert bodies[0] == b'{"refresh_token":"R1"}'


# ── Loops and clients ──


def test_several_event_loops_one_after_the_other_also_if_one_ended_in_a_refresh() -> None:
    auth = some_auth()

    async def left_behind() -> None:
        server = Server(Gate(GRANTED))
        client = server.client(auth)
        asyncio.get_running_loop().create_task(client.get(API))
        await server.asked.wait()

    async def usual() -> str:
        async with Server().client(auth) as client:
            return (await client.get(API)).text

    loop = asyncio.new_event_loop()
    loop.run_until_complete(left_behind())
    assert asyncio.run(asyncio.wait_for(usual(), 10)) == "Bearer A1"
    for task in asyncio.all_tasks(loop):
        task.cancel()
        loop.run_until_complete(asyncio.wait({task}))
    loop.close()
    assert asyncio.run(usual()) == "Bearer A1"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_several_event_loops_at_once_do_not_put_back_an_older_token() -> None:
    """A slow answer in one loop comes after two refreshes of another loop: the newest refresh token stays."""
    auth = some_auth()
    gate = Gate(GRANTED)
    slow = Server(gate)

    async def elsewhere() -> None:
        server = Server({**GRANTED, "expires_in": 0}, {**GRANTED, "access_token": "A3", "refresh_token": "R3"})
        async with server.client(auth) as client:
            await client.get(API)
            assert (await client.get(API)).text == "Bearer A3"

    async with slow.client(auth) as client:
        task = asyncio.ensure_future(client.get(API))
        await slow.asked.wait()
        await asyncio.to_thread(asyncio.run, elsewhere())
        gate.opened.set()

        assert (await task).text == "Bearer A3"


def test_a_synchronous_client_is_refused() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200))
    with (
        httpx.Client(transport=transport, auth=some_auth()) as client,
        pytest.raises(ConfigurationError, match="AsyncClient"),
    ):
        client.get(API)


BAD: dict[str, Callable[[], Any]] = {
    "a URL without a host": lambda: TokenAuth("/token/refresh", "R"),
    "a URL that is none": lambda: TokenAuth("https://api.example:port/", "R"),
    "another scheme": lambda: TokenAuth("ftp://api.example/", "R"),
    "a password in the URL": lambda: TokenAuth("https://a:hunter2@api.example/", "R"),
    "no text": lambda: TokenAuth(5, "R"),  # type: ignore[arg-type]  # that is the point
    "no refresh token": lambda: TokenAuth(TOKEN_URL, ""),
    "None": lambda: TokenAuth(TOKEN_URL, None),  # type: ignore[arg-type]  # that is the point
    "a token with a line break": lambda: TokenAuth(TOKEN_URL, "hunter2\n"),
    "an access token with a space": lambda: TokenAuth(TOKEN_URL, "R", access_token="hunter2 x"),
    "a single origin": lambda: TokenAuth(TOKEN_URL, "R", origins="https://api.example"),
    "an origin with a path": lambda: TokenAuth(TOKEN_URL, "R", origins=["https://api.example/v1"]),
    "an origin with a password": lambda: TokenAuth(TOKEN_URL, "R", origins=["https://a:hunter2@api.example"]),
    "an origin without a scheme": lambda: TokenAuth(TOKEN_URL, "R", origins=["api.example"]),
    "an origin that is None": lambda: TokenAuth(TOKEN_URL, "R", origins=[None]),  # type: ignore[list-item]  # likewise
}


@pytest.mark.parametrize("build", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_used_is_refused_when_it_is_built(build: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        build()

    assert "hunter2" not in str(raised.value)
    assert sys.getsizeof(str(raised.value)) < 400
