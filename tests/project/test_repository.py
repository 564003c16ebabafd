"""The files of the repository themselves."""

import os
import re
import subprocess
from pathlib import Path

import pytest

# Folders of somebody's machine, and hosts that a mirror or a closed network replaces.
MACHINE = re.compile(
    r"(?<![\w.~}])/(?:work|root|Users)/\w"
    r"|deb\.debian\.org|pypi\.org|files\.pythonhosted|registry\.npmjs|repo1\.maven|proxy\.golang|crates\.io"
)
LONGEST_FILE_LINES = 400
# The agent's series of a reading has the name that the reading has everywhere else.
NAMED_AFTER_A_COLUMN = {
    'fleetpulse_agent_system_cpu_logical_count non-histogram and non-summary metrics should not have "_count" suffix'
}


def test_no_file_depends_on_a_machine_or_names_a_registry(root: Path, tracked_files: list[Path]) -> None:
    found = [
        f"{path.relative_to(root)}:{number}: {match[0]}"
        for path in tracked_files
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if (match := MACHINE.search(line))
    ]
    assert found == []


def test_no_source_file_is_too_long_to_hold_one_idea(root: Path, tracked_files: list[Path]) -> None:
    lengths = {
        path.relative_to(root).as_posix(): len(path.read_text().splitlines())
        for path in tracked_files
        if path.suffix == ".py" and root / "tests" not in path.parents
    }
    del lengths["fleetpulse/stream/dictionary.py"]  # one table
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE_LINES} == {}


def test_continuous_integration_runs_what_the_readme_says(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [
        line for line in script.read_text().splitlines() if line and not line.startswith(("#", "set", "cd", "echo"))
    ]
    assert lines == ["exec make test"]
    assert "\n    make test\n" in (root / "README.md").read_text()


@pytest.mark.promtool
@pytest.mark.parametrize("service", ["agent", "collector", "control", "proxy"])
def test_the_metrics_of_a_service_are_well_named(service: str, metrics_texts: dict[str, str]) -> None:
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics_texts[service], capture_output=True, text=True, check=False
    )
    complaints = set(result.stderr.splitlines()) - NAMED_AFTER_A_COLUMN
    assert (complaints, result.stdout) == (set(), "")
