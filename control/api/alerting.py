"""What is wrong, as control itself can tell: by the heartbeats, and by what the database says of instances and jobs.

This is for people who look now. What wakes somebody up are Prometheus's rules, which remember and are tested.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, Literal

import msgspec

from control.database import UnavailableError
from control.jobs.recovery import limits
from fleetpulse.settings import JobSettings
from fleetpulse.stream.fleet_view import MassSilence, Reason, WorkerView

Severity = Literal["critical", "warning", "info"]
SEVERITIES: Final[tuple[Severity, ...]] = ("critical", "warning", "info")
# More of a name are told as one: a rack that is lost is one thing to look at, and not one for each of its workers.
MOST_OF_A_KIND: Final = 20
NAMED: Final = 3
# Well before the watchdog counts the worker as dead.
STALLED_SECONDS: Final = 30.0
# vLLM's own dashboards turn red here.
FULL_RATIO: Final = 0.98
LATE_SECONDS: Final = 60.0
FAILURES_SECONDS: Final = 600.0

_SILENCE: Final[Mapping[Reason, tuple[Severity, str]]] = {
    "not_following": ("critical", "Control does not hear the heartbeats: ages and loads are of what was heard before."),
    "just_joined": ("info", "Control has only just joined the stream: who is silent is not known yet."),
    "many_silent": ("critical", "Many workers fell silent at once: rather the pipeline than the workers."),
}

TROUBLED: Final = """
SELECT instance_id, state, extract(epoch FROM now() - state_since)::float8, failure
FROM instances
WHERE state NOT IN ('ready', 'terminated', 'archived')
ORDER BY state_since LIMIT 10000
"""
LATE_JOBS: Final = """
SELECT job, count(*), max(extract(epoch FROM now() - due_at))::float8
FROM job_work WHERE owner IS NULL AND due_at < now() - %(late)s * interval '1 s' GROUP BY job ORDER BY job
"""
FAILED_ACTIONS: Final = """
SELECT action, provider, count(*), extract(epoch FROM now() - min(at))::float8
FROM action_log WHERE NOT succeeded AND at > now() - %(seconds)s * interval '1 s' GROUP BY action, provider
ORDER BY action, provider
"""
PROVIDERS: Final = "SELECT provider, failure FROM providers WHERE failure IS NOT NULL ORDER BY provider"
ORPHANS: Final = """
SELECT provider, count(*), max(extract(epoch FROM now() - first_seen_at))::float8
FROM orphan_machines WHERE resolved_at IS NULL GROUP BY provider ORDER BY provider
"""


class Alert(msgspec.Struct, frozen=True):
    """One thing that is wrong, or many of a name as one. ``subject`` is the worker, instance, job or provider; null
    where it is the whole, or many."""

    name: str
    severity: Severity
    kind: Literal["pipeline", "worker", "instance", "job", "provider"]
    subject: str | None
    since_seconds: float | None
    """How long it has been so; null where that is unknown."""
    detail: str
    count: int = 1
    """How many it stands for; ``since_seconds`` is then the longest."""


def of_pipeline(silence: MassSilence) -> Iterator[Alert]:
    """About hearing the fleet."""
    if silence.active and silence.reason is not None:
        severity, detail = _SILENCE[silence.reason]
        if silence.silent_workers:
            detail = f"{detail} Silent: {silence.silent_workers:,} of {silence.workers:,}."
        yield Alert("MassSilence", severity, "pipeline", None, None, detail)


def of_database(error: UnavailableError) -> Alert:
    """While it is away, nothing is known of instances and jobs."""
    return Alert("DatabaseAway", "critical", "pipeline", "database", None, f"No word of instances and jobs: {error}")


def of_workers(seen: Iterable[WorkerView], *, mass_silence: bool) -> Iterator[Alert]:
    """About each worker. During mass silence the stale ones are told by that alone."""
    for one in seen:
        if one.state == "stale" and not mass_silence:
            age = one.heartbeat_age_seconds or 0.0
            detail = f"Silent for {age:.0f} s; it counts as stale after {one.stale_after_seconds:.1f} s."
            yield Alert("WorkerStale", "warning", "worker", one.worker_id, one.stale_for_seconds, detail)
        elif one.state == "alive":
            yield from _of_live_worker(one)


def _of_live_worker(one: WorkerView) -> Iterator[Alert]:
    heard = one.heartbeat
    if heard is None:
        return
    stalled = one.engine_stalled_seconds
    if stalled is not None and stalled >= STALLED_SECONDS:
        detail = f"The engine has had work and done no step for {stalled:.0f} s."
        yield Alert("WorkerStalled", "critical", "worker", one.worker_id, stalled, detail)
    if heard.status == "degraded":
        yield Alert("WorkerDegraded", "warning", "worker", one.worker_id, None, "The agent says that it is degraded.")
    engine = heard.engine
    if engine is None:
        return
    if engine.state == "unreachable":
        detail = f"The agent does not reach the engine{f' at {engine.url}' if engine.url else ''}."
        yield Alert("EngineUnreachable", "warning", "worker", one.worker_id, None, detail)
    if engine.requests_waiting and (engine.kv_cache_usage_ratio or 0.0) >= FULL_RATIO:
        detail = f"The KV cache is {engine.kv_cache_usage_ratio:.0%} full and {engine.requests_waiting} requests wait."
        yield Alert("WorkerFull", "warning", "worker", one.worker_id, None, detail)


def of_instances(rows: Iterable[Sequence[Any]], settings: JobSettings) -> Iterator[Alert]:
    """Those that failed, died, or are in a passing state for too long. Rows are TROUBLED's."""
    longest = {str(state): seconds for state, seconds in limits(settings).items()}
    for instance_id, state, seconds, failure in rows:
        if state == "worker_dead":
            detail = "Its worker counts as dead; it gets no requests and is terminated if it stays so."
            yield Alert("InstanceDead", "critical", "instance", instance_id, seconds, detail)
        elif state == "startup_failed":
            yield Alert("StartupFailed", "warning", "instance", instance_id, seconds, failure or "It did not come up.")
        elif seconds > longest.get(state, float("inf")):
            detail = f"It has been {state} for {seconds:.0f} s, longer than {longest[state]:.0f} s."
            yield Alert("InstanceStuck", "warning", "instance", instance_id, seconds, detail)


def of_jobs(late: Iterable[Sequence[Any]], failed: Iterable[Sequence[Any]]) -> Iterator[Alert]:
    """About control's own work. Rows are those of LATE_JOBS and FAILED_ACTIONS."""
    for job, count, seconds in late:
        detail = f"{count:,} due and not begun, the oldest for {seconds:.0f} s."
        yield Alert("JobLate", "warning", "job", job, seconds, detail)
    for action, provider, count, seconds in failed:
        where = f" at {provider}" if provider else ""
        detail = f"{action}{where} failed {_times(count)} in {FAILURES_SECONDS / 60:.0f} min; see the action log."
        yield Alert("ActionFailing", "warning", "job", action, seconds, detail)


def of_providers(failing: Iterable[Sequence[Any]], orphans: Iterable[Sequence[Any]]) -> Iterator[Alert]:
    """About where machines come from. Rows are those of PROVIDERS and ORPHANS."""
    for provider, failure in failing:
        yield Alert(
            "ProviderFailing", "warning", "provider", provider, None, f"Its catalogue cannot be read: {failure}"
        )
    for provider, count, seconds in orphans:
        detail = f"{count:,} of its machines belong to no instance and may cost money."
        yield Alert("OrphanMachines", "warning", "provider", provider, seconds, detail)


def shortened(alerts: Iterable[Alert]) -> list[Alert]:
    """Worst first, then those that began last. More than MOST_OF_A_KIND of a name are one."""
    by_name: dict[str, list[Alert]] = {}
    for alert in sorted(alerts, key=_order):
        by_name.setdefault(alert.name, []).append(alert)
    found = ([_together(same)] if len(same) > MOST_OF_A_KIND else same for same in by_name.values())
    return sorted(chain.from_iterable(found), key=_order)


def _order(alert: Alert) -> tuple[int, float]:
    return SEVERITIES.index(alert.severity), alert.since_seconds or 0.0


def _together(same: Sequence[Alert]) -> Alert:
    """Many of a name, worst and newest first, as one."""
    first = same[0]
    named = ", ".join(str(alert.subject) for alert in same[:NAMED])
    longest = max((alert.since_seconds for alert in same if alert.since_seconds is not None), default=None)
    detail = f"{len(same):,} {first.kind}s, the newest {named}. Of the first: {first.detail}"
    return Alert(first.name, first.severity, first.kind, None, longest, detail, len(same))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
