"""Metrics and traces, as the SDK of OpenTelemetry collects them: what they count, and what they never hold."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import REGISTRY, generate_latest

from asgi_sessions import ConfigurationError, Event, MemoryStore, RedisStore, SessionMiddleware, Sessions, StoreError
from asgi_sessions.telemetry import instrument
from asgi_sessions.testing import FakeClock
from tests import cost
from tests.conftest import Server, a_store
from tests.markdown import DOCS, ROOT, rows
from tests.support import Browser, app_with, destroy, log_in, put, regenerate
from tests.websockets import Socket

PAGE = DOCS / "metrics.md"
DASHBOARD = ROOT / "examples" / "grafana" / "sessions.json"
SECRET = "kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"


@dataclass
class Collected:
    """Providers of the SDK that keep everything in memory."""

    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def __post_init__(self) -> None:
        self.meters = MeterProvider(metric_readers=[self.reader])
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))

    def instrument(self, sessions: Sessions) -> None:
        assert instrument(sessions, meter_provider=self.meters, tracer_provider=self.tracers)

    def metrics(self) -> dict[str, Any]:
        """By name."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def values(self, name: str, attribute: str = "asgi_sessions.namespace") -> dict[Any, Any]:
        """The values of a metric by one of its attributes; of a histogram how often it was measured."""
        metric = self.metrics().get(name)
        found: dict[Any, Any] = {}
        for point in metric.data.data_points if metric else ():
            key = point.attributes.get(attribute)
            found[key] = found.get(key, 0) + getattr(point, "value", getattr(point, "count", 0))
        return found


@pytest.fixture
def collected() -> Iterator[Collected]:
    made = Collected()
    yield made
    made.meters.shutdown()
    made.tracers.shutdown()


@pytest.fixture(params=["memory", "valkey"])
async def instrumented(
    request: pytest.FixtureRequest, anyio_backend: Any, collected: Collected, clock: FakeClock
) -> AsyncIterator[Sessions]:
    async with a_store(request, request.param) as store:
        sessions = Sessions(store, secret_keys=[SECRET], clock=clock)
        collected.instrument(sessions)
        yield sessions


async def test_requests_are_counted_by_what_their_cookie_led_to(instrumented: Sessions, collected: Collected) -> None:
    app = app_with(instrumented)
    browser, thief = Browser(app), Browser(app, "x" * 68)
    await browser.do(put(basket=1))
    await browser.do()
    old = browser.another()
    await browser.do(destroy)
    await old.do()
    await thief.do()

    assert collected.values("asgi_sessions.requests", "asgi_sessions.outcome") == {
        "anonymous": 2,
        "found": 2,
        "missing": 1,
    }


async def test_sessions_are_counted_as_they_begin_and_end(
    instrumented: Sessions, collected: Collected, clock: FakeClock
) -> None:
    app = app_with(instrumented)
    visitor, alice, bob = Browser(app), Browser(app), Browser(app)
    await visitor.do(put(basket=1))
    await alice.do(log_in("alice"))
    await bob.do(log_in("bob"))
    await alice.do(destroy)
    await instrumented.revoke_all("bob")
    clock.advance(timedelta(days=40))
    await visitor.do()

    assert collected.values("asgi_sessions.sessions.created", "asgi_sessions.kind") == {"visitor": 1, "user": 2}
    ended = collected.values("asgi_sessions.sessions.ended", "asgi_sessions.reason")
    assert {reason: ended[reason] for reason in ("logged_out", "revoked_all")} == {"logged_out": 1, "revoked_all": 1}
    assert collected.values("asgi_sessions.events", "asgi_sessions.event")["session.logged_in"] == 2


async def test_impersonated_sessions_are_counted(instrumented: Sessions, collected: Collected) -> None:
    browser = Browser(app_with(instrumented))
    await browser.do(log_in("sue"))

    await browser.do(lambda session: session.impersonate("alice"))
    await browser.do(lambda session: session.stop_impersonating())

    created = collected.values("asgi_sessions.sessions.created", "asgi_sessions.kind")
    assert created == {"user": 1, "impersonated": 1}
    assert collected.values("asgi_sessions.sessions.ended", "asgi_sessions.reason") == {"stopped": 1}


async def test_each_operation_of_the_store_is_timed(instrumented: Sessions, collected: Collected) -> None:
    browser = Browser(app_with(instrumented))
    await browser.do(log_in("alice"))
    await browser.do()
    await browser.do(put(a=1))
    await instrumented.list("alice")

    assert collected.values("asgi_sessions.store.duration", "asgi_sessions.operation") == {
        "load": 2,
        "commit": 2,
        "list": 1,
    }
    (point, *_) = collected.metrics()["asgi_sessions.store.duration"].data.data_points
    assert point.explicit_bounds[0] == 0.0005


async def test_a_conflict_of_two_requests_is_counted(instrumented: Sessions, collected: Collected) -> None:
    browser = Browser(app_with(instrumented))
    await browser.do(put(a=1))

    async with browser.another().paused(put(a=2)):
        await browser.do(put(b=2))

    assert collected.values("asgi_sessions.conflicts") == {instrumented.store.namespace: 1}


async def test_open_sockets_are_counted_while_they_are_open(instrumented: Sessions, collected: Collected) -> None:
    browser = Browser(app_with(instrumented))
    await browser.do(log_in("alice"))

    async with Socket(browser) as first, Socket(browser) as second:
        await first.accept()
        await second.accept()
        during = collected.values("asgi_sessions.connections.open")

    assert list(during.values()) == [2]
    assert list(collected.values("asgi_sessions.connections.open").values()) == [0]
    await instrumented._upkeep.watch.aclose()


async def test_the_cache_is_counted_for_a_middleware_that_is_there_already(
    request: pytest.FixtureRequest, anyio_backend: Any, collected: Collected
) -> None:
    """Some apps wrap themselves before they set up the SDK."""
    async with a_store(request, "valkey") as store:
        sessions = Sessions(store, secret_keys=[SECRET])
        browser = Browser(app_with(sessions))
        collected.instrument(sessions)
        await browser.do(put(a=1))
        for _ in range(3):
            await browser.do()

    assert collected.values("asgi_sessions.cache.lookups", "asgi_sessions.cache.result") == {"miss": 1, "hit": 2}
    assert collected.values("asgi_sessions.requests", "asgi_sessions.outcome") == {"anonymous": 1, "found": 3}


async def test_two_cookies_of_one_store_are_two_managers(collected: Collected, memory: MemoryStore) -> None:
    """What stands around the calls of one must not lead to the other, whose tokens differ."""
    from asgi_sessions import CookieConfig

    sessions = Sessions(memory)
    collected.instrument(sessions)
    shop, admin = app_with(sessions), app_with(sessions, cookie=CookieConfig(name="admin"))
    customer, clerk = Browser(shop), Browser(admin)
    await customer.do(put(a=1))
    await clerk.do(put(b=1))

    assert (await customer.do(lambda session: dict(session))).body == b"{'a': 1}"
    assert (await clerk.do(lambda session: dict(session))).body == b"{'b': 1}"
    assert collected.values("asgi_sessions.requests", "asgi_sessions.outcome") == {"anonymous": 2, "found": 2}


async def test_an_outage_is_seen(own_server: Server, collected: Collected) -> None:
    own_server.start()
    events: list[Event] = []
    store = RedisStore.from_url(own_server.url)
    sessions = Sessions(store, on_event=events.append)
    collected.instrument(sessions)
    browser, lenient = Browser(app_with(sessions)), app_with(sessions, on_store_failure="anonymous")
    await browser.do(put(a=1))
    before = collected.values("asgi_sessions.store.breakers.open")
    own_server.stop()
    for _ in range(6):
        await browser.do()
    assert (await Browser(lenient, browser.token).do()).status == 200
    during = collected.values("asgi_sessions.store.breakers.open")
    await store.aclose()

    assert (list(before.values()), list(during.values())) == ([0], [1])
    assert collected.values("asgi_sessions.requests", "asgi_sessions.outcome") == {"anonymous": 1, "failed": 7}
    assert collected.values("asgi_sessions.store.failures", "asgi_sessions.operation") == {"load": 7}
    assert collected.values("asgi_sessions.store.duration", "error.type")["StoreUnreachable"] == 7
    assert {event.name for event in events} == {"session.created", "store.failed"}  # the app's hook hears all the same
    failed = [span for span in collected.exporter.get_finished_spans() if span.status.status_code is StatusCode.ERROR]
    assert [(span.name, span.attributes and span.attributes["error.type"]) for span in failed] == [
        ("session load", "StoreUnreachable")
    ] * 7


async def test_no_metric_and_no_span_leads_to_a_person(
    instrumented: Sessions, collected: Collected, clock: FakeClock
) -> None:
    app = app_with(instrumented)
    laptop, phone = Browser(app), Browser(app)
    await laptop.do(log_in("alice@example.org"))
    await phone.do(log_in("alice@example.org"))
    (listed, *_) = await instrumented.list("alice@example.org")
    tokens = [laptop.token, phone.token, laptop.key, phone.key, listed.id]
    await laptop.do(put(diary="a-private-line"))
    await laptop.do(regenerate)
    tokens += [laptop.token, laptop.key]
    await instrumented.history("alice@example.org")
    await instrumented.revoke("alice@example.org", listed.id)
    await laptop.do(destroy)

    spans = collected.exporter.get_finished_spans()
    said = " ".join([*(span.to_json() for span in spans), *(each.to_json() for each in collected.metrics().values())])

    assert {"session load", "session commit", "session list", "session history", "session revoke"} <= {
        span.name for span in spans
    }
    assert all(not span.events for span in spans)
    for secret in (*tokens, *(str(token)[3:] for token in tokens), "alice", "a-private-line", "diary"):
        assert str(secret) not in said


async def test_spans_of_the_app_have_ours_inside(instrumented: Sessions, collected: Collected) -> None:
    browser = Browser(app_with(instrumented))
    await browser.do(put(a=1))
    collected.exporter.clear()

    with collected.tracers.get_tracer("app").start_as_current_span("GET /") as outer:
        await browser.do(put(a=2))

    ours = [span for span in collected.exporter.get_finished_spans() if span.name != "GET /"]
    assert [span.name for span in ours] == ["session load", "session commit"]
    assert {span.parent.span_id for span in ours if span.parent} == {outer.get_span_context().span_id}


# ── Nothing is there where nobody measures ──


@pytest.mark.parametrize("secret_keys", [[], [SECRET]], ids=["plain", "sealed"])
async def test_without_an_sdk_a_request_makes_the_same_calls(secret_keys: list[str]) -> None:
    """Counted, not timed. With providers of the API alone, and with the SDK for comparison."""
    collected, counts = Collected(), list[dict[str, float]]()
    for setting in ("not instrumented", "no SDK", "SDK"):
        sessions = Sessions(MemoryStore(), secret_keys=secret_keys, clock=FakeClock())
        if setting == "no SDK":
            assert not instrument(sessions)
            assert not instrument(sessions, meter_provider=metrics.NoOpMeterProvider())
        elif setting == "SDK":
            collected.instrument(sessions)
        middleware = SessionMiddleware(cost.app, sessions)
        cookie = await cost.ask(middleware, "/fill", None)
        counts.append(
            {
                path: await cost.calls_of(middleware, path, cookie if path != "/hello" else None)
                for path in ("/hello", "/read", "/write", "/log-in")
            }
        )

    plain, off, on = counts
    assert off == plain
    assert on["/read"] > plain["/read"]


async def test_metrics_or_traces_alone_will_do(collected: Collected, memory: MemoryStore) -> None:
    counted, traced = Sessions(memory), Sessions(MemoryStore())
    assert instrument(counted, meter_provider=collected.meters)
    assert instrument(traced, tracer_provider=collected.tracers)
    await Browser(app_with(counted)).do(put(a=1))
    before = len(collected.exporter.get_finished_spans())
    await Browser(app_with(traced)).do(put(a=1))

    assert before == 0
    assert collected.values("asgi_sessions.requests", "asgi_sessions.outcome") == {"anonymous": 1}
    assert [span.name for span in collected.exporter.get_finished_spans()] == ["session commit"]


async def test_twice_is_once_and_two_sessions_share_the_metrics(
    collected: Collected, memory: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Sessions(memory), Sessions(MemoryStore())
    for sessions in (first, first, second):
        collected.instrument(sessions)
    await Browser(app_with(first)).do()
    await Browser(app_with(second)).do()

    assert collected.values("asgi_sessions.requests", "asgi_sessions.outcome") == {"anonymous": 2}
    assert "already" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((MemoryStore(),), {}), ((None,), {}), ((Sessions(MemoryStore()),), {"meter_provider": 1}),
     ((Sessions(MemoryStore()),), {"tracer_provider": "http://localhost"})],
    ids=["a store", "nothing", "a number", "a URL"],
)  # fmt: skip
def test_what_does_not_fit_is_said(arguments: Any, options: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"instrument\("):
        instrument(*arguments, **options)


# ── The page and the dashboard ──


async def play_everything(collected: Collected, own_server: Server) -> Sessions:
    """Something for each metric. Keep the result: what is open is measured of Sessions that are there."""
    own_server.start()
    store = RedisStore.from_url(own_server.url)
    sessions = Sessions(store)
    collected.instrument(sessions)
    browser = Browser(app_with(sessions))
    await browser.do(put(a=1))
    async with browser.another().paused(put(a=2)):
        await browser.do(put(b=2))
    await browser.do(destroy)
    own_server.stop()
    await Browser(app_with(sessions), "x" * 46).do()
    with pytest.raises(StoreError):
        await sessions.list("alice")
    await store.aclose()
    return sessions


async def test_the_page_lists_each_metric_with_its_attributes(own_server: Server, collected: Collected) -> None:
    _sessions = await play_everything(collected, own_server)
    kinds = {"Sum": "counter", "Gauge": "gauge", "Histogram": "histogram"}

    listed = {
        cells[0].strip("`"): (cells[1], {*re.findall(r"`((?:asgi_sessions|error)\.[\w.]+)`", cells[2])})
        for cells in rows(PAGE, "Metrics")
    }

    real = {}
    for name, metric in collected.metrics().items():
        kind = kinds[type(metric.data).__name__]
        kind = kind if getattr(metric.data, "is_monotonic", True) else "up-down counter"
        used = {key for point in metric.data.data_points for key in point.attributes} - {"asgi_sessions.namespace"}
        real[name] = (f"{kind}, `{metric.unit}`", used)
    assert listed == real


async def test_each_metric_of_the_dashboard_exists(own_server: Server) -> None:
    """By the names that Prometheus sees."""
    reader = PrometheusMetricReader()
    collected = Collected()
    collected.meters = MeterProvider(metric_readers=[reader])
    try:
        _sessions = await play_everything(collected, own_server)
        exposed = generate_latest(REGISTRY).decode()
    finally:
        collected.meters.shutdown()
    names = set(re.findall(r"^(asgi_sessions_\w+)", exposed, re.MULTILINE))
    labels = set(re.findall(r'(asgi_sessions_\w+)="', exposed))
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))

    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries.append(dashboard["templating"]["list"][1]["query"])
    used = {word for query in queries for word in re.findall(r"asgi_sessions_\w+", query)}

    assert used <= names | labels, used - names - labels
    metrics_used = {word for word in used if word not in labels}
    families = {re.sub(r"_(total|bucket|count|sum|created)$", "", name) for name in names}
    assert {re.sub(r"_(total|bucket)$", "", name) for name in metrics_used} == families
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(queries) - 1


def test_asyncio_is_not_needed_to_instrument() -> None:
    """Apps do it while they are imported."""
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    collected = Collected()

    collected.instrument(Sessions(MemoryStore()))
