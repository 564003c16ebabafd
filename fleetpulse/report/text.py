"""Reports as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import pandas as pd

from fleetpulse.report import numbers
from fleetpulse.report.read import Run

Write = Callable[[float], str]

# More than this taken by others is said: the numbers are not the stack's alone.
_FOREIGN_CORES: Final = 0.2
_PARTS: Final = ("collector", "postgres", "broker")


def page(run: Run, pictures: Sequence[str]) -> str:
    """One run's report."""
    parts = [f"# {run.name}", _about(run), _verdict(run)]
    if run.simulation is not None:
        parts += ["## Messages", _table(numbers.messages(run), "stream", {"acked_per_second": _one_decimal})]
        parts += [f"## Latency, from sending until {run.about['latency_until']}, in ms", _latencies(run)]
        parts += ["## Rows", _table(numbers.rows(run), "relation", {"rows_per_second": _one_decimal})]
        parts += ["## Lag", _lag(run)]
    if run.load is not None:
        parts += ["## Requests", _outcomes(run), _table(numbers.stages(run), "stage", {}, _one_decimal)]
    parts += ["## Processes", _processes(run), *(f"![{name.removesuffix('.png')}]({name})" for name in pictures)]
    return "\n\n".join(part for part in parts if part) + "\n"


def overview(runs: Sequence[Run], pictures: Sequence[str]) -> str:
    """Several runs beside each other."""
    parts = ["# Load test", _about(runs[0]), _agents([run for run in runs if run.simulation is not None])]
    parts += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]
    for run in runs:
        if run.load is not None:
            parts += [f"## {run.name}", _outcomes(run), _table(numbers.stages(run), "stage", {}, _one_decimal)]
    parts += [
        "## Each run",
        "\n".join(f"- [{run.name}]({run.folder.name}/report.md): {_verdict(run)}" for run in runs),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _agents(runs: Sequence[Run]) -> str:
    rows = {}
    for run in runs:
        assert run.simulation is not None
        beats, stored, used = numbers.latencies(run), numbers.rows(run), numbers.processes(run)["cpu_mean_cores"]
        behind, others = numbers.lag(run)["lag_messages"], numbers.others_cores(run)
        rows[run.agents] = {
            "messages / s": f"{numbers.messages(run)['acked_per_second'].sum():,.1f}",
            "rows / s": f"{stored['rows_per_second'].sum():,.1f}",
            **{f"heartbeat {p} ms": _latency(beats, p) for p in ("p50", "p95", "p99")},
            "most lag, messages": f"{behind.max():,.0f}" if len(behind) else "",
            "rows lost": f"{stored['lost'].sum():,.0f}"
            + (" not stored yet" if run.about.get("unread_messages") else ""),
            "rows doubled": f"{stored['doubled'].sum():,.0f}",
            **{f"{part} cores": _two_decimals(float(used[part])) for part in _PARTS if part in used.index},
            "others cores": "" if others is None else _two_decimals(others),
            "behind schedule, s": f"{run.simulation['behind_seconds']:.1f}",
        }
    return _table(pd.DataFrame.from_dict(rows, orient="index"), "agents", {}) if rows else ""


def _latency(beats: pd.DataFrame, percentile: str) -> str:
    return f"{float(beats[percentile]['heartbeats']):,.1f}" if "heartbeats" in beats.index else ""


def _about(run: Run) -> str:
    machine, began = run.about["machine"], datetime.fromtimestamp(run.about["began_unix_seconds"], UTC)
    return (
        f"{began:%Y-%m-%d %H:%M} UTC, {run.seconds:.0f} s · {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, Python {machine['python']}, "
        f"PostgreSQL {run.about['postgres']}, fleetpulse {machine['fleetpulse']} · "
        f"load average at the start {run.about['load_average_at_the_start']:.1f}"
    )


def _verdict(run: Run) -> str:
    told = []
    if run.simulation is not None:
        told += numbers.faults(run) or ["Nothing is lost, and nothing is doubled."]
        if run.simulation["behind_seconds"] > 1:
            told.append(f"The simulation was up to {run.simulation['behind_seconds']:.1f} s behind its schedule.")
    if run.load is not None:
        outcomes = numbers.outcomes(run)
        wrong = sum(outcomes.values()) - outcomes.get("completed", 0)
        told.append(
            f"{wrong} of {sum(outcomes.values())} requests did not complete." if wrong else "All requests completed."
        )
    others = numbers.others_cores(run)
    if others is not None and others > _FOREIGN_CORES:
        told.append(
            f"Other programs took {others:.1f} of the machine's {run.about['machine']['cores']} cores meanwhile."
        )
    return " ".join(told)


def _latencies(run: Run) -> str:
    return _table(numbers.latencies(run), "stream", {"messages": _whole}, _one_decimal)


def _lag(run: Run) -> str:
    found = numbers.lag(run)["lag_messages"]
    if found.empty:
        return "Not recorded."
    return f"At most {found.max():,.0f} messages, {found.mean():,.1f} on average, {found.iloc[-1]:,.0f} at the end."


def _outcomes(run: Run) -> str:
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in numbers.outcomes(run).items())
    assert run.load is not None
    kind = "requests a second (open model)" if run.load["model"] == "open" else "clients (closed model)"
    return f"{told or 'No requests'}. Targets are {kind}; times are from when a request was due."


def _processes(run: Run) -> str:
    table = numbers.processes(run)
    shown = pd.DataFrame(
        {
            "CPU cores, mean": table["cpu_mean_cores"].map(_two_decimals, na_action="ignore"),
            "CPU cores, most": table["cpu_max_cores"].map(_two_decimals, na_action="ignore"),
            "memory MiB, mean": (table["memory_mean_bytes"] / 2**20).map(_whole, na_action="ignore"),
            "memory MiB, most": (table["memory_max_bytes"] / 2**20).map(_whole, na_action="ignore"),
        }
    )
    return _table(shown, "process", {})


def _table(table: pd.DataFrame, corner: str, writes: Mapping[str, Write], write: Write | None = None) -> str:
    """As Markdown; numbers to the right."""
    if table.empty:
        return ""
    columns = [str(column) for column in table.columns]
    lines = [
        f"| {' | '.join([corner, *(column.replace('_', ' ') for column in columns)])} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for index, row in table.iterrows():
        cells = [_cell(row[column], writes.get(column, write or _whole)) for column in columns]
        lines.append(f"| {' | '.join([str(index), *cells])} |")
    return "\n".join(lines)


def _cell(value: object, write: Write) -> str:
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else write(float(value))  # type: ignore[arg-type, call-overload]


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _one_decimal(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0") if float(value).is_integer() else f"{value:,.1f}"


def _two_decimals(value: float) -> str:
    return f"{value:.2f}"
