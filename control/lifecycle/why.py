"""The story of an instance in plain sentences, from what the database kept: steps, acts, probes and heartbeats."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from control.database import Database, Row
from control.lifecycle.errors import NoSuchInstanceError
from fleetpulse.stream.lifecycle import InstanceState

# Each of these at most, the newest ones: a story that nobody reads explains nothing.
MOST_ROWS: Final = 500
# Steps that heartbeats have to do with.
HEARD_STEPS: Final = frozenset({"ready", "worker_dead", "draining", "terminating"})
MOST_HEARD_STEPS: Final = 50

_CREATED: Final = "SELECT created_at FROM instances WHERE instance_id = %(instance_id)s"
_STEPS: Final = """
SELECT at, from_state, to_state, detail, evidence, actor, reason FROM instance_transitions
WHERE instance_id = %(instance_id)s AND at <= %(at)s
ORDER BY version DESC
LIMIT %(most)s
"""
_ACTS: Final = """
SELECT at, action, succeeded, provider, actor, duration_seconds, detail FROM action_log
WHERE instance_id = %(instance_id)s AND at <= %(at)s
ORDER BY action_id DESC
LIMIT %(most)s
"""
_PROBES: Final = """
SELECT at, probe, succeeded, detail FROM health_results
WHERE instance_id = %(instance_id)s AND at <= %(at)s
ORDER BY result_id DESC
LIMIT %(most)s
"""
# The heartbeat before each step and the one after it. A worker's clock may be off: by when it came in.
_HEARTBEATS: Final = """
SELECT s.at, before.*, after.received_at
FROM unnest(%(steps)s::timestamptz[]) AS s(at)
LEFT JOIN LATERAL (
    SELECT h.received_at, h.sequence, w.name, h.requests_running, h.requests_waiting, h.step_count
    FROM heartbeats AS h
    JOIN heartbeat_statuses AS w ON w.code = h.status
    WHERE h.worker_key = ANY(%(workers)s) AND h.time BETWEEN s.at - interval '1 hour' AND s.at + interval '1 hour'
        AND h.received_at <= s.at
    ORDER BY h.time DESC
    LIMIT 1
) AS before ON true
LEFT JOIN LATERAL (
    SELECT h.received_at FROM heartbeats AS h
    WHERE h.worker_key = ANY(%(workers)s) AND h.time BETWEEN s.at - interval '1 hour' AND s.at + interval '1 hour'
        AND h.received_at > s.at
    ORDER BY h.time
    LIMIT 1
) AS after ON true
"""
_WORKERS: Final = "SELECT worker_key FROM workers WHERE instance_id = %(instance_id)s"


@dataclass(frozen=True, slots=True)
class Sentence:
    """One thing that happened."""

    at: datetime
    text: str
    evidence: Any


@dataclass(frozen=True, slots=True)
class Story:
    """Why an instance is, or was, in its state. The sentences are in the order of time."""

    instance_id: str
    state: InstanceState
    sentences: Sequence[Sentence]


async def story(database: Database, instance_id: str, at: datetime | None = None) -> Story:
    """What happened to an instance until ``at``, or until now. Raises NoSuchInstanceError and UnavailableError."""
    at = at or datetime.now(UTC)
    parameters = {"instance_id": instance_id, "at": at, "most": MOST_ROWS}
    created = await database.rows(_CREATED, parameters)
    if not created:
        raise NoSuchInstanceError(instance_id)
    steps = list(reversed(await database.rows(_STEPS, parameters)))
    if not steps:
        when = created[0][0]
        text = f"It was not there yet: it was only asked for at {when:%Y-%m-%d %H:%M:%S} UTC."
        return Story(instance_id, "provisioning", [Sentence(at, text, {})])
    sentences = [
        *_steps(steps),
        *_acts(reversed(await database.rows(_ACTS, parameters))),
        *map(_probe, await database.rows(_PROBES, parameters)),
        *await _heartbeats(database, instance_id, steps, at),
    ]
    sentences.sort(key=lambda one: one.at)
    state: InstanceState = steps[-1][2]
    seconds = (at - steps[-1][0]).total_seconds()
    end = Sentence(at, f"It has been {state} for {duration(seconds)}.", {"state_seconds": seconds})
    return Story(instance_id, state, [*sentences, end])


def duration(seconds: float) -> str:
    """A time for people: 2.5 s, 3 min 5 s, 4 h 10 min, 3 d 2 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _steps(steps: Sequence[Row]) -> list[Sentence]:
    told = []
    since: datetime | None = None
    for at, from_state, to_state, detail, evidence, actor, reason in steps:
        after = f" after {duration((at - since).total_seconds())} of {from_state}" if since and from_state else ""
        text = f"It became {to_state}{after}. {detail} ({_who(actor)}, {reason})"
        told.append(Sentence(at, text, evidence))
        since = at
    return told


def _who(actor: str) -> str:
    kind, _, name = actor.partition(":")
    return {"job": f"the {name.replace('_', ' ')} job", "user": name, "key": f"the key {name}…"}.get(kind, actor)


def _acts(rows: Iterable[Row]) -> list[Sentence]:
    """What is the same several times in a row is told once, with how often."""
    told = []
    for _, same in itertools.groupby(rows, key=lambda row: (*row[1:5], _gist(row[6]))):
        acts = list(same)
        at, action, succeeded, provider, _, seconds, detail = acts[-1]
        where = f" at {provider}" if provider else ""
        result = "succeeded" if succeeded else "failed"
        took = f" in {duration(seconds)}" if seconds is not None else ""
        often = f", {len(acts)} times since {acts[0][0]:%H:%M:%S}" if len(acts) > 1 else ""
        gist = _gist(detail)
        name = action.removeprefix("provider.").replace("_", " ")
        text = f"{name}{where} {result}{took}{often}{': ' + gist if gist else ''}."
        told.append(Sentence(at, text[0].upper() + text[1:], detail))
    return told


def _gist(detail: Any) -> str:
    """What of an act's detail a sentence has room for."""
    if not isinstance(detail, dict):
        return ""
    shown = {name: value for name, value in detail.items() if isinstance(value, str | int | float | bool)}
    if "error" in shown:
        return str(shown["error"]).rstrip(".")
    return ", ".join(f"{name.replace('_', ' ')} {_word(value)}" for name, value in sorted(shown.items()))


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _probe(row: Row) -> Sentence:
    at, probe, succeeded, detail = row
    return Sentence(at, f"The probe of {probe} {'succeeded' if succeeded else 'failed'}: {detail}.", {"probe": probe})


async def _heartbeats(database: Database, instance_id: str, steps: Sequence[Row], at: datetime) -> list[Sentence]:
    """What was heard around the steps that have to do with it, as far as it is still kept."""
    times = [row[0] for row in steps if row[2] in HEARD_STEPS][-MOST_HEARD_STEPS:]
    workers = [row[0] for row in await database.rows(_WORKERS, {"instance_id": instance_id})]
    if not times or not workers:
        return []
    rows = await database.rows(_HEARTBEATS, {"steps": times, "workers": workers})
    return [sentence for row in rows if (sentence := _heard(row, at)) is not None]


def _heard(row: Row, at: datetime) -> Sentence | None:
    step_at, received_at, sequence, status, running, waiting, steps, next_at = row
    if received_at is None:
        return None
    silence = (step_at - received_at).total_seconds()
    load = f", with {running:.0f} requests running and {_count(waiting)} waiting" if running is not None else ""
    text = f"Its last heartbeat before that, number {sequence}, came in {duration(silence)} earlier: {status}{load}."
    if next_at is not None and next_at <= at:
        text += f" The next came {duration((next_at - step_at).total_seconds())} later."
    evidence = {"received_at": received_at.isoformat(), "sequence": sequence, "status": status}
    evidence |= {"requests_running": running, "requests_waiting": waiting, "step_count": steps}
    return Sentence(step_at, text, evidence)


def _count(number: float | None) -> str:
    return "an unknown number" if number is None else f"{number:.0f}"
