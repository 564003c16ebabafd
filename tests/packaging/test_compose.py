"""The compose stack: hardened, pinned, closed to the outside, and without secrets in its files."""

import hashlib
import json
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleetpulse.local.kafka_jars import KAFKA_VERSION

PINNED = re.compile(r"[a-z0-9/-]+:v?\d+\.\d+\.\d+[a-z0-9.-]*$")
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY$|DATABASE_URL")
# No process of ours is in them: what they may do is the image's own business.
OURS = "fleetpulse-"
PATIENT_SECONDS = 120


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


@pytest.fixture(scope="module")
def secrets(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What secrets.sh makes."""
    folder = tmp_path_factory.mktemp("made") / "secrets"
    subprocess.run(["sh", str(root / "compose" / "secrets.sh"), str(folder)], check=True, capture_output=True)
    return folder


def variables(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def test_every_container_is_hardened(services: dict[str, Any], root: Path) -> None:
    agent = yaml.safe_load((root / "compose" / "agent.yaml").read_text())["services"]["agent"]
    for name, service in {**services, "agent.yaml": agent}.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert "privileged" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["user"].partition(":")[0]) > 0, name
        assert service["restart"], name
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory", "pids"} == set(limits), name


def test_every_image_is_ours_or_pinned_to_the_patch(services: dict[str, Any], images: dict[str, Any]) -> None:
    for name, service in services.items():
        if service["image"].startswith(OURS):
            assert service["build"]["target"] == service["image"].removeprefix(OURS), name
            assert service["build"]["target"] in images, name
        else:
            assert PINNED.match(service["image"]), name


def test_kafka_is_the_version_that_the_tests_run(services: dict[str, Any]) -> None:
    assert services["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_every_setting_in_it_exists(services: dict[str, Any], settings: set[str], secrets: Path) -> None:
    for name, service in services.items():
        given = set(service.get("environment") or {})
        given |= {each for file in service.get("env_file", ()) for each in variables(secrets / Path(file).name)}
        assert {each for each in given if each.startswith(("FLEETPULSE_", "WORKER_"))} - settings == set(), name


def test_no_secret_stands_in_the_files(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert [each for each in service.get("environment") or {} if SECRET.search(each)] == [], name


def test_each_container_gets_the_secrets_that_it_needs_and_no_others(services: dict[str, Any]) -> None:
    given = {
        name: [Path(file).stem for file in each["env_file"]] for name, each in services.items() if "env_file" in each
    }
    assert given == {
        "database": ["database"],
        "migrate": ["database-url"],
        "reader": ["database-url"],
        "collector": ["database-url", "collector"],
        "control": ["database-url", "control"],
        "proxy": ["database-url"],
        "workers": ["client"],
        "grafana": ["grafana"],
    }


def test_ports_are_on_the_loopback_address_alone_and_are_the_services_own(
    services: dict[str, Any], ports: dict[str, int]
) -> None:
    published = {name: service.get("ports", []) for name, service in services.items()}
    assert all(port.startswith("127.0.0.1:") for listed in published.values() for port in listed)
    assert published["collector"] == [f"127.0.0.1:{ports['collector']}:{ports['collector']}"]
    assert published["machine"] == [f"127.0.0.1:{ports[each]}:{ports[each]}" for each in ("proxy", "control")]
    assert published["kafka"] == published["database"] == []


def test_what_is_mounted_and_waited_for_is_there(root: Path, compose: dict[str, Any], services: dict[str, Any]) -> None:
    for name, service in services.items():
        for mount in service.get("volumes", ()):
            source = mount.partition(":")[0]
            if source.startswith("."):
                assert (root / "compose" / source).exists(), f"{name}: {mount}"
                assert mount.endswith(":ro"), f"{name}: {mount}"
            else:
                assert source in compose["volumes"], f"{name}: {mount}"
        for other in (*service.get("depends_on", ()), service.get("network_mode", "service:kafka").partition(":")[2]):
            assert other in services, f"{name}: {other}"


def test_what_is_waited_for_to_be_healthy_has_a_health_check(services: dict[str, Any], images: dict[str, Any]) -> None:
    awaited = {
        other
        for service in services.values()
        for other, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_healthy"
    }
    assert awaited
    for name in awaited:
        image = images.get(services[name]["image"].removeprefix(OURS))
        assert services[name].get("healthcheck", {}).get("test") or (image and image.health_check), name


def test_what_others_wait_for_is_given_minutes_to_start(services: dict[str, Any]) -> None:
    """Who waits for a container gives up as soon as it is unhealthy, and on a busy machine a broker takes minutes."""
    for name in ("kafka", "database"):
        assert int(services[name]["healthcheck"]["start_period"].removesuffix("s")) >= PATIENT_SECONDS, name


def test_the_broker_may_run_the_libraries_that_it_unpacks(services: dict[str, Any]) -> None:
    """Docker mounts a tmpfs `noexec` unless told otherwise: then the broker refuses every message packed by zstd."""
    options = {path: given for path, _, given in (each.partition(":") for each in services["kafka"]["tmpfs"])}
    assert "exec" in options["/tmp"].split(",")
    assert all("exec" not in given.split(",") for path, given in options.items() if path != "/tmp")


@pytest.mark.parametrize(
    ("image", "declared"),
    [
        ("apache/kafka", {"/etc/kafka/secrets", "/var/lib/kafka/data", "/mnt/shared/config"}),
        ("timescale/timescaledb", {"/var/lib/postgresql/data"}),
    ],
)
def test_no_start_leaves_a_nameless_volume_behind(services: dict[str, Any], image: str, declared: set[str]) -> None:
    """What an image declares a volume and nothing is mounted over becomes a new empty one with every container."""
    for name, service in services.items():
        if service["image"].partition(":")[0] == image:
            covered = {each.split(":")[0] for each in service.get("tmpfs", ())}
            covered |= {each.split(":")[1] for each in service.get("volumes", ())}
            assert declared <= covered, name


def test_the_brokers_logs_stay_within_their_folder(services: dict[str, Any]) -> None:
    """Kafka's own choice is ten files of 100 MB of what the garbage collector did."""
    assert "-loggc" not in services["kafka"]["environment"]["EXTRA_ARGS"]


def test_a_proxy_has_time_to_finish_its_requests(services: dict[str, Any]) -> None:
    from fleetpulse.settings import ProxySettings

    grace = float(services["proxy"]["stop_grace_period"].removesuffix("s"))
    assert grace > ProxySettings.model_fields["drain_seconds"].default


def test_secrets_are_made_once_and_for_their_owner_alone(root: Path, secrets: Path) -> None:
    files = {path: path.read_text() for path in secrets.iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    again = subprocess.run(["sh", str(root / "compose" / "secrets.sh"), str(secrets)], check=True, capture_output=True)
    assert {line.partition(b" ")[0] for line in again.stdout.splitlines()} == {b"kept"}
    assert {path: path.read_text() for path in secrets.iterdir()} == files


def test_what_containers_mount_can_be_read_by_their_accounts(root: Path, tmp_path: Path) -> None:
    """Also from a checkout that was made under a strict umask."""
    for folder in ("compose", "alerts", "dashboards"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("secrets", "__pycache__"))
    for path in tmp_path.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    subprocess.run(["sh", str(tmp_path / "compose" / "secrets.sh")], check=True, capture_output=True)
    services = yaml.safe_load((tmp_path / "compose" / "compose.yaml").read_text())["services"]
    mounts = [mount.partition(":")[0] for each in services.values() for mount in each.get("volumes", ())]
    sources = [tmp_path / "compose" / mount for mount in mounts if mount.startswith(".")]
    assert sources
    for source in sources:
        for path in (source, *source.rglob("*")):
            assert path.stat().st_mode & (0o005 if path.is_dir() else 0o004), path
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "compose" / "secrets").iterdir())


def test_secrets_that_belong_together_fit_together(secrets: Path) -> None:
    token = variables(secrets / "worker.env")["FLEETPULSE_AGENT_WORKER_TOKEN"]
    digest = variables(secrets / "collector.env")["FLEETPULSE_COLLECTOR_WORKER_TOKENS"]
    assert digest == hashlib.sha256(token.encode()).hexdigest()
    control, client = variables(secrets / "control.env"), variables(secrets / "client.env")
    assert control["FLEETPULSE_CONTROL_ADMIN_KEY"] == client["FLEETPULSE_CONTROL_API_KEY"]
    assert len(control["FLEETPULSE_CONTROL_SESSION_SECRET"]) >= 32
    database = variables(secrets / "database.env")
    assert f":{database['OWNER_PASSWORD']}@" in variables(secrets / "database-url.env")["FLEETPULSE_DATABASE_URL"]
    assert database["READER_PASSWORD"] == variables(secrets / "grafana.env")["READER_PASSWORD"]
    # Nine are made; the reader's password and control's key stand in two files each.
    values = [value for path in secrets.iterdir() for value in variables(path).values()]
    assert (len(set(values)), len(values)) == (9, 11)


def test_half_of_the_databases_passwords_is_told_and_not_made_up(root: Path, tmp_path: Path) -> None:
    (tmp_path / "grafana.env").write_text("READER_PASSWORD=old\n")
    made = subprocess.run(
        ["sh", str(root / "compose" / "secrets.sh"), str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert made.returncode == 1
    assert "restore the others, or delete all three" in made.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["grafana.env"]


@pytest.mark.parametrize("name", ["compose.yaml", "agent.yaml"])
def test_docker_compose_accepts_the_file(
    name: str, root: Path, secrets: Path, tmp_path: Path, enter_lane: Callable[[str], None]
) -> None:
    enter_lane("compose")
    command = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    shutil.copytree(root / "compose", tmp_path / "compose", ignore=shutil.ignore_patterns("secrets"))
    shutil.copytree(secrets, tmp_path / "compose" / "secrets")
    (tmp_path / "compose" / "secrets" / "agent.env").touch()
    shown = subprocess.run(
        [*command, "--file", str(tmp_path / "compose" / name), "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert set(json.loads(shown.stdout)["services"]) == set(
        yaml.safe_load((root / "compose" / name).read_text())["services"]
    )
