"""The real Apache Kafka: one node in KRaft mode, from the jars on Maven Central."""

import base64
import subprocess
import uuid
from pathlib import Path
from typing import Final

from fleetpulse.local.broker_process import BrokerProcess
from fleetpulse.local.kafka_jars import class_path, default_cache_dir, missing_program
from fleetpulse.local.kafka_probe import is_ready
from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.local.processes import Child, StartError

START_TIMEOUT_SECONDS: Final = 60.0
_FORMAT_TIMEOUT_SECONDS: Final = 60.0
_JAVA_OPTIONS: Final = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-Djava.awt.headless=true")
_LOGGING: Final = """status = warn
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""


def available() -> str | None:
    """Why Apache Kafka cannot run here, with what to do about it; None when it can.

    Fetches the jars when they are not here yet, so the first call may take minutes.
    """
    reason = missing_program()
    if reason is not None:
        return reason
    try:
        class_path(default_cache_dir())
    except StartError as error:
        return str(error)
    return None


def new_cluster_id() -> str:
    """A random id in Kafka's form: 22 characters of URL-safe base64.

    Like Kafka's own it never begins with a dash, which a command line takes for an option.
    """
    while True:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not cluster_id.startswith("-"):
            return cluster_id


class ApacheKafka(BrokerProcess):
    """A single-node cluster. What was acknowledged is still there after a kill."""

    def __init__(self, data_dir: Path, port: int, cache_dir: Path | None = None) -> None:
        super().__init__(data_dir, port)
        self._cache_dir = default_cache_dir() if cache_dir is None else cache_dir

    def start(self) -> None:
        """Start, and wait until clients are served; makes the storage the first time. Raises StartError."""
        self._prepare()
        java = ["java", *_JAVA_OPTIONS, f"-Dlog4j2.configurationFile={self.data_dir.resolve() / 'log4j2.properties'}"]
        java += ["-cp", class_path(self._cache_dir)]
        configuration = self._write_configuration()
        self._format_storage(java, configuration)
        self._child = Child(
            "broker",
            [*java, "kafka.Kafka", str(configuration)],
            self.log_file,
            working_dir=self.data_dir,
        )
        self._child.start()
        self._child.wait_until(lambda: is_ready(LOOPBACK, self.port), START_TIMEOUT_SECONDS)

    def stop(self) -> None:
        """End in order."""
        if self._child is not None:
            self._child.stop(timeout_seconds=20.0)

    def _write_configuration(self) -> Path:
        controller_port = free_port()
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{LOOPBACK}:{self.port},CONTROLLER://{LOOPBACK}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{self.port}",
            "log.dirs": (self.data_dir / "log").resolve(),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            # There is no other broker to hand leadership to at the end, or to protect from a restart after a crash: a
            # restarted broker is let in when its last session is over.
            "controlled.shutdown.enable": "false",
            "broker.session.timeout.ms": 1500,
            "broker.heartbeat.interval.ms": 300,
        }
        (self.data_dir / "log4j2.properties").write_text(_LOGGING)
        configuration = (self.data_dir / "server.properties").resolve()
        configuration.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return configuration

    def _format_storage(self, java: list[str], configuration: Path) -> None:
        if (self.data_dir / "log" / "meta.properties").exists():
            return
        command = [*java, "kafka.tools.StorageTool", "format", "-t", new_cluster_id(), "-c", str(configuration)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=_FORMAT_TIMEOUT_SECONDS, check=False)
        if result.returncode != 0:
            raise StartError(f"Apache Kafka cannot format {self.data_dir}: {(result.stdout + result.stderr).strip()}")
