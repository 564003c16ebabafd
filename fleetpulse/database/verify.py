"""Whether all that the database should hold is there."""

from datetime import datetime, timedelta
from typing import Final

from fleetpulse.database.connect import Connection, DatabaseError
from fleetpulse.database.partitions import STEPS
from fleetpulse.database.policies import LATE_DATA_PROCEDURE, LEVELS, wanted
from fleetpulse.database.profile import Profile
from fleetpulse.database.relations import ROLLED_UP, USAGE, expected
from fleetpulse.database.retention import GENERIC, SAMPLES
from fleetpulse.settings import DatabaseSettings

HYPERTABLES: Final = (*SAMPLES, *GENERIC, "heartbeats", USAGE, f"{USAGE}_1m", f"{USAGE}_1h")
_ROLLUP_FUNCTIONS: Final = ("rollup_columns", "rollup_keys", "rollup_measures", "rollup_groups", "group_columns")
_FUNCTIONS: Final[dict[Profile, tuple[str, ...]]] = {
    "timescale": (*_ROLLUP_FUNCTIONS, LATE_DATA_PROCEDURE),
    "postgres": (
        *(*_ROLLUP_FUNCTIONS, "roll_up_buckets", "roll_up_series", "roll_up_group", "bucket_of"),
        *("partition_name", "make_partitions", "partitions_of", "drop_partition", "quote_qualified"),
    ),
}


async def verify(connection: Connection, profile: Profile, settings: DatabaseSettings, now: datetime) -> None:
    """Raises DatabaseError, naming each thing that should exist and does not, and what to do."""
    missing = [*await _columns(connection, profile), *await _functions(connection, profile)]
    if profile == "timescale":
        missing += [*await _timescale_relations(connection), *await _jobs(connection, settings)]
    else:
        missing += await _partitions(connection, now)
    if missing:
        raise DatabaseError(
            f"the database ({profile}) lacks {'; '.join(missing)}. If something other than fleetpulse removed it,"
            " restore it from a backup; else run `fleetpulse migrate` with the newest version of fleetpulse"
        )


async def _columns(connection: Connection, profile: Profile) -> list[str]:
    cursor = await connection.execute(
        "SELECT name, array_agg(a.attname::text) FROM unnest(%s::text[]) AS name"
        " JOIN pg_attribute a ON a.attrelid = to_regclass(name)"
        " WHERE a.attnum > 0 AND NOT a.attisdropped GROUP BY name",
        (list(expected(profile)),),
    )
    found = {relation: set(columns) for relation, columns in await cursor.fetchall()}
    missing = []
    for relation, columns in expected(profile).items():
        if relation not in found:
            missing.append(f"relation {relation}")
        elif lacking := [column for column in columns if column not in found[relation]]:
            missing.append(f"{'column' if len(lacking) == 1 else 'columns'} {', '.join(lacking)} of {relation}")
    return missing


async def _functions(connection: Connection, profile: Profile) -> list[str]:
    cursor = await connection.execute(
        "SELECT proname::text FROM pg_proc WHERE proname = ANY(%s) AND pg_function_is_visible(oid)",
        (list(_FUNCTIONS[profile]),),
    )
    found = {name for (name,) in await cursor.fetchall()}
    return [f"function {name}" for name in _FUNCTIONS[profile] if name not in found]


async def _timescale_relations(connection: Connection) -> list[str]:
    cursor = await connection.execute("SELECT hypertable_name::text FROM timescaledb_information.hypertables")
    hypertables = {name for (name,) in await cursor.fetchall()}
    cursor = await connection.execute(
        "SELECT view_name::text, materialized_only FROM timescaledb_information.continuous_aggregates"
    )
    aggregates = dict(await cursor.fetchall())
    rollups = [f"{name}{level.suffix}" for name in ROLLED_UP for level in LEVELS]
    return [
        *(f"hypertable {name}" for name in HYPERTABLES if name.rpartition(".")[2] not in hypertables),
        *(f"continuous aggregate {name}" for name in rollups if name not in aggregates),
        *(
            f"the newest rows in {name} (set timescaledb.materialized_only = false)"
            for name in rollups
            if aggregates.get(name) is True
        ),
    ]


async def _jobs(connection: Connection, settings: DatabaseSettings) -> list[str]:
    cursor = await connection.execute(
        "SELECT proc_name::text, hypertable_name::text FROM timescaledb_information.jobs WHERE scheduled"
    )
    found = set(await cursor.fetchall())
    return [
        f"job {policy.procedure}" + (f" of {policy.relation}" if policy.relation else "")
        for policy in wanted(settings)
        if (policy.procedure, policy.hypertable) not in found
    ]


async def _partitions(connection: Connection, now: datetime) -> list[str]:
    cursor = await connection.execute(
        "SELECT name FROM unnest(%s::text[], %s::text[]) AS r (relation, step)"
        " CROSS JOIN unnest(%s::timestamptz[]) AS moment CROSS JOIN partition_name(relation, step, moment) AS name"
        " WHERE to_regclass(relation) IS NOT NULL AND NOT EXISTS ("
        "SELECT FROM partitions_of(to_regclass(relation)) AS p WHERE p.partition = name)",
        (list(STEPS), list(STEPS.values()), [now, now + timedelta(days=1)]),
    )
    return [f"partition {name}" for (name,) in await cursor.fetchall()]
