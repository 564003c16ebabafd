"""The embedded stack under load: make load-test (QUICK=1 for under four minutes).

Brings up a stack of its own, drives simulated agents and then the proxy, and writes a report of each run and of all
together (Markdown, CSV, PNG) into a folder, and the figures into bench/results/load.json.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psycopg

from fleetpulse.local import apache_kafka
from fleetpulse.local.ports import free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.local.processes import Child, StartError
from fleetpulse.local.state_file import has_state
from fleetpulse.report.main import ReportError, report

QUICK = os.environ.get("QUICK") == "1"
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "load.json"
SECONDS = 10 if QUICK else 60
# From there on agents are as docs/agent.md has it for very large fleets.
MANY_AGENTS = 5_000
STAGES = "ramp=5:20,hold=8:20,spike=0:60,spike=4:60,recover=0:20,recover=5:20" if QUICK else None
UP_SECONDS = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", default="10,50,100,1000,10000", help="numbers of agents, one run each")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each run (default: {SECONDS})")
    parser.add_argument("--out", type=Path, default=ROOT / ".test" / "load", help="folder of the reports")
    parser.add_argument("--keep-data", action="store_true", help="keep the stack's data folder")
    asked = parser.parse_args()
    shutil.rmtree(asked.out, ignore_errors=True)
    asked.out.mkdir(parents=True)
    with data_folder(asked.keep_data) as folder:
        keep_commit_times(folder)
        with stack(folder):
            for agents in (int(each) for each in asked.agents.split(",")):
                simulate(folder, agents, asked.seconds, asked.out / f"agents-{agents:05d}")
            drive_proxy(folder, asked.out / "proxy")
    for path in report(asked.out):
        print(path)
    write_results(asked.out)


@contextlib.contextmanager
def data_folder(keep: bool) -> Iterator[Path]:
    """Not a folder of one user's: under root the database server runs as another account."""
    folder = Path(tempfile.mkdtemp(prefix="fleetpulse-load-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        if keep:
            print(f"the stack's data and logs are in {folder}")
        else:
            shutil.rmtree(folder)


def keep_commit_times(folder: Path) -> None:
    """Have the database remember when each transaction was committed, from its first start as the stack's on."""
    with (
        EmbeddedPostgres(folder / "postgres", free_port()) as postgres,
        psycopg.connect(postgres.url(), autocommit=True) as connection,
    ):
        connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")


@contextlib.contextmanager
def stack(folder: Path) -> Iterator[None]:
    """``fleetpulse up``, with Apache Kafka where it can run."""
    missing = apache_kafka.available()
    if missing:
        print(f"with the embedded broker: {missing}")
    command = ["up", "--data-dir", str(folder), "--broker", "embedded" if missing else "apache"]
    child = Child("up", (sys.executable, "-m", "fleetpulse", *command), folder / "up.log", environment(folder))
    child.start()
    try:
        child.wait_until(lambda: has_state(folder), UP_SECONDS)
        yield
    finally:
        child.stop(signal.SIGINT, 60)


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"FLEETPULSE_LOCAL_DATA_DIR": str(folder), "FLEETPULSE_LOG_LEVEL": "warning"}


def simulate(folder: Path, agents: int, seconds: float, out: Path) -> None:
    times = ("10", "5") if agents >= MANY_AGENTS else ("5", "1")
    intervals = ("--interval", times[0], "--heartbeat-interval", times[1])
    fleetpulse(
        folder, "simulate", "--agents", str(agents), *intervals, "--duration", str(seconds), "--record", str(out)
    )


def drive_proxy(folder: Path, out: Path) -> None:
    stages = ("--stages", STAGES) if STAGES else ()
    fleetpulse(folder, "load", *stages, "--record", str(out))


def fleetpulse(folder: Path, *arguments: str) -> None:
    """A command as anybody would give it; it shows its own progress."""
    print(f"fleetpulse {' '.join(arguments)}", flush=True)
    subprocess.run((sys.executable, "-m", "fleetpulse", *arguments), env=environment(folder), check=True)


def write_results(out: Path) -> None:
    """The figures, one a key."""
    table = pd.read_csv(out / "summary.csv")
    keys = table["run"] + "/" + table["table"] + "/" + table["subject"] + "/" + table["measure"]
    about = json.loads(next(out.glob("*/run.json")).read_text())
    result = {
        "command": "QUICK=1 make load-test" if QUICK else "make load-test",
        "machine": about["machine"],
        "load_average_at_the_start": about["load_average_at_the_start"],
        "figures": dict(zip(keys, table["value"], strict=True)),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (StartError, ReportError, subprocess.CalledProcessError) as error:
        sys.exit(f"bench/load: {error}")
