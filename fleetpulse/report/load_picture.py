"""The picture of a proxy load, with its stages."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from fleetpulse.report import style
from fleetpulse.report.read import Run

_OUTCOMES = {"completed": style.COLOURS[2], "limited": style.COLOURS[4], "refused": style.COLOURS[3]}
_SHARES = {"median": 0.5, "95th percentile": 0.95, "99th percentile": 0.99}


def draw(run: Run) -> Path:
    """Requests, times to the first token and to the end, by the second in which requests were due."""
    assert run.load is not None
    path = run.folder / "load.png"
    kind = "requests a second (open)" if run.load["model"] == "open" else "clients (closed)"
    subject = f"{run.name}: {len(run.requests):,} requests to the proxy, stages of {kind}"
    streamed = run.requests[run.requests["is_stream"]]
    with style.picture(path, subject, [2.4, 2.4, 2.4]) as axes:
        _rates(axes[0], run)
        _times(axes[1], streamed, "first_token_seconds")
        _times(axes[2], run.requests, "duration_seconds")
        axes[0].set(title="Requests by their outcome", ylabel="requests / s")
        axes[1].set(title=f"Time to the first token, of {len(streamed):,} streams")
        axes[2].set(title="Time to the end of the answer")
        for place, axis in enumerate(axes):
            _bands(axis, run.load["stages"], named=place == 0)
            axis.set_xlabel("seconds since the beginning, when the request was due")
    return path


def _bands(axis: Axes, stages: list[dict[str, float]], named: bool) -> None:
    began = 0.0
    for place, stage in enumerate(stages):
        ended = began + stage["seconds"]
        if place % 2 == 0:
            axis.axvspan(began, ended, color="#F1F1F1", zorder=0, linewidth=0)
        if named:
            where = axis.get_xaxis_transform()
            axis.text((began + ended) / 2, 0.97, str(stage["name"]), ha="center", va="top", transform=where)
        began = ended
    axis.set_xlim(0, began)


def _rates(axis: Axes, run: Run) -> None:
    second = run.requests["due"].astype(int)
    counts = run.requests.groupby([second, "outcome"]).size().unstack(fill_value=0)
    counts = counts.reindex(range(int(second.max()) + 1), fill_value=0)
    order = sorted(counts.columns, key=lambda outcome: (outcome != "completed", str(outcome)))
    base = pd.Series(0, index=counts.index)
    for outcome in order:
        colour = _OUTCOMES.get(str(outcome), style.COLOURS[1])
        axis.bar(counts.index, counts[outcome], 1.0, base, align="edge", color=colour, alpha=0.75, label=outcome)
        base += counts[outcome]
    assert run.load is not None
    if run.load["model"] == "open":
        times, targets = _targets(run.load["stages"])
        axis.plot(times, targets, "--", color="#222222", linewidth=1, label="target")
    axis.set_ylim(0, counts.sum(axis=1).max() * 1.25)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _targets(stages: list[dict[str, float]]) -> tuple[list[float], list[float]]:
    times, targets, began = [], [], 0.0
    for stage in stages:
        times += [began, began + stage["seconds"]]
        targets += [stage["begin"], stage["end"]]
        began += stage["seconds"]
    return times, targets


def _times(axis: Axes, requests: pd.DataFrame, column: str) -> None:
    done = requests[requests["outcome"] == "completed"]
    by_second = done.groupby(done["due"].astype(int))[column]
    for place, (name, share) in enumerate(_SHARES.items()):
        values = by_second.quantile(share)
        axis.plot(values.index + 0.5, values, color=style.COLOURS[place], label=name)
    axis.set_ylabel("time from when it was due")
    if len(done):
        style.milliseconds(axis)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
