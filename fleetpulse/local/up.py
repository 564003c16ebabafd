"""``fleetpulse up``: the embedded stack from an empty folder to a fleet on the screen, and back."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import psutil
from aiokafka.errors import KafkaError
from rich.console import Console, RenderableType
from rich.live import Live

from fleetpulse.client.control import ControlClient
from fleetpulse.local.deployment import MODEL, Worker, deploy, inference_key, is_offered, unready
from fleetpulse.local.fleet_table import fleet_line, fleet_table, lines_to_paste, url_table
from fleetpulse.local.processes import StartError
from fleetpulse.local.readiness import lacking
from fleetpulse.local.stack import Stack, choose_ports
from fleetpulse.local.state_file import (
    has_state,
    keep_secrets,
    kept_secrets,
    leftover_pids,
    locked,
    remove_state,
    write_state,
)
from fleetpulse.local.supervisor import Supervisor
from fleetpulse.settings import LocalSettings, StreamSettings, load
from fleetpulse.stream.admin import TopicError, ensure_topics

_LOOK_SECONDS: Final = 0.25
_REFRESH_SECONDS: Final = 1.0
_LINE_SECONDS: Final = 10.0
_LEFTOVERS_SECONDS: Final = 10.0
Answer = TypeVar("Answer")
_AWAY: Final = (aiohttp.ClientError, TimeoutError, OSError)


async def up(settings: LocalSettings, stop: asyncio.Event) -> None:
    """Start everything, show the fleet until ``stop`` is set, and stop everything.

    Raises StartError when the stack does not come up.
    """
    data_dir = settings.data_dir.absolute()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    with locked(data_dir):
        await _wait_for_leftovers(data_dir)
        stack = Stack(data_dir, settings, choose_ports(), kept_secrets(data_dir))
        for line in stack.ports.moved:
            console.print(line)
        supervisor = Supervisor(console.print, lambda: _keep_state(stack, supervisor))
        try:
            async with supervisor.supervising():
                await _bring_up(stack, supervisor, settings, stop, console.print)
                if not stop.is_set():
                    write_state(data_dir, stack.state(supervisor.pids()))
                    console.print(url_table(stack.urls(), str(data_dir)))
                    console.print(_lines_to_paste(stack))
                    await _show(stack, stop, console)
                console.print("stopping")
        finally:
            remove_state(data_dir)
        console.print(f"stopped; the data is kept in {data_dir}")


def _lines_to_paste(stack: Stack) -> str:
    keys = stack.secrets
    return lines_to_paste(stack.proxy_url, keys.inference_key, stack.control_url, keys.admin_key, MODEL)


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
    tell(f"starting collector, control, proxy and a mock cloud ({time.monotonic() - began:.1f} s)")
    for stage in (stack.pipeline(), stack.services()):
        if stop.is_set():
            return
        await supervisor.start(*stage)
    async with ControlClient.connected(stack.control_url, stack.secrets.admin_key) as client:
        waiting = Waiting(stack, client, stop, time.monotonic() + settings.ready_timeout_seconds)
        tell(f"deploying {settings.workers} workers ({time.monotonic() - began:.1f} s)")
        await waiting.until(lambda: is_offered(client))
        workers = await waiting.until(lambda: deploy(client, settings.workers))
        await waiting.until(lambda: _has_key(stack, client))
        await waiting.until(lambda: _has_samples(client, workers or [], started_at))
    if not stop.is_set():
        tell(f"the first samples can be queried ({time.monotonic() - began:.1f} s)")


async def _create_topics(stack: Stack) -> None:
    try:
        await ensure_topics(load(StreamSettings, bootstrap=stack.bootstrap))
    except (KafkaError, TopicError, OSError) as error:
        raise StartError(f"the broker does not make topics: {error}") from error


@dataclass(frozen=True, slots=True)
class Waiting:
    """Asks control again and again, until there is an answer, the stack is to stop, or the time is up."""

    stack: Stack
    client: ControlClient
    stop: asyncio.Event
    deadline: float

    async def until(self, ask: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """The first answer that says anything; None when the stack is to stop. Raises StartError after the deadline."""
        trouble = ""
        while not self.stop.is_set():
            try:
                if answer := await ask():
                    return answer
                trouble = ""
            except _AWAY as error:
                trouble = str(error) or type(error).__name__
            if time.monotonic() > self.deadline:
                raise StartError(await self._reasons(trouble))
            await _stopped_within(_LOOK_SECONDS, self.stop)
        return None

    async def _reasons(self, trouble: str) -> str:
        reasons = [f"control: {trouble}"] if trouble else []
        reasons += await lacking(self.stack.urls())
        with contextlib.suppress(*_AWAY):
            reasons += await unready(self.client)
        told = " | ".join(reasons) or "all services are ready"
        return f"no samples could be queried in time: {told} (logs: {self.stack.data_dir})"


async def _has_key(stack: Stack, client: ControlClient) -> bool:
    """See to it that the stack has a key for the proxy."""
    key = await inference_key(client, stack.secrets.inference_key)
    if key != stack.secrets.inference_key:
        stack.secrets = replace(stack.secrets, inference_key=key)
        keep_secrets(stack.data_dir, stack.secrets)
    return True


async def _has_samples(client: ControlClient, workers: Sequence[Worker], since: datetime) -> bool:
    """Whether this host's CPU and memory, and the simulated GPUs, are in the database."""
    if not workers:
        return True
    hosts = await client.activity("system", since)
    own = [row for row in hosts if row["instance_id"] == workers[0].instance_id]
    if not any(row["cpu_utilization_ratio"] is not None and row["memory_used_bytes"] is not None for row in own):
        return False
    return len(workers) == 1 or bool(await client.activity("gpu", since))


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
