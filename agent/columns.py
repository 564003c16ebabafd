"""Measurements as the columns of the wide tables, by the dictionary that the collector uses too."""

from collections.abc import Iterable, Mapping
from statistics import fmean

from agent.instruments import Measurement
from fleetpulse.stream.measure import Measure, Source, Table

Row = tuple[str, ...]
"""Values of a table's row and label attributes."""


def columns(table: Table, measurements: Iterable[Measurement]) -> dict[str, dict[Row, float]]:
    """For each column the values of its rows. A column or row that was not measured is not there."""
    by_name: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        by_name.setdefault(measurement.instrument.name, []).append(measurement)
    found = {measure.column: _column(table, measure, by_name) for measure in table.measures}
    return {column: rows for column, rows in found.items() if rows}


def _column(table: Table, measure: Measure, by_name: Mapping[str, list[Measurement]]) -> dict[Row, float]:
    for source in measure.sources:
        rows: dict[Row, list[float]] = {}
        for measurement in by_name.get(source.metric, ()):
            if _feeds(source, measurement.attributes):
                rows.setdefault(_row(table, measurement.attributes), []).append(measurement.value)
        if rows:
            return {row: _combined(source, values) for row, values in rows.items()}
    return {}


def _feeds(source: Source, attributes: Mapping[str, str | int]) -> bool:
    wanted = all(_value(attributes, name) in values for name, values in source.where.items())
    return wanted and not any(_value(attributes, name) in values for name, values in source.but_not.items())


def _row(table: Table, attributes: Mapping[str, str | int]) -> Row:
    groups = [names for names in (table.row_attributes, table.label_attributes) if names]
    return tuple(_value(attributes, "|".join(names)) for names in groups)


def _value(attributes: Mapping[str, str | int], names: str) -> str:
    """The value of the first spelling that is there, or the empty string."""
    return next((str(attributes[name]) for name in names.split("|") if name in attributes), "")


def _combined(source: Source, values: list[float]) -> float:
    value = fmean(values) if source.combine == "mean" else float(sum(values))
    return 1.0 - value if source.one_minus else value
