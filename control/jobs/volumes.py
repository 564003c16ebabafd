"""Volumes: brings the table of volumes in line with each provider, and deletes those that nobody needs any more.

A volume of an instance that is over goes after the leftover grace; one that nobody here knows, after the orphan grace.
"""

from typing import Any, Final

from control.database import Row
from control.jobs.framework import said
from control.jobs.framework.backoff import pause_seconds
from control.jobs.framework.calls import call
from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Item, Outcome
from control.jobs.framework.job import Job
from control.jobs.framework.providers import provider_of
from control.lifecycle.evidence import text
from control.providers.interface import ProviderError, Volume
from fleetpulse.settings import JobSettings

# A volume counts as attached while it is, and while its instance may still want it.
_KEEP: Final = """
WITH seen AS (
    SELECT s.*, i.instance_id AS known, coalesce(i.state NOT IN ('terminated', 'archived'), false) AS wanted
    FROM unnest(%(zones)s::text[], %(ids)s::text[], %(names)s::text[], %(sizes)s::bigint[], %(machines)s::text[],
        %(instances)s::text[]) AS s(zone, volume_id, name, size_bytes, machine_id, instance_id)
    LEFT JOIN instances AS i USING (instance_id)
), judged AS (
    SELECT *, CASE WHEN wanted OR machine_id IS NOT NULL THEN 'attached' ELSE 'orphan' END AS state FROM seen
)
INSERT INTO volumes AS v (provider, zone, volume_id, instance_id, name, size_bytes, state, orphan_since)
SELECT %(provider)s, zone, volume_id, known, name, size_bytes, state, CASE WHEN state = 'orphan' THEN now() END
FROM judged
ON CONFLICT (provider, zone, volume_id) DO UPDATE SET
    instance_id = coalesce(EXCLUDED.instance_id, v.instance_id),
    size_bytes = EXCLUDED.size_bytes,
    state = CASE WHEN EXCLUDED.state = 'orphan' AND v.state = 'deleting' THEN 'deleting' ELSE EXCLUDED.state END,
    orphan_since = CASE WHEN EXCLUDED.state = 'orphan' THEN coalesce(v.orphan_since, now()) END,
    attempts = CASE WHEN EXCLUDED.state = 'orphan' THEN v.attempts ELSE 0 END,
    deleted_at = NULL
"""
_GONE: Final = """
UPDATE volumes SET state = 'deleted', deleted_at = now(), failure = NULL
WHERE provider = %(provider)s AND state <> 'deleted'
    AND NOT ((zone, volume_id) IN (SELECT * FROM unnest(%(zones)s::text[], %(ids)s::text[])))
"""
_OVER: Final = """
SELECT zone, volume_id, name, size_bytes, instance_id, attempts FROM volumes
WHERE provider = %(provider)s AND state IN ('orphan', 'deleting') AND coalesce(retry_at <= now(), true)
    AND orphan_since + CASE WHEN instance_id IS NULL THEN %(orphan)s::float8 ELSE %(leftover)s::float8 END
        * interval '1 second' <= now()
ORDER BY orphan_since
LIMIT 100
"""
_TRIED: Final = """
UPDATE volumes SET state = 'deleting', attempts = attempts + 1, failure = %s,
    retry_at = now() + %s * interval '1 second'
WHERE provider = %s AND zone = %s AND volume_id = %s
"""
_ORPHANS: Final = "SELECT count(*) FROM volumes WHERE provider = %(provider)s AND state IN ('orphan', 'deleting')"


def job(settings: JobSettings) -> Job:
    """The job."""
    interval = settings.volumes_interval_seconds
    return Job("volumes", work, settings.volumes_timeout_seconds, interval, 4 * interval, per="provider")


async def work(context: JobContext, item: Item) -> Outcome:
    """One comparison of a provider. Raises ProviderError."""
    name = item.subject
    provider = provider_of(context, name)
    volumes = await call(context, item, "volumes", name, provider.volumes(), log_success=False)
    # A list that is read in parts may name one twice.
    columns = _columns(name, list({(one.zone, one.volume_id): one for one in map(said.volume, volumes)}.values()))
    async with context.fenced(item) as connection:
        await connection.execute(_KEEP, columns)
        await connection.execute(_GONE, columns)
    settings = context.settings
    graces = {"leftover": settings.leftover_grace_seconds, "orphan": settings.orphan_grace_seconds}
    over = await context.database.rows(_OVER, {"provider": name, **graces})
    if over and not context.guard.holds(item.job):
        for row in over:
            await _delete(context, item, row)
    ((orphans,),) = await context.database.rows(_ORPHANS, {"provider": name})
    context.metrics.orphan_volumes.labels(name).set(orphans)
    return Outcome("compared", settings.volumes_interval_seconds)


def _columns(provider: str, volumes: list[Volume]) -> dict[str, Any]:
    return {
        "provider": provider,
        "zones": [one.zone for one in volumes],
        "ids": [one.volume_id for one in volumes],
        "names": [one.name for one in volumes],
        "sizes": [one.size_bytes for one in volumes],
        "machines": [one.machine_id for one in volumes],
        "instances": [one.instance_id for one in volumes],
    }


async def _delete(context: JobContext, item: Item, row: Row) -> None:
    """Ask for its end; that it is over, the next comparison shows."""
    zone, volume_id, name, size_bytes, instance_id, attempts = row
    volume = Volume(volume_id, zone, name, size_bytes, None, instance_id)
    failure = None
    try:
        deletion = context.providers[item.subject].delete_volume(volume)
        await call(context, item, "delete_volume", item.subject, deletion, lambda _: {"volume_id": volume_id})
    except ProviderError as error:
        failure = text(str(error))
    interval = context.settings.volumes_interval_seconds
    pause = pause_seconds(attempts + 1, interval / 2, 60 * interval)
    async with context.fenced(item) as connection:
        await connection.execute(_TRIED, (failure, pause, item.subject, zone, volume_id))
