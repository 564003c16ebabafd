"""The doctor finds what is wrong and says what to do."""

import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from fleetpulse import ownership
from fleetpulse.local import checks
from fleetpulse.local.doctor import doctor
from fleetpulse.settings import DatabaseSettings, StreamSettings


async def test_a_machine_without_broker_and_database_is_told_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLEETPULSE_KAFKA_BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setenv("FLEETPULSE_DATABASE_URL", "postgresql://postgres@127.0.0.1:1/none")
    monkeypatch.setenv("FLEETPULSE_LOCAL_DATA_DIR", str(tmp_path / "none"))
    lines: list[str] = []
    assert await doctor(lines.append) == 1
    wrong = [line for line in lines if line.startswith("wrong")]
    assert any("kafka" in line and "FLEETPULSE_KAFKA_BOOTSTRAP" in line for line in wrong)
    assert any("database" in line and "FLEETPULSE_DATABASE_URL" in line for line in wrong)
    assert lines[-1] == f"{len(wrong)} wrong"


async def test_a_broker_with_all_topics_is_well(stream: StreamSettings) -> None:
    (finding,) = await checks.check_kafka(stream)
    assert (finding.verdict, finding.text) == ("ok", f"{stream.bootstrap} has all topics")


async def test_a_migrated_database_is_well_and_an_empty_one_is_not(database_url: str, empty_database_url: str) -> None:
    (finding,) = await checks.check_database(DatabaseSettings(url=SecretStr(database_url)))
    assert finding.verdict == "ok", finding
    assert "profile postgres" in finding.text
    (finding,) = await checks.check_database(DatabaseSettings(url=SecretStr(empty_database_url)))
    assert finding.verdict == "wrong"
    assert "run fleetpulse migrate" in finding.text


async def test_a_port_that_another_program_has_is_told_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(checks, "_PROBE_SECONDS", 0.2)
        monkeypatch.setenv("FLEETPULSE_CONTROL_PORT", str(port))
        findings = await checks.check_ports()
    (finding,) = [finding for finding in findings if finding.verdict == "wrong"]
    assert finding.text == f"{port} for control is taken by another program: stop it, or set FLEETPULSE_CONTROL_PORT"


async def test_slow_protobuf_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = await checks.check_protobuf()
    assert finding.verdict == "ok"
    monkeypatch.setattr("google.protobuf.internal.api_implementation.Type", lambda: "python")
    (finding,) = await checks.check_protobuf()
    assert finding.verdict == "wrong"


async def test_a_full_disk_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (finding,) = await checks.check_disk(tmp_path / "not" / "yet")
    assert finding.verdict == "ok"
    assert str(tmp_path) in finding.text
    monkeypatch.setattr(checks, "_DISK_BYTES", 2**60)
    (finding,) = await checks.check_disk(tmp_path)
    assert finding.verdict == "wrong"


def test_the_services_packages_are_ours() -> None:
    assert ownership.strangers() == []


def test_a_stranger_with_a_service_packages_name_is_named() -> None:
    (line,) = ownership.strangers({"control": ["fleetpulse", "control"], "agent": ["fleetpulse"]})
    assert line.startswith("the package control is also installed by control; install fleetpulse into")


def test_a_package_that_is_imported_from_elsewhere_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "proxy", raising=False)
    (line,) = ownership.strangers()
    assert line.startswith(f"the package proxy is imported from {tmp_path / 'proxy'}, not from")
