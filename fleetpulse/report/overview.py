"""The picture of several runs with different numbers of agents, beside each other."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from fleetpulse.report import numbers, style
from fleetpulse.report.read import Run


def draw(folder: Path, runs: list[Run]) -> list[Path]:
    """Nothing where fewer than two runs had agents."""
    runs = [run for run in runs if run.simulation is not None]
    if len(runs) < 2:
        return []
    path = folder / "overview.png"
    names = [run.agents for run in runs]
    used = {name: numbers.processes(run) for name, run in zip(names, runs, strict=True)}
    with style.picture(path, "Simulated agents", [2.8, 2.8], columns=2) as axes:
        _latencies(axes[0], names, runs)
        _rates(axes[1], names, runs)
        _bars(axes[2], pd.DataFrame({name: table["cpu_mean_cores"] for name, table in used.items()}))
        axes[2].set(title="CPU, on average", ylabel="cores")
        memory = pd.DataFrame({name: table["memory_max_bytes"] / 2**20 for name, table in used.items()})
        _bars(axes[3], memory)
        axes[3].set(title="Memory, at most", ylabel="MiB")
        style.thousands(axes[3])
        axes[3].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)
        for axis in axes:
            axis.set_xlabel("agents")
            axis.grid(visible=False, axis="x")
    return [path]


def _latencies(axis: Axes, names: list[str], runs: list[Run]) -> None:
    for place, (name, share) in enumerate((("median", 0.5), ("95th percentile", 0.95), ("99th percentile", 0.99))):
        beats = [run.latencies.loc[run.latencies["stream"] == "heartbeats", "latency_seconds"] for run in runs]
        axis.plot(names, [each.quantile(share) for each in beats], "o-", color=style.COLOURS[place], label=name)
    style.milliseconds(axis)
    axis.set(title=f"Heartbeats, sent until {runs[0].about['latency_until']}", ylabel="latency")
    axis.legend()


def _rates(axis: Axes, names: list[str], runs: list[Run]) -> None:
    acked = [numbers.messages(run)["acked_per_second"].sum() for run in runs]
    stored = [numbers.rows(run)["rows_per_second"].sum() for run in runs]
    axis.plot(names, stored, "s-", color=style.COLOURS[0], label="rows stored")
    axis.plot(names, acked, "o-", color=style.COLOURS[1], label="messages acknowledged")
    style.logarithmic(axis)
    axis.set(title="Throughput", ylabel="a second")
    axis.legend()


def _bars(axis: Axes, table: pd.DataFrame) -> None:
    """One bar a run, of the parts on each other."""
    base = pd.Series(0.0, index=table.columns)
    order = [part for part in style.PARTS if part in table.index]
    for part in [*order, *(each for each in table.index if each not in order)]:
        values = table.loc[part].fillna(0.0)
        axis.bar(table.columns, values, bottom=base, color=style.colour(str(part)), label=part, width=0.7)
        base += values
