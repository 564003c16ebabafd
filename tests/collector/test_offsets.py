"""The fence, statement by statement, on a real database."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from aiokafka import TopicPartition

from collector import offsets
from collector.offsets import Claim, FencedError
from fleetpulse.settings import DatabaseSettings

TOPIC = "otlp_metrics"
PARTITION = TopicPartition(TOPIC, 0)
LEASE_SECONDS = 60.0

Connect = Callable[[], psycopg.Connection]


@pytest.fixture
def connect(database_settings: DatabaseSettings) -> Iterator[Connect]:
    opened: list[psycopg.Connection] = []

    def open_one() -> psycopg.Connection:
        opened.append(psycopg.connect(database_settings.url.get_secret_value(), autocommit=True))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


@pytest.fixture
def database(connect: Connect) -> psycopg.Connection:
    connection = connect()
    offsets.add_partitions(connection, [TopicPartition(TOPIC, number) for number in range(4)])
    return connection


def take_one(connection: psycopg.Connection, owner: str, lease_seconds: float = LEASE_SECONDS) -> Claim:
    (claim,) = offsets.take(connection, owner, lease_seconds, TOPIC, 1)
    return claim


def expire(connection: psycopg.Connection, owner: str) -> None:
    connection.execute("UPDATE ingest_offsets SET lease_until = now() - interval '1 second' WHERE owner = %s", (owner,))


def step(claim: Claim, to_offset: int) -> dict:
    return {claim.partition: (claim, to_offset, "witness")}


def write_row(connection: psycopg.Connection, owner: str, claim: Claim, to_offset: int) -> None:
    """A transaction as a collector makes it: a row first, the fence last."""
    with connection.transaction():
        connection.execute("INSERT INTO system_samples (time, worker_key) VALUES (now(), 1)")
        offsets.advance(connection, owner, LEASE_SECONDS, step(claim, to_offset))


def rows(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT count(*) FROM system_samples").fetchone()
    assert row is not None
    return row[0]


def test_taking_bumps_the_epoch_and_reads_the_offset_in_one_statement(database):
    first = take_one(database, "a")
    offsets.advance(database, "a", LEASE_SECONDS, step(first, 10))
    expire(database, "a")
    (second,) = [claim for claim in offsets.take(database, "b", 60, TOPIC, 4) if claim.partition == first.partition]
    assert (second.epoch, second.next_offset, second.witness) == (first.epoch + 1, 10, "witness")


def test_a_zombie_that_wakes_up_mid_transaction_writes_nothing(database, connect):
    zombie = connect()
    claim = take_one(zombie, "zombie")
    zombie.execute("BEGIN")
    zombie.execute("INSERT INTO system_samples (time, worker_key) VALUES (now(), 1)")
    expire(database, "zombie")
    heir = next(claim for claim in offsets.take(database, "heir", 60, TOPIC, 4) if claim.partition == PARTITION)
    write_row(database, "heir", heir, 5)
    with pytest.raises(FencedError):
        offsets.advance(zombie, "zombie", LEASE_SECONDS, step(claim, 5))
    zombie.execute("ROLLBACK")
    assert rows(database) == 1


def test_a_zombie_that_holds_the_lock_is_passed_over_until_it_is_gone(database, connect):
    zombie = connect()
    claim = take_one(zombie, "zombie", 0.001)
    zombie.execute("BEGIN")
    offsets.advance(zombie, "zombie", 0.001, step(claim, 5))
    taken = offsets.take(database, "heir", LEASE_SECONDS, TOPIC, 4)
    assert claim.partition not in {each.partition for each in taken}
    zombie.execute("ROLLBACK")
    (heir,) = offsets.take(database, "heir", LEASE_SECONDS, TOPIC, 4)
    assert (heir.partition, heir.next_offset) == (claim.partition, None)


def test_the_server_ends_a_transaction_left_open(database_settings):
    from collector.database_thread import IDLE_IN_TRANSACTION, DatabaseThread

    thread = DatabaseThread(database_settings, "test")
    connection = thread._connect()
    row = connection.execute("SHOW idle_in_transaction_session_timeout").fetchone()
    connection.close()
    assert row == (IDLE_IN_TRANSACTION,)


def test_a_write_delivered_twice_by_one_owner_counts_once(database):
    claim = take_one(database, "a")
    write_row(database, "a", claim, 5)
    with pytest.raises(FencedError):
        write_row(database, "a", claim, 5)
    assert rows(database) == 1


def test_after_a_lost_answer_the_offset_in_the_database_decides(database):
    claim = take_one(database, "a")
    write_row(database, "a", claim, 5)  # the answer never came
    (known,) = offsets.reread(database, "a", [claim])
    assert known.next_offset == 5
    write_row(database, "a", known, 9)
    assert rows(database) == 2


def test_a_crash_between_rows_and_fence_leaves_neither(database, connect):
    doomed = connect()
    claim = take_one(doomed, "a")
    doomed.execute("BEGIN")
    doomed.execute("INSERT INTO system_samples (time, worker_key) VALUES (now(), 1)")
    doomed.close()
    (known,) = offsets.reread(database, "a", [claim])
    assert (rows(database), known.next_offset) == (0, None)


def test_a_database_that_lost_its_last_commits_is_read_into_again(database):
    """As after a failover to a replica: rows and offset went back together."""
    claim = take_one(database, "a")
    write_row(database, "a", claim, 5)
    ahead = claim.at(5, "witness")
    database.execute("DELETE FROM system_samples")
    database.execute("UPDATE ingest_offsets SET next_offset = NULL WHERE partition = %s", (claim.partition.partition,))
    with pytest.raises(FencedError):
        write_row(database, "a", ahead, 9)
    (known,) = offsets.reread(database, "a", [ahead])
    assert known.next_offset is None


def test_one_lost_partition_rolls_back_the_whole_transaction(database):
    claims = offsets.take(database, "a", LEASE_SECONDS, TOPIC, 2)
    lost = claims[0].partition.partition
    database.execute("UPDATE ingest_offsets SET owner = 'b', epoch = epoch + 1 WHERE partition = %s", (lost,))
    steps = {claim.partition: (claim, 7, "") for claim in claims}

    def write_both() -> None:
        with database.transaction():
            database.execute("INSERT INTO system_samples (time, worker_key) VALUES (now(), 1)")
            offsets.advance(database, "a", LEASE_SECONDS, steps)

    with pytest.raises(FencedError):
        write_both()
    assert rows(database) == 0
    assert [claim.next_offset for claim in offsets.reread(database, "a", claims)] == [None]


def test_two_collectors_never_take_the_same_partition(database, connect):
    other = connect()
    mine = {claim.partition for claim in offsets.take(database, "a", LEASE_SECONDS, TOPIC, 3)}
    theirs = {claim.partition for claim in offsets.take(other, "b", LEASE_SECONDS, TOPIC, 3)}
    assert (len(mine), len(theirs), mine & theirs) == (3, 1, set())


def test_only_the_holder_renews(database):
    claim = take_one(database, "a")
    assert offsets.renew(database, "a", LEASE_SECONDS, [claim]) == {claim.partition}
    expire(database, "a")
    offsets.take(database, "b", LEASE_SECONDS, TOPIC, 4)
    assert offsets.renew(database, "a", LEASE_SECONDS, [claim]) == set()


def test_a_partition_given_back_is_free_at_once(database):
    claim = take_one(database, "a")
    offsets.release(database, "a", [claim])
    assert claim.partition in {each.partition for each in offsets.take(database, "b", LEASE_SECONDS, TOPIC, 4)}


def test_a_gap_is_a_row_and_reading_goes_on_behind_it(database):
    claim = take_one(database, "a")
    offsets.advance(database, "a", LEASE_SECONDS, step(claim, 5))
    moved = offsets.record_gap(database, "a", LEASE_SECONDS, claim.at(5, "witness"), 40, "expired")
    assert moved.next_offset == 40
    gaps = database.execute("SELECT topic, partition, from_offset, to_offset, reason FROM ingest_gaps").fetchall()
    assert gaps == [(TOPIC, claim.partition.partition, 5, 40, "expired")]


def test_the_dead_are_not_counted_among_the_collectors(database):
    assert offsets.register(database, "a", LEASE_SECONDS) == 1
    assert offsets.register(database, "b", LEASE_SECONDS) == 2
    database.execute("UPDATE ingest_collectors SET lease_until = now() - interval '1 second' WHERE owner = 'b'")
    assert offsets.register(database, "a", LEASE_SECONDS) == 1
    offsets.unregister(database, "a")
    assert database.execute("SELECT owner FROM ingest_collectors").fetchall() == [("b",)]
