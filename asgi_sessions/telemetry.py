"""Metrics and traces with OpenTelemetry. Needs the extra ``[otel]``.

::

    sessions = Sessions(RedisStore.from_url("redis://localhost"))
    instrument(sessions)

Without an SDK there are no measurements and no costs. No metric and no span contains a token, a key, or the id of a session or a
user. ``docs/metrics.md`` lists the metrics.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from asgi_sessions import __version__
from asgi_sessions._core.arguments import expect
from asgi_sessions._core.extras import needs
from asgi_sessions._core.session import Session
from asgi_sessions._core.types import Event, EventHook
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.opened import Entry, OpenedRecords
from asgi_sessions.errors import ConfigurationError, RecordChanged
from asgi_sessions.sessions import Sessions

with needs("otel", "asgi_sessions.telemetry"):
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

__all__ = ["instrument"]

SCOPE: Final = "asgi_sessions"
"""The instrumentation scope of all metrics and spans."""

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Seconds. Redis answers within the first bucket, and a request gives up after 0.45."""

NAMESPACE: Final = "asgi_sessions.namespace"
OUTCOME: Final = "asgi_sessions.outcome"
OPERATION: Final = "asgi_sessions.operation"
ERROR_TYPE: Final = "error.type"

Attributes = dict[str, str]

_BEGUN: Final = {
    "session.created": "visitor",
    "session.logged_in": "user",
    "session.adopted": "adopted",
    "session.impersonated": "impersonated",
}


def instrument(
    sessions: Sessions, *, meter_provider: MeterProvider | None = None, tracer_provider: TracerProvider | None = None
) -> bool:
    """Add metrics and traces to these sessions. Call it once, after the setup of the SDK and before the first request.

    Args:
        meter_provider: the global one by default.
        tracer_provider: the global one by default.
    Returns:
        ``False`` if neither provider comes from an SDK. Then there are no measurements.
    Raises:
        ConfigurationError: an argument has the wrong type.
    """
    expect("instrument(sessions)", sessions, Sessions)
    _check("meter_provider", meter_provider, "get_meter")
    _check("tracer_provider", tracer_provider, "get_tracer")
    meters = meter_provider if meter_provider is not None else metrics.get_meter_provider()
    tracers = tracer_provider if tracer_provider is not None else trace.get_tracer_provider()
    instruments = _instruments_of(meters) if _measures(meters) else None
    tracer = tracers.get_tracer(SCOPE, __version__) if _measures(tracers) else None
    if sessions in _instrumented or (instruments is None and tracer is None):
        return sessions in _instrumented
    _instrumented.add(sessions)
    manager = sessions._manager
    telemetry = _Telemetry(sessions, instruments, tracer)
    manager.instrument = telemetry.wrap
    for each in tuple(manager.serving):
        telemetry.wrap(each)
    return True


_instrumented: Final[WeakSet[Sessions]] = WeakSet()


def _check(name: str, provider: object, method: str) -> None:
    if provider is not None and not callable(getattr(provider, method, None)):
        raise ConfigurationError(
            f"instrument({name}={type(provider).__name__}): give a provider of the SDK, or None for the global one"
        )


def _measures(provider: object) -> bool:
    """Whether a provider comes from an SDK. Those of the API alone do not measure."""
    return not type(provider).__module__.startswith(("opentelemetry.metrics", "opentelemetry.trace"))


# ── Metrics ──


class _Instruments:
    """The metrics of one provider."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(SCOPE, __version__)
        self.sessions: WeakSet[Sessions] = WeakSet()
        self.requests = meter.create_counter(
            "asgi_sessions.requests", "{request}", "Requests and sockets, by the result of their cookie"
        )
        self.created = meter.create_counter("asgi_sessions.sessions.created", "{session}", "Sessions that began")
        self.ended = meter.create_counter("asgi_sessions.sessions.ended", "{session}", "Sessions that ended, by reason")
        self.events = meter.create_counter("asgi_sessions.events", "{event}", "Events, by name")
        self.duration = meter.create_histogram(
            "asgi_sessions.store.duration",
            "s",
            "How long the store took for one operation",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self.failures = meter.create_counter("asgi_sessions.store.failures", "{failure}", "Failures of the store")
        self.conflicts = meter.create_counter(
            "asgi_sessions.conflicts", "{conflict}", "Writes repeated after a concurrent change"
        )
        self.lookups = meter.create_counter("asgi_sessions.cache.lookups", "{lookup}", "Look-ups of opened records")
        meter.create_observable_gauge(
            "asgi_sessions.store.breakers.open",
            [self._breakers],
            "{breaker}",
            "Servers with an open breaker",
        )
        meter.create_observable_up_down_counter(
            "asgi_sessions.connections.open",
            [self._connections],
            "{connection}",
            "Open sockets and streams with a session",
        )

    def _breakers(self, _: CallbackOptions) -> Iterable[Observation]:
        return self._observed(lambda sessions: sessions._manager.guard.breakers.open())

    def _connections(self, _: CallbackOptions) -> Iterable[Observation]:
        return self._observed(lambda sessions: sessions._upkeep.watch.open())

    def _observed(self, value: Callable[[Sessions], int]) -> Iterable[Observation]:
        return [Observation(value(each), _of(each)) for each in tuple(self.sessions)]


_known: Final[WeakKeyDictionary[MeterProvider, _Instruments]] = WeakKeyDictionary()


def _instruments_of(provider: MeterProvider) -> _Instruments:
    """The metrics of a provider, which are created once for all Sessions of an app."""
    found = _known.get(provider)
    if found is None:
        found = _known[provider] = _Instruments(provider)
    return found


def _of(sessions: Sessions) -> Attributes:
    return {NAMESPACE: str(getattr(sessions.store, "namespace", ""))}


# ── Measurements ──


class _Telemetry:
    """Measures the calls of one Sessions. :func:`instrument` adds it, so there is no cost without."""

    def __init__(self, sessions: Sessions, instruments: _Instruments | None, tracer: Tracer | None) -> None:
        self._base = _of(sessions)
        self._metrics = instruments
        self._tracer = tracer
        manager = sessions._manager
        if instruments is not None:
            instruments.sessions.add(sessions)
            manager.events._hook = self._counting(manager.events._hook, instruments)
            vars(manager.guard)["blame"] = self._blaming(manager.guard.blame, instruments)
            # Each loader holds the cache already, and it has slots. So only its class can change.
            manager.cache.__class__ = _counted(instruments, self._base)

    def wrap(self, manager: Manager) -> None:
        """Measure the calls of one manager, which may be a copy. The wrapped methods are bound to this manager."""
        load, commit, settled = manager.load, manager.commit, manager.is_settled
        begin, asking = partial(Manager.begin, manager), partial(Manager.asking, manager)

        async def measured_load(keys: Sequence[str], **options: Any) -> Session:
            with self._measured("load") as span:
                try:
                    session = await load(keys, **options)
                except Exception:
                    self._count_request("failed", span)
                    raise
                self._count_request("missing" if session._record is None else "found", span)
                return session

        async def measured_commit(session: Session, **options: Any) -> None:
            if settled(session, options.get("failed", False)):
                return
            with self._measured(options.get("step") or "commit"):
                await commit(session, **options)

        def counted_begin() -> Session:
            self._count_request("anonymous")
            return begin()

        @asynccontextmanager
        async def measured_asking(step: str) -> AsyncIterator[None]:
            with self._measured(step):
                async with asking(step):
                    yield

        vars(manager).update(load=measured_load, commit=measured_commit, begin=counted_begin, asking=measured_asking)

    def _count_request(self, outcome: str, span: Span | None = None) -> None:
        if self._metrics is not None:
            self._metrics.requests.add(1, {**self._base, OUTCOME: outcome})
        if span is not None:
            span.set_attribute(OUTCOME, outcome)

    @contextmanager
    def _measured(self, operation: str) -> Iterator[Span | None]:
        """Record a span and the duration of the block. Of an error only the type is recorded; the log has its message."""
        attributes: Attributes = {**self._base, OPERATION: operation}
        began = time.perf_counter()
        with self._span(operation, attributes) as span:
            try:
                yield span
            except BaseException as error:
                attributes[ERROR_TYPE] = type(error).__qualname__
                if span is not None:
                    span.set_attribute(ERROR_TYPE, type(error).__qualname__)
                    if isinstance(error, Exception):
                        span.set_status(Status(StatusCode.ERROR))
                raise
            finally:
                if self._metrics is not None:
                    self._metrics.duration.record(time.perf_counter() - began, attributes)

    def _span(self, operation: str, attributes: Attributes) -> AbstractContextManager[Span | None]:
        if self._tracer is None:
            return nullcontext()
        return self._tracer.start_as_current_span(
            f"session {operation}",
            kind=SpanKind.INTERNAL,
            attributes=dict(attributes),
            record_exception=False,
            set_status_on_exception=False,
        )

    def _counting(self, hook: EventHook | None, instruments: _Instruments) -> EventHook:
        def hear(event: Event) -> Any:
            instruments.events.add(1, {**self._base, "asgi_sessions.event": event.name})
            if event.name in _BEGUN:
                instruments.created.add(1, {**self._base, "asgi_sessions.kind": _BEGUN[event.name]})
            elif event.name in ("session.ended", "session.impersonation_ended"):
                instruments.ended.add(1, {**self._base, "asgi_sessions.reason": str(event.details.get("reason"))})
            elif event.name == "store.failed":
                instruments.failures.add(1, {**self._base, OPERATION: str(event.details.get("step"))})
            return None if hook is None else hook(event)

        return hear

    def _blaming(self, blame: Callable[..., None], instruments: _Instruments) -> Callable[..., None]:
        def counted(error: BaseException, *args: Any, **options: Any) -> None:
            if isinstance(error, RecordChanged):
                instruments.conflicts.add(1, self._base)
            blame(error, *args, **options)

        return counted


def _counted(instruments: _Instruments, base: Attributes) -> type[OpenedRecords]:
    hit, miss = ({**base, "asgi_sessions.cache.result": result} for result in ("hit", "miss"))

    class CountedRecords(OpenedRecords):
        __slots__ = ()

        def get(self, key: str, value: bytes) -> Entry | None:
            entry = OpenedRecords.get(self, key, value)
            instruments.lookups.add(1, miss if entry is None else hit)
            return entry

    return CountedRecords
