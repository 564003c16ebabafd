"""Pictures of one run."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from fleetpulse.report import load_picture, numbers, style
from fleetpulse.report.folder import MACHINE
from fleetpulse.report.read import Run

_QUANTILES = {"median": 0.5, "99th percentile": 0.99, "largest": 1.0}
_LINES = {"median": "-", "99th percentile": "-", "largest": ":"}


def draw(run: Run) -> list[Path]:
    """All that the run has something for; returns the files."""
    drawn = []
    if not run.latencies.empty:
        drawn.append(_latency(run))
    if run.simulation is not None and not run.metrics.empty:
        drawn.append(_pipeline(run))
    if not run.requests.empty:
        drawn.append(load_picture.draw(run))
    if not run.processes.empty:
        drawn.append(_processes(run))
    return drawn


def title(run: Run) -> str:
    """What was run, in a few words."""
    if run.simulation is None:
        return f"{run.name}: proxy, {len(run.requests):,} requests"
    told = run.simulation
    return (
        f"{run.name}: {told['agents']:,} agents, samples every {told['interval_seconds']:g} s, "
        f"heartbeats every {told['heartbeat_interval_seconds']:g} s"
    )


def _latency(run: Run) -> Path:
    path = run.folder / "latency.png"
    until = run.about["latency_until"]
    streams = [str(stream) for stream in run.latencies["stream"].unique()]
    with style.picture(path, title(run), [2.6] * len(streams) + [2.8]) as axes:
        for axis, stream in zip(axes, streams, strict=False):
            _over_time(axis, run.latencies[run.latencies["stream"] == stream])
            axis.set_title(f"{stream.capitalize()}, from sending until {until}, by second of sending")
            axis.set_xlabel("seconds since the beginning")
        _distribution(axes[-1], run.latencies, streams)
        axes[-1].set_title(f"Percentiles of all, from sending until {until}")
    return path


def _over_time(axis: Axes, found: pd.DataFrame) -> None:
    by_second = found.groupby(found["seconds"].astype(int))["latency_seconds"]
    for place, (name, share) in enumerate(_QUANTILES.items()):
        values = by_second.quantile(share)
        axis.plot(values.index, values, _LINES[name], color=style.COLOURS[place], label=name)
    style.milliseconds(axis)
    axis.set_ylabel("latency")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _distribution(axis: Axes, latencies: pd.DataFrame, streams: list[str]) -> None:
    for place, stream in enumerate(streams):
        values = latencies.loc[latencies["stream"] == stream, "latency_seconds"].sort_values()
        beyond = 1 - (pd.Series(range(len(values))) + 0.5) / len(values)
        axis.plot(beyond, values, color=style.COLOURS[place], label=f"{stream} ({len(values):,})")
    axis.set_xscale("log")
    axis.invert_xaxis()
    marks = {0.5: "50 %", 0.1: "90 %", 0.05: "95 %", 0.01: "99 %", 0.001: "99.9 %", 0.0001: "99.99 %"}
    axis.set_xticks(list(marks), list(marks.values()))
    axis.minorticks_off()
    style.milliseconds(axis)
    axis.set_xlabel("share of messages that took at most that long")
    axis.set_ylabel("latency")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _pipeline(run: Run) -> Path:
    path = run.folder / "pipeline.png"
    assert run.simulation is not None
    sent = sum(run.simulation[stream]["sent"] for stream in ("heartbeats", "samples")) / run.seconds
    with style.picture(path, title(run), [2.4, 2.4]) as axes:
        committed = numbers.committed_per_second(run)
        axes[0].plot(committed["seconds"], committed["messages_per_second"], color=style.colour("collector"))
        axes[0].axhline(sent, color="#555555", linestyle="--", linewidth=1)
        axes[0].annotate(
            "sent, on average", (1, sent), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points"
        )
        axes[0].set(title="Throughput of the collector", ylabel="messages / s")
        behind = numbers.lag(run)
        axes[1].fill_between(behind["seconds"], behind["lag_messages"], color=style.COLOURS[1], alpha=0.35, linewidth=0)
        axes[1].plot(behind["seconds"], behind["lag_messages"], color=style.COLOURS[1])
        axes[1].set(title="Lag: sent, and not read by the collector", ylabel="messages")
        for axis in axes:
            axis.set_ylim(bottom=0)
            axis.set_xlim(left=0)
            axis.set_xlabel("seconds since the beginning")
            style.thousands(axis)
        axes[1].set_ylim(top=max(10.0, behind["lag_messages"].max() * 1.1) if len(behind) else 10.0)
    return path


def _processes(run: Run) -> Path:
    path = run.folder / "processes.png"
    busiest = [str(name) for name in numbers.processes(run).index]
    cores = numbers.cpu(run)
    with style.picture(path, title(run), [2.8, 2.8]) as axes:
        axes[0].sharex(axes[1])
        for name in busiest:
            used = cores[cores["name"] == name]
            axes[0].plot(used["seconds"], used["cores"], color=style.colour(name), label=name)
            kept = run.processes[run.processes["name"] == name]
            axes[1].plot(kept["seconds"], kept["memory_bytes"] / 2**20, color=style.colour(name), label=name)
        limit = run.about["machine"]["cores"]
        everything = cores[cores["name"] == MACHINE]
        axes[0].plot(everything["seconds"], everything["cores"], ":", color="#222222", label="whole machine")
        axes[0].set(title=f"CPU, of {limit} cores", ylabel="cores", xlabel="seconds since the beginning")
        axes[1].set(title="Memory, shared pages in part", ylabel="MiB", xlabel="seconds since the beginning")
        for axis in axes:
            axis.set_ylim(bottom=0)
            style.thousands(axis)
            axis.axvspan(0, run.seconds, color="#F3F3F3", zorder=0, linewidth=0)
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return path
