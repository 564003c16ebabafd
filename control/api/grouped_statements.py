"""The queries behind the activity endpoints where rows are about a worker's GPUs or engines together, or the fleet's.

Table and column names come from the dictionary alone. Each answers a worker's key and a column a field, named as the
field, the newest rows first, from the groups' rollups and nothing finer.

Parameters: from_bucket (not included) and to_time, last_full (the last bucket that is over), seconds (of a bucket),
limit_rows; and, by worker, instance_ids and worker_ids (text arrays or null).
"""

from functools import lru_cache
from typing import Final

from psycopg.sql import SQL, Composable, Composed, Identifier

from control.api.families import Family, Grouping, rate_field
from control.api.statements import STATEMENTS_KEPT, Fields, Level, gauge_value, ratio, same, shown, subjects

_FLEET: Final = """
SELECT {fields} FROM (SELECT *, bucket AS time FROM {table}) AS rollup
WHERE bucket > %(from_bucket)s AND bucket < %(to_time)s
ORDER BY bucket DESC LIMIT %(limit_rows)s
"""

_WORKER: Final = """
WITH subjects AS MATERIALIZED ({subjects})
SELECT worker_key, {fields} FROM (SELECT *, bucket AS time FROM {table}) AS rollup JOIN subjects USING (worker_key)
WHERE bucket > %(from_bucket)s AND bucket < %(to_time)s
ORDER BY bucket DESC, worker_key DESC LIMIT %(limit_rows)s
"""

# Of a bucket that is still being filled the time that its increase took is not known. Each series' first reading in the
# bucket only starts its count: the increase is of the other readings.
_RATE: Final = """CASE WHEN bucket <= %(last_full)s
    THEN {increase} / %(seconds)s * {count} / nullif({count} - {series}, 0) / {series} END"""


@lru_cache(STATEMENTS_KEPT)
def activity(family: Family, group: Grouping, level: Level, wanted: frozenset[str] | None = None) -> Composed:
    """The statement for one endpoint, group and level, which must not be raw; ``wanted`` fields, or all."""
    return SQL(_WORKER if group == "worker" else _FLEET).format(
        table=Identifier(f"{family.name}_{group}_{level}"),
        fields=shown(("time", "series_count"), _fields(family), wanted),
        subjects=subjects("worker_key", "workers"),
    )


def _fields(family: Family) -> Fields:
    """The measured fields, in the order of Family.measured."""
    fill_in = {
        share.field: ratio(_increase(share.part), [_increase(one) for one in share.whole])
        for share in family.increase_shares
    }
    for gauge in family.gauges:
        value: Composable = gauge_value(gauge.column, raw=False)
        if gauge.column in fill_in:
            value = SQL("coalesce({}, {})").format(value, fill_in.pop(gauge.column))
        yield gauge.column, value
        yield from (same(f"{gauge.column}_{which}") for which in ("min", "max"))
    for counter in family.counters:
        field = rate_field(counter)
        if field is not None:
            parts = {part: Identifier(f"{counter.column}_{part}") for part in ("increase", "count", "series")}
            yield field, SQL(_RATE).format(**parts)
    for share in family.shares:
        yield share.field, ratio(gauge_value(share.part, raw=False), [gauge_value(share.whole, raw=False)])
    yield from fill_in.items()


def _increase(column: str) -> Identifier:
    return Identifier(f"{column}_increase")
