"""Names to keys, in a real database."""

import json
import time

import psycopg

from collector.directory import UNKNOWN, Directory
from collector.walk import SeriesKey, Worker
from fleetpulse.settings import DatabaseSettings

MOST = 4_000


def resolved(connection: psycopg.Connection, numbers: range) -> list[int]:
    """The keys that a collector just started gets for the series of one worker."""
    directory = Directory(MOST)
    worker = directory.worker(Worker("w", "w", "", None))
    series = [SeriesKey("doors", "1", "gauge", "", json.dumps({"door": number})) for number in numbers]
    references = [directory.series(worker, each) for each in series]
    directory.resolve(connection)
    return [directory.series_keys.one(reference) for reference in references]


def test_thousands_of_series_get_their_keys_in_a_moment_and_the_same_ones_after_a_restart(
    database_settings: DatabaseSettings,
) -> None:
    with psycopg.connect(database_settings.url.get_secret_value(), autocommit=True) as connection:
        began = time.monotonic()
        first = resolved(connection, range(MOST))
        second = resolved(connection, range(MOST))
        # Half a second; where the worker's series were counted for each of them, half a minute on a busy machine.
        assert time.monotonic() - began < 10
        assert first == second
        assert len({*first} - {UNKNOWN}) == MOST
        beyond = resolved(connection, range(MOST - 1, MOST + 2))
        assert beyond == [first[-1], UNKNOWN, UNKNOWN]


def test_a_collector_that_gets_little_of_the_processor_is_not_cut_off_between_two_names(
    database_settings: DatabaseSettings,
) -> None:
    with psycopg.connect(database_settings.url.get_secret_value(), autocommit=True) as connection:
        connection.execute("SET idle_in_transaction_session_timeout = '1ms'")
        first = resolved(connection, range(MOST))
        assert first == resolved(connection, range(MOST))
        assert UNKNOWN not in first
