"""The token ledger: the proxy's records against the engines' counters, window by window."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from collector import usage as usage_rows
from collector.metrics import CollectorMetrics
from collector.usage_ledger import Summary, reckon, show
from collector.usage_sums import settle
from fleetpulse.database.connect import connect
from fleetpulse.local.usage_records import usage_record
from fleetpulse.settings import CollectorSettings, DatabaseSettings

NOW = datetime.now(UTC).replace(microsecond=0)
WIDTH = timedelta(minutes=5)
SETTINGS = CollectorSettings(
    port=0, ledger_interval_seconds=0.001, ledger_settle_seconds=30, ledger_lookback_seconds=1800
)
LAST = datetime.fromtimestamp((NOW.timestamp() - 30) // 300 * 300 - 300, UTC)
"""Start of the newest window that is over."""


class Sides:
    """Both sides of the books of some workers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.records = 0

    def proxy(self, moment: datetime, number: int = 1, **changes: Any) -> None:
        """A request of a worker at a time."""
        self.records += 1
        fields: dict[str, Any] = {"first_token_seconds": 1.0} | changes
        record = usage_record(
            str(self.records),
            int(moment.timestamp()) * 10**9,
            instance_id=f"i-{number}",
            worker_id=f"w-{number}",
            **fields,
        )
        with psycopg.connect(self.url, autocommit=True) as connection:
            assert usage_rows.store(connection, usage_rows.columns([record])) == 1

    def engine(self, *readings: tuple[datetime, float | None, float | None], number: int = 1, index: str = "0") -> None:
        """Readings of an engine's counters, each held until the next by readings every minute."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO workers (worker_id, instance_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (f"w-{number}", f"i-{number}"),
            )
            ((worker, engine),) = connection.execute(
                "WITH w AS (SELECT worker_key FROM workers WHERE worker_id = %s)"
                " INSERT INTO engines (worker_key, model_id, engine_index) SELECT worker_key, 'm', %s FROM w"
                " RETURNING worker_key, engine_key",
                (f"w-{number}", index),
            ).fetchall()
            for (moment, prompt, made), following in zip(readings, [*readings[1:], None], strict=True):
                until = following[0] if following else moment + timedelta(seconds=1)
                while moment < until:
                    connection.execute(
                        "INSERT INTO engine_samples (time, worker_key, engine_key, prompt_tokens_total,"
                        " generation_tokens_total) VALUES (%s, %s, %s, %s, %s)",
                        (moment, worker, engine, prompt, made),
                    )
                    moment += timedelta(minutes=1)

    async def reckon(self) -> Summary:
        """Both passes."""
        async with await connect(DatabaseSettings(url=self.url)) as connection:
            await settle(connection)
            return await reckon(connection, SETTINGS, DatabaseSettings(url=self.url), NOW)

    def rows(self, columns: str = "window_start, status, reason, gap_input_tokens, gap_output_tokens") -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(
                f"SELECT {columns} FROM finops.token_ledger ORDER BY window_start, instance_id"
            ).fetchall()


@pytest.fixture
def sides(any_database_url: str) -> Sides:
    return Sides(any_database_url)


@pytest.fixture
def plain(database_url: str) -> Sides:
    """On plain PostgreSQL alone."""
    return Sides(database_url)


BEFORE, AFTER = LAST - timedelta(seconds=30), LAST + WIDTH + timedelta(seconds=10)


async def test_books_that_agree_have_no_gap_and_others_have_their_difference(sides):
    start = LAST + timedelta(seconds=100)
    sides.proxy(start)
    sides.engine((BEFORE, 1000, 500), (start + timedelta(seconds=3), 1010, 520), (AFTER, 1010, 520))
    # The second worker's engine made ten tokens that nobody asked for by the proxy.
    sides.proxy(start, 2)
    sides.engine((BEFORE, 0, 0), (start + timedelta(seconds=3), 13, 27), (AFTER, 13, 27), number=2)
    assert await sides.reckon() == Summary(2, 0, 3.0, 7.0, 3 / 23, 7 / 47)
    columns = "status, reason, proxy_requests, proxy_input_tokens, engine_output_tokens, gap_output_tokens, gap_ratio"
    assert sides.rows(columns) == [
        ("known", None, 1, 10.0, 20.0, 0.0, 0.0),
        ("known", None, 1, 10.0, 27.0, 7.0, 0.25),
    ]


async def test_a_counter_that_starts_anew_counts_from_zero(plain):
    start = LAST + timedelta(seconds=100)
    plain.proxy(start)
    plain.proxy(start + timedelta(seconds=90))
    plain.engine(
        (BEFORE, 900, 900),
        (start + timedelta(seconds=5), 910, 920),
        (start + timedelta(seconds=95), 10, 20),
        (AFTER, 10, 20),
    )
    await plain.reckon()
    assert plain.rows("status, gap_input_tokens, gap_output_tokens, engine_resets") == [("known", 0.0, 0.0, 1)]


async def test_engines_of_a_worker_count_together(plain):
    start = LAST + timedelta(seconds=100)
    plain.proxy(start)
    for index, (prompt, made) in enumerate(((4, 5), (6, 15))):
        plain.engine((BEFORE, 0, 0), (start, prompt, made), (AFTER, prompt, made), index=str(index))
    await plain.reckon()
    assert plain.rows("status, gap_input_tokens, gap_output_tokens") == [("known", 0.0, 0.0)]


@pytest.mark.parametrize(
    ("engine", "has_record", "reason"),
    [
        ([], True, "no_engine_counters"),
        ([(BEFORE, None, None), (AFTER, None, None)], True, "no_engine_counters"),
        ([(LAST + timedelta(seconds=60), 0, 0), (AFTER, 10, 20)], True, "engine_incomplete"),
        ([(BEFORE, 0, 0), (LAST + timedelta(seconds=60), 10, 20)], True, "engine_incomplete"),
        ([(BEFORE, 0, 0), (LAST + timedelta(seconds=60), 10, 20), (AFTER, 10, 20)], False, "no_proxy_records"),
    ],
)
async def test_a_window_without_one_side_is_unknown_and_no_gap(plain, engine, has_record, reason):
    if engine:
        plain.engine(*engine)
    if has_record:
        plain.proxy(LAST + timedelta(seconds=100))
    summary = await plain.reckon()
    assert [row[1:] for row in plain.rows() if row[0] == LAST] == [("unknown", reason, None, None)]
    metrics = CollectorMetrics()
    show(summary, metrics)
    assert metrics.registry.get_sample_value("fleetpulse_collector_ledger_workers", {"status": "unknown"}) == 1
    assert metrics.registry.get_sample_value("fleetpulse_collector_ledger_gap_tokens", {"direction": "input"}) is None


async def test_a_worker_that_got_nothing_while_others_did_has_a_known_gap(plain):
    plain.proxy(LAST + timedelta(seconds=100), 2)
    plain.engine((BEFORE, 0, 0), (LAST + timedelta(seconds=60), 10, 20), (AFTER, 10, 20))
    await plain.reckon()
    known = [row for row in plain.rows("status, instance_id, gap_input_tokens, gap_ratio") if row[0] == "known"]
    assert known == [("known", "i-1", 10.0, 1.0)]


async def test_what_comes_late_is_reckoned_anew(plain):
    start = LAST + timedelta(seconds=100)
    plain.proxy(start)
    plain.engine((BEFORE, 0, 0), (start, 20, 40), (AFTER, 20, 40))
    await plain.reckon()
    assert plain.rows("gap_input_tokens, gap_output_tokens") == [(10.0, 20.0)]
    plain.proxy(start + timedelta(seconds=10))
    await plain.reckon()
    assert plain.rows("gap_input_tokens, gap_output_tokens, proxy_requests") == [(0.0, 0.0, 2)]


async def test_what_is_under_way_at_a_window_s_end_is_divided(plain):
    # 60 s of output, 20 before the end of the window; the counter grows in the same time.
    end = LAST + WIDTH
    plain.proxy(end - WIDTH - timedelta(seconds=21), duration_seconds=61.0, completion_tokens=600)
    first = end - WIDTH - timedelta(seconds=20)
    plain.engine(
        (first - timedelta(minutes=6), 0, 0),
        (first, 10, 0),
        (first + timedelta(seconds=60), 10, 600),
        (AFTER, 10, 600),
    )
    # Between the two readings of the counter there are none: it grew evenly.
    with psycopg.connect(plain.url, autocommit=True) as connection:
        connection.execute(
            "DELETE FROM engine_samples WHERE time > %s AND time < %s", (first, first + timedelta(seconds=60))
        )
    await plain.reckon()
    rows = plain.rows("status, round(proxy_output_tokens), round(engine_output_tokens)")
    assert rows == [("known", 200, 200), ("known", 400, 400)]
