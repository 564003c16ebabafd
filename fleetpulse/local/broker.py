"""The embedded broker: one small native program that speaks Kafka's protocol, from the ``noida-db`` wheel.

It is for laptops and tests. A graceful stop keeps everything; a kill loses the last moments, and retention by size is
not enforced. ``apache_kafka`` starts the real one.
"""

import importlib.util
import signal
from pathlib import Path
from typing import Final

from fleetpulse.local.kafka_probe import is_ready
from fleetpulse.local.ports import LOOPBACK, is_free
from fleetpulse.local.processes import Child, StartError

START_TIMEOUT_SECONDS: Final = 20.0


def _binary() -> Path:
    """The native program inside the wheel. Raises StartError when the wheel is not installed."""
    package = importlib.util.find_spec("noida_db")
    if package is None or package.origin is None:
        raise StartError("the embedded broker is not installed: pip install 'fleetpulse[local]'")
    binary = Path(package.origin).with_name("noida-db")
    binary.chmod(0o755)  # pip drops the executable bit of package data
    return binary


class EmbeddedBroker:
    """A broker whose data lives in ``data_dir`` and which listens on the loopback address."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.data_dir = data_dir
        self.port = port
        self._child: Child | None = None

    @property
    def bootstrap(self) -> str:
        """Address for clients, as host:port."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id. Raises StartError when it was never started."""
        return self.child.pid

    @property
    def child(self) -> Child:
        """Its process, for a supervisor. Raises StartError when it was never started."""
        if self._child is None:
            raise StartError("the broker is not started")
        return self._child

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._child is not None and self._child.running

    @property
    def log_file(self) -> Path:
        """The broker's log."""
        return self.data_dir / "broker.log"

    def start(self) -> None:
        """Start and wait until clients can connect. Raises StartError."""
        if not is_free(self.port):
            raise StartError(f"the broker cannot start: port {self.port} is taken")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        arguments = ["start", "--only", "kafka", "--kafka-port", str(self.port), "--data-dir", str(self.data_dir)]
        self._child = Child(
            "broker",
            [str(_binary()), *arguments],
            self.log_file,
            orphan_signal=signal.SIGINT,  # at which it saves its data
        )
        self._child.start()
        self._child.wait_until(lambda: is_ready(LOOPBACK, self.port), START_TIMEOUT_SECONDS)

    def stop(self) -> None:
        """Save the data and end."""
        if self._child is not None:
            self._child.stop(signal.SIGINT)

    def kill(self) -> None:
        """End at once, as a crash would: what was written in the last moments is lost."""
        self.child.kill()

    def freeze(self) -> None:
        """Stop answering, with all connections open."""
        self.child.freeze()

    def thaw(self) -> None:
        """Answer again."""
        self.child.thaw()
