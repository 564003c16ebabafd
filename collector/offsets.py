"""Who reads which partition, and from where: one row in the database per partition.

The row that holds a partition's next offset also holds its owner, an epoch that grows with each change of owner, and
a lease on the database's clock. Taking a partition bumps the epoch and reads the offset in one statement; a
transaction that writes rows advances the offset last, on condition that epoch and offset are still what it knows.
Whoever lost the row changes nothing and lets go (after Estuary's fenced checkpoints; see ARCHITECTURE.md).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from aiokafka import TopicPartition

# Every statement locks rows in the order of topic and partition, so that two transactions never wait for each other.


@dataclass(frozen=True, slots=True)
class Claim:
    """A partition held by this collector. ``next_offset`` is None where nothing was ever written.

    ``witness`` is the timestamp of the last record written: if the broker has another record in its place, the topic
    was made anew or has lost its end, and offsets mean something else now.
    """

    partition: TopicPartition
    epoch: int
    next_offset: int | None
    witness: str | None

    def at(self, next_offset: int, witness: str | None) -> "Claim":
        """The claim after a write."""
        return replace(self, next_offset=next_offset, witness=witness)


class FencedError(Exception):
    """Another collector owns a partition of this transaction now, or the offset is not where it was; nothing of the
    transaction was written."""


def register(connection: psycopg.Connection[Any], owner: str, lease_seconds: float) -> int:
    """Say that this collector lives; returns how many do."""
    connection.execute(
        "INSERT INTO ingest_collectors (owner, lease_until) VALUES (%s, clock_timestamp() + make_interval(secs => %s))"
        " ON CONFLICT (owner) DO UPDATE SET lease_until = EXCLUDED.lease_until",
        (owner, lease_seconds),
    )
    connection.execute("DELETE FROM ingest_collectors WHERE lease_until < now() - interval '1 hour'")
    row = connection.execute("SELECT count(*) FROM ingest_collectors WHERE lease_until >= now()").fetchone()
    assert row is not None
    return int(row[0])


def add_partitions(connection: psycopg.Connection[Any], partitions: Iterable[TopicPartition]) -> None:
    """Make rows for partitions that have none."""
    wanted = sorted(partitions)
    connection.execute(
        "INSERT INTO ingest_offsets (topic, partition) SELECT * FROM unnest(%s::text[], %s::int[])"
        " ON CONFLICT DO NOTHING",
        ([each.topic for each in wanted], [each.partition for each in wanted]),
    )


def take(connection: psycopg.Connection[Any], owner: str, lease_seconds: float, topic: str, most: int) -> list[Claim]:
    """Take at most ``most`` free partitions of a topic. The epoch is bumped by the statement that reads the offset:
    were it read first, a late commit of the last owner could slip between."""
    rows = connection.execute(
        "WITH free AS (SELECT topic, partition FROM ingest_offsets WHERE topic = %s"
        " AND (owner IS NULL OR lease_until < now()) ORDER BY topic, partition LIMIT %s FOR UPDATE SKIP LOCKED)"
        " UPDATE ingest_offsets o SET owner = %s, epoch = o.epoch + 1, updated_at = now(),"
        " lease_until = clock_timestamp() + make_interval(secs => %s)"
        " FROM free WHERE (o.topic, o.partition) = (free.topic, free.partition)"
        " RETURNING o.topic, o.partition, o.epoch, o.next_offset, o.topic_id",
        (topic, max(0, most), owner, lease_seconds),
    ).fetchall()
    return [Claim(TopicPartition(row[0], row[1]), row[2], row[3], row[4]) for row in rows]


def renew(
    connection: psycopg.Connection[Any], owner: str, lease_seconds: float, claims: Iterable[Claim]
) -> set[TopicPartition]:
    """Extend the leases of claims still held; returns those partitions."""
    held = list(claims)
    rows = connection.execute(
        "WITH mine AS (SELECT o.topic, o.partition FROM ingest_offsets o"
        " JOIN unnest(%s::text[], %s::int[], %s::bigint[]) AS c (topic, partition, epoch)"
        " USING (topic, partition, epoch) WHERE o.owner = %s"
        # A row locked by this collector's own transaction is being renewed by it.
        " ORDER BY o.topic, o.partition FOR UPDATE OF o)"
        " UPDATE ingest_offsets o SET lease_until = clock_timestamp() + make_interval(secs => %s) FROM mine"
        " WHERE (o.topic, o.partition) = (mine.topic, mine.partition) RETURNING o.topic, o.partition",
        (*_columns(held), owner, lease_seconds),
    ).fetchall()
    return {TopicPartition(topic, partition) for topic, partition in rows}


def release(connection: psycopg.Connection[Any], owner: str, claims: Iterable[Claim]) -> None:
    """Give partitions back, free for anyone at once."""
    connection.execute(
        "UPDATE ingest_offsets o SET owner = NULL, lease_until = NULL"
        " FROM unnest(%s::text[], %s::int[], %s::bigint[]) AS c (topic, partition, epoch)"
        " WHERE (o.topic, o.partition, o.epoch) = (c.topic, c.partition, c.epoch) AND o.owner = %s",
        (*_columns(list(claims)), owner),
    )


def unregister(connection: psycopg.Connection[Any], owner: str) -> None:
    """Say that this collector is gone."""
    connection.execute("DELETE FROM ingest_collectors WHERE owner = %s", (owner,))


def reread(connection: psycopg.Connection[Any], owner: str, claims: Iterable[Claim]) -> list[Claim]:
    """Claims still held, with the offsets the database has: after a lost answer it alone knows what was written."""
    rows = connection.execute(
        "SELECT o.topic, o.partition, o.epoch, o.next_offset, o.topic_id FROM ingest_offsets o"
        " JOIN unnest(%s::text[], %s::int[], %s::bigint[]) AS c (topic, partition, epoch)"
        " USING (topic, partition, epoch) WHERE o.owner = %s",
        (*_columns(list(claims)), owner),
    ).fetchall()
    return [Claim(TopicPartition(row[0], row[1]), row[2], row[3], row[4]) for row in rows]


def advance(
    connection: psycopg.Connection[Any],
    owner: str,
    lease_seconds: float,
    steps: Mapping[TopicPartition, tuple[Claim, int, str]],
) -> None:
    """The last statement of a transaction that writes rows: move each partition from its claim's offset to a new one.

    ``steps`` holds, for each partition, the claim, the next offset and the witness. Raises FencedError unless every
    row was still this collector's, at the offset it knows.
    """
    ordered = [steps[partition] for partition in sorted(steps)]
    cursor = connection.execute(
        "WITH step AS (SELECT *"
        " FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[], %s::bigint[], %s::text[])"
        " AS s (topic, partition, epoch, from_offset, to_offset, witness)),"
        " held AS (SELECT o.topic, o.partition, step.to_offset, step.witness FROM ingest_offsets o"
        " JOIN step USING (topic, partition, epoch)"
        " WHERE o.owner = %s AND o.next_offset IS NOT DISTINCT FROM step.from_offset"
        " ORDER BY o.topic, o.partition FOR UPDATE OF o)"
        " UPDATE ingest_offsets o SET next_offset = held.to_offset, topic_id = held.witness, updated_at = now(),"
        " lease_until = clock_timestamp() + make_interval(secs => %s)"
        " FROM held WHERE (o.topic, o.partition) = (held.topic, held.partition)",
        (
            *_columns([claim for claim, _, _ in ordered]),
            [claim.next_offset for claim, _, _ in ordered],
            [to_offset for _, to_offset, _ in ordered],
            [witness for _, _, witness in ordered],
            owner,
            lease_seconds,
        ),
    )
    if cursor.rowcount != len(ordered):
        raise FencedError(f"{len(ordered) - cursor.rowcount} of {len(ordered)} partitions are not ours any more")


def record_gap(
    connection: psycopg.Connection[Any], owner: str, lease_seconds: float, claim: Claim, to_offset: int, reason: str
) -> Claim:
    """Note that offsets cannot be read any more, and go on behind them; returns the claim there."""
    with connection.transaction():
        connection.execute(
            "INSERT INTO ingest_gaps (topic, partition, from_offset, to_offset, reason) VALUES (%s, %s, %s, %s, %s)",
            (claim.partition.topic, claim.partition.partition, claim.next_offset or 0, to_offset, reason),
        )
        advance(connection, owner, lease_seconds, {claim.partition: (claim, to_offset, "")})
    return claim.at(to_offset, "")


def _columns(claims: Sequence[Claim]) -> tuple[list[str], list[int], list[int]]:
    return (
        [claim.partition.topic for claim in claims],
        [claim.partition.partition for claim in claims],
        [claim.epoch for claim in claims],
    )
