"""The units for systemd."""

import configparser
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fleetpulse.settings import ProxySettings

SERVICES = ("agent", "collector", "control", "proxy")
HARDENED = {
    "DynamicUser": "yes",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "PrivateTmp": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "SystemCallArchitectures": "native",
    "UMask": "0077",
}


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "deploy" / "systemd"


def section(folder: Path, service: str) -> dict[str, str]:
    """The section [Service]; of an option that is given twice, the last."""
    parser = configparser.RawConfigParser(strict=False, interpolation=None, comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(folder / f"fleetpulse-{service}.service")
    return dict(parser["Service"])


def test_there_is_a_unit_for_each_service(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {f"fleetpulse-{service}.service" for service in SERVICES}


@pytest.mark.parametrize("service", SERVICES)
def test_a_unit_is_hardened_and_comes_back(folder: Path, service: str) -> None:
    given = section(folder, service)
    assert {name: given.get(name) for name in HARDENED} == HARDENED
    assert given["ExecStart"] == f"/opt/fleetpulse/bin/fleetpulse {service}"
    assert given["EnvironmentFile"] == f"/etc/fleetpulse/{service}.env"
    # Status 2 is a wrong setting.
    assert (given["Restart"], given["RestartPreventExitStatus"]) == ("always", "2")
    assert {"MemoryMax", "TasksMax"} <= set(given)


def test_the_agent_reaches_the_gpus_and_keeps_its_spool(folder: Path) -> None:
    given = section(folder, "agent")
    assert (given["DevicePolicy"], given["DeviceAllow"]) == ("closed", "char-nvidia* rw")
    # The agent takes systemd's STATE_DIRECTORY by itself.
    assert given["StateDirectory"] == "fleetpulse-agent"


def test_a_proxy_has_time_to_finish_its_requests(folder: Path) -> None:
    assert float(section(folder, "proxy")["TimeoutStopSec"]) > ProxySettings.model_fields["drain_seconds"].default


def test_every_setting_in_the_units_exists(folder: Path, settings: set[str]) -> None:
    text = "\n".join(path.read_text() for path in folder.iterdir())
    assert set(re.findall(r"\bFLEETPULSE_[A-Z_]+[A-Z]\b", text)) - settings == set()


@pytest.mark.parametrize("service", SERVICES)
def test_systemd_finds_no_fault_in_a_unit(
    folder: Path, service: str, tmp_path: Path, enter_lane: Callable[[str], None]
) -> None:
    enter_lane("systemd")
    unit = tmp_path / f"fleetpulse-{service}.service"
    text = (folder / unit.name).read_text()
    unit.write_text(text.replace("/opt/fleetpulse/bin/fleetpulse", "/bin/true"))
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    complaints = [line for line in checked.stderr.splitlines() if unit.name in line]
    assert (checked.returncode, complaints) == (0, [])
