"""The images: what they are built from, and that each runs as its Containerfile says."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fleetpulse.local.ports import free_port
from fleetpulse.local.processes import Child

SERVICES = ("agent", "collector", "control", "proxy")
TARGETS = (*SERVICES, "mock")
CLOUD_PORT = 8010
EXACT = re.compile(r"python:3\.\d+\.\d+-slim-[a-z]+$")
START_SECONDS = 60.0
PATIENT_SECONDS = 120


def test_the_base_image_is_named_to_the_patch_and_without_a_registry(root: Path) -> None:
    (base,) = re.findall(r"^ARG PYTHON=(\S+)$", (root / "compose" / "Containerfile").read_text(), re.MULTILINE)
    assert EXACT.match(base)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_without_privileges_and_checks_its_own_health(
    target: str, images: dict[str, Any], ports: dict[str, int]
) -> None:
    image, port = images[target], ports.get(target, CLOUD_PORT)
    assert image.user == "65532:65532"
    assert image.health_check == ("python", "-I", "/opt/fleetpulse/healthcheck.py", str(port))
    assert image.ports == ((port,) if target in SERVICES else ())


def test_the_environment_of_the_images_is_read_by_services(images: dict[str, Any], settings: set[str]) -> None:
    named = {name for image in images.values() for name in image.environment if name.startswith(("FLEET", "WORKER"))}
    assert named - settings == set()


def test_what_the_images_copy_is_let_through(root: Path, images: dict[str, Any]) -> None:
    ignored = (root / ".dockerignore").read_text().splitlines()
    copied = {source for image in images.values() for source in image.copied}
    assert "sql" in copied
    for source in copied:
        assert (root / source).exists()
        assert f"!{source}" in ignored, source


def test_programs_that_are_copied_as_they_are_can_be_read_by_the_images_account(root: Path) -> None:
    """In a checkout made under a strict umask they are their owner's alone, and COPY keeps that."""
    text = (root / "compose" / "Containerfile").read_text()
    copied = re.findall(r"^COPY (.*)compose/\S+\.py ", text, re.MULTILINE)
    assert copied == ["--chmod=0644 "] * 2


def test_the_mock_leaves_no_volume_behind(root: Path) -> None:
    """Four containers of the compose stack run it, and only one of them keeps anything: in a volume with a name."""
    stages = (root / "compose" / "Containerfile").read_text().split("\nFROM ")
    (mock,) = [stage for stage in stages if stage.startswith("base AS mock\n")]
    assert "VOLUME" not in mock


@pytest.mark.parametrize("target", TARGETS)
def test_a_start_on_a_busy_machine_is_given_minutes(root: Path, target: str) -> None:
    """Who waits for a container gives up as soon as it is unhealthy."""
    (stage,) = re.findall(
        rf"^FROM base AS {target}$(.*?)^CMD", (root / "compose" / "Containerfile").read_text(), re.MULTILINE | re.DOTALL
    )
    (seconds,) = re.findall(r"--start-period=(\d+)s", stage)
    assert int(seconds) >= PATIENT_SECONDS


def test_every_package_of_the_wheel_is_copied(root: Path, images: dict[str, Any]) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packages <= set(images["wheel"].copied)


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_installs_the_extra_of_its_service(root: Path, service: str) -> None:
    text = (root / "compose" / "Containerfile").read_text()
    (extras,) = re.findall(rf"AS install-{service}\nRUN pip install .*\[([\w,]+)\]", text)
    # Control needs the libraries of its providers besides.
    assert extras == ("control,scaleway,ssh" if service == "control" else service)


def test_every_version_in_the_images_is_held_and_allowed(root: Path) -> None:
    held = {
        requirement.name: str(requirement.specifier).removeprefix("==")
        for line in (root / "compose" / "constraints.txt").read_text().splitlines()
        if not line.startswith("#") and (requirement := Requirement(line))
    }
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = (*SERVICES, "scaleway", "ssh")
    listed = [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]
    for requirement in map(Requirement, listed):
        version = held[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"run compose/constraints.py: {requirement}"


@pytest.fixture(scope="module")
def account() -> str | None:
    """Whom services run as: under root an account without rights, where that can reach this environment."""
    if os.geteuid() != 0:
        return None
    reach = [sys.executable, "-c", "import fleetpulse.command"]
    try:
        return (
            "nobody" if subprocess.run(reach, user="nobody", capture_output=True, check=False).returncode == 0 else None
        )
    except (OSError, ValueError):
        return None


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other accounts may pass through, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="fleetpulse-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def check(root: Path, port: int) -> bool:
    """Ask as the container's health check does."""
    asked = [sys.executable, "-I", str(root / "compose" / "healthcheck.py"), str(port)]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def prepared(target: str, image: Any, port: int, folder: Path, account: str | None, around: dict[str, str]) -> Child:
    """The command of an image with its environment, in a folder that it cannot write to."""
    state, closed = folder / "state", folder / "closed"
    closed.mkdir(parents=True, mode=0o555)
    state.mkdir()
    state.chmod(0o777 if account else 0o700)
    command = [word.replace("/var/lib/fleetpulse", str(state)) for word in (*image.entrypoint, *image.command)]
    command = [str(port) if word == str(CLOUD_PORT) else word for word in command]
    program = ["-m", "fleetpulse"] if command[0] == "fleetpulse" else []
    environment = around | {
        **{name: value.replace("/var/lib/fleetpulse", str(state)) for name, value in image.environment.items()},
        "PATH": around["PATH"],
        "HOME": "/nonexistent",
        f"FLEETPULSE_{target.upper()}_PORT": str(port),
        "FLEETPULSE_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "FLEETPULSE_DATABASE_URL": "postgresql://fleetpulse@127.0.0.1:1/fleetpulse",
    }
    arguments = [sys.executable, *program, *command[1:]]
    return Child(target, arguments, folder / "log", environment, working_dir=closed, user=account)


def test_every_image_starts_answers_and_stops_without_writing_where_it_is(
    root: Path,
    images: dict[str, Any],
    account: str | None,
    clean_environment: dict[str, str],
    open_folder: Path,
) -> None:
    """With neither broker nor database there, which is how a container may find the world."""
    listening = {target: free_port() for target in TARGETS}
    children = {
        target: prepared(target, images[target], port, open_folder / target, account, clean_environment)
        for target, port in listening.items()
    }
    try:
        for child in children.values():
            child.start()
        for target, child in children.items():
            child.wait_until(partial(check, root, listening[target]), START_SECONDS)
    finally:
        with ThreadPoolExecutor(len(children)) as pool:
            list(pool.map(lambda child: child.stop(timeout_seconds=START_SECONDS), children.values()))
    for target, child in children.items():
        assert child.exit_status == 0, child.log_file.read_text()
        assert list((open_folder / target / "closed").iterdir()) == []


def test_the_health_check_fails_where_nobody_answers(root: Path) -> None:
    assert not check(root, free_port())
