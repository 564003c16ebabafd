"""What a run comes to, in numbers."""

from typing import Final

import pandas as pd

from fleetpulse.report.folder import COMMITTED, LAG, MACHINE
from fleetpulse.report.read import Run

PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def latencies(run: Run) -> pd.DataFrame:
    """Percentiles in milliseconds, from sending to commit, a row a stream."""
    rows = {
        str(stream): {"messages": len(found), **_percentiles(found["latency_seconds"], 1000)}
        for stream, found in run.latencies.groupby("stream")
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _percentiles(values: pd.Series, factor: float) -> dict[str, float]:
    return {name: float(values.quantile(share)) * factor for name, share in PERCENTILES.items()}


def messages(run: Run) -> pd.DataFrame:
    """What simulated agents sent, a row a stream."""
    if run.simulation is None:
        return pd.DataFrame()
    seconds = run.seconds
    rows = {}
    for stream in ("heartbeats", "samples"):
        counts = run.simulation[stream]
        rows[stream] = {name: counts[name] for name in ("sent", "acked", "failed", "spooled")}
        rows[stream]["acked_per_second"] = counts["acked"] / seconds
    return pd.DataFrame.from_dict(rows, orient="index")


def rows(run: Run) -> pd.DataFrame:
    """Expected and stored rows, a row a relation, with those that are lost and those that are there twice."""
    table = run.stored.set_index("relation")
    return table.assign(
        lost=(table["expected"] - table["distinct"]).clip(lower=0),
        doubled=table["stored"] - table["distinct"],
        rows_per_second=table["distinct"] / run.seconds,
    )


def faults(run: Run) -> list[str]:
    """A sentence for each relation that has lost or doubled rows, after one on what is only not stored yet."""
    told = []
    unread = run.about.get("unread_messages")
    if unread:
        told.append(f"The collector had {unread:,.0f} messages left to read when the recording ended.")
    for relation, row in rows(run).iterrows():
        if row["lost"]:
            share = row["lost"] / row["expected"]
            are = "not stored yet" if unread else "lost"
            told.append(f"{row['lost']:.0f} of {row['expected']:.0f} rows of {relation} are {are} ({share:.2%}).")
        if row["doubled"]:
            told.append(f"{row['doubled']:.0f} rows of {relation} are there more than once.")
    return told


def lag(run: Run) -> pd.DataFrame:
    """Messages sent and not read, as the collector told them, over time."""
    found = run.metrics[run.metrics["name"] == LAG]
    return found[["seconds", "value"]].rename(columns={"value": "lag_messages"})


def committed_per_second(run: Run) -> pd.DataFrame:
    """Messages committed a second, over time."""
    found = run.metrics[run.metrics["name"] == COMMITTED]
    steps = found["value"].diff() / found["seconds"].diff()
    return pd.DataFrame({"seconds": found["seconds"], "messages_per_second": steps}).dropna()


def cpu(run: Run) -> pd.DataFrame:
    """Cores in use between one look and the next, a row a look and process."""
    parts = []
    for name, found in run.processes.groupby("name"):
        cores = found["cpu_seconds"].diff() / found["seconds"].diff()
        # A part that was started again begins at nothing.
        same = found["pid"].diff() == 0
        parts.append(pd.DataFrame({"name": name, "seconds": found["seconds"], "cores": cores})[same])
    return pd.concat(parts) if parts else pd.DataFrame(columns=["name", "seconds", "cores"])


def others_cores(run: Run) -> float | None:
    """Cores that programs took which are no part of the run; None when that is not known."""
    used = _while_it_lasted(run)["cpu_mean_cores"].dropna()
    if MACHINE not in used.index:
        return None
    return max(0.0, float(used[MACHINE]) - float(used.drop(MACHINE).sum()))


def processes(run: Run) -> pd.DataFrame:
    """CPU in cores and memory in bytes while the run lasted, a row a process, the busiest first."""
    return _while_it_lasted(run).drop(index=MACHINE, errors="ignore")


def _while_it_lasted(run: Run) -> pd.DataFrame:
    within = run.processes[run.processes["seconds"].between(0, run.seconds + 1)]
    cores = cpu(run)
    cores = cores[cores["seconds"].between(0, run.seconds + 1)]
    table = pd.DataFrame(
        {
            "cpu_mean_cores": cores.groupby("name")["cores"].mean(),
            "cpu_max_cores": cores.groupby("name")["cores"].max(),
            "memory_mean_bytes": within.groupby("name")["memory_bytes"].mean(),
            "memory_max_bytes": within.groupby("name")["memory_bytes"].max(),
        }
    )
    return table.sort_values("cpu_mean_cores", ascending=False)


def stages(run: Run) -> pd.DataFrame:
    """Requests by stage and in all: how many, how they ended, and times in milliseconds from when they were due."""
    if run.load is None or run.requests.empty:
        return pd.DataFrame()
    table = {
        stage["name"]: _stage(run.requests[run.requests["stage"] == stage["name"]], stage["seconds"])
        for stage in run.load["stages"]
    }
    table["all"] = _stage(run.requests, run.seconds)
    return pd.DataFrame.from_dict(table, orient="index")


def _stage(requests: pd.DataFrame, seconds: float) -> dict[str, float]:
    done = requests[requests["outcome"] == "completed"]
    told: dict[str, float] = {
        "requests": len(requests),
        "requests_per_second": len(requests) / seconds,
        "completed": len(done),
        "not_completed": len(requests) - len(done),
        "tokens_per_second": float(done["completion_tokens"].sum()) / seconds,
    }
    for name, column in (("first_token", "first_token_seconds"), ("duration", "duration_seconds")):
        told |= {f"{name}_{p}_ms": float(done[column].quantile(PERCENTILES[p])) * 1000 for p in ("p50", "p95", "p99")}
    told["started_late_p99_ms"] = float((requests["sent"] - requests["due"]).quantile(0.99)) * 1000
    return told


def outcomes(run: Run) -> dict[str, int]:
    """Requests by how they ended."""
    return {} if run.requests.empty else {str(k): int(v) for k, v in run.requests["outcome"].value_counts().items()}


def long(run: Run) -> pd.DataFrame:
    """Every number as a row: run, table, subject, measure, value."""
    tables = {
        "messages": messages(run),
        "rows": rows(run),
        "latency_ms": latencies(run),
        "lag": lag(run)[["lag_messages"]].agg(["mean", "max"]),
        "processes": processes(run),
        "stages": stages(run),
    }
    found = [
        {"run": run.name, "table": name, "subject": subject, "measure": measure, "value": value}
        for name, table in tables.items()
        for subject, row in table.iterrows()
        for measure, value in row.items()
        if pd.notna(value)
    ]
    return pd.DataFrame(found, columns=["run", "table", "subject", "measure", "value"])
