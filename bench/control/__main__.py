"""Control, measured on the real parts: make bench-control (QUICK=1 for under three minutes).

Prints a table and writes bench/results/control.json.
"""

import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import answers
import jobs
from parts import INSTANCES, Parts

from fleetpulse.database import prepare
from fleetpulse.local import apache_kafka
from fleetpulse.local.apache_kafka import ApacheKafka
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.settings import DatabaseSettings, StreamSettings
from fleetpulse.stream.admin import ensure_topics

RESULTS = Path(__file__).parents[1] / "results" / "control.json"
# A worker's minutes lie on a page each: a day of all workers should fit (docs/database.md).
POSTGRES = {"shared_buffers": "2GB", "max_wal_size": "4GB"}


@contextmanager
def stack(folder: Path) -> Iterator[Parts]:
    kafka = (EmbeddedBroker if apache_kafka.available() else ApacheKafka)(folder / "broker", free_port())
    with EmbeddedPostgres(folder / "postgres", parameters=POSTGRES) as postgres:
        kafka.start()
        try:
            asyncio.run(ensure_topics(StreamSettings(bootstrap=kafka.bootstrap)))
            asyncio.run(prepare(DatabaseSettings(url=postgres.url())))
            yield Parts(folder, postgres.url(), postgres.pid, kafka.bootstrap)
        finally:
            kafka.stop()


def main() -> None:
    result: dict[str, object] = {
        "command": "QUICK=1 make bench-control" if answers.QUICK else "make bench-control",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_average_at_the_start": os.getloadavg()[0],
        "postgres": POSTGRES,
        "days": answers.DAYS,
        "workers": answers.WORKERS,
        "gpus_per_worker": answers.GPUS_PER_WORKER,
        "instances": INSTANCES,
    }
    with tempfile.TemporaryDirectory(prefix="fleetpulse-bench-") as folder:
        # The database server runs as another account under root.
        Path(folder).chmod(0o755)
        with stack(Path(folder)) as parts:
            started = time.perf_counter()
            result["rows_loaded"] = answers.load_rollups(parts.url)
            result["load_seconds"] = time.perf_counter() - started
            jobs.load_instances(parts.url)
            result |= answers.measure(parts)
            result["plans_read"] = answers.relations_read(parts.url)
            result |= jobs.measure(parts, 20 if answers.QUICK else 120)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    for name, value in result.items():
        print(f"{name:38} {value if not isinstance(value, float) else round(value, 3)}")


if __name__ == "__main__":
    main()
