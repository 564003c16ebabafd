"""What every broker that runs as a process of ours has."""

from pathlib import Path

from fleetpulse.local.ports import LOOPBACK, is_free
from fleetpulse.local.processes import Child, StartError


class BrokerProcess:
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

    def kill(self) -> None:
        """End at once, as a crash would."""
        self.child.kill()

    def freeze(self) -> None:
        """Stop answering, with all connections open."""
        self.child.freeze()

    def thaw(self) -> None:
        """Answer again."""
        self.child.thaw()

    def _prepare(self) -> None:
        """Make the folder. Raises StartError when the port is taken."""
        if not is_free(self.port):
            raise StartError(f"the broker cannot start: port {self.port} is taken")
        self.data_dir.mkdir(parents=True, exist_ok=True)
