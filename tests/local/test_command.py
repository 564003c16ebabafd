"""The command's behaviour towards people: exit codes and single lines."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fleetpulse import __version__
from fleetpulse.command import main
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command sends all logs to a stream that ends with its test."""
    loggers = [logging.getLogger(name) for name in (None, "fleetpulse", "aiokafka")]
    levels, handlers = [logger.level for logger in loggers], loggers[0].handlers[:]
    yield
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines on standard error."""
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("command", "variable", "value"),
    [
        ("agent", "FLEETPULSE_AGENT_PORT", "many"),
        ("agent", "WORKER_SIMULATE_GPU_COUNT", "-1"),
        ("collector", "FLEETPULSE_COLLECTOR_BATCH_ROWS", "0"),
        ("control", "FLEETPULSE_CONTROL_PORT", "70000"),
        ("migrate", "FLEETPULSE_DATABASE_RETENTION_RAW_DAYS", "soon"),
        ("up", "FLEETPULSE_LOCAL_WORKERS", "1000"),
        ("doctor", "FLEETPULSE_KAFKA_ACKS", "none"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    command: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    assert main([command]) == 2
    (line,) = told(capsys)
    assert line.startswith(f"fleetpulse: {variable}: ")


@pytest.mark.parametrize("arguments", [["up", "--workers", "0"], ["simulate", "--agents", "0"]])
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert len(told(capsys)) == 1


def test_an_unknown_command_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sing"])
    assert "simulate" in capsys.readouterr().err


def test_a_misspelt_setting_is_told_with_the_right_spelling(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETPULSE_AGENT_PROT", "1")
    monkeypatch.setenv("FLEETPULSE_AGENT_PORT", "x")
    main(["agent"])
    assert told(capsys)[0] == "fleetpulse: FLEETPULSE_AGENT_PROT is not a setting; did you mean FLEETPULSE_AGENT_PORT?"


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [("migrate", "psycopg", "collector"), ("agent", "psutil", "agent"), ("up", "rich", "local")],
)
def test_a_missing_dependency_names_the_extra_that_has_it(command: str, module: str, extra: str) -> None:
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    script = f"import sys; sys.modules[{module!r}] = None; from fleetpulse.command import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", script, command], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [f"fleetpulse: {module} is not installed: pip install 'fleetpulse[{extra}]'"]


def test_a_taken_port_is_one_line(
    embedded_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = {
        "FLEETPULSE_AGENT_PORT": str(embedded_broker.port),
        "FLEETPULSE_AGENT_STATE_DIR": str(tmp_path),
        "FLEETPULSE_KAFKA_BOOTSTRAP": embedded_broker.bootstrap,
        "FLEETPULSE_LOG_LEVEL": "error",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ended = subprocess.run(
        [sys.executable, "-m", "fleetpulse", "agent"], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 1
    # aiokafka may complain before it of the connection that it was not allowed to finish.
    assert ended.stderr.splitlines()[-1].startswith(f"fleetpulse: cannot listen on 127.0.0.1:{embedded_broker.port}: ")
    assert "Traceback" not in ended.stderr


def test_migrate_makes_an_empty_database_usable(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETPULSE_DATABASE_URL", empty_database_url)
    monkeypatch.setenv("FLEETPULSE_LOG_LEVEL", "error")
    assert main(["migrate"]) == 0
    assert capsys.readouterr().out == "the database is up to date (profile postgres)\n"


def test_a_database_that_is_away_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setenv("FLEETPULSE_DATABASE_URL", f"postgresql://postgres@127.0.0.1:{port}/none")
    monkeypatch.setenv("FLEETPULSE_DATABASE_MIGRATION_TIMEOUT_SECONDS", "0.2")
    assert main(["migrate"]) == 1
    (line,) = told(capsys)
    assert f"127.0.0.1:{port}/none" in line


def test_simulate_writes_its_counts(stream: object, embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = ["simulate", "--agents", "4", "--interval", "0.5", "--duration", "1", "--json", str(report)]
    ended = subprocess.run(
        [sys.executable, "-m", "fleetpulse", *command],
        env={"PATH": "/usr/bin:/bin", "FLEETPULSE_KAFKA_BOOTSTRAP": embedded_broker.bootstrap, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    counts = json.loads(report.read_text())
    assert counts["samples"]["acked"] == counts["samples"]["sent"] > 0
    assert "4 agents" in ended.stdout


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fleetpulse {__version__}\n"
