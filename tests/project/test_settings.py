"""Settings as people meet them: at the command line, wrong or misspelt."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fleetpulse.settings import GROUPS, names, unknown_names

WRONG = [
    ("agent", "FLEETPULSE_AGENT_PORT", "70000"),
    ("agent", "FLEETPULSE_AGENT_ENGINE", "ollama"),
    ("agent", "FLEETPULSE_AGENT_SAMPLE_INTERVAL_SECONDS", "0"),
    ("agent", "FLEETPULSE_AGENT_WORKER_ID", "with space"),
    ("agent", "WORKER_SIMULATE_GPU_COUNT", "many"),
    ("collector", "FLEETPULSE_COLLECTOR_BATCH_ROWS", "0"),
    ("collector", "FLEETPULSE_COLLECTOR_PORT", ""),
    ("collector", "FLEETPULSE_KAFKA_ACKS", "none"),
    ("control", "FLEETPULSE_CONTROL_QUERY_TIMEOUT_SECONDS", "nan"),
    ("control", "FLEETPULSE_LOG_LEVEL", "loud"),
    ("migrate", "FLEETPULSE_DATABASE_PROFILE", "oracle"),
    ("doctor", "FLEETPULSE_KAFKA_PARTITIONS", "-1"),
    ("up", "FLEETPULSE_LOCAL_WORKERS", "0"),
]


def run(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fleetpulse", *command],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("command", "variable", "value"), WRONG)
def test_a_wrong_setting_ends_a_command_with_one_line_and_status_2(
    command: str, variable: str, value: str, clean_environment: dict[str, str], tmp_path: Path
) -> None:
    result = run([command], clean_environment | {variable: value}, tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"fleetpulse: {variable}"), line
    assert list(tmp_path.iterdir()) == []


def test_settings_that_do_not_go_together_are_one_line_too(clean_environment: dict[str, str], tmp_path: Path) -> None:
    result = run(["control"], clean_environment | {"FLEETPULSE_DATABASE_RETENTION_RAW_DAYS": "100"}, tmp_path)
    (line,) = result.stderr.splitlines()
    variable = "FLEETPULSE_DATABASE_RETENTION_MINUTE_DAYS"
    assert (result.returncode, line.partition(": 90 is less")[0]) == (2, f"fleetpulse: {variable}")


def test_several_wrong_settings_are_told_at_once(clean_environment: dict[str, str], tmp_path: Path) -> None:
    wrong = {"FLEETPULSE_COLLECTOR_PORT": "x", "FLEETPULSE_COLLECTOR_BATCH_ROWS": "y"}
    result = run(["collector"], clean_environment | wrong, tmp_path)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2
    assert all(name in line for name in wrong)


def test_a_misspelt_setting_is_named_with_the_nearest_that_exists(
    clean_environment: dict[str, str], tmp_path: Path
) -> None:
    given = {"FLEETPULSE_COLLECTOR_BATCHROWS": "5", "FLEETPULSE_COLLECTOR_PORT": "x"}
    result = run(["collector"], clean_environment | given, tmp_path)
    misspelt, wrong = result.stderr.splitlines()
    assert misspelt == (
        "fleetpulse: FLEETPULSE_COLLECTOR_BATCHROWS is not a setting; did you mean FLEETPULSE_COLLECTOR_BATCH_ROWS?"
    )
    assert wrong.startswith("fleetpulse: FLEETPULSE_COLLECTOR_PORT:")


def test_variables_of_the_tests_are_nobodys_misspelling() -> None:
    assert unknown_names({"FLEETPULSE_TEST_REQUIRE": "kafka", "HOME": "/", "FLEETPULSE_LOG_LEVEL": "info"}) == []


def test_no_two_settings_share_a_name() -> None:
    variables = [variable for group in GROUPS for variable in names(group).values()]
    assert sorted(set(variables)) == sorted(variables)


def test_every_setting_is_read_by_some_code(root: Path) -> None:
    """A setting that nothing reads would be believed to have an effect."""
    read = {
        node.attr
        for package in ("fleetpulse", "agent", "collector", "control", "proxy")
        for path in (root / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    unread = [variable for group in GROUPS for name, variable in names(group).items() if name not in read]
    assert unread == []
