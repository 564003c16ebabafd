"""A batch as the statements and bytes of its transaction."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args

import numpy as np

from collector import binary
from collector.batch import Batch, WideRows, joined
from collector.directory import UNKNOWN, Directory
from collector.template import Floats
from collector.validate import Correction, Findings, TimeLimits, check_times, check_values
from collector.walk import Histogram
from fleetpulse.stream.dictionary import ENGINE, GPU, SYSTEM, TABLES
from fleetpulse.stream.heartbeat import EngineState, Heartbeat, WorkerStatus
from fleetpulse.stream.measure import Table

MINUTE_MICROSECONDS: Final = 60_000_000

_ROW_KEY: Final[Mapping[str, str]] = {GPU.name: "gpu_key", ENGINE.name: "engine_key"}
_STATUS_CODE: Final = {status: code for code, status in enumerate(get_args(WorkerStatus))}
_ENGINE_CODE: Final = {state: code for code, state in enumerate(get_args(EngineState))}

HEARTBEAT_MEASURES: Final = (
    "interval_seconds",
    "requests_waiting",
    "requests_running",
    "kv_cache_usage_ratio",
    "step_count",
    "cpu_utilization_ratio",
    "memory_utilization_ratio",
    "gpu_utilization_ratio",
)


@dataclass(frozen=True, slots=True)
class Copy:
    """One COPY … FROM STDIN (FORMAT binary): its target, its rows, and the minute buckets they touch."""

    relation: str
    columns: tuple[str, ...]
    blocks: list[bytes]
    rows: int
    minutes: tuple[int, ...] = ()  # microseconds from PostgreSQL's epoch

    @property
    def statement(self) -> str:
        """The SQL command; names are ours, never a sender's."""
        return f"COPY {self.relation} ({', '.join(self.columns)}) FROM STDIN (FORMAT binary)"


@dataclass(slots=True)
class Encoded:
    """All that a transaction writes besides positions and offsets."""

    copies: list[Copy] = field(default_factory=list)
    histograms: list[tuple[Any, ...]] = field(default_factory=list)
    quality: list[tuple[int, str, str, int]] = field(default_factory=list)  # worker key, kind, reason, count
    corrections: list[Correction] = field(default_factory=list)
    rows: int = 0
    rejected_rows: int = 0


def encode(batch: Batch, limits: TimeLimits, heartbeat_limits: TimeLimits) -> Encoded:
    """Validate a batch and build its bytes. Every reference in the batch must have been resolved.

    Heartbeats are kept for another time than samples, so they have time limits of their own.
    """
    encoded, findings = Encoded(), Findings()
    directory = batch.directory
    for table, wide in zip(TABLES, batch.wide, strict=True):
        if wide.count:
            wide.join_scrapes()
            _add_wide(table, wide, directory, limits, encoded, findings)
    if batch.point_times:
        _add_points(batch, limits, encoded, findings)
    if batch.histograms:
        _add_histograms(batch, limits, encoded, findings)
    if batch.heartbeats:
        _add_heartbeats(batch, heartbeat_limits, encoded, findings)
    encoded.corrections = findings.corrections
    batch.quality.update(findings.quality)
    encoded.quality = [
        (directory.worker_keys.one(worker), kind, reason, count)
        for (worker, kind, reason), count in sorted(batch.quality.items())
    ]
    return encoded


def _add_wide(
    table: Table, wide: WideRows, directory: Directory, limits: TimeLimits, encoded: Encoded, findings: Findings
) -> None:
    values = wide.values
    present = check_values(table, values, wide.workers, findings)
    kept = check_times(wide.times, wide.workers, limits, findings)
    kept &= wide.rows != UNKNOWN
    empty = kept & ~present.any(axis=1)
    if empty.any():
        findings.count(wide.workers[empty], "rejected", "empty_row")
        kept &= ~empty
    chosen = np.flatnonzero(kept)
    encoded.rejected_rows += wide.count - len(chosen)
    if not len(chosen):
        return
    everything = len(chosen) == wide.count
    times = binary.timestamps(wide.times if everything else wide.times[chosen])
    worker_keys = directory.worker_keys.of(wide.workers if everything else wide.workers[chosen])
    keys: tuple[binary.Column, ...] = ((times, ">i8"), (worker_keys, ">i4"))
    columns: tuple[str, ...] = ("time", "worker_key")
    if table is not SYSTEM:
        keys += ((directory.row_keys.of(wide.rows if everything else wide.rows[chosen]), ">i4"),)
        columns += (_ROW_KEY[table.name],)
    blocks = binary.rows(keys, values if everything else values[chosen], present if everything else present[chosen])
    minutes = np.unique(times // MINUTE_MICROSECONDS) * MINUTE_MICROSECONDS
    encoded.copies.append(
        Copy(table.name, columns + table.columns, blocks, len(chosen), tuple(int(each) for each in minutes))
    )
    encoded.rows += len(chosen)


def _add_points(batch: Batch, limits: TimeLimits, encoded: Encoded, findings: Findings) -> None:
    times, references = joined(batch.point_times), joined(batch.point_series)
    values: Floats = np.concatenate(batch.point_values)
    owners, counts = zip(*batch.point_workers, strict=True)
    workers = np.repeat(np.array(owners, dtype=np.int64), np.array(counts))
    kept = check_times(times, workers, limits, findings)
    series = np.where(references == UNKNOWN, UNKNOWN, batch.directory.series_keys.of(references))
    for fault, reason in ((series == UNKNOWN, "series_cap"), (~np.isfinite(values), "not_finite")):
        if (kept & fault).any():
            findings.count(workers[kept & fault], "rejected", reason)
            kept &= ~fault
    chosen = np.flatnonzero(kept)
    encoded.rejected_rows += len(times) - len(chosen)
    if not len(chosen):
        return
    keys: tuple[binary.Column, ...] = (
        (binary.timestamps(times[chosen]), ">i8"),
        (series[chosen], ">i8"),
    )
    blocks = binary.rows(keys, values[chosen, None], np.ones((len(chosen), 1), dtype=np.bool_))
    encoded.copies.append(Copy("metric_points", ("time", "series_key", "value"), blocks, len(chosen)))
    encoded.rows += len(chosen)


def _add_histograms(batch: Batch, limits: TimeLimits, encoded: Encoded, findings: Findings) -> None:
    times = np.array([min(h.time_unix_nano, 2**63 - 1) for _, _, h in batch.histograms], dtype=np.int64)
    workers = np.array([worker for worker, _, _ in batch.histograms], dtype=np.int64)
    kept = check_times(times, workers, limits, findings)
    for (worker, reference, histogram), keep in zip(batch.histograms, kept, strict=True):
        series = batch.directory.series_keys.one(reference)
        if keep and series == UNKNOWN:
            batch.quality[worker, "rejected", "series_cap"] += 1
        elif keep and not _finite(histogram):
            batch.quality[worker, "rejected", "not_finite"] += 1
        elif keep:
            encoded.histograms.append(
                (
                    histogram.time_unix_nano,
                    series,
                    histogram.count,
                    histogram.sum,
                    histogram.minimum,
                    histogram.maximum,
                    histogram.bounds,
                    histogram.buckets,
                )
            )
    encoded.rejected_rows += len(batch.histograms) - len(encoded.histograms)
    encoded.rows += len(encoded.histograms)


def _finite(histogram: Histogram) -> bool:
    numbers = [number for number in (histogram.sum, histogram.minimum, histogram.maximum) if number is not None]
    return bool(np.isfinite([*numbers, *histogram.bounds]).all())


def _add_heartbeats(batch: Batch, limits: TimeLimits, encoded: Encoded, findings: Findings) -> None:
    rows = batch.heartbeats
    times = np.array([row.heartbeat.sent_unix_nano for row in rows], dtype=np.int64)
    workers = np.array([row.worker for row in rows], dtype=np.int64)
    chosen = np.flatnonzero(check_times(times, workers, limits, findings))
    encoded.rejected_rows += len(rows) - len(chosen)
    if not len(chosen):
        return
    kept = [rows[index] for index in chosen]
    engine_codes = np.array([_engine_code(row.heartbeat) for row in kept], dtype=np.int64)
    values = np.array([_measures(row.heartbeat) for row in kept], dtype=np.float64)
    received = np.array([row.received_unix_nano for row in kept], dtype=np.int64)
    # A heartbeat without an engine says so with the code of "absent".
    keys: tuple[binary.Column, ...] = (
        (binary.timestamps(times[chosen]), ">i8"),
        (binary.timestamps(received), ">i8"),
        (batch.directory.worker_keys.of(workers[chosen]), ">i4"),
        (np.array([row.heartbeat.sequence for row in kept], dtype=np.int64), ">i8"),
        (np.array([_STATUS_CODE[row.heartbeat.status] for row in kept], dtype=np.int64), ">i2"),
        (engine_codes, ">i2"),
    )
    columns = ("time", "received_at", "worker_key", "sequence", "status", "engine_state", *HEARTBEAT_MEASURES)
    blocks = binary.rows(keys, values, ~np.isnan(values))
    encoded.copies.append(Copy("heartbeats", columns, blocks, len(kept)))
    encoded.rows += len(kept)


def _engine_code(heartbeat: Heartbeat) -> int:
    return _ENGINE_CODE[heartbeat.engine.state if heartbeat.engine else "absent"]


def _measures(heartbeat: Heartbeat) -> list[float]:
    told = (
        heartbeat.interval_seconds,
        *(getattr(heartbeat.engine, name, None) for name in HEARTBEAT_MEASURES[1:5]),
        *(getattr(heartbeat.load, name, None) for name in HEARTBEAT_MEASURES[5:]),
    )
    return [math.nan if value is None else float(value) for value in told]
