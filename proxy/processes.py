"""Several processes on one port: the kernel hands each new connection to one of them."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

from fleetpulse.http import require_strict_parser
from fleetpulse.settings import ProxySettings, SettingsError
from fleetpulse.telemetry import logger

_log = logger(__name__)

# A process that ends at once is not started more often than this.
RESTART_SECONDS: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1


def check(settings: ProxySettings) -> None:
    """Raises SettingsError for what the proxy cannot serve with."""
    require_strict_parser()
    if settings.processes > 1 and settings.port == 0:
        raise SettingsError("FLEETPULSE_PROXY_PORT: several processes need one port that they can all name, not 0")


def run_processes(count: int, serve: Callable[[int], int]) -> int:
    """Run ``serve(number)`` in so many processes, bring back those that end, and stop all when told to.

    Called before there is an event loop or a thread. Returns the exit status: 1 if a process failed at its start.
    """
    group = _Group(serve)
    # Blocked here and taken by sigwait: no handler runs between a look and a wait.
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    for number in range(count):
        group.start(number)
    while True:
        if signal.sigwait(signals) != signal.SIGCHLD:
            group.stop()
            return 0
        if not group.bring_back():
            group.stop()
            return 1


class _Group:
    """The processes, by number."""

    def __init__(self, serve: Callable[[int], int]) -> None:
        self._serve = serve
        self._numbers: dict[int, int] = {}
        self._started: dict[int, float] = {}

    def start(self, number: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._numbers[pid], self._started[number] = number, time.monotonic()
            return
        # The child ends with its parent, however that ends.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
        status = 1
        try:
            status = self._serve(number)
        finally:
            sys.stderr.flush()
            os._exit(status)

    def bring_back(self) -> bool:
        """Start the ended anew; False when one could not even start."""
        while (ended := self._ended()) is not None:
            number, status = ended
            lived = time.monotonic() - self._started[number]
            _log.error("process ended", extra={"number": number, "status": status})
            if status == 1 and lived < RESTART_SECONDS:
                return False
            time.sleep(max(0.0, RESTART_SECONDS - lived))
            self.start(number)
        return True

    def stop(self) -> None:
        """Let all finish what they have."""
        for pid in self._numbers:
            os.kill(pid, signal.SIGTERM)
        while self._numbers:
            pid, _ = os.wait()
            self._numbers.pop(pid, None)

    def _ended(self) -> tuple[int, int] | None:
        if not self._numbers:
            return None
        pid, status = os.waitpid(-1, os.WNOHANG)
        return (self._numbers.pop(pid), os.waitstatus_to_exitcode(status)) if pid else None
