"""What counts as wrong, from what is known; and what Alertmanager is heard to say."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from control.api import alerting, alertmanager
from control.database import UnavailableError
from fleetpulse.http import serving
from fleetpulse.local.ports import free_port
from fleetpulse.settings import JobSettings
from fleetpulse.stream.fleet_view import MassSilence, WorkerView
from fleetpulse.stream.heartbeat import Engine, Heartbeat

FIELDS: dict[str, Any] = {
    "worker_id": "w",
    "instance_id": "w",
    "state": "alive",
    "heartbeat": Heartbeat("w", "w", "boot", 1, 0, 1.0, "ready", "1.0"),
    "heartbeat_age_seconds": 0.5,
    "stale_after_seconds": 3.3,
    "stale_for_seconds": None,
    "recorded_age_seconds": None,
    "heartbeats": 1,
    "heartbeats_missed": 0,
    "sequence_gaps": 0,
    "restarts": 0,
    "duplicates": 0,
    "clock_skew_seconds": 0.0,
    "engine_stalled_seconds": None,
}


def seen(**changes: Any) -> WorkerView:
    return WorkerView(**(FIELDS | changes))


def with_engine(**fields: Any) -> WorkerView:
    engine = Engine(**({"state": "ready"} | fields))
    return seen(heartbeat=Heartbeat("w", "w", "boot", 1, 0, 1.0, "ready", "1.0", engine=engine))


SILENT: dict[str, Any] = {"state": "stale", "heartbeat_age_seconds": 12.0, "stale_for_seconds": 8.7}


@pytest.mark.parametrize(
    ("worker", "names"),
    [
        (seen(), []),
        (seen(**SILENT), ["WorkerStale"]),
        (seen(state="never_seen", heartbeat=None, heartbeat_age_seconds=None), []),
        (seen(engine_stalled_seconds=29.9), []),
        (seen(engine_stalled_seconds=30.0), ["WorkerStalled"]),
        (with_engine(state="unreachable"), ["EngineUnreachable"]),
        (with_engine(state="absent"), []),
        (with_engine(kv_cache_usage_ratio=0.98, requests_waiting=1), ["WorkerFull"]),
        (with_engine(kv_cache_usage_ratio=0.97, requests_waiting=9), []),
        (with_engine(kv_cache_usage_ratio=1.0, requests_waiting=0), []),
        (with_engine(kv_cache_usage_ratio=None, requests_waiting=9), []),
    ],
)
def test_a_worker_is_told_of_when_something_is_wrong_with_it(worker: WorkerView, names: list[str]) -> None:
    assert [one.name for one in alerting.of_workers([worker], mass_silence=False)] == names


def test_workers_that_fell_silent_together_are_one_alert() -> None:
    silence = MassSilence(active=True, reason="many_silent", silent_workers=4_000, workers=5_000)
    assert list(alerting.of_workers([seen(**SILENT)] * 40, mass_silence=True)) == []
    (one,) = alerting.of_pipeline(silence)
    assert (one.severity, "4,000 of 5,000" in one.detail) == ("critical", True)
    (one,) = alerting.of_pipeline(MassSilence(active=True, reason="just_joined"))
    assert one.severity == "info"
    assert list(alerting.of_pipeline(MassSilence(active=False))) == []


def test_an_instance_is_stuck_after_the_jobs_own_limit() -> None:
    settings = JobSettings(booting_stuck_seconds=100)
    rows = [("i-1", "booting", 99.0, None), ("i-2", "booting", 101.0, None), ("i-3", "ready", 1e9, None)]
    (one,) = alerting.of_instances(rows, settings)
    assert (one.name, one.subject, one.since_seconds) == ("InstanceStuck", "i-2", 101.0)


def test_a_database_that_is_away_is_an_alert_and_not_an_empty_list() -> None:
    one = alerting.of_database(UnavailableError("the database cannot be used now: away"))
    assert (one.severity, "away" in one.detail) == ("critical", True)


def silent_workers(number: int) -> list[WorkerView]:
    return [seen(**SILENT | {"worker_id": f"w{one}", "stale_for_seconds": one + 1.0}) for one in range(number)]


def test_the_worst_come_first() -> None:
    found = [
        *alerting.of_workers(silent_workers(2), mass_silence=False),
        alerting.of_database(UnavailableError("away")),
    ]
    assert [(one.name, one.subject) for one in alerting.shortened(found)] == [
        ("DatabaseAway", "database"),
        ("WorkerStale", "w0"),
        ("WorkerStale", "w1"),
    ]


def test_many_of_a_name_are_one_alert_that_says_how_many_and_names_some() -> None:
    few = alerting.shortened(alerting.of_workers(silent_workers(alerting.MOST_OF_A_KIND), mass_silence=False))
    assert {one.count for one in few} == {1}
    assert len(few) == alerting.MOST_OF_A_KIND
    (one,) = alerting.shortened(alerting.of_workers(silent_workers(4_000), mass_silence=False))
    assert (one.name, one.severity, one.kind, one.subject) == ("WorkerStale", "warning", "worker", None)
    assert (one.count, one.since_seconds) == (4_000, 4_000.0)
    assert one.detail.startswith("4,000 workers, the newest w0, w1, w2. Of the first: Silent for 12 s;")


Stand = Callable[[web.Response], Awaitable[str]]


@pytest.fixture
async def standing_in() -> AsyncIterator[Stand]:
    """A service at Alertmanager's path with a given answer; its address."""
    answers: list[web.Response] = []
    app = web.Application()

    async def alerts(request: web.Request) -> web.Response:
        assert dict(request.query) == {"active": "true", "silenced": "false", "inhibited": "false"}
        return answers[-1]

    app.router.add_get("/prefix/api/v2/alerts", alerts)
    async with serving(app, "127.0.0.1", 0) as port:

        async def stand(answer: web.Response) -> str:
            answers.append(answer)
            return f"http://127.0.0.1:{port}/prefix/"

        yield stand


async def test_alertmanagers_alerts_are_told_newest_first(standing_in: Stand) -> None:
    first = {
        "labels": {"alertname": "Hot", "severity": "critical", "worker_id": "w1"},
        "annotations": {"summary": "Hot.", "description": "90 degrees.", "runbook_url": "https://e.example/hot"},
        "startsAt": "2026-01-01T00:00:00.000Z",
    }
    second = {
        "labels": {"alertname": "Odd"},
        "annotations": {"summary": "Odd.", "runbook_url": "javascript:alert(1)"},
        "startsAt": "2026-01-02T00:00:00.000Z",
    }
    found = await alertmanager.ask(await standing_in(web.json_response([first, second])))
    odd, hot = found.alerts
    assert (found.state, odd.name, odd.severity, odd.subject) == ("answered", "Odd", "none", None)
    assert odd.runbook_url is None
    assert (hot.subject, hot.summary, hot.runbook_url) == ("w1", "90 degrees.", "https://e.example/hot")
    assert hot.since is not None


async def test_a_long_answer_is_read_whole_and_the_newest_alerts_are_kept(standing_in: Stand) -> None:
    many = [
        {
            "labels": {"alertname": f"A{number}"},
            "annotations": {"summary": "x" * 500},
            "startsAt": f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z",
        }
        for number in range(3000)
    ]
    found = await alertmanager.ask(await standing_in(web.json_response(many)))
    assert (found.state, len(found.alerts)) == ("answered", alertmanager.MOST)
    assert found.alerts[0].name == "A2999"


async def test_an_answer_without_end_is_not_read_to_its_end(standing_in: Stand) -> None:
    found = await alertmanager.ask(await standing_in(web.Response(body=b"[" * (alertmanager.BYTES_MAXIMUM + 1))))
    assert (found.state, "longer than" in (found.detail or "")) == ("unreachable", True)


@pytest.mark.parametrize("answer", [{"text": "no"}, {"text": "{}"}, {"status": 500}])
async def test_an_alertmanager_that_cannot_be_understood_is_not_one_without_alerts(
    standing_in: Stand, answer: dict[str, Any]
) -> None:
    found = await alertmanager.ask(await standing_in(web.Response(**answer)))
    assert (found.state, found.alerts) == ("unreachable", ())
    assert found.detail


async def test_no_alertmanager_and_an_unreachable_one_are_told_apart() -> None:
    assert (await alertmanager.ask(None)).state == "not_configured"
    assert (await alertmanager.ask(f"http://127.0.0.1:{free_port()}")).state == "unreachable"
