"""The embedded broker: one small native program that speaks Kafka's protocol, from the ``noida-db`` wheel.

It is for laptops and tests. A graceful stop keeps everything; a kill loses the last moments, and retention by size is
not enforced. ``apache_kafka`` starts the real one.
"""

import importlib.util
import signal
from pathlib import Path
from typing import Final

from fleetpulse.local.broker_process import BrokerProcess
from fleetpulse.local.kafka_probe import is_ready
from fleetpulse.local.ports import LOOPBACK
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


class EmbeddedBroker(BrokerProcess):
    """The native program."""

    def start(self) -> None:
        """Start and wait until clients can connect. Raises StartError."""
        self._prepare()
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
