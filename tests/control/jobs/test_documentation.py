"""docs/jobs.md is held against the code that it describes."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from control.jobs import all_jobs
from control.jobs.framework.metrics import JobMetrics
from control.jobs.worker_watchdog import NAME
from control.lifecycle.outbox import OutboxMetrics
from control.states import ALLOWED
from fleetpulse.settings import JobSettings, names

TEXT = (Path(__file__).parents[3] / "docs" / "jobs.md").read_text()


def table(title: str) -> list[list[list[str]]]:
    """What is in backticks in each cell of each row of a section's first table."""
    text = re.split(r"^##+ ", TEXT.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)
    return [[re.findall(r"`([^`]+)`", cell) for cell in row.split(" | ")] for row in rows]


def test_every_state_and_every_step_is_described() -> None:
    assert {row[0][0]: set(row[-1]) for row in table("States") if len(row) > 2} | {"archived": set()} == {
        state: set(following) for state, following in ALLOWED.items()
    }


def test_every_job_is_described_with_the_states_it_looks_after() -> None:
    wanted = {job.name: list(job.states) for job in all_jobs(JobSettings())} | {NAME: ["ready", "worker_dead"]}
    assert {row[0][0]: row[1] for row in table("Jobs")} == wanted


def test_every_metric_is_described_with_its_labels() -> None:
    registry = CollectorRegistry()
    JobMetrics(registry)
    OutboxMetrics(registry)
    families = list(registry.collect())
    wanted = {f"{one.name}_total" if one.type == "counter" else one.name for one in families}
    assert {row[0][0] for row in table("Metrics")} == wanted


def test_every_setting_that_the_page_names_is_one() -> None:
    named = set(re.findall(r"FLEETPULSE_JOBS_[A-Z_]+[A-Z]", TEXT))
    assert named <= set(names(JobSettings).values())
