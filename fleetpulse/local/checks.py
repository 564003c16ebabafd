"""What ``fleetpulse doctor`` looks at, one function a dependency. Each finding that is wrong says what to do."""

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import aiohttp
from aiokafka.errors import KafkaError

from fleetpulse import __version__
from fleetpulse.local.kafka_jars import missing_program
from fleetpulse.local.ports import LOOPBACK, is_free
from fleetpulse.ownership import strangers
from fleetpulse.settings import (
    AgentSettings,
    CollectorSettings,
    ControlSettings,
    DatabaseSettings,
    StreamSettings,
    load,
)
from fleetpulse.stream.admin import missing_topics

_OLDEST_PYTHON: Final = (3, 11)
# A day of a small fleet, with PostgreSQL's own files and the broker's.
_DISK_BYTES: Final = 2 * 2**30
_PROBE_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``note`` is neither good nor bad: something optional is not there."""

    verdict: Literal["ok", "note", "wrong"]
    subject: str
    text: str

    def line(self) -> str:
        """For people."""
        return f"{self.verdict:6} {self.subject:10} {self.text}"


async def check_python() -> Sequence[Finding]:
    """The interpreter's version."""
    version = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        return [Finding("wrong", "python", f"{version} is too old: use 3.11 or later")]
    return [Finding("ok", "python", f"{version}, fleetpulse {__version__}")]


async def check_packages() -> Sequence[Finding]:
    """Whether the services' packages are ours."""
    lines = strangers()
    if lines:
        return [Finding("wrong", "packages", line) for line in lines]
    return [Finding("ok", "packages", "agent, collector, control and proxy are ours")]


async def check_protobuf() -> Sequence[Finding]:
    """Whether messages are decoded by compiled code."""
    try:
        from google.protobuf.internal import api_implementation
    except ImportError:
        return [Finding("note", "protobuf", "not installed; agents and collectors need it")]
    kind = api_implementation.Type()
    if kind != "upb":
        advice = "reinstall protobuf from a wheel, and unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
        return [Finding("wrong", "protobuf", f"the slow implementation {kind!r} is in use: {advice}")]
    return [Finding("ok", "protobuf", "the fast implementation (upb)")]


async def check_kafka(settings: StreamSettings) -> Sequence[Finding]:
    """Whether the broker answers, and has the topics."""
    try:
        missing = await missing_topics(settings)
    except (KafkaError, OSError) as error:
        advice = "start one, or set FLEETPULSE_KAFKA_BOOTSTRAP"
        return [Finding("wrong", "kafka", f"no broker at {settings.bootstrap} ({error}): {advice}")]
    if missing:
        names = ", ".join(missing)
        return [Finding("note", "kafka", f"{settings.bootstrap} lacks the topics {names}; a collector makes them")]
    return [Finding("ok", "kafka", f"{settings.bootstrap} has all topics")]


async def check_database(settings: DatabaseSettings) -> Sequence[Finding]:
    """Whether the database answers, and has all that belongs in it."""
    try:
        from fleetpulse.database import DatabaseError, connect
        from fleetpulse.database.profile import detect, recorded
        from fleetpulse.database.verify import verify
    except ModuleNotFoundError as error:
        return [Finding("note", "database", f"{error.name} is not installed; collector and control need it")]
    try:
        async with await connect(settings, "fleetpulse-doctor") as connection:
            profile = await detect(connection, settings)
            version = connection.info.server_version // 10_000
            if await recorded(connection) is None:
                return [Finding("wrong", "database", f"PostgreSQL {version} is empty: run fleetpulse migrate")]
            await verify(connection, profile, settings, datetime.now(UTC))
    except DatabaseError as error:
        return [Finding("wrong", "database", str(error))]
    return [Finding("ok", "database", f"PostgreSQL {version}, profile {profile}, all relations are there")]


async def check_gpus() -> Sequence[Finding]:
    """What NVML says."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return [Finding("note", "gpus", "nvidia-ml-py is not installed; agents need it")]
    try:
        await asyncio.to_thread(pynvml.nvmlInit)
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return [Finding("note", "gpus", "no NVIDIA driver; an agent here reports no GPUs")]
    except pynvml.NVMLError as error:
        return [Finding("wrong", "gpus", f"the NVIDIA driver fails ({error}): try nvidia-smi")]
    try:
        return [Finding("ok", "gpus", f"{pynvml.nvmlDeviceGetCount()} by NVML")]
    finally:
        pynvml.nvmlShutdown()


async def check_ports() -> Sequence[Finding]:
    """Whether each service could listen, or listens already."""
    services = {
        "control": load(ControlSettings).port,
        "collector": load(CollectorSettings).port,
        "agent": load(AgentSettings).port,
    }
    return [await _port(name, port) for name, port in services.items()]


async def _port(name: str, port: int) -> Finding:
    if port == 0 or is_free(port):
        return Finding("ok", "port", f"{port} for {name} is free")
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PROBE_SECONDS)) as session,
            session.get(f"http://{LOOPBACK}:{port}/healthz") as response,
        ):
            ours = response.status == 200 and await response.json() == {"status": "ok"}
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        ours = False
    if ours:
        return Finding("ok", "port", f"{port} for {name}: a service of ours answers there")
    setting = f"FLEETPULSE_{name.upper()}_PORT"
    return Finding("wrong", "port", f"{port} for {name} is taken by another program: stop it, or set {setting}")


async def check_disk(data_dir: Path) -> Sequence[Finding]:
    """Room for the embedded stack's data."""
    return list(_disk_findings(data_dir))


def _disk_findings(data_dir: Path) -> Iterator[Finding]:
    folder = next(path for path in (data_dir.absolute(), *data_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < _DISK_BYTES:
        yield Finding(
            "wrong", "disk", f"{free / 2**30:.1f} GiB free at {folder}: make room for {_DISK_BYTES / 2**30:g}"
        )
    elif not os.access(folder, os.W_OK):
        yield Finding("wrong", "disk", f"{folder} cannot be written: choose another folder with --data-dir")
    else:
        yield Finding("ok", "disk", f"{free / 2**30:.1f} GiB free at {folder}")


async def check_java() -> Sequence[Finding]:
    """What Apache Kafka needs; nothing else does."""
    reason = missing_program()
    if reason is not None:
        return [Finding("note", "java", f"{reason}; only Apache Kafka in tests and up --broker apache need it")]
    return [Finding("ok", "java", "java and mvn are there, for up --broker apache")]
