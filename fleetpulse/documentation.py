"""The documents that are made from the code: ``docs/settings.md``, ``docs/measures.md`` and ``docs/metrics.md``.

``python -m fleetpulse.documentation`` writes them into a checkout's ``docs/``; with ``--check`` it only says which
ones are not as they should be.
"""

import argparse
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from fleetpulse.database.relations import ROLLUP_SUFFIXES, rollup_columns
from fleetpulse.local.metric_catalogue import families
from fleetpulse.local.metric_labels import LABELS, SIGNALS
from fleetpulse.settings import GROUPS, names
from fleetpulse.stream.dictionary import COUNTER_MAXIMUM, EXBIBYTE, TABLES
from fleetpulse.stream.measure import Measure, Source, Table

FOLDER: Final = Path(__file__).parents[1] / "docs"
_COMMAND: Final = "python -m fleetpulse.documentation"
_HEADER: Final = f"<!-- Made by `{_COMMAND}`; change the code instead. -->\n\n"
_UNITS: Final = ("seconds", "bytes", "days", "rows")
_KINDS: Final[Mapping[Any, str]] = {int: "whole number", float: "number", Path: "path", SecretStr: "secret text"}
# An upper limit this high is not worth a reader's time.
_ONLY_CATCHES_SLIPS: Final = 1e8
_ROUND: Final = {EXBIBYTE: "2^60", COUNTER_MAXIMUM: "2^53"}
_OUTSIDE: Final = {"clamp": "clamped", "reject": "rejected"}

_SETTINGS_INTRODUCTION: Final = """\
# Settings

Every setting is an environment variable. A value that cannot be used stops the command with one line and exit code 2;
a `FLEETPULSE_` variable that nothing reads is named on standard error, with the nearest name that exists."""
_MEASURES_INTRODUCTION: Final = """\
# Measures

Columns of the three wide tables, with the limits that the collector holds them to and the OTLP data points that feed
them.

- Limits are inclusive. A value outside them is clamped to the nearest limit or rejected (stored as absent), as the
  table says; NaN and infinities are always rejected. Each correction is counted, and logged with the raw value.
- Sources are alternatives, best first. `{name = value}` are the attribute values a data point must have (`≠`: must
  not have), `a|b` are spelling variants of an attribute or accepted values, and "absent" accepts a point without the
  attribute.
- A reading that did not arrive is NULL, never 0. Any other OTLP metric is kept in `metric_series` with
  `metric_points` and `metric_histograms`."""

_METRICS_INTRODUCTION: Final = """\
# Metrics

Every service shows these at `/metrics`. How Prometheus gets them, and what is made of them, is in
[monitoring.md](monitoring.md).

- Units are in the names. A counter ends in `_total` and starts at 0 with its process; a histogram is a family of
  `…_bucket`, `…_sum` and `…_count`.
- A reading that was not taken has no series, never 0.
- No label's value comes from a client. Each is from a closed set, or there is one for each thing it names."""


def pages() -> dict[str, str]:
    """File name and content of each generated page."""
    made = {"settings.md": settings_page, "measures.md": measures_page, "metrics.md": metrics_page}
    return {name: _HEADER + page() for name, page in made.items()}


def settings_page() -> str:
    """Every setting, by group."""
    lines = [_SETTINGS_INTRODUCTION]
    for group in GROUPS:
        lines += ["", f"## {_title(group)}", "", *_table(("variable", "value", "default", "meaning"), _rows(group))]
    return "\n".join(lines) + "\n"


def _title(group: type[BaseSettings]) -> str:
    return inspect.cleandoc(group.__doc__ or "").splitlines()[0].rstrip(".").replace("``", "`")


def _rows(group: type[BaseSettings]) -> Iterator[tuple[str, ...]]:
    for name, variable in names(group).items():
        field = group.model_fields[name]
        yield f"`{variable}`{_other_names(field)}", _value(name, field), _default(field), field.description or ""


def _other_names(field: FieldInfo) -> str:
    alias = field.validation_alias
    others = alias.choices[1:] if isinstance(alias, AliasChoices) else ()
    return "".join(f", `{other}`" for other in others)


def _value(name: str, field: FieldInfo) -> str:
    """What may be given: choices, or a kind of value with its unit and bounds."""
    kind = _without_none(field.annotation)
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return "comma-separated list"
    if name == "port":
        return "port, 0 for any free one"
    unit = next((unit for unit in _UNITS if name.endswith(f"_{unit}")), None)
    text = unit or _KINDS.get(kind, "text")
    return " ".join(filter(None, (text, _bounds(field.metadata))))


def _without_none(annotation: Any) -> Any:
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    is_optional = len(kinds) < len(get_args(annotation)) and len(kinds) == 1
    return kinds[0] if is_optional else annotation


def _bounds(metadata: Sequence[Any]) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [(sign, getattr(mark, name, None)) for mark in metadata for name, sign in signs.items()]
    told = [f"{sign} {limit:,}" for sign, limit in limits if limit is not None and limit < _ONLY_CATCHES_SLIPS]
    return ", ".join(told)


def _default(field: FieldInfo) -> str:
    default = field.get_default()
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if default is None or default == ():
        return "unset"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def measures_page() -> str:
    """Every measure, by table."""
    suffixes = ", ".join(f"`{suffix}`" for suffix in ROLLUP_SUFFIXES)
    lines = [
        _MEASURES_INTRODUCTION,
        f"- Each table has rollups ({suffixes}) with a `bucket`, the key columns and `sample_count`. Of a gauge they",
        f"  hold {_rollup_parts('gauge')}; of a counter {_rollup_parts('counter')}.",
    ]
    for table in TABLES:
        lines += ["", f"## {table.name}", "", f"One row is {table.subject}{_told_apart(table)}.", ""]
        headings = ("column", "unit", "kind", "limits", "outside", "sources", "meaning")
        lines += _table(headings, (_measure_row(measure) for measure in table.measures))
    return "\n".join(lines) + "\n"


def _rollup_parts(kind: Literal["gauge", "counter"]) -> str:
    sample = next(measure for table in TABLES for measure in table.measures if measure.kind == kind)
    return ", ".join(f"`…{column.removeprefix(sample.column)}`" for column in rollup_columns(sample))


def _told_apart(table: Table) -> str:
    attributes = [
        " or ".join(f"`{name}`" for name in names) for names in (table.row_attributes, table.label_attributes)
    ]
    told = " and ".join(filter(None, attributes))
    return f"; rows of a worker are told apart by the attribute {told}" if told else ""


def _measure_row(measure: Measure) -> tuple[str, ...]:
    limits = f"{_number(measure.minimum)} to {_number(measure.maximum)}"
    sources = "<br>".join(_source(source) for source in measure.sources)
    return (
        f"`{measure.column}`",
        measure.unit,
        measure.kind,
        limits,
        _OUTSIDE[measure.outside],
        sources,
        measure.help,
    )


def _number(limit: float) -> str:
    short = f"{limit:,.0f}" if abs(limit) < 1e6 else f"{limit:.3g}".replace("e+0", "e").replace("e+", "e")
    return _ROUND.get(limit, short)


def _source(source: Source) -> str:
    conditions = [
        *(f"{_variants(name)} = {_values(values)}" for name, values in source.where.items()),
        *(f"{_variants(name)} ≠ {_values(values)}" for name, values in source.but_not.items()),
        *(f"{_variants(name)} unlike {_variants(pattern)}" for name, pattern in source.unlike.items()),
    ]
    text = f"`{source.metric}`" + (f" {{{', '.join(conditions)}}}" if conditions else "")
    if source.combine != "only":
        text = f"{source.combine} of {text}"
    text = f"1 - {text}" if source.one_minus else text
    return f"{text}, also kept as a series" if source.keep else text


def _variants(attribute: str) -> str:
    return attribute.replace("|", "\\|")


def _values(values: frozenset[str]) -> str:
    return "\\|".join(value or "absent" for value in sorted(values, key=lambda value: (not value, value)))


def metrics_page() -> str:
    """Every metric, by service."""
    lines = [_METRICS_INTRODUCTION, "", "## Golden signals", ""]
    signals = next(iter(SIGNALS.values()))
    lines += _table(("service", *signals), (_signals_row(service) for service in SIGNALS))
    told = families()
    for service, labels in LABELS.items():
        lines += ["", f"## {service.capitalize()}", ""]
        rows = (
            (f"`{one.name}`", one.kind, one.unit, ", ".join(f"`{label}`" for label in one.labels), one.text)
            for one in told
            if one.service == service
        )
        lines += _table(("metric", "type", "unit", "labels", "meaning"), rows)
        lines += ["", *_table(("label", "values"), ((f"`{name}`", label.text) for name, label in labels.items()))]
    return "\n".join(lines) + "\n"


def _signals_row(service: str) -> tuple[str, ...]:
    return service, *("<br>".join(f"`{name}`" for name in metrics) for metrics in SIGNALS[service].values())


def _table(headings: Sequence[str], rows: Iterator[tuple[str, ...]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def main(given: Sequence[str] | None = None) -> int:
    """Write the pages, or check them; returns 1 when a page is not as it should be."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description="Write the generated pages of docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is out of date")
    asked = parser.parse_args(given)
    stale = [name for name, text in pages().items() if not _is_current(FOLDER / name, text)]
    if asked.check:
        for name in stale:
            print(f"docs/{name} is out of date: run {_COMMAND}", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (FOLDER / name).write_text(pages()[name])
        print(f"wrote docs/{name}")
    return 0


def _is_current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
