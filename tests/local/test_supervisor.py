"""The supervisor's promises, with small programs as parts."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from fleetpulse.local.parts import Part, service_part
from fleetpulse.local.processes import Child, StartError
from fleetpulse.local.supervisor import Supervisor


def part(name: str, folder: Path, script: str = "exec sleep 600") -> Part:
    """A part that is a shell script."""
    return service_part(Child(name, ["sh", "-c", script], folder / f"{name}.log"))


async def until(condition: asyncio.Event) -> None:
    """Wait, within bounds."""
    await asyncio.wait_for(condition.wait(), 20)


async def test_a_part_that_ends_is_told_and_started_again(tmp_path: Path) -> None:
    told: list[str] = []
    changed = asyncio.Event()
    supervisor = Supervisor(told.append, changed.set)
    async with supervisor.supervising():
        await supervisor.start(part("worker", tmp_path))
        first = supervisor.pids()["worker"]
        os.kill(first, signal.SIGKILL)
        await until(changed)
        second = supervisor.pids()["worker"]
        assert second != first
    assert told == [f"worker ended and is started again in 0.5 s (log: {tmp_path / 'worker.log'})"]


async def test_a_part_that_keeps_ending_is_started_ever_more_rarely(tmp_path: Path) -> None:
    told: list[str] = []
    restarts = asyncio.Semaphore(0)
    supervisor = Supervisor(told.append, restarts.release)
    async with supervisor.supervising():
        await supervisor.start(part("broken", tmp_path, "exit 1"))
        for _ in range(2):
            await asyncio.wait_for(restarts.acquire(), 20)
    delays = [line.split(" again in ")[1].split(" s ")[0] for line in told]
    assert delays[:2] == ["0.5", "1"]


async def test_stages_are_stopped_in_the_reverse_order(tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    # Each part notes its end; the trap is set before the part counts as started.
    script = "trap 'echo {name} >> {ends}; exit' TERM; touch {name}.up; while :; do sleep 0.05; done"
    supervisor = Supervisor(lambda _: None, lambda: None)
    async with supervisor.supervising():
        for name in ("database", "collector", "agent"):
            up = tmp_path / f"{name}.up"
            text = script.format(name=name, ends=ends).replace(f"{name}.up", str(up))
            await supervisor.start(part(name, tmp_path, text))
            async with asyncio.timeout(20):
                while not up.exists():  # noqa: ASYNC110 - a file has no event
                    await asyncio.sleep(0.02)
    assert ends.read_text().split() == ["agent", "collector", "database"]


async def test_a_part_that_does_not_start_is_told_and_the_others_are_stopped(tmp_path: Path) -> None:
    supervisor = Supervisor(lambda _: None, lambda: None)
    good = part("good", tmp_path)
    bad = service_part(Child("bad", ["no-such-program"], tmp_path / "bad.log"))
    with pytest.raises(StartError, match="bad: there is no program"):
        async with supervisor.supervising():
            await supervisor.start(good, bad)
    assert not good.child().running
