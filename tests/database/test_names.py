"""What the migrations write down and the code defines is the same."""

from typing import get_args

import psycopg

from fleetpulse.stream.dictionary import TABLES
from fleetpulse.stream.heartbeat import EngineState, WorkerStatus


def test_counters_are_the_measures_whose_names_end_in_total():
    # The migrations tell counters by their names.
    measures = [measure for table in TABLES for measure in table.measures]
    assert [m.column for m in measures if m.column.endswith("_total")] == [
        m.column for m in measures if m.kind == "counter"
    ]


def test_codes_in_the_database_are_places_in_the_heartbeat_types(database_url):
    with psycopg.connect(database_url) as connection:
        statuses = connection.execute("SELECT code, name FROM heartbeat_statuses ORDER BY code").fetchall()
        states = connection.execute("SELECT code, name FROM engine_states ORDER BY code").fetchall()
    assert statuses == list(enumerate(get_args(WorkerStatus)))
    assert states == list(enumerate(get_args(EngineState)))
