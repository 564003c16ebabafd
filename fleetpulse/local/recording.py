"""Keeps, beside a run, what ``fleetpulse report`` needs: a folder with the files of fleetpulse/report/folder.py."""

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg

from fleetpulse import __version__
from fleetpulse.local.processes import Child, StartError
from fleetpulse.local.progress import say
from fleetpulse.local.stored import wait_until_stored, write_latencies, write_stored
from fleetpulse.local.watch import told
from fleetpulse.report.folder import LAG, LATENCIES, LOAD, PROCESSES, RUN, SIMULATION, STORED

_WATCH_START_SECONDS: Final = 60.0


@contextlib.contextmanager
def recording(folder: Path, name: str, state: Mapping[str, Any], tell: Callable[[str], None] = say) -> Iterator[None]:
    """Watch the stack of a ``fleetpulse.json`` and this process, called ``name``, while the block runs; at its end, see
    what the database has. The block writes ``simulate.json`` or ``load.json`` into ``folder``.

    ``state`` needs ``pids``, ``database_url`` and ``collector_url``; ``proxy_url`` is looked at where there is one.
    Raises OSError when the database does not answer or has no tables, or the processes cannot be watched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (RUN, SIMULATION, LOAD, PROCESSES):
        (folder / old).unlink(missing_ok=True)
    urls = [state[key] for key in ("collector_url", "proxy_url") if state.get(key)]
    plan = {"pids": {**state["pids"], name: os.getpid()}, "urls": urls}
    command = [sys.executable, "-m", "fleetpulse.local.watch", str(folder), json.dumps(plan)]
    watcher = Child("watch", command, folder / "watch.log")
    began, load_average = time.time(), os.getloadavg()[0]
    watcher.start()
    try:
        watcher.wait_until(lambda: _has_content(folder / PROCESSES), _WATCH_START_SECONDS)
        yield
        ended = time.time()
        found = _look(folder, state["database_url"], state["collector_url"], tell)
    except StartError as error:
        raise ChildProcessError(f"the run is not recorded: {error}") from error
    except psycopg.errors.UndefinedTable as error:
        raise FileNotFoundError(
            "the run is not recorded, as no collector has laid the tables of its database: look at the collector's log"
        ) from error
    except psycopg.Error as error:
        raise ConnectionError(f"the run is not recorded, as its database does not answer: {error}") from error
    finally:
        watcher.stop()
    run = {
        "name": folder.absolute().name,
        "began_unix_seconds": began,
        "ended_unix_seconds": ended,
        "load_average_at_the_start": load_average,
        "machine": machine(),
        **found,
    }
    (folder / RUN).write_text(json.dumps(run, indent=2) + "\n")


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _look(folder: Path, url: str, collector_url: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """What became of what was sent, and what it was sent to."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SHOW server_version").fetchone()
        assert row is not None
    found: dict[str, Any] = {"postgres": row[0]}
    if (folder / SIMULATION).exists():
        simulation = json.loads((folder / SIMULATION).read_text())

        def unread() -> float | None:
            return told(collector_url).get(LAG)

        began = time.monotonic()
        write_stored(folder / STORED, wait_until_stored(url, simulation, unread, tell))
        found["stored_after_seconds"] = time.monotonic() - began
        found["unread_messages"] = unread()
        found["latency_until"] = write_latencies(url, simulation, folder / LATENCIES)
    return found


def machine() -> dict[str, Any]:
    """Where a run took place."""
    return {
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "fleetpulse": __version__,
    }
