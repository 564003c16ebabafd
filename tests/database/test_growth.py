"""No table grows without end, and the documents say for how long each row is kept."""

import re
from pathlib import Path

from collector.upkeep import delete_old_books
from fleetpulse.database.connect import connect
from fleetpulse.database.relations import expected

# Views, and tables whose rows the migrations or the settings make.
NOT_GROWING = re.compile(
    r"instance_request_metrics.*|database_profile|heartbeat_statuses|engine_states|rollup_levels|retention_floors"
    r"|job_states|lifecycle_publisher|finops\.ledger_passes"
)
AGES = "FROM unnest(ARRAY[1, 89, 91, 400]) AS days"
LEFT = "SELECT round(extract(epoch FROM now() - {}) / 86400)::int FROM {} ORDER BY 1"


def test_the_documents_say_for_how_long_the_rows_of_each_table_are_kept() -> None:
    text = (Path(__file__).parents[2] / "docs/database.md").read_text()
    section = text.split("## Retention")[1].split("\n## ")[0]
    told = set(re.findall(r"`([a-z_.0-9]+)`", section))
    # Samples and rollups are told of together.
    measured = re.compile(
        r"(finops\.)?(gpu|system|engine|inference)_(samples|worker|fleet|usage)(_1[mhd])?|metric_(p|h).*"
    )
    growing = {
        name for name in expected("postgres") if not NOT_GROWING.fullmatch(name) and not measured.fullmatch(name)
    }
    assert growing - told == set()


async def test_what_was_noticed_long_ago_is_forgotten(database_settings) -> None:
    async with await connect(database_settings) as connection:
        await connection.execute(
            "INSERT INTO producer_positions "
            " (worker_key, topic, partition, boot_id, high_water, window_bits, updated_at)"
            " SELECT 1, 't', 0, days, 1, '', now() - make_interval(days => days) FROM unnest(ARRAY[1, 14, 16]) AS days"
        )
        await connection.execute(
            f"INSERT INTO data_quality SELECT 1, now() - make_interval(days => days), 'late', 'late', 1 {AGES}"
        )
        await connection.execute(
            f"INSERT INTO ingest_gaps SELECT 't', 0, 0, 1, 'expired', now() - make_interval(days => days) {AGES}"
        )
        await delete_old_books(connection, database_settings)
        for relation, column, left in (
            ("producer_positions", "updated_at", [1, 14]),
            ("data_quality", "hour", [1, 89]),
            ("ingest_gaps", "noticed_at", [1, 89]),
        ):
            cursor = await connection.execute(LEFT.format(column, relation))
            assert [days for (days,) in await cursor.fetchall()] == left, relation
