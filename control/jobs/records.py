"""Records: forgets what was written down, or was over, so long ago that nobody asks any more."""

from datetime import timedelta
from typing import Final

from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Item, Outcome
from control.jobs.framework.job import Job
from fleetpulse.settings import JobSettings

# Of each table in one transaction: short enough to hold nobody up.
ROWS_AT_ONCE: Final = 10_000
# Each with some ten steps and as many checks.
INSTANCES_AT_ONCE: Final = 500
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
# With their history. An instance that a disk or a machine still belongs to says whose those are.
_INSTANCES: Final = """
DELETE FROM instances WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM instances AS i
    WHERE state = 'archived' AND state_since < now() - %(kept)s
        AND NOT EXISTS (SELECT FROM volumes AS v WHERE v.instance_id = i.instance_id AND v.state <> 'deleted')
        AND NOT EXISTS (SELECT FROM orphan_machines AS o WHERE o.instance_id = i.instance_id AND o.resolved_at IS NULL)
    LIMIT %(few)s
))
"""
_DEPLOYMENTS: Final = """
DELETE FROM deployments WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM deployments AS d
    WHERE created_at < now() - %(kept)s
        AND NOT EXISTS (SELECT FROM instances AS i WHERE i.deployment_id = d.deployment_id)
    LIMIT %(most)s
))
"""
_VOLUMES: Final = """
DELETE FROM volumes WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM volumes WHERE state = 'deleted' AND deleted_at < now() - %(kept)s LIMIT %(most)s
))
"""
_ORPHANS: Final = """
DELETE FROM orphan_machines WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM orphan_machines WHERE resolved_at < now() - %(kept)s LIMIT %(most)s
))
"""
# One that is still heard is noticed anew.
_AGENTS: Final = """
DELETE FROM outdated_agents WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM outdated_agents WHERE noticed_at < now() - %(kept)s LIMIT %(most)s
))
"""
_ALL: Final = (_ACTIONS, _RESULTS, _VOLUMES, _ORPHANS, _AGENTS, _DEPLOYMENTS, _INSTANCES)


def job(settings: JobSettings) -> Job:
    """The job."""
    interval = settings.records_interval_seconds
    return Job("records", work, 60.0, interval, 4 * interval, per="fleet")


async def work(context: JobContext, item: Item) -> Outcome:
    """Delete some of what is too old; whether all of it was deleted decides when to go on."""
    kept = timedelta(days=context.settings.records_days)
    parameters = {"kept": kept, "most": ROWS_AT_ONCE, "few": INSTANCES_AT_ONCE}
    async with context.fenced(item) as connection:
        deleted = [(await connection.execute(statement, parameters)).rowcount for statement in _ALL]
    if max(deleted) == ROWS_AT_ONCE or deleted[-1] == INSTANCES_AT_ONCE:
        return Outcome("deleted_some", SOON_SECONDS)
    return Outcome("deleted_all", context.settings.records_interval_seconds)
