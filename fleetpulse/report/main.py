"""``fleetpulse report``: Markdown, CSV and PNG of a run, or of several beside each other."""

from pathlib import Path
from typing import Final

import pandas as pd

from fleetpulse.report import numbers, overview, pictures, text
from fleetpulse.report.folder import RUN
from fleetpulse.report.read import ReportError, Run, read

__all__ = ["ReportError", "report"]

REPORT: Final = "report.md"
SUMMARY: Final = "summary.csv"


def report(folder: Path) -> list[Path]:
    """Write the report of a run into its folder, or of each run in the folders of ``folder`` and of all together;
    returns the files. Raises ReportError."""
    if (folder / RUN).exists():
        return _report(read(folder))
    runs = [read(path.parent) for path in sorted(folder.glob(f"*/{RUN}"))]
    if not runs:
        raise ReportError(f"no recorded run in {folder}: record one with fleetpulse simulate --record {folder}")
    runs.sort(key=lambda run: (run.load is not None, (run.simulation or {}).get("agents", 0), run.name))
    return [*(path for run in runs for path in _report(run)), *_overview(folder, runs)]


def _report(run: Run) -> list[Path]:
    drawn = pictures.draw(run)
    return [*drawn, *_texts(run.folder, text.page(run, [path.name for path in drawn]), numbers.long(run))]


def _overview(folder: Path, runs: list[Run]) -> list[Path]:
    drawn = overview.draw(folder, runs)
    table = pd.concat([numbers.long(run) for run in runs])
    return [*drawn, *_texts(folder, text.overview(runs, [path.name for path in drawn]), table)]


def _texts(folder: Path, page: str, table: pd.DataFrame) -> list[Path]:
    (folder / REPORT).write_text(page)
    table.to_csv(folder / SUMMARY, index=False, float_format="%.6g")
    return [folder / REPORT, folder / SUMMARY]
