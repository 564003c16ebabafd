"""Every value against its limits, a batch at a time.

A value is accepted, clamped to its limit (counted, the raw value in the log), or rejected with a reason and stored as
absent: a broken sensor does not take the row's other readings with it. A row is rejected as a whole when its time is
impossible or nothing is left of it.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from collector.batch import Quality
from collector.template import ABSENT, ABSENT_BITS, Floats, Integers
from fleetpulse.stream.measure import Table

Mask = npt.NDArray[np.bool_]
NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Which sample times are possible, in Unix nanoseconds."""

    oldest: int
    late: int
    newest: int

    @classmethod
    def around(
        cls, now_unix_nano: int, retention_seconds: float, late_seconds: float, future_seconds: float
    ) -> "TimeLimits":
        """Limits at a moment of the collector's clock."""
        return cls(
            now_unix_nano - int(retention_seconds * NANOSECONDS),
            now_unix_nano - int(late_seconds * NANOSECONDS),
            now_unix_nano + int(future_seconds * NANOSECONDS),
        )


@dataclass(frozen=True, slots=True)
class Correction:
    """One kind of correction in one batch, with an example for the log line."""

    table: str
    column: str
    verdict: str  # clamped or rejected
    reason: str
    count: int
    worker: int
    raw_value: float


@dataclass(slots=True)
class Findings:
    """What was wrong with a batch."""

    corrections: list[Correction] = field(default_factory=list)
    quality: Quality = field(default_factory=Counter)

    def count(self, workers: Integers, kind: str, reason: str) -> None:
        """Count one fault for each worker reference listed."""
        for worker, count in zip(*np.unique(workers, return_counts=True), strict=True):
            self.quality[int(worker), kind, reason] += int(count)


def check_times(times: Integers, workers: Integers, limits: TimeLimits, findings: Findings) -> Mask:
    """Which times are possible; counts the others, and the late among the possible."""
    future, past = times > limits.newest, times < limits.oldest
    if future.any():
        findings.count(workers[future], "rejected", "time_in_future")
    if past.any():
        findings.count(workers[past], "rejected", "time_too_old")
    kept = ~(future | past)
    late = kept & (times < limits.late)
    if late.any():
        findings.count(workers[late], "late", "late")
    return kept


def check_values(table: Table, values: Floats, workers: Integers, findings: Findings) -> Mask:
    """Correct a table's values in place; returns which are present afterwards, shape (rows, measures)."""
    present: Mask = values.view(np.uint64) != ABSENT_BITS
    minimum = np.array([measure.minimum for measure in table.measures])
    maximum = np.array([measure.maximum for measure in table.measures])
    with np.errstate(invalid="ignore"):
        # Comparisons with NaN are false, so a NaN that was sent shows up as outside, too.
        outside = present & ~((values >= minimum) & (values <= maximum))
    for column in np.flatnonzero(outside.any(axis=0)):
        _correct(table, int(column), values, present, np.flatnonzero(outside[:, column]), workers, findings)
    return present


def _correct(
    table: Table,
    column: int,
    values: Floats,
    present: Mask,
    rows: npt.NDArray[np.intp],
    workers: Integers,
    findings: Findings,
) -> None:
    measure = table.measures[column]
    raw = values[rows, column].copy()
    finite = np.isfinite(raw)
    clamp = finite if measure.outside == "clamp" else np.zeros_like(finite)
    values[rows[clamp], column] = np.clip(raw[clamp], measure.minimum, measure.maximum)
    values[rows[~clamp], column] = ABSENT
    present[rows[~clamp], column] = False
    for verdict, reason, chosen in (
        ("clamped", "out_of_range", clamp),
        ("rejected", "out_of_range", finite & ~clamp),
        ("rejected", "not_finite", ~finite),
    ):
        if chosen.any():
            first = int(np.flatnonzero(chosen)[0])
            findings.count(workers[rows[chosen]], verdict, reason)
            findings.corrections.append(
                Correction(
                    table.name,
                    measure.column,
                    verdict,
                    reason,
                    int(chosen.sum()),
                    int(workers[rows[first]]),
                    float(raw[first]),
                )
            )
