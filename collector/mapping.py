"""The dictionary turned round: from a metric name to the columns its data points feed."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fleetpulse.stream.dictionary import TABLES
from fleetpulse.stream.measure import Combine, Source

Condition = tuple[tuple[str, ...], frozenset[str]]
"""An attribute's spelling variants and the values meant; the empty string stands for its absence."""


@dataclass(frozen=True, slots=True)
class Feed:
    """A source of a column: which points it takes and how they combine. ``rank`` 0 is the best of the alternatives."""

    table: int
    column: int
    rank: int
    combine: Combine
    one_minus: bool
    keep: bool
    required: tuple[Condition, ...]
    excluded: tuple[Condition, ...]
    unlike: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...]

    @property
    def slot(self) -> int:
        """Tells a column's alternatives apart while a row is being collected."""
        return self.column * 16 + self.rank

    def accepts(self, attributes: Mapping[str, str]) -> bool:
        """Whether a point with these attributes feeds the column."""
        return (
            all(_value(attributes, names) in values for names, values in self.required)
            and not any(_value(attributes, names) in values for names, values in self.excluded)
            and not (
                self.unlike and any(pattern.fullmatch(_value(attributes, names)) for names, pattern in self.unlike)
            )
        )


def _value(attributes: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((attributes[name] for name in names if name in attributes), "")


def _conditions(where: Mapping[str, frozenset[str]]) -> tuple[Condition, ...]:
    return tuple((tuple(names.split("|")), values) for names, values in where.items())


def _feed(table: int, column: int, rank: int, source: Source) -> Feed:
    return Feed(
        table,
        column,
        rank,
        source.combine,
        source.one_minus,
        source.keep,
        _conditions(source.where),
        _conditions(source.but_not),
        tuple((tuple(names.split("|")), re.compile(pattern)) for names, pattern in source.unlike.items()),
    )


def _feeds() -> Mapping[str, tuple[Feed, ...]]:
    found: dict[str, list[Feed]] = defaultdict(list)
    for table_index, table in enumerate(TABLES):
        for column, measure in enumerate(table.measures):
            for rank, source in enumerate(measure.sources):
                found[source.metric].append(_feed(table_index, column, rank, source))
    return {name: tuple(feeds) for name, feeds in found.items()}


_FEEDS: Final = _feeds()


def feeds_of(metric: str) -> tuple[Feed, ...]:
    """The columns a metric feeds; empty for a metric that belongs to the generic series."""
    return _FEEDS.get(metric, ())
