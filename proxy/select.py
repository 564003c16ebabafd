"""Which worker a request goes to."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from proxy.affinity import weight
from proxy.errors import ProxyError
from proxy.fleet import Fleet, Worker

# One more than there are.
_DOUBTS: Final = 4


@dataclass(frozen=True, slots=True)
class Bound:
    """How much more than the mean a session's worker may have to do before the session goes elsewhere."""

    factor: float = 1.5
    slack: int = 8


class Choice(msgspec.Struct, frozen=True):
    """A worker, and what its engine calls the model."""

    worker: Worker
    model: str


def select(
    fleet: Fleet,
    names: Sequence[str],
    session: int | None,
    bound: Bound,
    now: float,
    tried: Collection[Worker] = (),
) -> Choice:
    """The worker for a request for a model of these names, not one of those ``tried``.

    ``session`` is the hash of what is to stay on one worker. Raises ProxyError with status 503 when no worker is left.
    """
    name, serving = fleet.serving(names)
    eligible = _eligible(fleet, serving, tried, now)
    if not eligible:
        raise ProxyError(503, "no_worker", "no worker can take requests for this model now", retry_after_seconds=1)
    if len(eligible) == 1:
        return Choice(eligible[0], name)
    if session is not None:
        return Choice(_sticky(eligible, session, bound), name)
    return Choice(_least_loaded(eligible), name)


def _eligible(fleet: Fleet, serving: Sequence[Worker], tried: Collection[Worker], now: float) -> list[Worker]:
    """The best there are: a worker that is doubtful gets requests only while there is none that is not."""
    least, eligible = _DOUBTS, []
    for worker in serving:
        if not worker.is_serving or not worker.is_progressing or worker in tried:
            continue
        doubts = 0 if worker.is_well else 1
        if worker.ejection.is_out(now):
            doubts = 2
        if not fleet.is_fresh(worker):
            doubts = 3
        if doubts < least:
            least, eligible = doubts, [worker]
        elif doubts == least:
            eligible.append(worker)
    return eligible


def _least_loaded(eligible: list[Worker]) -> Worker:
    """Any of those with the least to do."""
    least, equals = eligible[0].load, []
    for worker in eligible:
        load = worker.load
        if load < least:
            least, equals = load, [worker]
        elif load == least:
            equals.append(worker)
    return equals[int(random.random() * len(equals))]


def _sticky(eligible: list[Worker], session: int, bound: Bound) -> Worker:
    """The first in the session's own order that is not overloaded."""
    mean = sum([worker.load for worker in eligible]) / len(eligible)
    most = bound.factor * mean + bound.slack
    return max([worker for worker in eligible if worker.load <= most], key=lambda worker: weight(session, worker.hash))
