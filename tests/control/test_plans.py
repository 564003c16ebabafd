"""What the database reads for an answer."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from control.api.families import ENGINE_ACTIVITY, GPU_ACTIVITY, Family
from control.api.parameters import ActivityParameters
from control.api.resources.activity import query_parameters, statement

# An index has room for these many gauges' averages.
GAUGES = 14


@pytest.mark.parametrize("family", [GPU_ACTIVITY, ENGINE_ACTIVITY], ids=lambda family: family.name)
def test_averages_of_a_workers_minutes_are_read_from_the_key_alone(database_url: str, family: Family) -> None:
    averages = frozenset(gauge.column for gauge in family.gauges[:GAUGES])
    asked = ActivityParameters(86_400, "minute", None, ["worker-1"], "worker", averages)
    # Empty tables are read through anyhow: what is asked here is whether the key would do.
    others = " ".join(f"-c enable_{scan}=off" for scan in ("seqscan", "indexscan", "bitmapscan"))
    with psycopg.connect(database_url, options=others) as connection:
        explained = connection.execute(
            b"EXPLAIN (FORMAT JSON) " + statement(family, asked), query_parameters(asked, datetime.now(UTC), 1_000)
        ).fetchone()
    assert explained is not None
    minutes = [node for node in nodes(explained[0]) if f"{family.name}_worker_1m" in node.get("Relation Name", "")]
    assert minutes, json.dumps(explained[0])
    assert {node["Node Type"] for node in minutes} == {"Index Only Scan"}


def nodes(plan: Any) -> Iterator[dict[str, Any]]:
    """All nodes of a plan as PostgreSQL tells it in JSON."""
    if isinstance(plan, dict):
        yield plan
        plan = list(plan.values())
    if isinstance(plan, list):
        for part in plan:
            yield from nodes(part)
