"""What has become of simulated agents' messages in the database."""

import csv
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.sql import SQL, Composed, Identifier

from fleetpulse.local.simulated_fleet import PREFIX
from fleetpulse.report.folder import LATENCY_COLUMNS, STORED_COLUMNS

_LOOK_SECONDS: Final = 0.5
# Nothing more is expected when nothing has come for this long, and the collector has nothing left to read. It waits at
# most 15 s for a stalled client.
_QUIET_SECONDS: Final = 20.0
_LONGEST_SECONDS: Final = 300.0
# What makes a row of a relation one of a kind, and the stream that it comes from.
_RELATIONS: Final = {
    "heartbeats": ("heartbeats", ("worker_key", "sequence")),
    "system_samples": ("samples", ("worker_key",)),
    "gpu_samples": ("samples", ("gpu_key",)),
    "engine_samples": ("samples", ("engine_key",)),
}


@dataclass(frozen=True, slots=True)
class Stored:
    """Rows of a relation: those that acknowledged messages should have made, those that are there, and how many of them
    differ."""

    relation: str
    expected: int
    stored: int
    distinct: int


def wait_until_stored(
    url: str, simulation: Mapping[str, Any], unread: Callable[[], float | None], tell: Callable[[str], None]
) -> list[Stored]:
    """Look until every row is there, or no more come. ``unread`` tells how many messages the collector has not read
    yet, None when it does not say."""
    began = time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection:
        before, changed_at = count(connection, simulation), began
        if not _is_complete(before):
            tell("waiting until the collector has stored what was sent")
        while not _is_complete(before) and time.monotonic() - began < _LONGEST_SECONDS:
            if time.monotonic() - changed_at > _QUIET_SECONDS and unread() == 0:
                break
            time.sleep(_LOOK_SECONDS)
            now = count(connection, simulation)
            if now != before:
                before, changed_at = now, time.monotonic()
        return before


def _is_complete(found: list[Stored]) -> bool:
    return all(each.distinct >= each.expected for each in found)


def count(connection: psycopg.Connection, simulation: Mapping[str, Any]) -> list[Stored]:
    """What there is now of a simulation, by its counts."""
    found = []
    for relation, (stream, keys) in _RELATIONS.items():
        rows_a_message = simulation["gpus"] if relation == "gpu_samples" else 1
        names = SQL(", ").join(Identifier(name) for name in (*keys, "time"))
        query = SQL("SELECT count(*), count(DISTINCT ({names})) FROM {relation} {ours}").format(
            names=names, relation=Identifier(relation), ours=_ours()
        )
        row = connection.execute(query, _window(simulation)).fetchone()
        assert row is not None
        found.append(Stored(relation, simulation[stream]["acked"] * rows_a_message, *row))
    return found


def _ours() -> Composed:
    """Rows of this run: of simulated workers, made while it ran."""
    return SQL(
        "WHERE time BETWEEN to_timestamp(%(began)s) AND to_timestamp(%(ended)s)"
        " AND worker_key IN (SELECT worker_key FROM workers WHERE starts_with(worker_id, %(prefix)s))"
    ).format()


def _window(simulation: Mapping[str, Any]) -> dict[str, Any]:
    # Times in the database are whole microseconds.
    began, ended = simulation["began_unix_seconds"] - 1e-3, simulation["ended_unix_seconds"] + 1e-3
    return {"began": began, "ended": ended, "prefix": f"{PREFIX}-"}


def write_stored(path: Path, found: list[Stored]) -> None:
    """As a table."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(STORED_COLUMNS)
        rows.writerows((each.relation, each.expected, each.stored, each.distinct) for each in found)


def write_latencies(url: str, simulation: Mapping[str, Any], path: Path) -> str:
    """From sending to commit, of each message; returns what stands for the commit.

    That is the transaction's own time where the server keeps it (``track_commit_timestamp``). Otherwise only heartbeats
    can be told, until the collector had read them.
    """
    with psycopg.connect(url, autocommit=True) as connection, path.open("w") as file:
        row = connection.execute("SHOW track_commit_timestamp").fetchone()
        exact = row == ("on",)
        file.write(",".join(LATENCY_COLUMNS) + "\n")
        for stream, relation in (("heartbeats", "heartbeats"), ("samples", "system_samples")):
            if exact or stream == "heartbeats":
                for line in _latencies(connection, simulation, stream, relation, exact):
                    file.write(line)
    return "committed" if exact else "read by the collector"


def _latencies(
    connection: psycopg.Connection, simulation: Mapping[str, Any], stream: str, relation: str, exact: bool
) -> Iterator[str]:
    end = SQL("pg_xact_commit_timestamp({}.xmin)").format(Identifier(relation)) if exact else SQL("received_at")
    query = SQL(
        "SELECT extract(epoch FROM time)::float8, extract(epoch FROM {end} - time)::float8 FROM {relation} {ours}"
    ).format(end=end, relation=Identifier(relation), ours=_ours())
    with connection.cursor() as cursor:
        for sent, seconds in cursor.stream(query, _window(simulation)):
            if seconds is not None:
                yield f"{stream},{sent:.6f},{seconds:.6f}\n"
