"""Plain PostgreSQL: partitions are there before rows are."""

from datetime import datetime, timedelta
from typing import Final

from fleetpulse.database.connect import Connection
from fleetpulse.database.relations import ROLLED_UP, USAGE
from fleetpulse.database.retention import GENERIC, SAMPLES, retention
from fleetpulse.settings import DatabaseSettings

# Writers may go on for this long while nobody makes partitions.
AHEAD: Final = timedelta(days=3)
# A row may take this long from being checked against the retention to being written.
GRACE: Final = timedelta(hours=1)

# Length of a partition of each relation: minutes expire by the day, hours by the month.
STEPS: Final = (
    dict.fromkeys((*SAMPLES, *GENERIC, "heartbeats"), "day")
    | {f"{name}_1m": "day" for name in ROLLED_UP}
    | {f"{name}_1h": "month" for name in ROLLED_UP}
    | {USAGE: "month", f"{USAGE}_1m": "day", f"{USAGE}_1h": "month"}
)


async def make_partitions(connection: Connection, settings: DatabaseSettings, now: datetime) -> int:
    """Make what is missing of the partitions that rows of any accepted age, or their rollups, need.

    Returns the number made.
    """
    kept = retention(settings)
    raw = kept[SAMPLES[0]]
    made = 0
    for relation, step in STEPS.items():
        oldest = now - min(kept[relation], raw) - GRACE
        cursor = await connection.execute(
            "SELECT make_partitions(%s, %s, %s, %s)", (relation, step, oldest, now + AHEAD)
        )
        row = await cursor.fetchone()
        made += int(row[0]) if row else 0
    return made
