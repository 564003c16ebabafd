"""Which instances are ready and which are dead, kept in memory by asking the database only for what changed."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from control.database import Database, Row
from fleetpulse.stream.fleet_view import FleetView

# A transaction that was open for longer than this is found by the next full reading.
OVERLAP_SECONDS: Final = 10.0
FULL_SECONDS: Final = 60.0
FORGET_SECONDS: Final = 5.0

_COLUMNS: Final = """
SELECT instance_id, state, version, agent_url, engine_url, correlation_id,
    extract(epoch FROM clock_timestamp() - state_since)::float8
FROM instances
"""
_FULL: Final = f"""{_COLUMNS}
WHERE state IN ('ready', 'worker_dead')
    OR (state IN ('terminated', 'archived') AND terminated_at > now() - interval '1 day')
"""
_CHANGED: Final = _COLUMNS + "WHERE state_since > now() - %(seconds)s * interval '1 second'"


@dataclass(frozen=True, slots=True)
class Ready:
    """An instance that is to be heard. ``since`` is on the monotonic clock."""

    instance_id: str
    version: int
    agent_url: str | None
    engine_url: str | None
    correlation_id: str | None
    since: float


@dataclass(slots=True)
class Dead:
    """An instance that may be heard again."""

    instance_id: str
    version: int
    engine_url: str | None
    correlation_id: str | None
    since: float
    quiet_until: float = 0.0
    heard: list[tuple[str, int]] = field(default_factory=list)
    """Boot and sequence of the heartbeats since its death, as far as they were noticed."""
    step_count: int | None = None
    """Of its engine, when that was first known since its death."""


class Roster:
    """The instances that the worker watchdog looks at. Raises UnavailableError where it reads."""

    def __init__(self, database: Database, view: FleetView) -> None:
        self._database = database
        self._view = view
        self.ready: dict[str, Ready] = {}
        self.dead: dict[str, Dead] = {}
        self._over: dict[str, None] = {}
        self._read_at: float | None = None
        self._full_at = float("-inf")
        self._forgot_at = float("-inf")

    async def refresh(self, now: float) -> list[Ready]:
        """Read what changed since the last time; returns those that are newly ready."""
        asked_at = time.monotonic()
        if self._read_at is None or now - self._full_at >= FULL_SECONDS:
            rows = await self._database.rows(_FULL)
            self._full_at = now
            self._over.clear()
            kept = {row[0] for row in rows}
            for gone in [name for name in (*self.ready, *self.dead) if name not in kept]:
                self._drop(gone)
        else:
            seconds = asked_at - self._read_at + OVERLAP_SECONDS
            rows = await self._database.rows(_CHANGED, {"seconds": seconds})
        self._read_at = asked_at
        fresh = self._take(rows, time.monotonic())
        self._forget_the_dead(now)
        return fresh

    def died(self, ready: Ready, now: float) -> None:
        """It was just declared dead, by whomever; the database tells the rest."""
        self.ready.pop(ready.instance_id, None)
        self.dead[ready.instance_id] = Dead(
            ready.instance_id, ready.version, ready.engine_url, ready.correlation_id, now
        )

    def _take(self, rows: Iterable[Row], now: float) -> list[Ready]:
        fresh = []
        for instance_id, state, version, agent_url, engine_url, correlation, seconds in rows:
            known = self.ready.get(instance_id) or self.dead.get(instance_id)
            if known is not None and known.version >= version:
                continue
            self._drop(instance_id)
            if state == "ready":
                ready = Ready(instance_id, version, agent_url, engine_url, correlation, now - seconds)
                self.ready[instance_id] = ready
                fresh.append(ready)
            elif state == "worker_dead":
                self.dead[instance_id] = Dead(instance_id, version, engine_url, correlation, now - seconds)
            elif state in ("terminated", "archived"):
                self._over[instance_id] = None
        return fresh

    def _drop(self, instance_id: str) -> None:
        self.ready.pop(instance_id, None)
        self.dead.pop(instance_id, None)

    def _forget_the_dead(self, now: float) -> None:
        """The silence of those that were ended on purpose says nothing about the stream."""
        if now - self._forgot_at < FORGET_SECONDS:
            return
        self._forgot_at = now
        for instance_id in self._over:
            worker = self._view.get(instance_id, now)
            if worker is not None and worker.state != "alive":
                self._view.forget(instance_id)
