"""The queries behind the activity endpoints, made from the dictionary of measures.

Table and column names come from the dictionary alone; what a client says is a parameter. Each answers the series' key
and a column a field, named as the field, the newest rows first.

Parameters: from_time, to_time, limit_rows (one more than wanted, which shows that there are more), instance_ids and
worker_ids (text arrays or null), gap (raw) or width (rollup), as intervals, and from_bucket (rollup, not included).
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, Literal, LiteralString

from psycopg.sql import SQL, Composable, Composed, Identifier

from control.api.families import Family, IncreaseShare, rate_field

Level = Literal["raw", "1m", "1h", "1d"]
Fields = Iterable[tuple[str, Composable]]
STATEMENTS_KEPT: Final = 256

# Both shapes: the newest rows of the window; for each series the one row before them, so that the first rows have a
# rate too; then what a row and its neighbours say about each counter; then the fields.
_RAW: Final = """
WITH subjects AS MATERIALIZED ({subjects}),
newest AS MATERIALIZED (
    SELECT time, {key}, {columns} FROM {table}
    WHERE time >= %(from_time)s AND time < %(to_time)s AND {key} = ANY (ARRAY(SELECT {key} FROM subjects))
    ORDER BY time DESC, {key} LIMIT %(limit_rows)s
),
series AS (
    SELECT *, true AS wanted FROM newest
    UNION ALL
    SELECT earlier.*, false
    FROM (SELECT {key}, min(time) AS time FROM newest GROUP BY {key}) AS oldest
    CROSS JOIN LATERAL (
        SELECT time, {key}, {columns} FROM {table} AS sample
        WHERE sample.{key} = oldest.{key} AND sample.time < oldest.time AND sample.time >= oldest.time - %(gap)s
        ORDER BY sample.time DESC LIMIT 1
    ) AS earlier
),
readings AS (
    SELECT *, extract(epoch FROM time - %(from_time)s)::float8 AS clock {readings}
    FROM series
    WINDOW before AS (PARTITION BY {key} ORDER BY time ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
),
increases AS (SELECT * {increases} FROM readings)
SELECT {key}, {fields}
FROM increases
WHERE wanted
ORDER BY increases.time DESC, {key} DESC
"""

_ROLLUP: Final = """
WITH subjects AS MATERIALIZED ({subjects}),
newest AS MATERIALIZED (
    SELECT bucket, {key}, {columns} FROM {table}
    WHERE bucket > %(from_bucket)s AND bucket < %(to_time)s
        AND {key} = ANY (ARRAY(SELECT {key} FROM subjects))
    ORDER BY bucket DESC, {key} LIMIT %(limit_rows)s
),
series AS (
    SELECT *, true AS wanted FROM newest
    UNION ALL
    SELECT earlier.*, false
    FROM (SELECT {key}, min(bucket) AS bucket FROM newest GROUP BY {key}) AS oldest
    CROSS JOIN LATERAL (
        SELECT bucket, {key}, {columns} FROM {table} AS sample
        WHERE sample.{key} = oldest.{key} AND sample.bucket = oldest.bucket - %(width)s
    ) AS earlier
),
neighbours AS (
    SELECT * {readings} FROM series WINDOW buckets AS (PARTITION BY {key} ORDER BY bucket)
),
spans AS (SELECT * {spans} FROM neighbours),
increases AS (SELECT * {increases} FROM spans WINDOW whole_series AS (PARTITION BY {key}))
SELECT {key}, {fields}
FROM (SELECT *, bucket AS time FROM increases) AS increases
WHERE wanted
ORDER BY increases.time DESC, {key} DESC
"""

# Whose identity is asked for.
ASKED: Final = """(%(instance_ids)s::text[] IS NULL OR instance_id = ANY (%(instance_ids)s::text[]))
    AND (%(worker_ids)s::text[] IS NULL OR worker_id = ANY (%(worker_ids)s::text[]))"""

# The series' last reading before this row, as [clock, value]: rows of a stock collector hold a part of the columns
# each, so the row before may have none. Arrays compare by their first element first.
_RAW_READING: Final = """, max(CASE WHEN {column} IS NOT NULL
        THEN ARRAY[extract(epoch FROM time - %(from_time)s)::float8, {column}] END) OVER before AS {before}"""
# A counter that went down was reset: what it counted since is its value.
_RAW_INCREASE: Final = """, CASE WHEN {before}[1] >= clock - extract(epoch FROM %(gap)s)::float8 THEN
        CASE WHEN {column} >= {before}[2] THEN {column} - {before}[2] ELSE {column} END END AS {increase},
        nullif(clock - {before}[1], 0) AS {seconds}"""

# The readings beside this bucket, where the bucket beside is the adjacent one. A bucket is whole when readings go on at
# both its ends.
_ROLLUP_READING: Final = """, CASE WHEN lag(bucket) OVER buckets = bucket - %(width)s
        THEN lag({last}) OVER buckets END AS {before},
        lag(bucket) OVER buckets = bucket - %(width)s AND lag({count}) OVER buckets > 0
        AND lead(bucket) OVER buckets = bucket + %(width)s AND lead({count}) OVER buckets > 0 AS {whole}"""
# How many readings this bucket adds: the first one of a series, or after a gap, only starts the count. A counter whose
# minimum is below its first value was reset in the bucket: it rose to the maximum, if that was not at the end, and then
# from zero to its last value.
_ROLLUP_SPAN: Final = """, {count} - CASE WHEN {before} IS NULL THEN 1 ELSE 0 END AS {added},
        CASE WHEN {min} < {first} THEN {last} + CASE WHEN {max} > {last} THEN {max} - {first} ELSE 0 END
            ELSE {last} - {first} END
        + CASE WHEN {before} IS NULL THEN 0 WHEN {first} >= {before} THEN {first} - {before} ELSE {first} END
        AS {increase}"""
# The time that the increase took: the width of a whole bucket; else as much of it as its readings stand for, by
# comparison with the series' fullest whole bucket; else, in the bucket that is still being filled, the time until now.
# Otherwise it is unknown.
_ROLLUP_INCREASE: Final = """, nullif(extract(epoch FROM CASE
        WHEN {whole} THEN %(width)s
        WHEN max({count}) FILTER (WHERE {whole}) OVER whole_series > 0 THEN %(width)s * least(
            1, {added} / (max({count}) FILTER (WHERE {whole}) OVER whole_series)::float8)
        WHEN {before} IS NOT NULL AND bucket + %(width)s > %(to_time)s THEN %(to_time)s - bucket
        END)::float8, 0) AS {seconds}"""


@lru_cache(STATEMENTS_KEPT)
def activity(family: Family, level: Level, wanted: frozenset[str] | None = None) -> Composed:
    """The statement for one endpoint and one level of detail; ``wanted`` fields beside the identity, or all."""
    raw = level == "raw"
    columns = family.table.columns if raw else _rollup_columns(family)
    parts: dict[str, Composable] = {
        "key": Identifier(family.key),
        "table": Identifier(family.table.name if raw else f"{family.table.name}_{level}"),
        "columns": SQL(", ").join(map(Identifier, columns)),
        "subjects": subjects(family.key, family.identities),
        "fields": shown(("time",), _fields(family, raw=raw), wanted),
    }
    if raw:
        parts |= {
            "readings": _each_counter(family, _RAW_READING),
            "increases": _each_counter(family, _RAW_INCREASE),
        }
    else:
        parts |= {
            "readings": _each_counter(family, _ROLLUP_READING),
            "spans": _each_counter(family, _ROLLUP_SPAN),
            "increases": _each_counter(family, _ROLLUP_INCREASE),
        }
    return SQL(_RAW if raw else _ROLLUP).format(**parts)


def _rollup_columns(family: Family) -> list[str]:
    gauges = [f"{one.column}_{part}" for one in family.gauges for part in ("sum", "count", "min", "max", "last")]
    counters = [f"{one.column}_{part}" for one in family.counters for part in ("count", "min", "max", "first", "last")]
    return gauges + counters


def subjects(key: str, identities: LiteralString) -> Composed:
    """The keys that are asked for."""
    return SQL("SELECT {} FROM {} WHERE {}").format(Identifier(key), SQL(identities), SQL(ASKED))


def _each_counter(family: Family, template: str) -> Composed:
    """The template filled in for each counter. Double underscores keep its names apart from columns."""
    derived = ("before", "whole", "added", "increase", "seconds")
    stored = ("count", "min", "max", "first", "last")
    return SQL("").join(
        SQL(template).format(
            column=Identifier(counter.column),
            **{name: Identifier(f"{counter.column}__{name}") for name in derived},
            **{name: Identifier(f"{counter.column}_{name}") for name in stored},
        )
        for counter in family.counters
    )


def _fields(family: Family, *, raw: bool) -> Fields:
    """The measured fields, in the order of Family.fields."""
    fill_in = {share.field: _increase_share(share) for share in family.increase_shares}
    for gauge in family.gauges:
        value = gauge_value(gauge.column, raw=raw)
        if gauge.column in fill_in:
            value = SQL("coalesce({}, {})").format(value, fill_in.pop(gauge.column))
        yield gauge.column, value
        if not raw:
            yield from (same(f"{gauge.column}_{which}") for which in ("min", "max", "last"))
    for counter in family.counters:
        field = rate_field(counter)
        if field is not None:
            increase, seconds = (Identifier(f"{counter.column}__{name}") for name in ("increase", "seconds"))
            yield field, SQL("{} / {}").format(increase, seconds)
    for share in family.shares:
        yield share.field, ratio(gauge_value(share.part, raw=raw), [gauge_value(share.whole, raw=raw)])
    yield from fill_in.items()


def shown(plain: Sequence[str], measured: Fields, wanted: frozenset[str] | None) -> Composed:
    """What the rows are made of: columns that are shown as they are, and the wanted fields."""
    chosen = (field for field in measured if wanted is None or field[0] in wanted)
    return SQL(", ").join(
        SQL("{} AS {}").format(value, Identifier(field)) for field, value in [*map(same, plain), *chosen]
    )


def same(column: str) -> tuple[str, Composable]:
    """A field that shows a column of the same name."""
    return column, Identifier(column)


def gauge_value(column: str, *, raw: bool) -> Composable:
    """A reading, or the average of a bucket's readings."""
    if raw:
        return Identifier(column)
    return SQL("{} / nullif({}, 0)").format(Identifier(f"{column}_sum"), Identifier(f"{column}_count"))


def _increase_share(share: IncreaseShare) -> Composed:
    return ratio(Identifier(f"{share.part}__increase"), [Identifier(f"{one}__increase") for one in share.whole])


def ratio(part: Composable, whole: Sequence[Composable]) -> Composed:
    """A part of the sum of ``whole``; null of nothing."""
    return SQL("({}) / nullif({}, 0)").format(part, SQL(" + ").join(SQL("({})").format(one) for one in whole))
