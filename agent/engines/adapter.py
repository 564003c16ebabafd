"""What an adapter to an inference engine is, and the table that all of them are made of.

Adding an engine takes one file with a `SeriesAdapter` (or anything else that is an `Adapter`) and one line in
`agent.engines.registry`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from agent.engines.page import Page, Sample

MODEL_LABELS: Final = ("model_name", "model_id", "model")
Combine = Literal["sum", "mean", "maximum"]


@dataclass(frozen=True, slots=True)
class EngineReading:
    """One model on one engine index. ``values`` are by column of the engine table; what did not arrive is not there."""

    model_id: str
    engine_index: str
    values: Mapping[str, float]


class Adapter(Protocol):
    """How one kind of engine tells its state. Adapters hold no state: the same page gives the same readings."""

    @property
    def kind(self) -> str:
        """The setting's word for it."""

    @property
    def series(self) -> frozenset[str]:
        """Names of all series that read() looks at."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the engine table that this kind of engine can fill."""

    def read(self, page: Page, models: Sequence[str]) -> list[EngineReading]:
        """Readings by model and engine index; ``models`` are those the engine serves, by its own word."""


@dataclass(frozen=True, slots=True)
class Series:
    """Names under which a column arrives: the first that is on the page counts.

    ``alternatives`` are in order of preference (current name, then older ones); a tuple within is added up.
    ``combine`` joins samples that differ only in labels that tell no rows apart (e.g. the reason a request ended).
    """

    column: str
    alternatives: tuple[str | tuple[str, ...], ...]
    combine: Combine = "sum"

    def names(self) -> frozenset[str]:
        """All names, whichever the alternative."""
        return frozenset(n for a in self.alternatives for n in ((a,) if isinstance(a, str) else a))


@dataclass(frozen=True, slots=True)
class SeriesAdapter:
    """An adapter that is a table of series. ``index_label`` tells several engines of one model apart."""

    kind: str
    table: tuple[Series, ...]
    index_label: str | None = None

    @property
    def series(self) -> frozenset[str]:
        """See Adapter."""
        return frozenset[str]().union(*(series.names() for series in self.table))

    @property
    def columns(self) -> frozenset[str]:
        """See Adapter."""
        return frozenset(series.column for series in self.table)

    def read(self, page: Page, models: Sequence[str]) -> list[EngineReading]:
        """See Adapter."""
        rows: dict[tuple[str, str], dict[str, float]] = {}
        for series in self.table:
            for row, value in self._column(series, page, models).items():
                rows.setdefault(row, {})[series.column] = value
        return [EngineReading(model, index, values) for (model, index), values in sorted(rows.items())]

    def _column(self, series: Series, page: Page, models: Sequence[str]) -> dict[tuple[str, str], float]:
        for alternative in series.alternatives:
            names = (alternative,) if isinstance(alternative, str) else alternative
            if any(name in page for name in names):
                samples = [sample for name in names for sample in page.get(name, ())]
                return self._by_row(samples, series.combine, models)
        return {}

    def _by_row(
        self, samples: Sequence[Sample], combine: Combine, models: Sequence[str]
    ) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], list[float]] = {}
        for sample in samples:
            row = (_model(sample.labels, models), sample.labels.get(self.index_label or "", "0"))
            found.setdefault(row, []).append(sample.value)
        return {row: _combined(values, combine) for row, values in found.items()}


def _model(labels: Mapping[str, str], models: Sequence[str]) -> str:
    """An engine that does not say which model a series belongs to serves one model."""
    named = next((labels[name] for name in MODEL_LABELS if labels.get(name)), None)
    return named or (models[0] if models else "unknown")


def _combined(values: Sequence[float], combine: Combine) -> float:
    if combine == "sum":
        return sum(values)
    return max(values) if combine == "maximum" else sum(values) / len(values)
