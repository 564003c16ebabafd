"""TimescaleDB's background work as the settings ask for it: retention, columnstore, refreshes and the late-data job."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, LiteralString

from fleetpulse.database.connect import Connection
from fleetpulse.database.relations import GROUPS, ROLLED_UP
from fleetpulse.database.retention import GENERIC, SAMPLES, retention
from fleetpulse.settings import DatabaseSettings
from fleetpulse.telemetry import logger

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Level:
    """A rollup level: how far back its policy refreshes, how much of the newest time it leaves out, and how often."""

    suffix: str
    finer: str
    width: timedelta
    start_offset: timedelta
    end_offset: timedelta
    every: timedelta


LEVELS: Final = (
    Level(
        "_1m", "", timedelta(minutes=1), start_offset=timedelta(hours=3), end_offset=timedelta(minutes=2),
        every=timedelta(minutes=1),
    ),
    Level(
        "_1h", "_1m", timedelta(hours=1), start_offset=timedelta(days=2), end_offset=timedelta(hours=2),
        every=timedelta(minutes=30),
    ),
    Level(
        "_1d", "_1h", timedelta(days=1), start_offset=timedelta(days=8), end_offset=timedelta(days=1),
        every=timedelta(hours=6),
    ),
)  # fmt: skip
LATE_DATA_PROCEDURE: Final = "refresh_late_rollups"
_LATE_DATA_EVERY: Final = timedelta(hours=1)
_RETENTION_EVERY: Final = timedelta(hours=6)
# A refresh stays this far away from rows that retention may drop while it runs.
_EXPIRY_MARGIN: Final = timedelta(hours=6)
# As far back as any retention may be set.
_FOR_EVER: Final = timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class Policy:
    """A background job on a relation: TimescaleDB's procedure, what its configuration must hold, and how to make it.

    ``every`` None leaves the interval to TimescaleDB.
    """

    procedure: str
    relation: str | None
    config: dict[str, Any]
    every: timedelta | None
    remove: LiteralString
    add: LiteralString

    @property
    def hypertable(self) -> str | None:
        """The relation as TimescaleDB lists it: without its schema."""
        return self.relation and self.relation.rpartition(".")[2]


def wanted(settings: DatabaseSettings) -> list[Policy]:
    """All policies that the settings ask for."""
    columnstore = timedelta(days=settings.compress_after_days)
    return [
        *(_retention_policy(relation, kept) for relation, kept in retention(settings).items()),
        *(_columnstore_policy(relation, columnstore) for relation in (*SAMPLES, *GENERIC) if columnstore),
        *(_refresh_policy(f"{name}{level.suffix}", level) for name in ROLLED_UP for level in LEVELS),
        _late_data_policy(settings),
    ]


def _retention_policy(relation: str, kept: timedelta) -> Policy:
    return Policy(
        "policy_retention",
        relation,
        {"drop_after": kept},
        _RETENTION_EVERY,
        "SELECT remove_retention_policy(%(relation)s, if_exists => true)",
        "SELECT add_retention_policy(%(relation)s, drop_after => %(drop_after)s, schedule_interval => %(every)s)",
    )


def _columnstore_policy(relation: str, age: timedelta) -> Policy:
    return Policy(
        "policy_compression",
        relation,
        {"compress_after": age},
        None,
        "CALL remove_columnstore_policy(%(relation)s::regclass, if_exists => true)",
        "CALL add_columnstore_policy(%(relation)s::regclass, after => %(compress_after)s)",
    )


def _refresh_policy(rollup: str, level: Level) -> Policy:
    return Policy(
        "policy_refresh_continuous_aggregate",
        rollup,
        {"start_offset": level.start_offset, "end_offset": level.end_offset},
        level.every,
        "SELECT remove_continuous_aggregate_policy(%(relation)s, if_exists => true)",
        "SELECT add_continuous_aggregate_policy(%(relation)s, start_offset => %(start_offset)s,"
        " end_offset => %(end_offset)s, schedule_interval => %(every)s)",
    )


def _late_data_policy(settings: DatabaseSettings) -> Policy:
    return Policy(
        LATE_DATA_PROCEDURE,
        None,
        {"windows": list(late_windows(settings))},
        _LATE_DATA_EVERY,
        "SELECT delete_job(job_id) FROM timescaledb_information.jobs WHERE proc_name = 'refresh_late_rollups'",
        "SELECT add_job('refresh_late_rollups', %(every)s, config => %(windows_config)s::jsonb)",
    )


def late_windows(settings: DatabaseSettings) -> Iterable[dict[str, str]]:
    """Where the late-data job looks, finest rollup first: from as old as a sample may come in to where the refresh
    policy begins, and never where the rows that a rollup is made from may be dropped.

    A group's goes as far back as its source is kept, because a database may be older than its groups.
    """
    kept = retention(settings)
    for level in LEVELS:
        for samples in SAMPLES:
            source = f"{samples}{level.finer}"
            oldest = min(kept[source] - _EXPIRY_MARGIN, kept[samples] + 2 * level.width)
            yield _window(source, samples, level, oldest)
        for group in GROUPS:
            source = f"{group.source}{level.suffix}"
            yield _window(source, group.name, level, kept.get(source, _FOR_EVER) - _EXPIRY_MARGIN)


def _window(source: str, name: str, level: Level, oldest: timedelta) -> dict[str, str]:
    return {
        "source": source,
        "rollup": f"{name}{level.suffix}",
        "width": _interval(level.width),
        "start_offset": _interval(oldest),
        "end_offset": _interval(level.start_offset),
    }


def _interval(length: timedelta) -> str:
    return f"{length.total_seconds():.0f} seconds"


async def apply_policies(connection: Connection, settings: DatabaseSettings) -> int:
    """Make the server's policies those that the settings ask for; returns how many were changed.

    Policies that are right are not touched, so that a start does not put off their next run.
    """
    policies = wanted(settings)
    asked = {(policy.procedure, policy.relation) for policy in policies}
    changed = 0
    for relation in (*SAMPLES, *GENERIC):
        if ("policy_compression", relation) not in asked:
            await connection.execute(_columnstore_policy(relation, timedelta()).remove, {"relation": relation})
    for policy in policies:
        if await _is_right(connection, policy):
            continue
        async with connection.transaction():
            if policy.procedure == "policy_retention":
                await _keep_floor(connection, policy)
            await connection.execute(policy.remove, {"relation": policy.relation})
            await connection.execute(policy.add, _parameters(policy))
        changed += 1
    if changed:
        _log.info("database policies changed", extra={"policies": changed})
    return changed


def _parameters(policy: Policy) -> dict[str, Any]:
    windows = {"windows_config": json.dumps(policy.config)} if policy.procedure == LATE_DATA_PROCEDURE else {}
    return {"relation": policy.relation, "every": policy.every} | policy.config | windows


async def _is_right(connection: Connection, policy: Policy) -> bool:
    cursor = await connection.execute(
        "SELECT schedule_interval, config FROM timescaledb_information.jobs"
        " WHERE proc_name = %s AND hypertable_name IS NOT DISTINCT FROM %s AND scheduled",
        (policy.procedure, policy.hypertable),
    )
    jobs = await cursor.fetchall()
    if len(jobs) != 1 or (policy.every is not None and jobs[0][0] != policy.every):
        return False
    for name, value in policy.config.items():
        found = jobs[0][1].get(name)
        if isinstance(value, timedelta):
            row = await (await connection.execute("SELECT %s::interval", (found,))).fetchone()
            found = row[0] if row else None
        if found != value:
            return False
    return True


async def _keep_floor(connection: Connection, policy: Policy) -> None:
    """Before the retention changes, remember what the old one may have dropped: were it longer from now on, the
    late-data job would else take the missing rows for deleted ones and empty their rollups."""
    await connection.execute(
        "INSERT INTO retention_floors"
        " SELECT %s, now() - (config->>'drop_after')::interval FROM timescaledb_information.jobs"
        " WHERE proc_name = 'policy_retention' AND hypertable_name = %s"
        " ON CONFLICT (relation) DO UPDATE SET floor = greatest(retention_floors.floor, EXCLUDED.floor)",
        (policy.relation, policy.hypertable),
    )
