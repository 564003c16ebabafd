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
from fleetpulse.local.parts import Part, server_part, service_part
from fleetpulse.local.ports import LOOPBACK, free_port, is_free
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.local.processes import Child, StartError
from fleetpulse.local.state_file import Secrets, kept_port
from fleetpulse.settings import AgentSettings, CollectorSettings, ControlSettings, LocalSettings

DATABASE: Final = "fleetpulse"
FIRST_ENGINE_PORT: Final = 8100
MODEL: Final = "mock-model"
# Simulated GPUs of the second worker, the third, and so on; then from the start again.
_GPU_COUNTS: Final = (8, 4, 2)
_ENGINE_REQUESTS_PER_SECOND: Final = (4.0, 2.0, 0.5)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where everything listens; ``engines`` has one less than ``agents``, for the first worker has none."""

    control: int
    collector: int
    agents: tuple[int, ...]
    engines: tuple[int, ...]
    moved: tuple[str, ...]
    """One line for each part that does not have its usual port, because another program listens there."""


def choose_ports(workers: int) -> Ports:
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

    fields = (ControlSettings, CollectorSettings, AgentSettings)
    control, collector, agent = (int(group.model_fields["port"].default) for group in fields)
    return Ports(
        choose("control", control),
        choose("collector", collector),
        tuple(choose(worker_id(place), agent + place) for place in range(workers)),
        tuple(choose(_engine_name(place), FIRST_ENGINE_PORT + place - 1) for place in range(1, workers)),
        tuple(moved),
    )


def worker_id(place: int) -> str:
    """Name of the worker at a place, counted from 0."""
    return f"worker-{place + 1}"


def _engine_name(place: int) -> str:
    return f"engine-{place + 1}"


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

    def services(self) -> list[Part]:
        """Collector and control."""
        collector = {
            "FLEETPULSE_COLLECTOR_HOST": LOOPBACK,
            "FLEETPULSE_COLLECTOR_PORT": str(self.ports.collector),
            "FLEETPULSE_COLLECTOR_WORKER_TOKENS": hashlib.sha256(self.secrets.worker_token.encode()).hexdigest(),
        }
        control = {
            "FLEETPULSE_CONTROL_HOST": LOOPBACK,
            "FLEETPULSE_CONTROL_PORT": str(self.ports.control),
            "FLEETPULSE_CONTROL_ADMIN_KEY": self.secrets.admin_key,
        }
        return [self._service("collector", "collector", collector), self._service("control", "control", control)]

    def engines(self) -> list[Part]:
        """A mock engine for each worker but the first."""
        parts = []
        for place, port in enumerate(self.ports.engines, 1):
            load = _ENGINE_REQUESTS_PER_SECOND[(place - 1) % len(_ENGINE_REQUESTS_PER_SECOND)]
            options = ["--port", str(port), "--model", MODEL, "--load", str(load)]
            parts.append(self._child(_engine_name(place), ["fleetpulse.local.mock_engine", *options], {}))
        return parts

    def agents(self) -> list[Part]:
        """The workers' agents; the first reads this host's own GPUs, the others pretend to have some."""
        return [self._agent(place, port) for place, port in enumerate(self.ports.agents)]

    def state(self, pids: Mapping[str, int]) -> dict[str, Any]:
        """What ``fleetpulse.json`` says."""
        return {
            "control_url": self.control_url,
            "collector_url": _url(self.ports.collector),
            "proxy_url": None,
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
        """Addresses people may want to open, by part."""
        agents = {worker_id(place): _url(port) for place, port in enumerate(self.ports.agents)}
        engines = {_engine_name(place): _url(port) for place, port in enumerate(self.ports.engines, 1)}
        return {"control": self.control_url, "collector": _url(self.ports.collector), **agents, **engines}

    def _agent(self, place: int, port: int) -> Part:
        name = worker_id(place)
        environment = {
            "FLEETPULSE_AGENT_HOST": LOOPBACK,
            "FLEETPULSE_AGENT_PORT": str(port),
            "FLEETPULSE_AGENT_WORKER_ID": name,
            "FLEETPULSE_AGENT_INSTANCE_ID": name,
            "FLEETPULSE_AGENT_STATE_DIR": str(self.data_dir / "agents" / name),
            "FLEETPULSE_AGENT_SPOOL_DIR": str(self.data_dir / "agents" / name / "spool"),
        }
        if place > 0:
            environment |= {
                "FLEETPULSE_AGENT_GPUS": "simulated",
                "WORKER_SIMULATE_GPU_COUNT": str(_GPU_COUNTS[(place - 1) % len(_GPU_COUNTS)]),
                "FLEETPULSE_AGENT_ENGINE": "vllm",
                "FLEETPULSE_AGENT_ENGINE_URL": _url(self.ports.engines[place - 1]),
            }
        return self._service(name, "agent", environment)

    def _service(self, name: str, command: str, environment: Mapping[str, str]) -> Part:
        return self._child(name, ["fleetpulse", command], environment)

    def _child(self, name: str, module: list[str], environment: Mapping[str, str]) -> Part:
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
            )
        )


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"
