"""Agent versions: says which live agents run another version than they should."""

import time
from typing import Final

import fleetpulse
from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Item, Outcome
from control.jobs.framework.job import Job
from fleetpulse.settings import JobSettings
from fleetpulse.stream.fleet_view import FleetView
from fleetpulse.stream.heartbeat import Heartbeat
from fleetpulse.telemetry import logger

_log = logger(__name__)

# In one line of the log; the table has them all.
MOST_TOLD: Final = 10

_KEEP: Final = """
INSERT INTO outdated_agents AS o (instance_id, worker_id, agent_version, agent_checksum, wanted_version)
SELECT s.*, %(wanted)s FROM unnest(%(instances)s::text[], %(workers)s::text[], %(versions)s::text[],
    %(checksums)s::text[]) AS s
ON CONFLICT (instance_id) DO UPDATE SET
    agent_version = EXCLUDED.agent_version, agent_checksum = EXCLUDED.agent_checksum,
    wanted_version = EXCLUDED.wanted_version, noticed_at = now()
WHERE (o.agent_version, o.wanted_version) <> (EXCLUDED.agent_version, EXCLUDED.wanted_version)
RETURNING instance_id, agent_version
"""
# Of agents that are silent, the last that was known stays.
_DROP: Final = """
DELETE FROM outdated_agents
WHERE NOT (instance_id = ANY(%(instances)s::text[])) AND (
    instance_id = ANY(%(heard)s::text[])
    OR instance_id IN (SELECT instance_id FROM instances WHERE state IN ('terminated', 'archived'))
)
"""


def job(settings: JobSettings) -> Job:
    """The job."""
    interval = settings.agent_versions_interval_seconds
    return Job("agent_versions", work, 30.0, interval, 4 * interval, per="fleet")


async def work(context: JobContext, item: Item) -> Outcome:
    """One comparison of all agents that are heard."""
    wanted = context.settings.agent_version or fleetpulse.__version__
    heard = heartbeats(context.view)
    outdated = [one for one in heard if one.agent_version != wanted]
    parameters = {
        "wanted": wanted,
        "heard": [one.instance_id for one in heard],
        "instances": [one.instance_id for one in outdated],
        "workers": [one.worker_id for one in outdated],
        "versions": [one.agent_version for one in outdated],
        "checksums": [one.agent_checksum for one in outdated],
    }
    async with context.fenced(item) as connection:
        noticed = await (await connection.execute(_KEEP, parameters)).fetchall()
        await connection.execute(_DROP, parameters)
    if noticed:
        found = dict(noticed[:MOST_TOLD])
        told = {"agents": len(noticed), "wanted_version": wanted, "agent_versions": found}
        _log.warning("agents are not of the wanted version", extra=told)
    context.metrics.agents_outdated.set(len(outdated))
    return Outcome("compared", context.settings.agent_versions_interval_seconds)


def heartbeats(view: FleetView) -> list[Heartbeat]:
    """The newest heartbeat of each live worker."""
    workers = view.snapshot(time.monotonic())
    return [one.heartbeat for one in workers if one.state == "alive" and one.heartbeat is not None]
