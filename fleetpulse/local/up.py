"""``fleetpulse up``: the embedded stack from an empty folder to a fleet on the screen, and back."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
from aiokafka.errors import KafkaError
from rich.console import Console, RenderableType
from rich.live import Live

from fleetpulse.client.control import ControlClient
from fleetpulse.local.fleet_table import fleet_line, fleet_table, url_table
from fleetpulse.local.processes import StartError
from fleetpulse.local.readiness import lacking
from fleetpulse.local.stack import Stack, choose_ports, worker_id
from fleetpulse.local.state_file import has_state, kept_secrets, leftover_pids, locked, remove_state, write_state
from fleetpulse.local.supervisor import Supervisor
from fleetpulse.settings import LocalSettings, StreamSettings, load
from fleetpulse.stream.admin import TopicError, ensure_topics

_LOOK_SECONDS: Final = 0.25
_REFRESH_SECONDS: Final = 1.0
_LINE_SECONDS: Final = 10.0
_LEFTOVERS_SECONDS: Final = 10.0
_AWAY: Final = (aiohttp.ClientError, TimeoutError, OSError)


async def up(settings: LocalSettings, stop: asyncio.Event) -> None:
    """Start everything, show the fleet until ``stop`` is set, and stop everything.

    Raises StartError when the stack does not come up.
    """
    data_dir = settings.data_dir.absolute()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    with locked(data_dir):
        await _wait_for_leftovers(data_dir)
        stack = Stack(data_dir, settings, choose_ports(settings.workers), kept_secrets(data_dir))
        for line in stack.ports.moved:
            console.print(line)
        supervisor = Supervisor(console.print, lambda: _keep_state(stack, supervisor))
        try:
            async with supervisor.supervising():
                await _bring_up(stack, supervisor, settings, stop, console.print)
                if not stop.is_set():
                    write_state(data_dir, stack.state(supervisor.pids()))
                    console.print(url_table(stack.urls(), str(data_dir)))
                    await _show(stack, stop, console)
                console.print("stopping")
        finally:
            remove_state(data_dir)
        console.print(f"stopped; the data is kept in {data_dir}")


def _keep_state(stack: Stack, supervisor: Supervisor) -> None:
    """After a restart the file has the new process ids; there is none before the stack is up."""
    if has_state(stack.data_dir):
        write_state(stack.data_dir, stack.state(supervisor.pids()))


async def _wait_for_leftovers(data_dir: Path) -> None:
    """Processes of a stack whose supervisor was killed die with it, but take a moment to save their data."""
    pids = set(leftover_pids(data_dir))
    leftovers = [process for process in psutil.process_iter() if process.pid in pids]
    await asyncio.to_thread(psutil.wait_procs, leftovers, _LEFTOVERS_SECONDS)
    remove_state(data_dir)


async def _bring_up(
    stack: Stack, supervisor: Supervisor, settings: LocalSettings, stop: asyncio.Event, tell: Callable[[str], None]
) -> None:
    """Every stage in turn, then wait for the first samples; returns early when ``stop`` is set."""
    began, started_at = time.monotonic(), datetime.now(UTC)
    tell(f"starting PostgreSQL and the broker ({settings.broker}) in {stack.data_dir}")
    await supervisor.start(*stack.servers())
    await _create_topics(stack)
    await stack.create_database()
    tell(f"starting collector, control and {settings.workers} workers ({time.monotonic() - began:.1f} s)")
    for stage in (stack.services(), stack.engines(), stack.agents()):
        if stop.is_set():
            return
        await supervisor.start(*stage)
    await _wait_for_samples(stack, settings, started_at, stop)
    if not stop.is_set():
        tell(f"the first samples can be queried ({time.monotonic() - began:.1f} s)")


async def _create_topics(stack: Stack) -> None:
    try:
        await ensure_topics(load(StreamSettings, bootstrap=stack.bootstrap))
    except (KafkaError, TopicError, OSError) as error:
        raise StartError(f"the broker does not make topics: {error}") from error


async def _wait_for_samples(stack: Stack, settings: LocalSettings, since: datetime, stop: asyncio.Event) -> None:
    """Until this host's CPU and memory, and the simulated GPUs, are in the database. Raises StartError."""
    deadline = time.monotonic() + settings.ready_timeout_seconds
    async with ControlClient.connected(stack.control_url, stack.secrets.admin_key) as client:
        while not stop.is_set():
            with contextlib.suppress(*_AWAY):
                if await _has_samples(client, settings.workers, since):
                    return
            if time.monotonic() > deadline:
                reasons = await lacking(stack.urls()) or ["all services are ready"]
                raise StartError(
                    f"no samples could be queried within {settings.ready_timeout_seconds:g} s: {' | '.join(reasons)} "
                    f"(logs: {stack.data_dir / 'logs'})"
                )
            await _stopped_within(_LOOK_SECONDS, stop)


async def _has_samples(client: ControlClient, workers: int, since: datetime) -> bool:
    hosts = await client.activity("system", since)
    own = [row for row in hosts if row["worker_id"] == worker_id(0)]
    if not any(row["cpu_utilization_ratio"] is not None and row["memory_used_bytes"] is not None for row in own):
        return False
    return workers == 1 or bool(await client.activity("gpu", since))


async def _show(stack: Stack, stop: asyncio.Event, console: Console) -> None:
    """A live table on a terminal, else a line every few seconds."""
    async with ControlClient.connected(stack.control_url, stack.secrets.admin_key) as client:
        if not console.is_terminal:
            while not await _stopped_within(_LINE_SECONDS, stop):
                console.print(await _told(client, fleet_line))
            return
        with Live(console=console, auto_refresh=False) as live:
            while not await _stopped_within(_REFRESH_SECONDS, stop):
                live.update(await _told(client, fleet_table), refresh=True)


async def _told(client: ControlClient, render: Callable[[Mapping[str, Any]], RenderableType]) -> RenderableType:
    try:
        return render(await client.workers())
    except _AWAY as error:
        return f"control does not answer: {error or type(error).__name__}"


async def _stopped_within(seconds: float, stop: asyncio.Event) -> bool:
    """Wait that long, or until ``stop`` is set; whether it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()
