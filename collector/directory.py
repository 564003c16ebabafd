"""From names to the small integers that sample tables hold: workers, GPUs, engines and series.

Names become references at once and keys when the database has been asked. A reference is an index into the arrays of
keys, so that a batch of thousands of rows is turned into keys by one gather.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg

from collector.template import Plan
from collector.walk import SeriesKey, Worker
from fleetpulse.stream.dictionary import ENGINE, GPU, TABLES

UNKNOWN: Final = -1
# More GPUs and engine-model pairs than any host has; a sender of endless identifiers is stopped here.
ROWS_PER_WORKER: Final = 1_024
# Of one statement: a part of a second, so that a lock or a timeout concerns little.
SERIES_TOGETHER: Final = 5_000

_GPU_TABLE: Final = TABLES.index(GPU)
_ENGINE_TABLE: Final = TABLES.index(ENGINE)


class Keys:
    """A growing array of keys by reference."""

    def __init__(self) -> None:
        self._keys: npt.NDArray[np.int64] = np.full(1024, UNKNOWN, dtype=np.int64)
        self._count = 0

    def add(self, key: int = UNKNOWN) -> int:
        """A new reference."""
        if self._count == len(self._keys):
            self._keys = np.concatenate([self._keys, np.full(len(self._keys), UNKNOWN, dtype=np.int64)])
        self._keys[self._count] = key
        self._count += 1
        return self._count - 1

    def put(self, reference: int, key: int) -> None:
        """Set a reference's key."""
        self._keys[reference] = key

    def of(self, references: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Keys of many references."""
        return self._keys[references]

    def one(self, reference: int) -> int:
        """Key of one reference."""
        return int(self._keys[reference])


@dataclass(frozen=True, slots=True)
class References:
    """A plan's worker, the rows of each of its tables (UNKNOWN beyond the cap) and its series (likewise)."""

    worker: int
    rows: tuple[npt.NDArray[np.int64], ...]
    series: npt.NDArray[np.int64]
    capped_rows: int
    capped_series: int


@dataclass(slots=True)
class _Missing:
    """Names whose keys the database must give."""

    workers: list[tuple[int, Worker]] = field(default_factory=list)
    rows: list[tuple[int, int, int, str, str, int | None, str | None]] = field(default_factory=list)
    series: list[tuple[int, int, SeriesKey]] = field(default_factory=list)


class Directory:
    """Known names. Emptied whenever the database may have forgotten what it told (a crash, a failover)."""

    def __init__(self, series_per_worker: int) -> None:
        self._series_per_worker = series_per_worker
        self.generation = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything; references given before are void."""
        self.generation += 1
        self.worker_keys = Keys()
        self.row_keys = Keys()
        self.series_keys = Keys()
        self._workers: dict[tuple[str, str], int] = {}
        self._rows: dict[tuple[int, int, str, str], int] = {}
        self._row_counts: dict[int, int] = {}
        self._series: dict[tuple[int, bytes], int] = {}
        self._series_counts: dict[int, int] = {}
        self._names: list[tuple[str, str]] = []
        self._missing = _Missing()

    @property
    def incomplete(self) -> bool:
        """Whether references without keys wait for resolve()."""
        return bool(self._missing.workers or self._missing.rows or self._missing.series)

    @property
    def size(self) -> int:
        """How many names are known."""
        return len(self._names) + len(self._rows) + len(self._series)

    def name_of(self, worker: int) -> tuple[str, str]:
        """Worker id and instance id of a worker reference."""
        return self._names[worker]

    def worker(self, worker: Worker) -> int:
        """Reference of a worker."""
        name = (worker.worker_id, worker.instance_id)
        reference = self._workers.get(name)
        if reference is None:
            reference = self._workers[name] = self.worker_keys.add()
            self._names.append(name)
            self._missing.workers.append((reference, worker))
        return reference

    def references(self, plan: Plan) -> References:
        """References of a plan, remembered in it for as long as they are valid."""
        if plan.references is not None and plan.references[0] == self.generation:
            found: References = plan.references[1]
            return found
        worker = self.worker(plan.worker)
        rows = tuple(
            np.array(
                [self._row(worker, cells.table, row.key.row, row.key.label, plan) for row in cells.rows], dtype=np.int64
            )
            for cells in plan.tables
        )
        series = np.array([self.series(worker, point.series) for point in plan.points], dtype=np.int64)
        capped_rows = int(sum((each == UNKNOWN).sum() for each in rows))
        found = References(worker, rows, series, capped_rows, int((series == UNKNOWN).sum()))
        plan.references = (self.generation, found)
        return found

    def _row(self, worker: int, table: int, row: str, label: str, plan: Plan) -> int:
        if table not in {_GPU_TABLE, _ENGINE_TABLE}:
            return 0  # a host has one row: its key is the worker's
        name = (worker, table, row, label)
        reference = self._rows.get(name)
        if reference is None:
            count = self._row_counts.get(worker, 0)
            if count >= ROWS_PER_WORKER:
                return UNKNOWN
            self._row_counts[worker] = count + 1
            reference = self._rows[name] = self.row_keys.add()
            index, model = plan.gpus.get(row, (None, None)) if table == _GPU_TABLE else (None, None)
            self._missing.rows.append((reference, worker, table, row, label, index, model))
        return reference

    def series(self, worker: int, series: SeriesKey) -> int:
        """Reference of a generic series; UNKNOWN when the worker has as many as it may."""
        digest = series.digest
        reference = self._series.get((worker, digest))
        if reference is None:
            count = self._series_counts.get(worker, 0)
            if count >= self._series_per_worker:
                return UNKNOWN
            self._series_counts[worker] = count + 1
            reference = self._series[worker, digest] = self.series_keys.add()
            self._missing.series.append((reference, worker, series))
        return reference

    def resolve(self, connection: psycopg.Connection[Any]) -> None:
        """Ask the database for all missing keys; new names are added there.

        Each statement is a transaction of its own: names harm nobody, and where the processor is scarce, preparing the
        next statement can take longer than a transaction may be idle.
        """
        missing, self._missing = self._missing, _Missing()
        self._resolve_workers(connection, missing.workers)
        gpus = [row for row in missing.rows if row[2] == _GPU_TABLE]
        if gpus:
            self._resolve_gpus(connection, gpus)
        engines = [row for row in missing.rows if row[2] == _ENGINE_TABLE]
        if engines:
            self._resolve_engines(connection, engines)
        for start in range(0, len(missing.series), SERIES_TOGETHER):
            self._resolve_series(connection, missing.series[start : start + SERIES_TOGETHER])

    def _resolve_workers(self, connection: psycopg.Connection[Any], missing: Sequence[tuple[int, Worker]]) -> None:
        if not missing:
            return
        names = sorted({(worker.worker_id, worker.instance_id, worker.host_name) for _, worker in missing})
        ids, instances, hosts = (list(each) for each in zip(*names, strict=True))
        connection.execute(
            "INSERT INTO workers (worker_id, instance_id, host_name)"
            " SELECT * FROM unnest(%s::text[], %s::text[], %s::text[]) ON CONFLICT DO NOTHING",
            (ids, instances, hosts),
        )
        found = connection.execute(
            "SELECT w.worker_id, w.instance_id, w.worker_key FROM workers w"
            " JOIN unnest(%s::text[], %s::text[]) AS n (worker_id, instance_id) USING (worker_id, instance_id)",
            (ids, instances),
        )
        keys = {(worker_id, instance_id): key for worker_id, instance_id, key in found}
        for reference, worker in missing:
            self.worker_keys.put(reference, keys[worker.worker_id, worker.instance_id])

    def _resolve_gpus(self, connection: psycopg.Connection[Any], rows: Sequence[Any]) -> None:
        rows = sorted(rows, key=lambda row: (self.worker_keys.one(row[1]), row[3]))
        workers = [self.worker_keys.one(row[1]) for row in rows]
        names = [row[3] for row in rows]
        connection.execute(
            "INSERT INTO gpus (worker_key, hw_id, gpu_index, model)"
            " SELECT * FROM unnest(%s::int[], %s::text[], %s::int[], %s::text[]) ON CONFLICT DO NOTHING",
            (workers, names, [row[5] for row in rows], [row[6] for row in rows]),
        )
        found = connection.execute(
            "SELECT g.worker_key, g.hw_id, g.gpu_key FROM gpus g"
            " JOIN unnest(%s::int[], %s::text[]) AS n (worker_key, hw_id) USING (worker_key, hw_id)",
            (workers, names),
        )
        keys = {(worker, name): key for worker, name, key in found}
        for row, worker in zip(rows, workers, strict=True):
            self.row_keys.put(row[0], keys[worker, row[3]])

    def _resolve_engines(self, connection: psycopg.Connection[Any], rows: Sequence[Any]) -> None:
        rows = sorted(rows, key=lambda row: (self.worker_keys.one(row[1]), row[3], row[4]))
        workers = [self.worker_keys.one(row[1]) for row in rows]
        models, indices = [row[3] for row in rows], [row[4] for row in rows]
        connection.execute(
            "INSERT INTO engines (worker_key, model_id, engine_index)"
            " SELECT * FROM unnest(%s::int[], %s::text[], %s::text[]) ON CONFLICT DO NOTHING",
            (workers, models, indices),
        )
        found = connection.execute(
            "SELECT e.worker_key, e.model_id, e.engine_index, e.engine_key FROM engines e"
            " JOIN unnest(%s::int[], %s::text[], %s::text[]) AS n (worker_key, model_id, engine_index)"
            " USING (worker_key, model_id, engine_index)",
            (workers, models, indices),
        )
        keys = {(worker, model, index): key for worker, model, index, key in found}
        for row, worker in zip(rows, workers, strict=True):
            self.row_keys.put(row[0], keys[worker, row[3], row[4]])

    def _resolve_series(
        self, connection: psycopg.Connection[Any], missing: Sequence[tuple[int, int, SeriesKey]]
    ) -> None:
        wanted = sorted(
            ((self.worker_keys.one(worker), series.digest, series) for _, worker, series in missing),
            key=lambda each: each[:2],
        )
        workers, digests = [each[0] for each in wanted], [each[1] for each in wanted]
        connection.execute(
            # The cap also counts the series of earlier runs; a worker at its cap gets no keys for new ones. Count once:
            # counted for each row, the rows that this statement has just added would be passed over again and again.
            "WITH known AS MATERIALIZED (SELECT worker_key, count(*) AS series FROM metric_series"
            " WHERE worker_key = ANY(%s::int[]) GROUP BY worker_key)"
            " INSERT INTO metric_series (worker_key, digest, name, unit, kind, temporality, attributes)"
            " SELECT n.*"
            " FROM unnest(%s::int[], %s::bytea[], %s::text[], %s::text[], %s::text[], %s::text[], %s::jsonb[])"
            " AS n (worker_key, digest, name, unit, kind, temporality, attributes)"
            " LEFT JOIN known USING (worker_key) WHERE coalesce(known.series, 0) < %s"
            " ON CONFLICT DO NOTHING",
            (
                sorted(set(workers)),
                workers,
                digests,
                *([each[2][part] for each in wanted] for part in range(5)),
                self._series_per_worker,
            ),
        )
        found = connection.execute(
            "SELECT s.worker_key, s.digest, s.series_key FROM metric_series s"
            " JOIN unnest(%s::int[], %s::bytea[]) AS n (worker_key, digest) USING (worker_key, digest)",
            (workers, digests),
        )
        keys = {(worker, bytes(digest)): key for worker, digest, key in found}
        for reference, worker, series in missing:
            self.series_keys.put(reference, keys.get((self.worker_keys.one(worker), series.digest), UNKNOWN))
