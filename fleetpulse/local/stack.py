"""Which processes the stack has, on which ports, and with which settings."""

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.sql import SQL, Identifier

from fleetpulse.local.apache_kafka import ApacheKafka
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.parts import SERVICE_STOP_SECONDS, Part, server_part, service_part
from fleetpulse.local.ports import LOOPBACK, free_port, is_free
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.local.processes import Child, StartError
from fleetpulse.local.state_file import Secrets, kept_port
from fleetpulse.settings import CollectorSettings, ControlSettings, LocalSettings, ProxySettings

DATABASE: Final = "fleetpulse"
CLOUD_PORT: Final = 8010
# It stops its machines' agents and engines first.
_CLOUD_STOP_SECONDS: Final = 12.0
_AGENT_PREFIX: Final = "FLEETPULSE_AGENT_"


@dataclass(frozen=True, slots=True)
class Ports:
    """Where everything listens."""

    proxy: int
    control: int
    collector: int
    cloud: int
    moved: tuple[str, ...]
    """One line for each part that does not have its usual port, because another program listens there."""


def choose_ports() -> Ports:
    """The usual ports, and free ones in place of those that are taken."""
    taken: set[int] = set()
    moved: list[str] = []

    def choose(name: str, usual: int) -> int:
        port = usual
        while port in taken or not is_free(port):
            port = free_port()
        taken.add(port)
        if port != usual:
            moved.append(f"port {usual} is taken: {name} listens on {port}")
        return port

    proxy, control, collector = (
        choose(name, int(group.model_fields["port"].default))
        for name, group in (("proxy", ProxySettings), ("control", ControlSettings), ("collector", CollectorSettings))
    )
    return Ports(proxy, control, collector, choose("mock-cloud", CLOUD_PORT), tuple(moved))


class Stack:
    """The parts of one stack. The servers' addresses are final once they were started."""

    def __init__(self, data_dir: Path, settings: LocalSettings, ports: Ports, secrets: Secrets) -> None:
        self.data_dir = data_dir
        self.ports = ports
        self.secrets = secrets
        self._postgres = EmbeddedPostgres(data_dir / "postgres", kept_port(data_dir, "postgres"))
        # Each broker has a folder of its own: they cannot read one another's data.
        folder, port = data_dir / f"broker-{settings.broker}", kept_port(data_dir, "broker")
        self._broker: EmbeddedBroker | ApacheKafka
        self._broker = ApacheKafka(folder, port) if settings.broker == "apache" else EmbeddedBroker(folder, port)

    @property
    def control_url(self) -> str:
        """Control's API."""
        return _url(self.ports.control)

    @property
    def proxy_url(self) -> str:
        """OpenAI's API, without its /v1."""
        return _url(self.ports.proxy)

    def servers(self) -> list[Part]:
        """Database and broker."""
        return [server_part("postgres", self._postgres), server_part("broker", self._broker)]

    async def create_database(self) -> None:
        """Make the database, which migrations need to be there. Raises StartError."""
        try:
            async with await psycopg.AsyncConnection.connect(self._postgres.url(), autocommit=True) as connection:
                found = await connection.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,))
                if await found.fetchone() is None:
                    await connection.execute(SQL("CREATE DATABASE {}").format(Identifier(DATABASE)))
        except psycopg.Error as error:
            raise StartError(f"PostgreSQL does not make the database {DATABASE}: {error}") from error

    def pipeline(self) -> list[Part]:
        """Collector, and the cloud whose machines are the workers."""
        collector = {
            "FLEETPULSE_COLLECTOR_HOST": LOOPBACK,
            "FLEETPULSE_COLLECTOR_PORT": str(self.ports.collector),
            "FLEETPULSE_COLLECTOR_WORKER_TOKENS": hashlib.sha256(self.secrets.worker_token.encode()).hexdigest(),
        }
        cloud = ["control.providers.mock", "--port", str(self.ports.cloud), "--data-dir", str(self.data_dir / "cloud")]
        return [
            self._child("collector", ["fleetpulse", "collector"], collector),
            self._child("mock-cloud", cloud, {}, _CLOUD_STOP_SECONDS),
        ]

    def services(self) -> list[Part]:
        """Control and proxy. They start after the workers and end before them: an end of all is nobody's death."""
        control = {
            "FLEETPULSE_CONTROL_HOST": LOOPBACK,
            "FLEETPULSE_CONTROL_PORT": str(self.ports.control),
            "FLEETPULSE_CONTROL_ADMIN_KEY": self.secrets.admin_key,
            # One that is kept, or each restart would log browsers out.
            "FLEETPULSE_CONTROL_SESSION_SECRET": hashlib.sha256(
                f"session:{self.secrets.admin_key}".encode()
            ).hexdigest(),
            "FLEETPULSE_CONTROL_PROVIDERS": "mock",
            "FLEETPULSE_MOCK_URL": _url(self.ports.cloud),
            # What is set for agents here is meant for the agents of the workers.
            "FLEETPULSE_JOBS_WORKER_ENVIRONMENT": ",".join(
                f"{name}={value}" for name, value in os.environ.items() if name.startswith(_AGENT_PREFIX)
            ),
        }
        proxy = {"FLEETPULSE_PROXY_HOST": LOOPBACK, "FLEETPULSE_PROXY_PORT": str(self.ports.proxy)}
        return [
            self._child("control", ["fleetpulse", "control"], control),
            self._child("proxy", ["fleetpulse", "proxy"], proxy),
        ]

    def state(self, pids: Mapping[str, int]) -> dict[str, Any]:
        """What ``fleetpulse.json`` says."""
        return {
            "control_url": self.control_url,
            "collector_url": _url(self.ports.collector),
            "proxy_url": self.proxy_url,
            "admin_key": self.secrets.admin_key,
            "inference_key": self.secrets.inference_key,
            "worker_token": self.secrets.worker_token,
            "database_url": self._postgres.url(DATABASE),
            "kafka_bootstrap": self._broker.bootstrap,
            "pids": {"supervisor": os.getpid(), **pids},
        }

    @property
    def bootstrap(self) -> str:
        """The broker's address."""
        return self._broker.bootstrap

    def urls(self) -> dict[str, str]:
        """Addresses of the services, by part."""
        return {"proxy": self.proxy_url, "control": self.control_url, "collector": _url(self.ports.collector)}

    def _child(
        self, name: str, module: list[str], environment: Mapping[str, str], stop_seconds: float = SERVICE_STOP_SECONDS
    ) -> Part:
        shared = {
            "FLEETPULSE_DATABASE_URL": self._postgres.url(DATABASE),
            "FLEETPULSE_KAFKA_BOOTSTRAP": self._broker.bootstrap,
        }
        return service_part(
            Child(
                name,
                [sys.executable, "-m", *module],
                self.data_dir / "logs" / f"{name}.log",
                {**os.environ, **shared, **environment},
            ),
            stop_seconds,
        )


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"
