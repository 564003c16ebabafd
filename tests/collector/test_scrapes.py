"""Scrapers that take a time each make one row a scrape."""

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from collector.scrapes import SCRAPE_NANOSECONDS, join
from collector.template import ABSENT, ABSENT_BITS
from fleetpulse.local import otlp_messages as otlp

MILLISECOND = 1_000_000


def scrape(host: str, at: int) -> bytes:
    """As a stock collector sends it: a resource for each scraper, all of the same host."""
    request = ExportMetricsServiceRequest()
    for number, (name, value, attributes) in enumerate(
        (
            ("system.cpu.load_average.1m", 0.5, {}),
            ("system.memory.usage", 7.0, {"state": "used"}),
            ("system.network.io", 9.0, {"device": "eth0", "direction": "receive"}),
        )
    ):
        scope = otlp.resource(request, {"host.name": host}).scope_metrics.add()
        otlp.gauge(scope, name, value, at + number * MILLISECOND, attributes)
    return request.SerializeToString()


async def test_a_scrape_is_a_row_however_many_scrapers_made_it(fleet):
    now = time.time_ns() // 1000 * 1000
    async with fleet.collector():
        await fleet.send(*(scrape(host, now + second * 10**9) for second in (-20, -10) for host in ("a", "b")))
        await fleet.until(lambda: fleet.count("system_samples") >= 4, "rows of four scrapes")
    found = fleet.query(
        "SELECT worker_id, extract(epoch FROM time)::numeric * 1000000, load_average_1m, memory_used_bytes,"
        " network_received_bytes_total FROM system_samples JOIN workers USING (worker_key) ORDER BY 1, 2"
    )
    expected = [(host, now // 1000 + second * 10**6, 0.5, 7.0, 9.0) for host in ("a", "b") for second in (-20, -10)]
    assert found == expected
    assert fleet.count("data_quality") == 0


cells = st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=3, max_size=3)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), cells), max_size=12))
def test_no_value_is_lost_doubled_or_moved_further_than_a_scrape_or_to_another_worker(rows):
    times = np.array([at * SCRAPE_NANOSECONDS // 2 for _, at, _ in rows], dtype=np.int64)
    workers = np.array([worker for worker, _, _ in rows], dtype=np.int64)
    values = np.array([[ABSENT if v is None else v for v in each] for _, _, each in rows]).reshape(-1, 3)
    before = values.copy()
    needed = join(times, workers, values, np.arange(len(rows)))

    def told(kept, table):
        places = zip(*np.nonzero((table.view(np.uint64) != ABSENT_BITS) & kept[:, None]), strict=True)
        return sorted(
            (int(workers[row]), int(column), float(table[row, column]), int(times[row])) for row, column in places
        )

    old, new = told(np.ones(len(rows), dtype=bool), before), told(needed, values)
    assert [each[:3] for each in sorted(old)] == [each[:3] for each in sorted(new)]
    for (*_, was), (*_, now) in zip(old, new, strict=True):
        assert abs(was - now) <= SCRAPE_NANOSECONDS
