"""What runs for an hour would notice what it is there for, and the page about capacity says what was measured."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scale, soak
from benchmarks._soak_client import ABSOLUTE, IDLE, Client, Journal, Visitor
from tests.markdown import DOCS, ROOT

RESULTS = ROOT / "benchmarks" / "results"


def a_visitor(**known: Any) -> Visitor:
    now = time.monotonic()
    given = {
        "cookie": "a=b",
        "mark": "m1",
        "user": "alice",
        "began": (now - 5, now - 5),
        "heard": (now - 1, now - 1),
        "leaves": now + 60,
        "values": {"a": 7},
    }
    return Visitor(**{**given, **known})


HERS = {"user": "alice", "mark": "m1", "a": 7}
LONG_AGO = time.monotonic() - ABSOLUTE - 60


@pytest.mark.parametrize(
    ("known", "found", "wrong"),
    [
        pytest.param({}, HERS, None, id="what she wrote"),
        pytest.param({}, {**HERS, "a": 8}, None, id="a later write, that was on its way"),
        pytest.param({}, {**HERS, "a": 6}, "an acknowledged write is missing", id="an older one"),
        pytest.param({}, {"user": "alice", "mark": "m1"}, "an acknowledged write is missing", id="none"),
        pytest.param({}, {**HERS, "mark": "m2"}, "somebody else's session", id="the mark of another"),
        pytest.param({}, {**HERS, "user": "bob"}, "somebody else's session", id="another user"),
        pytest.param({}, {"user": None}, "a session is missing", id="nothing"),
        pytest.param({"shaken": True}, {"user": None}, None, id="nothing, after she hung up on a new token"),
        pytest.param({"ended": LONG_AGO}, {"user": None}, None, id="nothing, after a log-out"),
        pytest.param({"ended": LONG_AGO}, HERS, "an ended session answers", id="her data, after a log-out"),
        pytest.param(
            {"heard": (LONG_AGO, time.monotonic() - IDLE - 60)}, HERS, "an ended session answers", id="after silence"
        ),
        pytest.param({"began": (LONG_AGO, LONG_AGO)}, HERS, "an ended session answers", id="beyond the absolute limit"),
    ],
)
def test_the_journal_of_the_soak_sees_a_wrong_answer(
    known: dict[str, Any], found: dict[str, Any], wrong: str | None
) -> None:
    journal, visitor = Journal(), a_visitor(**known)

    journal.judge(visitor, found, time.monotonic(), visitor.values)

    assert dict(journal.wrong) == ({} if wrong is None else {wrong: 1})


class Answering:
    """A socket whose other end always says the same."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._found = found

    async def send(self, _: str) -> None: ...

    async def recv(self) -> str:
        return json.dumps(self._found)

    async def close(self) -> None: ...


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        pytest.param(HERS, "a socket outlives its session", id="a session that has ended"),
        pytest.param({"user": None}, None, id="none: it was opened when the session was over"),
        pytest.param({**HERS, "mark": "m2"}, "somebody else's session", id="the mark of another"),
    ],
)
async def test_the_journal_of_the_soak_sees_a_wrong_socket(found: dict[str, Any], wrong: str | None) -> None:
    now = time.monotonic()
    client, visitor = Client(0, Journal()), a_visitor(ended=now - 10)

    await client._converse(Answering(found), visitor, sent=now - 20)

    assert wrong is None or client.journal.wrong[wrong] == 1
    assert wrong is not None or not client.journal.wrong


def test_a_revocation_ends_those_who_were_there_and_not_who_came_meanwhile() -> None:
    journal, now = Journal(), time.monotonic()
    before, meanwhile = a_visitor(), a_visitor(began=(now - 0.5, now + 0.5))
    journal.logged_in(before)
    journal.logged_in(meanwhile)

    journal.revoked("alice", asked=now)

    assert before.ended is not None
    assert (meanwhile.ended, meanwhile.shaken) == (None, True)


@pytest.mark.parametrize(
    ("per_hour", "flat"), [(0.0, True), (0.3, True), (5.0, False)], ids=["nothing", "half a percent", "a leak"]
)
def test_the_soak_tells_growth_from_ups_and_downs(per_hour: float, flat: bool) -> None:
    seconds = range(600, 3600, 10)
    points = [(float(at), 60 + per_hour * at / 3600 + 0.5 * math.sin(at / 37)) for at in seconds]

    mean, slope, error = soak.fit(points)

    assert slope == pytest.approx(per_hour, abs=0.2)
    assert soak.is_flat(mean, slope, error) is flat


def measured(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "module"), [("scale", scale), ("soak", soak)], ids=["scale", "soak"])
def test_the_page_about_capacity_says_what_was_measured(name: str, module: Any) -> None:
    page = Path(DOCS / "capacity.md").read_text(encoding="utf-8")

    for part, text in module.parts(measured(name)).items():
        assert f"<!-- {part} -->\n\n{text.strip()}\n\n<!-- /{part} -->" in page, part


def test_the_plan_follows_from_what_was_measured() -> None:
    """Twice the bytes of each session are twice the memory; the formulas read the figures and nothing else."""
    data, doubled = measured("scale"), measured("scale")
    doubled["rows"][-1]["memory"] *= 2
    doubled["line"] *= 2

    once, twice = ({step.what: step.result for step in scale.plan(each)} for each in (data, doubled))

    gib = [float(each["memory"].split(" ")[0].replace(",", "")) for each in (once, twice)]
    assert gib[1] == pytest.approx(2 * gib[0], rel=0.02)
    assert int(twice["primaries, by memory"]) == pytest.approx(2 * int(once["primaries, by memory"]), abs=1)
