"""How far an instance is on its way to ready, and how long it will take, by how long it took others of its kind."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from control.database import Database, Parameters
from control.states import COMING_UP
from fleetpulse.stream.lifecycle import InstanceState

# Of those that came up most recently; the same kind of machine takes much the same time.
HISTORY: Final = """
WITH recent AS (
    SELECT t.instance_id FROM instance_transitions AS t JOIN instances AS i USING (instance_id)
    WHERE t.to_state = 'ready' AND t.from_state = ANY (%(coming_up)s)
        AND i.provider = %(provider)s AND i.instance_type = %(instance_type)s
    ORDER BY t.at DESC LIMIT 100
),
steps AS (
    SELECT t.instance_id, t.to_state, extract(epoch FROM lead(t.at) OVER (
        PARTITION BY t.instance_id ORDER BY t.version
    ) - t.at)::float8 AS seconds
    FROM instance_transitions AS t JOIN recent USING (instance_id)
)
SELECT to_state, percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds),
    count(DISTINCT instance_id)::float8 / (SELECT count(*) FROM recent)
FROM steps WHERE to_state = ANY (%(coming_up)s) AND seconds IS NOT NULL
GROUP BY to_state
"""
# While it is not there it is not at 100.
MOST_PERCENT: Final = 99.0


class Progress(msgspec.Struct, frozen=True):
    """An instance's way to ready. Null is unknown, or not on that way any more."""

    instance_id: str
    state: InstanceState
    since: datetime
    percent: float | None
    expected_remaining_seconds: float | None


@dataclass(frozen=True, slots=True)
class Subject:
    """The instance, and how long it has been in its state by the database's clock."""

    instance_id: str
    state: InstanceState
    since: datetime
    seconds: float


async def expected_seconds(database: Database, provider: str, instance_type: str) -> Mapping[str, float]:
    """Time that each state on the way takes: the median, times the share of instances that pass through it.

    Empty when no instance of this kind ever came up. Raises UnavailableError.
    """
    values: Parameters = {"provider": provider, "instance_type": instance_type, "coming_up": list(COMING_UP)}
    rows: Sequence[Any] = await database.rows(HISTORY, values)
    return {state: median * share for state, median, share in rows}


def progress(subject: Subject, expected: Mapping[str, float]) -> Progress:
    """Where an instance is."""
    percent, remaining = _way(subject, expected)
    return Progress(subject.instance_id, subject.state, subject.since, percent, remaining)


def together(parts: Iterable[Progress]) -> tuple[float | None, float | None]:
    """Percent and expected remaining seconds of several: the average, and the slowest."""
    parts = list(parts)
    percents = [part.percent for part in parts if part.percent is not None]
    remaining = [part.expected_remaining_seconds for part in parts if part.expected_remaining_seconds is not None]
    return (sum(percents) / len(percents) if percents else None), max(remaining, default=None)


def _way(subject: Subject, expected: Mapping[str, float]) -> tuple[float | None, float | None]:
    if subject.state == "ready":
        return 100.0, 0.0
    if subject.state not in COMING_UP:
        return None, None
    place = COMING_UP.index(subject.state)
    total = sum(expected.values())
    if total <= 0:
        return 100.0 * place / len(COMING_UP), None
    done = sum(expected.get(state, 0.0) for state in COMING_UP[:place])
    here = expected.get(subject.state, 0.0)
    later = sum(expected.get(state, 0.0) for state in COMING_UP[place + 1 :])
    percent = 100.0 * (done + min(subject.seconds, here)) / total
    return min(percent, MOST_PERCENT), max(0.0, here - subject.seconds) + later
