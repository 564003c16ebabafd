"""Records: forgets what was written down about acts and checks so long ago that nobody asks any more."""

from datetime import timedelta
from typing import Final

from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Item, Outcome
from control.jobs.framework.job import Job
from fleetpulse.settings import JobSettings

# Of each table in one transaction: short enough to hold nobody up.
ROWS_AT_ONCE: Final = 10_000
# While there is more, the next pass follows soon.
SOON_SECONDS: Final = 1.0

# Rows by their places: with IN, old statistics make the plan look for all of them anew for each row.
_ACTIONS: Final = """
DELETE FROM action_log WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM action_log WHERE at < now() - %(kept)s ORDER BY at LIMIT %(most)s
))
"""
# What the last checks of a living instance said is still true, however old it is.
_RESULTS: Final = """
DELETE FROM health_results WHERE ctid = ANY (ARRAY(
    SELECT r.ctid FROM health_results AS r JOIN instances AS i USING (instance_id)
    WHERE i.state = 'archived' AND r.at < now() - %(kept)s LIMIT %(most)s
))
"""


def job(settings: JobSettings) -> Job:
    """The job."""
    interval = settings.records_interval_seconds
    return Job("records", work, 60.0, interval, 4 * interval, per="fleet")


async def work(context: JobContext, item: Item) -> Outcome:
    """Delete some of what is too old; whether all of it was deleted decides when to go on."""
    parameters = {"kept": timedelta(days=context.settings.records_days), "most": ROWS_AT_ONCE}
    async with context.fenced(item) as connection:
        deleted = [(await connection.execute(statement, parameters)).rowcount for statement in (_ACTIONS, _RESULTS)]
    if max(deleted) == ROWS_AT_ONCE:
        return Outcome("deleted_some", SOON_SECONDS)
    return Outcome("deleted_all", context.settings.records_interval_seconds)
