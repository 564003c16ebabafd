"""The rows of work: planned, claimed in a short transaction, guarded by a token, and put back.

Nothing is locked while work is done. All times are the database's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg.types.json import Jsonb

from control.database import Database, Row
from control.jobs.framework.item import Instance, Item
from control.jobs.framework.job import FLEET, Job
from control.jobs.framework.lease import Connection
from control.lifecycle.evidence import plain

_KNOWN_STATES: Final = "SELECT state, job, delay_seconds FROM job_states WHERE job = ANY(%(jobs)s::text[])"
# An instance that is being written was planned by the old states, and is not seen by _MISSING before it is there.
_LOCK_INSTANCES: Final = "LOCK TABLE instances IN SHARE ROW EXCLUSIVE MODE"
# Jobs that this process does not have are left alone: a newer one may have them.
_STATES: Final = """
WITH wanted AS (
    SELECT * FROM unnest(%(states)s::text[], %(jobs)s::text[], %(delays)s::float8[]) AS w(state, job, delay_seconds)
), dropped AS (
    DELETE FROM job_states AS s
    WHERE s.job = ANY(%(jobs)s::text[]) AND NOT EXISTS (
        SELECT FROM wanted AS w WHERE w.state = s.state AND w.job = s.job
    )
)
INSERT INTO job_states (state, job, delay_seconds)
SELECT state, job, delay_seconds FROM wanted
ON CONFLICT (state, job) DO UPDATE SET delay_seconds = EXCLUDED.delay_seconds
WHERE job_states.delay_seconds <> EXCLUDED.delay_seconds
"""
_MISSING: Final = """
INSERT INTO job_work (subject, job, due_at)
SELECT i.instance_id, s.job, greatest(i.state_since + s.delay_seconds * interval '1 second', now())
FROM instances AS i
JOIN job_states AS s USING (state)
ON CONFLICT (subject, job) DO NOTHING
"""
_ALWAYS: Final = """
INSERT INTO job_work (subject, job, due_at)
SELECT subject, job, now() FROM unnest(%(subjects)s::text[], %(jobs)s::text[]) AS w(subject, job)
ON CONFLICT (subject, job) DO NOTHING
"""
_DUE: Final = """
SELECT j.job, extract(epoch FROM now() - w.due_at)::float8
FROM unnest(%(jobs)s::text[]) AS j(job)
CROSS JOIN LATERAL (
    SELECT due_at FROM job_work WHERE job = j.job AND owner IS NULL AND due_at <= now() ORDER BY due_at LIMIT 1
) AS w
UNION ALL
SELECT NULL, 0 WHERE EXISTS (SELECT FROM job_work WHERE owner IS NOT NULL AND lease_until < now())
"""
# A new token: whoever let the lease run out has lost the work, claimed again or not.
_TAKE_BACK: Final = """
UPDATE job_work SET owner = NULL, lease_until = NULL, token = nextval('job_tokens')
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM job_work WHERE owner IS NOT NULL AND lease_until < now() LIMIT 1000 FOR UPDATE SKIP LOCKED
))
"""
_CLAIM: Final = """
WITH due AS (
    SELECT subject, job FROM job_work
    WHERE job = %(job)s AND owner IS NULL AND due_at <= now()
    ORDER BY due_at
    LIMIT %(most)s
    FOR UPDATE SKIP LOCKED
)
UPDATE job_work AS w
SET owner = %(owner)s, lease_until = clock_timestamp() + %(seconds)s * interval '1 second',
    token = nextval('job_tokens')
FROM due
WHERE w.subject = due.subject AND w.job = due.job
RETURNING w.subject, w.token, w.attempts, w.memory, extract(epoch FROM now() - w.due_at)::float8
"""
_INSTANCES: Final = """
SELECT
    i.instance_id, i.state, extract(epoch FROM clock_timestamp() - i.state_since)::float8, i.version, i.provider,
    i.zone, i.instance_type, m.hugging_face_id, i.machine_id, i.address, i.agent_url, i.engine_url, i.price_per_hour,
    i.organization_id, i.options, i.correlation_id
FROM instances AS i
LEFT JOIN models AS m USING (model_id)
WHERE i.instance_id = ANY(%s)
"""
_RENEW: Final = """
UPDATE job_work AS w SET lease_until = clock_timestamp() + %(seconds)s * interval '1 second'
FROM unnest(%(subjects)s::text[], %(jobs)s::text[], %(tokens)s::bigint[]) AS r(subject, job, token)
WHERE w.subject = r.subject AND w.job = r.job AND w.token = r.token AND w.lease_until > clock_timestamp()
"""
# The instance first: a transition takes its row and then its work, and two that lock in turns lock each other out.
_RELEASE: Final = """
UPDATE job_work AS w
SET due_at = clock_timestamp() + r.seconds * interval '1 second', attempts = r.attempts, memory = r.memory,
    owner = NULL, lease_until = NULL
FROM unnest(
    %(subjects)s::text[], %(jobs)s::text[], %(tokens)s::bigint[], %(seconds)s::float8[], %(attempts)s::int[],
    %(memories)s::jsonb[]
) AS r(subject, job, token, seconds, attempts, memory)
WHERE w.subject = r.subject AND w.job = r.job AND w.token = r.token AND w.owner IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Release:
    """An item to put back."""

    item: Item
    again_seconds: float
    attempts: int
    memory: Mapping[str, Any]


async def plan(database: Database, jobs: Sequence[Job], providers: Sequence[str]) -> None:
    """Tell the database who looks after what, and add the work that is missing. Raises UnavailableError."""
    looked_after = [(state, job.name, job.delay_seconds) for job in jobs for state in job.states]
    subjects = {"instance": (), "provider": providers, "fleet": (FLEET,)}
    always = [(subject, job.name) for job in jobs for subject in subjects[job.per]]
    states = _columns(("states", "jobs", "delays"), looked_after)
    is_known = set(await database.rows(_KNOWN_STATES, states)) == set(looked_after)
    async with database.transaction() as connection:
        if not is_known:
            await connection.execute(_LOCK_INSTANCES)
            await connection.execute(_STATES, states)
        await connection.execute(_MISSING)
        await connection.execute(_ALWAYS, _columns(("subjects", "jobs"), always))


async def due(database: Database, jobs: Sequence[Job]) -> tuple[dict[str, float], bool]:
    """Seconds that each job's oldest due item waits, and whether leases have run out. Raises UnavailableError."""
    rows = await database.rows(_DUE, {"jobs": [job.name for job in jobs]})
    return {job: age for job, age in rows if job is not None}, any(job is None for job, _ in rows)


async def take_back(database: Database) -> int:
    """Make work due again whose owner died; returns how much. Raises UnavailableError."""
    async with database.transaction() as connection:
        return (await connection.execute(_TAKE_BACK)).rowcount


async def claim(database: Database, job: Job, owner: str, most: int, lease_seconds: float) -> list[Item]:
    """At most ``most`` due items, those that wait longest. Raises UnavailableError."""
    async with database.transaction() as connection:
        cursor = await connection.execute(
            _CLAIM, {"job": job.name, "owner": owner, "most": most, "seconds": lease_seconds}
        )
        rows = await cursor.fetchall()
        instances = await read(connection, [row[0] for row in rows]) if job.per == "instance" and rows else {}
    return [_item(job, row, instances.get(row[0])) for row in rows]


async def read(connection: Connection, instance_ids: Sequence[str]) -> dict[str, Instance]:
    """The instances that there are."""
    cursor = await connection.execute(_INSTANCES, (list(instance_ids),))
    return {row[0]: Instance(*row) for row in await cursor.fetchall()}


async def renew(database: Database, items: Sequence[Item], lease_seconds: float) -> int:
    """Keep items that are still being worked on; those that ran out are lost. Raises UnavailableError."""
    columns = _columns(("subjects", "jobs", "tokens"), [(item.subject, item.job, item.token) for item in items])
    async with database.transaction() as connection:
        return (await connection.execute(_RENEW, {**columns, "seconds": lease_seconds})).rowcount


async def release(database: Database, releases: Sequence[Release]) -> int:
    """Put items back; those that are no longer ours stay as they are. Raises UnavailableError."""
    rows = [
        (one.item.subject, one.item.job, one.item.token, one.again_seconds, one.attempts, Jsonb(plain(one.memory)))
        for one in releases
    ]
    names = ("subjects", "jobs", "tokens", "seconds", "attempts", "memories")
    async with database.transaction() as connection:
        return (await connection.execute(_RELEASE, _columns(names, rows))).rowcount


def _columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """Rows as one array a column."""
    return {name: [row[number] for row in rows] for number, name in enumerate(names)}


def _item(job: Job, row: Row, instance: Instance | None) -> Item:
    subject, token, attempts, memory, late_seconds = row
    return Item(job.name, subject, token, attempts, memory, max(0.0, late_seconds), instance)
