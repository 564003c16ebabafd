"""The collector with a planted bug, to see that the checker catches it: python planted_collector.py BUG."""

import os
import sys
import time

import psycopg

from collector import database_thread, offsets
from collector.database_thread import DatabaseThread
from collector.ownership import Ownership
from collector.write import Writer, WriteSet
from fleetpulse.command import main

_write = Writer.write


def _stall() -> None:
    """The moment in which the bug bites, held open long enough for a fault to fall into it."""
    time.sleep(float(os.environ.get("PLANTED_STALL_SECONDS", "0.05")))


def offset_before_rows() -> None:
    """Commit the offsets first, then the rows: a crash in between loses them."""

    def write(self: Writer, connection: psycopg.Connection, work: WriteSet) -> None:
        offsets.advance(connection, self.owner, self.lease_seconds, work.steps)
        _stall()
        _without_fence(lambda: _write(self, connection, work))

    Writer.write = write


def _without_fence(action) -> None:
    advance = offsets.advance
    offsets.advance = lambda *_: None
    try:
        action()
    finally:
        offsets.advance = advance


def no_fence() -> None:
    """Advance the offsets whoever owns them: one that slept through its lease writes what another has written."""

    def advance(connection, owner, lease_seconds, steps) -> None:
        _stall()
        for partition, (_, offset, witness) in steps.items():
            connection.execute(
                "UPDATE ingest_offsets SET next_offset = greatest(next_offset, %s), topic_id = %s"
                " WHERE topic = %s AND partition = %s",
                (offset, witness, partition.topic, partition.partition),
            )

    offsets.advance = advance
    # The server's own time limit on open transactions would hide the bug at times.
    database_thread.IDLE_IN_TRANSACTION = "60s"
    # It also believes in its leases for ever, as a collector without a fence has to.
    offsets.renew = lambda *given: {claim.partition for claim in given[3]}
    Ownership._changed_since = lambda *given: {claim.partition for claim in given[1]}


def blind_resend() -> None:
    """After a lost answer write the same batch again, without asking what became of the first time."""
    run = DatabaseThread._run

    def _run(self: DatabaseThread, work):
        try:
            return run(self, work)
        except psycopg.OperationalError:
            while True:
                time.sleep(0.2)
                try:
                    return run(self, lambda connection: _without_fence(lambda: work(connection)))
                except psycopg.OperationalError:
                    continue

    def write(self: Writer, connection: psycopg.Connection, work: WriteSet) -> None:
        _write(self, connection, work)
        # The commit is done, the answer is not yet here.
        _stall()
        connection.execute("SELECT 1")

    DatabaseThread._run = _run
    Writer.write = write


BUGS = {bug.__name__: bug for bug in (offset_before_rows, no_fence, blind_resend)}

if __name__ == "__main__":
    BUGS[sys.argv[1]]()
    sys.exit(main(["collector"]))
