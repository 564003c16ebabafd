"""Every SQL panel on both kinds of database, with Grafana's macros expanded as Grafana does it."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from collector.rollups import roll_up
from collector.usage_sums import settle
from fleetpulse.database.connect import Connection, connect
from fleetpulse.settings import DatabaseSettings

ROOT = Path(__file__).parents[2]
WORKER = "o'hara's box"

FILL = """
INSERT INTO workers (worker_id, instance_id, host_name) VALUES ('o''hara''s box', 'instance-1', 'box');
INSERT INTO gpus (worker_key, hw_id, gpu_index, model) SELECT worker_key, 'GPU-1', 0, 'H100' FROM workers;
INSERT INTO engines (worker_key, model_id, engine_index) SELECT worker_key, 'acme/model', '0' FROM workers;
INSERT INTO gpu_samples (time, worker_key, gpu_key, utilization_ratio, memory_used_bytes, memory_total_bytes,
    temperature_celsius, temperature_limit_celsius, power_watts, sm_clock_hertz, xid_errors_total,
    uncorrected_errors_total)
SELECT t, worker_key, gpu_key, 0.5, 1e9, 8e10, 60, 90, 300, 1.5e9, 1, 0
FROM gpus, generate_series(now() - INTERVAL '10 minutes', now(), INTERVAL '20 seconds') AS t;
INSERT INTO system_samples (time, worker_key, cpu_utilization_ratio, memory_used_bytes, memory_total_bytes,
    network_received_bytes_total, network_sent_bytes_total)
SELECT t, worker_key, 0.2, 1e9, 2e9, extract(epoch FROM t), extract(epoch FROM t)
FROM workers, generate_series(now() - INTERVAL '10 minutes', now(), INTERVAL '20 seconds') AS t;
INSERT INTO engine_samples (time, worker_key, engine_key, requests_running, requests_waiting, kv_cache_usage_ratio,
    steps_total, prompt_tokens_total, generation_tokens_total, preemptions_total, prefix_cache_queries_total,
    prefix_cache_hits_total)
SELECT t, worker_key, engine_key, 2, 1, 0.4, n, n, n, n, n, n
FROM engines, generate_series(now() - INTERVAL '10 minutes', now(), INTERVAL '20 seconds') AS t,
    LATERAL (SELECT extract(epoch FROM t) AS n) AS counted;
INSERT INTO heartbeats (time, received_at, worker_key, sequence, status, engine_state, interval_seconds,
    requests_waiting, requests_running, kv_cache_usage_ratio, gpu_utilization_ratio)
SELECT t, t + INTERVAL '30 milliseconds', worker_key, 1, 1, 3, 1, 1, 2, 0.4, 0.5
FROM workers, generate_series(now() - INTERVAL '1 minute', now(), INTERVAL '10 seconds') AS t;
INSERT INTO data_quality SELECT worker_key, date_trunc('hour', now()), 'rejected', 'out_of_range', 3 FROM workers;
INSERT INTO ingest_gaps (topic, partition, from_offset, to_offset, reason) VALUES ('otlp_metrics', 0, 1, 2, 'expired');
INSERT INTO ingest_offsets (topic, partition, next_offset, owner) VALUES ('otlp_metrics', 0, 3, 'collector');
INSERT INTO organizations (organization_id, slug, name) VALUES ('00000000-0000-0000-0000-000000000001', 'acme', 'Acme');
INSERT INTO providers (provider) VALUES ('mock');
INSERT INTO instances (instance_id, organization_id, provider, zone, instance_type, state, price_per_hour, created_by)
SELECT 'instance-1', organization_id, 'mock', 'z', 'h100', 'ready', 2.5, 'test' FROM organizations;
INSERT INTO instance_transitions (instance_id, version, from_state, to_state, reason, detail, evidence, actor)
VALUES ('instance-1', 2, 'starting', 'ready', 'answers', 'it answers', '{}', 'job:health_check');
INSERT INTO action_log (action, succeeded, instance_id, provider, actor)
VALUES ('create', false, 'instance-1', 'mock', 'job:provisioning');
INSERT INTO orphan_machines (provider, zone, machine_id, status, ours) VALUES ('mock', 'z', 'm-1', 'running', false);
INSERT INTO finops.inference_usage (time, record_id, request_id, attempt, instance_id, worker_id, organization_id,
    key_id, model_id, model, path, is_stream, outcome, status, duration_seconds, ended_at, first_token_seconds,
    input_tokens, output_tokens, total_tokens, token_source, price_per_hour, currency)
SELECT t, 'r-' || t, 'request', 1, 'instance-1', 'box', '00000000-0000-0000-0000-000000000001', 'key', 'model-id',
    'acme/model', '/v1/chat/completions', true, 'completed', 200, 2, t + INTERVAL '2 seconds', 0.2, 10, 20, 30,
    'engine', 2.5, 'EUR'
FROM generate_series(now() - INTERVAL '20 minutes', now() - INTERVAL '10 minutes', INTERVAL '1 minute') AS t;
INSERT INTO finops.usage_marks SELECT 'instance-1', min(time), max(ended_at) FROM finops.inference_usage;
INSERT INTO finops.token_ledger (window_start, window_seconds, instance_id, worker_id, status, proxy_requests,
    proxy_unknown_requests, proxy_input_tokens, proxy_output_tokens, engine_input_tokens, engine_output_tokens,
    engine_resets, computed_at)
VALUES (now() - INTERVAL '10 minutes', 300, 'instance-1', 'box', 'known', 5, 0, 50, 100, 50, 100, 0, now());
"""


def panels() -> list[tuple[str, str, str]]:
    """Name, shape and text of each SQL query."""
    return [
        (f"{path.stem}: {panel['title']}", target["format"], target["rawSql"])
        for path in sorted((ROOT / "dashboards").glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
        if "rawSql" in target
    ]


def variables() -> list[str]:
    models = [json.loads(path.read_text()) for path in sorted((ROOT / "dashboards").glob("*.json"))]
    return [
        one["query"]
        for model in models
        for one in model["templating"]["list"]
        if one["type"] == "query" and isinstance(one["query"], str)
    ]


def expand(query: str, from_time: datetime, to_time: datetime, is_timescale: bool) -> str:
    """As Grafana's PostgreSQL data source does."""
    interval_seconds = 60
    bucket = (
        rf"time_bucket('{interval_seconds}.000s',\1)"
        if is_timescale
        else (rf"floor(extract(epoch from \1)/{interval_seconds})*{interval_seconds}")
    )
    query = re.sub(r"\$__timeGroup\(([^,()]+),\s*\$__interval\)", bucket, query)
    span = rf"\1 BETWEEN '{from_time.isoformat()}' AND '{to_time.isoformat()}'"
    query = re.sub(r"\$__timeFilter\(([^()]+)\)", span, query)
    query = query.replace("${worker:sqlstring}", "'" + WORKER.replace("'", "''") + "'")
    assert "$" not in query, query
    return query


async def rows(connection: Connection, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    cursor = await connection.execute(query.encode())
    assert cursor.description is not None
    return [column.name for column in cursor.description], await cursor.fetchall()


async def test_every_panel_returns_data(any_database_url: str) -> None:
    now = datetime.now(UTC)
    async with await connect(DatabaseSettings(url=any_database_url), "test") as connection:
        for statement in FILL.split(";\n"):
            if statement.strip():
                await connection.execute(statement.encode())
        (profile,) = (await rows(connection, "SELECT name FROM database_profile"))[1][0]
        if profile == "postgres":
            for table in ("gpu_samples", "system_samples", "engine_samples"):
                await connection.execute(
                    "INSERT INTO rollup_dirty SELECT DISTINCT %s, date_trunc('minute', time) FROM system_samples",
                    (table,),
                )
            await roll_up(connection)
        await settle(connection)
        empty = []
        for name, shape, query in panels():
            told = expand(query, now - timedelta(hours=2), now + timedelta(minutes=2), profile == "timescale")
            names, found = await rows(connection, told)
            values = [
                [value for column, value in zip(names, row, strict=True) if column not in ("time", "metric")]
                for row in found
            ]
            if not any(value is not None for row in values for value in row):
                empty.append(name)
            if shape == "time_series":
                assert names[0] == "time", name
                assert [row[0] for row in found] == sorted(row[0] for row in found), name
                texts = {
                    column for row in found for column, value in zip(names, row, strict=True) if type(value) is str
                }
                # Of any other three columns Grafana calls the series by number and text both: "value GPU 0".
                assert not texts or names == ["time", "metric", "value"], name
                assert all(row[1] == row[1].strip() for row in found if texts), name
        assert empty == []
        for query in variables():
            assert (await rows(connection, query))[1] == [(WORKER,)]


@pytest.mark.parametrize(
    ("is_timescale", "bucket"),
    [(False, "floor(extract(epoch from s.bucket)/60)*60"), (True, "time_bucket('60.000s',s.bucket)")],
)
def test_macros_are_expanded_as_grafana_does(is_timescale: bool, bucket: str) -> None:
    start, end = datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 2, tzinfo=UTC)
    query = "SELECT $__timeGroup(s.bucket, $__interval) WHERE $__timeFilter(s.bucket) AND w = ${worker:sqlstring}"
    assert expand(query, start, end, is_timescale) == (
        f"SELECT {bucket} WHERE s.bucket BETWEEN '2030-01-01T00:00:00+00:00' AND '2030-01-02T00:00:00+00:00'"
        " AND w = 'o''hara''s box'"
    )
