"""A recorded run as tables."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fleetpulse.report.folder import (
    LATENCIES,
    LATENCY_COLUMNS,
    LOAD,
    METRIC_COLUMNS,
    METRICS,
    PROCESS_COLUMNS,
    PROCESSES,
    REQUESTS,
    RUN,
    SIMULATION,
    STORED,
    STORED_COLUMNS,
)


class ReportError(Exception):
    """A folder that cannot be reported on; the message is one line for people."""


@dataclass(frozen=True, slots=True)
class Run:
    """A folder's content. Tables of what was not recorded are empty; ``seconds`` in them is since the beginning."""

    folder: Path
    about: dict[str, Any]
    simulation: dict[str, Any] | None
    load: dict[str, Any] | None
    processes: pd.DataFrame
    metrics: pd.DataFrame
    stored: pd.DataFrame
    latencies: pd.DataFrame
    requests: pd.DataFrame

    @property
    def name(self) -> str:
        """For people."""
        return str(self.about["name"])

    @property
    def agents(self) -> str:
        """How many there were, for people."""
        return f"{(self.simulation or {}).get('agents', 0):,}"

    @property
    def seconds(self) -> float:
        """How long messages or requests were sent."""
        told = self.simulation or self.load
        assert told is not None
        return float(told["ended_unix_seconds"] - told["began_unix_seconds"])


def read(folder: Path) -> Run:
    """Raises ReportError for what is not a run's folder, or is damaged."""
    try:
        about = json.loads((folder / RUN).read_text())
        simulation, load = _json(folder / SIMULATION), _json(folder / LOAD)
        if simulation is None and load is None:
            raise ReportError(f"{folder} has neither {SIMULATION} nor {LOAD}: record the run again")
        began = float((simulation or load or about)["began_unix_seconds"])
        return Run(
            folder,
            about,
            simulation,
            load,
            _since(_table(folder / PROCESSES, PROCESS_COLUMNS), "unix_seconds", began),
            _since(_table(folder / METRICS, METRIC_COLUMNS), "unix_seconds", began),
            _table(folder / STORED, STORED_COLUMNS) if simulation else pd.DataFrame(columns=list(STORED_COLUMNS)),
            _latencies(folder, simulation, began),
            pd.read_csv(folder / REQUESTS) if load else pd.DataFrame(),
        )
    except FileNotFoundError as error:
        raise ReportError(f"{error.filename} is missing: record the run again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{folder} is damaged ({error!r}): record the run again") from error


def _latencies(folder: Path, simulation: dict[str, Any] | None, began: float) -> pd.DataFrame:
    if simulation is None:
        return pd.DataFrame(columns=["stream", "seconds", "latency_seconds"])
    table = _table(folder / LATENCIES, LATENCY_COLUMNS).rename(columns={"seconds": "latency_seconds"})
    return _since(table, "sent", began)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    table = pd.read_csv(path)
    if tuple(table.columns) != columns:
        raise ReportError(f"{path} has the columns {', '.join(table.columns)}, not {', '.join(columns)}")
    return table


def _since(table: pd.DataFrame, column: str, began: float) -> pd.DataFrame:
    return table.assign(seconds=table[column] - began).drop(columns=column)
