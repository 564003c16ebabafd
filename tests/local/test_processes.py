"""Child processes end when they should, and never later than their parent."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fleetpulse.local.processes import Child, StartError


def lives(pid: int) -> bool:
    """Whether a process runs; one that ended and was not asked for its status does not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


PARENT = """
import sys, threading
from pathlib import Path
from fleetpulse.local.processes import Child

child = Child("sleeper", ["sleep", "600"], Path(sys.argv[1]))
starter = threading.Thread(target=child.start)
starter.start()
starter.join()
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path, eventually: Callable[..., None]) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert lives(child)
        parent.kill()
    eventually(lambda: not lives(child), "the child is gone")


def test_a_child_outlives_the_thread_that_started_it(tmp_path: Path, sleeper: list[str]) -> None:
    child = Child("sleeper", sleeper, tmp_path / "log")
    starter = threading.Thread(target=child.start)
    starter.start()
    starter.join()
    try:
        with pytest.raises(psutil.TimeoutExpired):
            psutil.Process(child.pid).wait(0.3)
        assert child.running
    finally:
        child.kill()


def test_stop_ends_a_frozen_child(tmp_path: Path, sleeper: list[str]) -> None:
    child = Child("sleeper", sleeper, tmp_path / "log")
    child.start()
    child.freeze()
    child.stop(timeout_seconds=5)
    assert child.exit_status == -signal.SIGTERM


def test_a_frozen_child_has_stopped_in_every_thread(tmp_path: Path) -> None:
    # They begin together: a thread that starts beside others that spin waits for the interpreter's lock each time.
    program = """
import threading

barrier = threading.Barrier(30)

def spin():
    barrier.wait()
    while True:
        pass

for _ in range(30):
    threading.Thread(target=spin).start()
"""
    child = Child("busy", [sys.executable, "-c", program], tmp_path / "log")
    child.start()
    try:
        child.wait_until(lambda: psutil.Process(child.pid).num_threads() > 30, 10)
        child.freeze()
        threads = Path(f"/proc/{child.pid}/task")
        assert {(thread / "stat").read_text().rpartition(") ")[2][0] for thread in threads.iterdir()} == {"T"}
    finally:
        child.kill()


def test_stop_kills_a_child_that_does_not_listen(tmp_path: Path, eventually: Callable[..., None]) -> None:
    child = Child("deaf", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], tmp_path / "log")
    child.start()
    eventually(lambda: child.log_file.read_text() == "ready\n", "the trap is set")
    child.stop(timeout_seconds=0.2)
    assert child.exit_status == -signal.SIGKILL


def test_kill_takes_the_grandchildren_along(tmp_path: Path, eventually: Callable[..., None]) -> None:
    child = Child("family", ["sh", "-c", "sleep 600 & echo $!; wait"], tmp_path / "log")
    child.start()
    eventually(lambda: child.log_file.read_text().strip(), "the grandchild is named")
    grandchild = int(child.log_file.read_text())
    child.kill()
    eventually(lambda: not lives(grandchild), "the grandchild is gone")


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="ghost: there is no program no-such-program"):
        Child("ghost", ["no-such-program"], tmp_path / "log").start()


def test_an_early_end_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    child = Child("brief", ["sh", "-c", "echo cannot go on >&2; exit 3"], tmp_path / "log")
    child.start()
    with pytest.raises(StartError, match=r"brief ended with status 3.*cannot go on"):
        child.wait_until(lambda: False, 5)


def test_a_child_has_a_process_group_of_its_own(tmp_path: Path, sleeper: list[str]) -> None:
    child = Child("sleeper", sleeper, tmp_path / "log")
    child.start()
    try:
        assert os.getpgid(child.pid) == child.pid
        assert child.pid != os.getpgid(0)
    finally:
        child.kill()
