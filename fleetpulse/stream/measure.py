"""What a measure is: a column of a wide table, the OTLP data points that feed it, its unit and its limits.

The measures that there are: ``dictionary.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Combine = Literal["only", "sum", "mean"]
Outside = Literal["clamp", "reject"]
Kind = Literal["gauge", "counter"]


@dataclass(frozen=True, slots=True)
class Source:
    """Data points that feed a column: a metric name and the attribute values they must (or must not) have.

    ``where`` maps an attribute to its accepted values; an attribute's spelling variants are separated by ``|``, and
    the empty string accepts a point that lacks the attribute. ``unlike`` maps an attribute to a regular expression
    that the whole value must not match: a disk's partition, say, whose bytes the disk has counted. ``combine`` says
    how several points of one row become one value. ``one_minus`` turns an idle share into a busy one. ``keep`` also
    stores each point as a generic series, because the column leaves out what tells them apart.
    """

    metric: str
    where: Mapping[str, frozenset[str]] = field(default_factory=dict)
    but_not: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unlike: Mapping[str, str] = field(default_factory=dict)
    combine: Combine = "only"
    one_minus: bool = False
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Measure:
    """One column of a wide table. ``sources`` are alternatives, best first. Limits are inclusive."""

    column: str
    unit: str
    minimum: float
    maximum: float
    sources: tuple[Source, ...]
    help: str
    outside: Outside = "clamp"
    kind: Kind = "gauge"


@dataclass(frozen=True, slots=True)
class Table:
    """A wide table. ``row_attributes`` are the data-point attributes (spelling variants of one) that tell its rows
    apart within a worker; empty where a worker has one row at a time. ``label_attributes`` tell them apart further."""

    name: str
    subject: str
    row_attributes: tuple[str, ...]
    label_attributes: tuple[str, ...]
    measures: tuple[Measure, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Measure columns in table order."""
        return tuple(measure.column for measure in self.measures)
