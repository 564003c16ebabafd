"""Samples to put into a database, and rollups of them computed here, from nothing but the samples."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from fleetpulse.database.relations import GROUPS, KEYS, Group, expected
from fleetpulse.stream.dictionary import TABLES
from fleetpulse.stream.measure import Table

WIDTHS = {"_1m": timedelta(minutes=1), "_1h": timedelta(hours=1), "_1d": timedelta(days=1)}
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

Row = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """Random samples, and what the database should make of them."""

    seed: int

    def samples(self, table: Table, bursts: Iterable[datetime], rows_per_burst: int) -> list[Row]:
        """Rows of several workers in bursts of a few minutes; no two of one key at one time; readings missing.

        Values are multiples of 1/8, so that sums are exact in any order.
        """
        chance = random.Random(f"{self.seed} {table.name}")
        rows = []
        for burst in bursts:
            offsets = chance.sample(range(0, 240_000, 250), rows_per_burst)
            for offset in offsets:
                worker = chance.randint(1, 3)
                keys = dict(zip(KEYS[table.name], (worker, worker * 10 + chance.randint(0, 1)), strict=False))
                rows.append(
                    {"time": burst + timedelta(milliseconds=offset)}
                    | keys
                    | {column: _reading(chance) for column in table.columns}
                )
        return rows

    def rollup(self, table: Table, rows: Sequence[Row], suffix: str) -> list[tuple[Any, ...]]:
        """Rows of the table's rollup, ordered by keys and bucket."""
        width = WIDTHS[suffix]
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in sorted(rows, key=lambda each: each["time"]):
            bucket = EPOCH + (row["time"] - EPOCH) // width * width
            groups.setdefault((*(row[key] for key in KEYS[table.name]), bucket), []).append(row)
        found = []
        for (*keys, bucket), members in sorted(groups.items()):
            cells: list[Any] = [bucket, *keys, len(members)]
            for measure in table.measures:
                values = [row[measure.column] for row in members if row[measure.column] is not None]
                low, high = min(values, default=None), max(values, default=None)
                first, last = (values[0], values[-1]) if values else (None, None)
                if measure.kind == "counter":
                    cells += [len(values), low, high, first, last]
                else:
                    cells += [sum(values) if values else None, len(values), low, high, last]
            found.append(tuple(cells))
        return found

    def grouped(self, group: Group, table: Table, rows: Sequence[Row], suffix: str) -> list[tuple[Any, ...]]:
        """Rows of the group's rollup, ordered by keys and bucket."""
        series_key = KEYS[table.name][-1]
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in sorted(rows, key=lambda each: each["time"]):
            bucket = EPOCH + (row["time"] - EPOCH) // WIDTHS[suffix] * WIDTHS[suffix]
            groups.setdefault((*(row[key] for key in group.keys), bucket), []).append(row)
        found = []
        for (*keys, bucket), members in sorted(groups.items()):
            cells: list[Any] = [bucket, *keys, len({row[series_key] for row in members}), len(members)]
            for measure in table.measures:
                read = [row for row in members if row[measure.column] is not None]
                values = [row[measure.column] for row in read]
                if measure.kind == "counter":
                    series = _readings_by_series(read, series_key, measure.column)
                    cells += [sum(map(_increase, series)) if series else None, len(values), len(series)]
                else:
                    low, high = min(values, default=None), max(values, default=None)
                    cells += [sum(values) if values else None, len(values), low, high]
            found.append(tuple(cells))
        return found


def _readings_by_series(rows: Sequence[Row], series_key: str, column: str) -> list[list[float]]:
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row[series_key], []).append(row[column])
    return list(found.values())


def _increase(readings: Sequence[float]) -> float:
    """What a rollup knows of a counter's increase: a reset is seen where the minimum is below the first value."""
    first, last, low, high = readings[0], readings[-1], min(readings), max(readings)
    if low >= first:
        return last - first
    return last + (high - first if high > last else 0)


def _reading(chance: random.Random) -> float | None:
    return None if chance.random() < 0.3 else chance.randint(-8_000, 8_000_000) / 8


@pytest.fixture
def workload() -> Workload:
    """Random samples; the seed is shown when the test fails."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"workload seed {seed}")
    return Workload(seed)


@pytest.fixture
def insert() -> Callable[[psycopg.Connection[Any], str, Sequence[Row]], None]:
    """Insert samples as a collector does: with marks for their minutes where the profile has those."""

    def insert_rows(connection: psycopg.Connection[Any], relation: str, rows: Sequence[Row]) -> None:
        columns = expected("postgres")[relation]
        with connection.transaction():
            statement = f"INSERT INTO {relation} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})"
            # One at a time: in a pipeline the WASM database's socket loses its place now and then.
            for row in rows:
                connection.execute(statement, [row.get(column) for column in columns])
            if connection.execute("SELECT to_regclass('rollup_dirty')").fetchone() != (None,):
                connection.execute(
                    "INSERT INTO rollup_dirty SELECT DISTINCT %s, date_trunc('minute', t)"
                    " FROM unnest(%s::timestamptz[]) AS t",
                    (relation, [row["time"] for row in rows]),
                )

    return insert_rows


@pytest.fixture
def differences() -> Callable[[psycopg.Connection[Any], Workload, dict[str, list[Row]]], list[str]]:
    """Where the rollups in the database are not those of the samples given, in words."""

    def compare(connection: psycopg.Connection[Any], workload: Workload, samples: dict[str, list[Row]]) -> list[str]:
        found = []
        for suffix in WIDTHS:
            for table in TABLES:
                wanted = workload.rollup(table, samples[table.name], suffix)
                found += _differences(connection, f"{table.name}{suffix}", KEYS[table.name], wanted)
            for group in GROUPS:
                table = next(table for table in TABLES if table.name == group.samples)
                wanted = workload.grouped(group, table, samples[table.name], suffix)
                found += _differences(connection, f"{group.name}{suffix}", group.keys, wanted)
        return found[:300]

    return compare


def _differences(
    connection: psycopg.Connection[Any], relation: str, keys: Sequence[str], wanted: Sequence[tuple[Any, ...]]
) -> list[str]:
    rows = connection.execute(f"SELECT * FROM {relation} ORDER BY {', '.join([*keys, 'bucket'])}").fetchall()
    found = [] if len(rows) == len(wanted) else [f"{relation} has {len(rows)} rows, not {len(wanted)}"]
    for row, want in zip(rows, wanted, strict=False):
        cells = zip(expected("postgres")[relation], row, want, strict=True)
        found += [f"{relation} {want[:3]}: {name} is {a}, not {b}" for name, a, b in cells if a != b]
    return found
