"""What one transaction writes: rows collected message by message, still with references instead of keys."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from collector import scrapes
from collector.directory import UNKNOWN, Directory, References
from collector.template import Cells, Decoded, Floats, Integers
from collector.walk import Histogram, SeriesKey
from fleetpulse.stream.dictionary import SYSTEM, TABLES
from fleetpulse.stream.heartbeat import Heartbeat

FIRST_CAPACITY: Final = 1_024
_SYSTEM: Final = TABLES.index(SYSTEM)


class WideRows:
    """Rows of one wide table: time, worker, row and values, each an array; grows by doubling."""

    def __init__(self, columns: int) -> None:
        self.count = 0
        self._times: Integers = np.empty(FIRST_CAPACITY, dtype=np.int64)
        self._workers: Integers = np.empty(FIRST_CAPACITY, dtype=np.int64)
        self._rows: Integers = np.empty(FIRST_CAPACITY, dtype=np.int64)
        self._values: Floats = np.empty((FIRST_CAPACITY, columns), dtype=np.float64)
        self._partial: list[npt.NDArray[np.intp]] = []

    def add(self, cells: Cells, decoded: Decoded, worker: int, rows: Integers, *, is_partial: bool) -> None:
        """Append the rows of a plan's messages; rows beyond the cap (UNKNOWN) come along and are dropped when keys
        are set. Partial ones may each be a part of a scrape."""
        messages = len(decoded.messages)
        start, end = self.count, self.count + len(rows) * messages
        while end > len(self._times):
            self._grow()
        self._times[start:end] = decoded.times.take(cells.row_times, axis=1).reshape(-1)
        self._workers[start:end] = worker
        self._rows[start:end].reshape(messages, -1)[:] = rows
        cells.fill(decoded.scalars, self._values[start:end])
        self.count = end
        if is_partial:
            self._partial.append(np.arange(start, end))

    def join_scrapes(self) -> None:
        """Make one row of those that are parts of one."""
        if not self._partial:
            return
        needed = scrapes.join(self.times, self.workers, self.values, np.concatenate(self._partial))
        self._partial.clear()
        self.count = int(needed.sum())
        for column in (self._times, self._workers, self._rows, self._values):
            column[: self.count] = column[: len(needed)][needed]

    def _grow(self) -> None:
        self._times = np.concatenate([self._times, np.empty_like(self._times)])
        self._workers = np.concatenate([self._workers, np.empty_like(self._workers)])
        self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._values = np.concatenate([self._values, np.empty_like(self._values)])

    @property
    def times(self) -> Integers:
        """Unix nanoseconds."""
        return self._times[: self.count]

    @property
    def workers(self) -> Integers:
        """Worker references."""
        return self._workers[: self.count]

    @property
    def rows(self) -> Integers:
        """Row references."""
        return self._rows[: self.count]

    @property
    def values(self) -> Floats:
        """Shape (rows, measures); absent values are template.ABSENT."""
        return self._values[: self.count]


@dataclass(slots=True)
class HeartbeatRow:
    """A heartbeat to be stored."""

    worker: int
    heartbeat: Heartbeat
    received_unix_nano: int


Quality = Counter[tuple[int, str, str]]
"""How many data points or messages of a worker (by reference) had a kind of fault, for a reason."""


@dataclass(slots=True)
class Batch:
    """Everything decoded since the last write."""

    directory: Directory
    wide: tuple[WideRows, ...] = field(default_factory=lambda: tuple(WideRows(len(t.measures)) for t in TABLES))
    point_times: list[Integers] = field(default_factory=list)
    point_series: list[Integers] = field(default_factory=list)
    point_values: list[Floats] = field(default_factory=list)
    point_workers: list[tuple[int, int]] = field(default_factory=list)
    histograms: list[tuple[int, int, Histogram]] = field(default_factory=list)
    heartbeats: list[HeartbeatRow] = field(default_factory=list)
    quality: Quality = field(default_factory=Counter)
    messages: int = 0
    message_bytes: int = 0

    @property
    def rows(self) -> int:
        """Rows of all kinds."""
        return (
            sum(each.count for each in self.wide)
            + sum(len(each) for each in self.point_series)
            + len(self.histograms)
            + len(self.heartbeats)
        )

    def add_metrics(self, decoded: Decoded, references: References) -> None:
        """Append the resources of one plan."""
        plan, messages = decoded.plan, len(decoded.messages)
        for cells, rows in zip(plan.tables, references.rows, strict=True):
            # Our agents number their messages and send everything at one time.
            is_partial = cells.table == _SYSTEM and plan.sequence is None
            self.wide[cells.table].add(cells, decoded, references.worker, rows, is_partial=is_partial)
        if plan.points:
            self.point_times.append(decoded.times.take(plan.point_times, axis=1).reshape(-1))
            self.point_series.append(np.tile(references.series, messages))
            self.point_values.append(decoded.scalars.take(plan.point_scalars, axis=1).reshape(-1))
            self.point_workers.append((references.worker, len(plan.points) * messages))
        if references.capped_rows:
            self.quality[references.worker, "rejected", "row_cap"] += references.capped_rows * messages
        for reason, count in plan.refused.items():
            self.quality[references.worker, "rejected", reason] += count * messages
        for histogram in decoded.histograms:
            series = self.directory.series(references.worker, histogram.series)
            if series == UNKNOWN:
                self.quality[references.worker, "rejected", "series_cap"] += 1
            else:
                self.histograms.append((references.worker, series, histogram))


def joined(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """One array of many."""
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


__all__ = ["Batch", "HeartbeatRow", "Quality", "SeriesKey", "WideRows", "joined"]
