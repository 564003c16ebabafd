"""Control's answers over HTTP: activity of one worker and of the fleet over a day by the minute, and the instances.

Rollups are filled with random numbers, a row a bucket after the other as they come in life, and each day is vacuumed
when it is over; what was loaded is in the result. Latencies are of whole answers, one request at a time.
"""

import http.client
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import psycopg
from parts import ADMIN_KEY, NO_JOBS, Parts, control_process

from control.api.families import GPU_ACTIVITY
from control.api.parameters import ActivityParameters
from control.api.resources.activity import query_parameters, statement
from fleetpulse.database.partitions import STEPS
from fleetpulse.database.relations import expected

QUICK = os.environ.get("QUICK") == "1"
DAYS = 2 if QUICK else 30
WORKERS = 300 if QUICK else 1_000
GPUS_PER_WORKER = 8
REQUESTS = 500
# Those for all fields take ten times as long.
LONG_REQUESTS = 100
WINDOW_SECONDS = 86_400
WARM_REQUESTS = 100
ROWS_PER_RESPONSE = 20_000
READINGS_PER_MINUTE = 12


def load_rollups(url: str) -> dict[str, int]:
    """Minutes of each worker and of the fleet; returns the rows of each relation."""
    with psycopg.connect(url, autocommit=True, options="-c timezone=UTC") as connection:
        connection.execute(
            "INSERT INTO workers (worker_id, instance_id) SELECT name, name FROM generate_series(1, %s) AS n,"
            " format('worker-%%s', n) AS name",
            (WORKERS,),
        )
        series = {"gpu_fleet_1m": WORKERS * GPUS_PER_WORKER, "gpu_worker_1m": GPUS_PER_WORKER}
        for relation in series:
            connection.execute(
                "SELECT make_partitions(%s, %s, now() - %s * INTERVAL '1 day', now())",
                (relation, STEPS[relation], DAYS),
            )
        # Counted while they are made: to count them afterwards would leave nothing of the newest day in memory.
        rows = dict.fromkeys(series, 0)
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        for day in (midnight - timedelta(days=age) for age in range(DAYS, -1, -1)):
            for relation, count in series.items():
                rows[relation] += connection.execute(filling(relation, count), {"day": day, "days": DAYS}).rowcount
                connection.execute(f"VACUUM ANALYZE {relation}_p{day:%Y%m%d}")
        connection.execute("ANALYZE workers, ONLY gpu_worker_1m, ONLY gpu_fleet_1m")
        # Or the load would be written to disk beside what is measured.
        connection.execute("CHECKPOINT")
        return rows


def filling(relation: str, series_count: int) -> str:
    """INSERT of every minute of a day, within the days until now, of every worker where it has a key."""
    columns = expected("postgres")[relation]
    keyed = "worker_key" in columns
    readings = READINGS_PER_MINUTE * series_count
    values = []
    for column in columns:
        if column in ("bucket", "worker_key"):
            values.append(column)
        elif column == "series_count" or column.endswith("_series"):
            values.append(str(series_count))
        elif column.endswith("_count"):
            values.append(str(readings))
        else:
            values.append(f"random() * {readings if column.endswith('_sum') else 1}")
    workers = " CROSS JOIN workers ORDER BY bucket" if keyed else ""
    return (
        f"INSERT INTO {relation} ({', '.join(columns)}) SELECT {', '.join(values)} FROM generate_series("
        "greatest(%(day)s, date_trunc('minute', now()) - %(days)s * INTERVAL '1 day'),"
        " least(now(), %(day)s + INTERVAL '1439 minutes'), INTERVAL '1 minute')"
        f" AS bucket{workers}"
    )


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path: str, **query: object) -> bytes:
        target = f"{path}?{urlencode(query)}" if query else path
        self._connection.request("GET", target, headers={"Authorization": f"Bearer {ADMIN_KEY}"})
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"GET {target}: {answer.status} {body[:300]!r}")
        return body

    def milliseconds(self, path: str, query: Callable[[], dict[str, object]], requests: int = REQUESTS) -> list[float]:
        """Of so many requests, after some to warm up."""
        times = []
        for number in range(WARM_REQUESTS + requests):
            asked = query()
            started = time.perf_counter()
            self.get(path, **asked)
            if number >= WARM_REQUESTS:
                times.append((time.perf_counter() - started) * 1000)
        return times


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def measure(parts: Parts) -> dict[str, object]:
    """Activity of one worker and of the fleet over a day by the minute, and the list of instances."""

    def one_worker() -> dict[str, object]:
        return {"group_by": "worker", "worker_id": f"worker-{random.randint(1, WORKERS)}", **day}

    day = {"granularity": "minute", "window_s": WINDOW_SECONDS}
    field = {"fields": "utilization_ratio"}
    with control_process(parts, NO_JOBS) as (_, port):
        client = Client(port)
        measured = {
            "activity_worker": client.milliseconds("/gpu/activity", lambda: one_worker() | field),
            "activity_worker_all_fields": client.milliseconds("/gpu/activity", one_worker, LONG_REQUESTS),
            "activity_fleet": client.milliseconds("/gpu/activity", lambda: {"group_by": "fleet", **day, **field}),
            "activity_fleet_all_fields": client.milliseconds(
                "/gpu/activity", lambda: {"group_by": "fleet", **day}, LONG_REQUESTS
            ),
            "instances": client.milliseconds("/instances", dict),
        }
        rows = len(json.loads(client.get("/gpu/activity", **one_worker(), **field))["rows"])
    found: dict[str, object] = {f"{name}_p99_ms": p99(times) for name, times in measured.items()}
    found |= {f"{name}_median_ms": statistics.median(times) for name, times in measured.items()}
    return found | {"activity_fields": field["fields"], "activity_rows_per_answer": rows, "requests_each": REQUESTS}


def relations_read(url: str) -> dict[str, list[str]]:
    """Tables in the plans of the statements behind these requests. Raises RuntimeError for samples among them."""
    found = {}
    with psycopg.connect(url, options="-c timezone=UTC") as connection:
        for group, workers in (("worker", ["worker-1"]), ("fleet", None)):
            asked = ActivityParameters(WINDOW_SECONDS, "minute", None, workers, group)
            parameters = query_parameters(asked, datetime.now(UTC), ROWS_PER_RESPONSE)
            text = statement(GPU_ACTIVITY, asked).decode()
            plan = connection.execute(f"EXPLAIN (FORMAT JSON) {text}", parameters).fetchone()[0]
            found[group] = sorted(set(tables(plan)))
            allowed = {"workers"} if group == "worker" else set()
            if any(name not in allowed and not name.startswith(f"gpu_{group}_1m") for name in found[group]):
                raise RuntimeError(f"the plan reads more than the aggregates: {found[group]}")
    return found


def tables(plan: Any) -> Iterator[str]:
    if isinstance(plan, dict):
        yield from (plan[name] for name in ("Relation Name",) if name in plan)
        plan = list(plan.values())
    if isinstance(plan, list):
        for part in plan:
            yield from tables(part)
