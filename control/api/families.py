"""What each activity endpoint answers: its table, who its rows are about, and the fields it makes of the columns.

A gauge is shown as it is, with its minimum, maximum and last value where rows stand for buckets. A counter's reading
says nothing by itself, so it is shown as a rate, under a name that says so. Shares are made of two columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, LiteralString

from fleetpulse.stream.dictionary import ENGINE, GPU, SYSTEM
from fleetpulse.stream.measure import Measure, Table

Grouping = Literal["worker", "fleet"]


@dataclass(frozen=True, slots=True)
class Share:
    """``part`` over ``whole``, two gauges of the same row."""

    field: str
    part: str
    whole: str
    help: str


@dataclass(frozen=True, slots=True)
class IncreaseShare:
    """How much of the increase of all ``whole`` counters was in ``part``. Where ``field`` is also a gauge's column it
    fills in for readings that are missing."""

    field: str
    part: str
    whole: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """An activity endpoint. There is one object of each, compared by identity."""

    name: str
    table: Table
    key: str
    """Column that tells the table's series apart."""
    identities: LiteralString
    """Tables that say what a key stands for."""
    labels: tuple[tuple[str, str], ...]
    """Field and column of ``identities``, beyond worker and instance."""
    shares: tuple[Share, ...] = ()
    increase_shares: tuple[IncreaseShare, ...] = ()

    @property
    def gauges(self) -> list[Measure]:
        """Measures shown as they are."""
        return [measure for measure in self.table.measures if measure.kind == "gauge"]

    @property
    def counters(self) -> list[Measure]:
        """Measures of which only the increase counts."""
        return [measure for measure in self.table.measures if measure.kind == "counter"]

    def names(self, group: Grouping | None) -> tuple[tuple[str, str], ...]:
        """Field and column of what a key stands for; none of the fleet, which has no key."""
        worker = (("worker_id", "worker_id"), ("instance_id", "instance_id"))
        return () if group == "fleet" else worker if group == "worker" else (*worker, *self.labels)

    def fields(self, *, coarse: bool) -> Iterator[tuple[str, str, str]]:
        """Name, unit and meaning of every measured field, in the order of the answer."""
        for gauge in self.gauges:
            yield gauge.column, gauge.unit, gauge.help
            if coarse:
                yield from ((f"{gauge.column}_{which}", gauge.unit, gauge.help) for which in ("min", "max", "last"))
        for counter in self.counters:
            field = rate_field(counter)
            if field is not None:
                yield field, f"{counter.unit}/s", counter.help
        columns = self.table.columns
        yield from ((share.field, "1", share.help) for share in self.shares)
        yield from ((one.field, "1", one.help) for one in self.increase_shares if one.field not in columns)

    def group(self, group_by: str) -> Grouping | None:
        """The groups that are asked for; None where rows are about each of the table's series."""
        if group_by == "fleet":
            return "fleet"
        return "worker" if group_by == "worker" and self.key != "worker_key" else None

    def groups(self) -> tuple[Grouping | None, ...]:
        """What its rows can be about."""
        return (None, "fleet") if self.key == "worker_key" else (None, "worker", "fleet")

    def identity(self, group: Grouping | None) -> tuple[str, ...]:
        """Fields that say who and what a row is about."""
        names = (field for field, _ in self.names(group))
        return ("time", *names, *(() if group is None else ("series_count",)))

    def measured(self, group: Grouping | None, *, coarse: bool) -> list[tuple[str, str, str]]:
        """Name, unit and meaning of every measured field. A group has no newest reading: it would be anybody's."""
        if group is None:
            return list(self.fields(coarse=coarse))
        return [field for field in self.fields(coarse=True) if not field[0].endswith("_last")]


# CPU seconds per second mean little without the number of CPUs; they are shown as cpu_utilization_ratio.
_NOT_SHOWN: Final = frozenset({"cpu_busy_seconds_total", "cpu_idle_seconds_total"})
_RATE_FIELDS: Final = {"energy_joules_total": "average_power_watts"}


def rate_field(counter: Measure) -> str | None:
    """The field that shows a counter's rate; None for one that only feeds shares."""
    if counter.column in _NOT_SHOWN:
        return None
    return _RATE_FIELDS.get(counter.column, f"{counter.column.removesuffix('_total')}_per_second")


_MEMORY: Final = Share("memory_utilization_ratio", "memory_used_bytes", "memory_total_bytes", "Share of memory in use")

GPU_ACTIVITY: Final = Family(
    "gpu",
    GPU,
    "gpu_key",
    "gpus JOIN workers USING (worker_key)",
    (("gpu_id", "hw_id"), ("gpu_index", "gpu_index"), ("gpu_model", "model")),
    (_MEMORY,),
)
SYSTEM_ACTIVITY: Final = Family(
    "system",
    SYSTEM,
    "worker_key",
    "workers",
    (("host_name", "host_name"),),
    (
        _MEMORY,
        Share(
            "filesystem_utilization_ratio",
            "filesystem_used_bytes",
            "filesystem_total_bytes",
            "Share of the reported file systems in use",
        ),
    ),
    (
        IncreaseShare(
            "cpu_utilization_ratio",
            "cpu_busy_seconds_total",
            ("cpu_busy_seconds_total", "cpu_idle_seconds_total"),
            "Share of CPU time not idle, all logical CPUs together",
        ),
    ),
)
ENGINE_ACTIVITY: Final = Family(
    "engine",
    ENGINE,
    "engine_key",
    "engines JOIN workers USING (worker_key)",
    (("model_id", "model_id"), ("engine_index", "engine_index")),
    (),
    (
        IncreaseShare(
            "prefix_cache_hit_ratio",
            "prefix_cache_hits_total",
            ("prefix_cache_queries_total",),
            "Share of looked-up tokens found in the prefix cache",
        ),
    ),
)
FAMILIES: Final = (GPU_ACTIVITY, SYSTEM_ACTIVITY, ENGINE_ACTIVITY)
