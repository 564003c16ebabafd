"""The files of a recorded run. Times are seconds since 1970, of the machine's one clock."""

from typing import Final

RUN: Final = "run.json"
"""What was recorded where, and how latencies were taken; the file that makes a folder a run's."""
SIMULATION: Final = "simulate.json"
"""What simulated agents sent, where there were any."""
LOAD: Final = "load.json"
"""What the proxy was asked, where it was."""
REQUESTS: Final = "requests.csv"
"""A row for each request to the proxy."""
PROCESSES: Final = "processes.csv"
"""``unix_seconds, name, pid, cpu_seconds, memory_bytes, processes``: CPU time since the start, and memory, of a part
and its children. ``MACHINE`` is all that ran, whoever started it."""
METRICS: Final = "metrics.csv"
"""``unix_seconds, name, value``: metrics of the services, all series of a name together."""
STORED: Final = "stored.csv"
"""``relation, expected, stored, distinct``: rows that acknowledged messages should have made, and those that are
there."""
LATENCIES: Final = "latencies.csv"
"""``stream, sent, seconds``: of each heartbeat or sample, when it was made, and how long until it was committed."""

MACHINE: Final = "machine"
PROCESS_COLUMNS: Final = ("unix_seconds", "name", "pid", "cpu_seconds", "memory_bytes", "processes")
METRIC_COLUMNS: Final = ("unix_seconds", "name", "value")
STORED_COLUMNS: Final = ("relation", "expected", "stored", "distinct")
LATENCY_COLUMNS: Final = ("stream", "sent", "seconds")

LAG: Final = "fleetpulse_collector_lag_messages"
COMMITTED: Final = "fleetpulse_collector_messages_total"
