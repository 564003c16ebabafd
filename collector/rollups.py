"""Plain PostgreSQL: rollups made anew for the buckets that changed.

A writer marks the minutes it touched in ``rollup_dirty``, in the transaction that adds the rows. A pass deletes marks
and makes those buckets of the rollup anew, in one transaction. A mark that is not committed yet stays for the next
pass, and one that is was committed together with its rows, which the later statement therefore sees.
"""

from dataclasses import dataclass
from typing import Final

from fleetpulse.database.connect import Connection
from fleetpulse.database.retention import SAMPLES

# Each level's marks are of the relation it is made from.
FINE: Final = ("",)
ALL: Final = ("", "_1m", "_1h")
# Buckets of one transaction; a backlog is worked off newest first, so that what people look at is right first.
BUCKETS_PER_TRANSACTION: Final = 60
# Advisory locks are numbers; these eight bytes are "fprollup".
_LOCK: Final = int.from_bytes(b"fprollup")


@dataclass(frozen=True, slots=True)
class RollupReport:
    """What a pass did. ``busy``: another collector was at it, and it is not known to be finished."""

    buckets: int = 0
    rows: int = 0
    busy: bool = False


async def roll_up(connection: Connection, levels: tuple[str, ...] = ALL) -> RollupReport:
    """Work off all marks that are there, finest level first, on an autocommit connection.

    ``FINE`` makes minutes only and leaves hours and days marked: they cost the most and change the least. Raises
    psycopg.Error; what was not committed stays marked.
    """
    buckets = rows = 0
    for level in levels:
        sources = [f"{samples}{level}" for samples in SAMPLES]
        while True:
            step = await _step(connection, sources)
            buckets, rows = buckets + step.buckets, rows + step.rows
            if step.busy:
                return RollupReport(buckets, rows, busy=True)
            # Fewer than asked for: all that were there. While rows come in there are always new ones.
            if step.buckets < BUCKETS_PER_TRANSACTION:
                break
    return RollupReport(buckets, rows)


async def _step(connection: Connection, sources: list[str]) -> RollupReport:
    """One transaction's worth of marks."""
    rows = 0
    async with connection.transaction():
        cursor = await connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,))
        if await cursor.fetchone() != (True,):
            return RollupReport(busy=True)
        cursor = await connection.execute(
            "WITH chosen AS (SELECT DISTINCT relation, bucket FROM rollup_dirty WHERE relation = ANY(%s)"
            " ORDER BY bucket DESC LIMIT %s),"
            " gone AS (DELETE FROM rollup_dirty d USING chosen c"
            " WHERE d.relation = c.relation AND d.bucket = c.bucket)"
            " SELECT relation, array_agg(bucket) FROM chosen GROUP BY relation",
            (sources, BUCKETS_PER_TRANSACTION),
        )
        marks = await cursor.fetchall()
        for relation, dirty in marks:
            cursor = await connection.execute("SELECT roll_up_buckets(%s, %s)", (relation, dirty))
            changed = await cursor.fetchone()
            rows += int(changed[0]) if changed else 0
    return RollupReport(sum(len(dirty) for _, dirty in marks), rows)
