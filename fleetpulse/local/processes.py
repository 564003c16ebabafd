"""Child processes that never outlive this one, not even when it is killed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from fleetpulse.local import exec_shim

_SHIM: Final = (sys.executable, "-I", "-S", str(Path(exec_shim.__file__)))
# Linux sends the parent-death signal when the *thread* that forked ends, so all children are forked by one thread
# that lives as long as the process.
_forker: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fleetpulse-forker")


class StartError(Exception):
    """A process that did not come up; the message says which, why, and where its log is."""


class Child:
    """One program, its log file, and its process group.

    ``orphan_signal`` is what the program gets when this process dies without stopping it. A child has a process group
    of its own, so that Ctrl-C in a terminal reaches only the supervisor, which then stops children in order. ``user``
    is the account to run as; only root may name another than its own.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log_file: Path,
        environment: Mapping[str, str] | None = None,
        orphan_signal: signal.Signals = signal.SIGKILL,
        working_dir: Path | None = None,
        user: str | None = None,
    ) -> None:
        self.name = name
        self.arguments = tuple(arguments)
        self.log_file = log_file
        self._environment = environment
        self._orphan_signal = orphan_signal
        self._working_dir = working_dir
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the program itself. Raises StartError when it was never started."""
        if self._process is None:
            raise StartError(f"{self.name} is not started")
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._process.poll() if self._process is not None else None

    @property
    def running(self) -> bool:
        """Started and not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the program; its output goes to the end of the log file. Raises StartError."""
        if self.running:
            raise StartError(f"{self.name} runs already, as process {self.pid}")
        program = shutil.which(self.arguments[0])
        if program is None:
            raise StartError(f"{self.name}: there is no program {self.arguments[0]}")
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        command = [
            *_SHIM,
            str(int(self._orphan_signal)),
            str(os.getpid()),
            self._user or "",
            program,
            *self.arguments[1:],
        ]
        self._process = _forker.submit(self._fork, command).result()

    def _fork(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if self._environment is None else dict(self._environment),
                cwd=self._working_dir,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], timeout_seconds: float) -> None:
        """Poll until ``ready()``. Raises StartError when the program ends first or the time is up."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            if not self.running:
                raise StartError(f"{self.name} ended with status {self.exit_status}; {self.log_excerpt()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} was not ready within {timeout_seconds:g} s; {self.log_excerpt()}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout_seconds: float = 10.0) -> None:
        """Ask it to end, and kill it when it has not within the timeout. Nothing happens when it does not run."""
        if self._process is None:
            return
        self.signal(how)
        self.signal(signal.SIGCONT)  # a frozen process would never see the request
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once with everything it started, as a crash would."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def signal(self, what: signal.Signals) -> None:
        """Send a signal to the program; nothing happens when it does not run."""
        if self.running:
            os.kill(self.pid, what)

    def freeze(self) -> None:
        """Stop it from running without ending it: its sockets stay open and nobody answers.

        Returns when the last of its threads has stopped, which is later than the signal's arrival.
        """
        self.signal(signal.SIGSTOP)
        if self.running:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen program run on."""
        self.signal(signal.SIGCONT)

    def log_excerpt(self, most_bytes: int = 600) -> str:
        """The end of its log on one line, and where the rest is."""
        if not self.log_file.exists():
            return f"no log at {self.log_file}"
        tail = self.log_file.read_bytes()[-most_bytes:].decode(errors="replace")
        return f"log {self.log_file} ends: {' | '.join(tail.split(chr(10))).strip(' |')}"
