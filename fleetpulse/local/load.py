"""``fleetpulse load``: drives the proxy through stages, and keeps what became of each request.

In the open model, requests are due at times that do not depend on answers, and are timed from when they were due: a
proxy that stalls is charged for the requests that wait meanwhile. In the closed model, so many clients each ask again
once they have their answer; a stall then shows in fewer requests rather than in their times (coordinated omission).
"""

import asyncio
import csv
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, Literal, Self

from fleetpulse.local.load_driver import ClosedLoad, Driver, OpenLoad
from fleetpulse.local.load_request import Result, Target
from fleetpulse.local.load_stages import Stage, parse, total_seconds
from fleetpulse.local.progress import progress, say
from fleetpulse.report.folder import LOAD, REQUESTS
from fleetpulse.settings import SettingsError

Model = Literal["open", "closed"]
DEFAULT_STAGES: Final = "ramp=10:20,hold=20:20,spike=0:60,spike=5:60,recover=0:20,recover=10:20"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. ``stream_share`` of the requests are streamed."""

    stages: Sequence[Stage]
    model: Model
    stream_share: float
    timeout_seconds: float
    seed: int

    @classmethod
    def checked(cls, stages: str, model: Model, stream_share: float, timeout_seconds: float, seed: int) -> Self:
        """Raises SettingsError for what makes no sense."""
        if not 0 <= stream_share <= 1:
            raise SettingsError(f"--stream-share: {stream_share:g} is not between 0 and 1")
        if not 0 < timeout_seconds <= 3600:
            raise SettingsError(f"--timeout: {timeout_seconds:g} is not between 0 and 3600 seconds")
        return cls(parse(stages), model, stream_share, timeout_seconds, seed)


@dataclass(slots=True)
class LoadReport:
    """What happened, in numbers; each request's own are in the results."""

    model: Model
    stages: list[Stage]
    stream_share: float
    began_unix_seconds: float
    ended_unix_seconds: float
    requests: int
    outcomes: dict[str, int]

    def line(self) -> str:
        """For people."""
        return _line(self.ended_unix_seconds - self.began_unix_seconds, self.requests, Counter(self.outcomes))


def _line(seconds: float, requests: int, outcomes: Counter[str]) -> str:
    told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    return f"{seconds:.0f} s · {requests} requests: {told or 'none answered yet'}"


async def load(
    plan: Plan,
    target: Target,
    stop: asyncio.Event,
    folder: Path | None = None,
    tell: Callable[[str], None] = say,
) -> tuple[LoadReport, list[Result]]:
    """Send until the stages are over and the last request has ended, or ``stop`` is set. ``folder`` gets ``load.json``
    and ``requests.csv``."""
    began_unix = time.time()
    kind: type[Driver] = OpenLoad if plan.model == "open" else ClosedLoad
    driver = kind(plan.stages, target, plan.stream_share, plan.timeout_seconds, plan.seed)
    with progress(total_seconds(plan.stages), tell) as show:
        await driver.run(stop, lambda seconds: show(seconds, _line(seconds, len(driver.results), driver.outcomes)))
    ended_unix = time.time()
    report = LoadReport(
        plan.model,
        list(plan.stages),
        plan.stream_share,
        began_unix,
        ended_unix,
        len(driver.results),
        dict(driver.outcomes),
    )
    if folder is not None:
        _write(folder, report, driver.results)
    tell(report.line())
    return report, driver.results


def _write(folder: Path, report: LoadReport, results: Sequence[Result]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOAD).write_text(json.dumps(asdict(report), indent=2) + "\n")
    write_results(folder / REQUESTS, results)


def write_results(path: Path, results: Sequence[Result]) -> None:
    """One row a request; what is not known is empty."""
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, [field.name for field in fields(Result)], lineterminator="\n")
        rows.writeheader()
        for result in results:
            row = asdict(result)
            rows.writerow({name: f"{value:.6f}" if isinstance(value, float) else value for name, value in row.items()})
