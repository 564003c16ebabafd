"""This host's own readings, by psutil, as OTLP measurements."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from agent import instruments as i
from agent.instruments import Measurement

# psutil's fields of each cpu.mode. guest is inside user and guest_nice inside nice already.
CPU_MODES: Final[dict[str, tuple[str, ...]]] = {
    "user": ("user",),
    "nice": ("nice",),
    "system": ("system",),
    "idle": ("idle",),
    "iowait": ("iowait",),
    "interrupt": ("irq", "softirq"),
    "steal": ("steal",),
}
# Interfaces that repeat the traffic of another one, where no physical interface tells them apart.
VIRTUAL_INTERFACES: Final = ("lo", "veth", "docker", "br-", "virbr", "ifb", "cni", "flannel", "cali", "tunl", "dummy")


class HostLoad(NamedTuple):
    """Shares of the host in use, for a heartbeat."""

    cpu_utilization_ratio: float
    memory_utilization_ratio: float


class SystemReader:
    """Reads the host. Every method blocks for a few milliseconds at most."""

    def __init__(self, sys_folder: Path = Path("/sys")) -> None:
        self._sys = sys_folder
        self._boot_time = psutil.boot_time()
        self._sampled_cpu = _cpu_seconds()
        self._sampled_shares: dict[str, float] = {}
        self._heartbeat_cpu = self._sampled_cpu

    @property
    def boot_unix_nano(self) -> int:
        """When the host's counters were 0."""
        return int(self._boot_time * 1e9)

    def load(self) -> HostLoad:
        """The load since the last call of load()."""
        before, now = self._heartbeat_cpu, _cpu_seconds()
        self._heartbeat_cpu = now
        memory = psutil.virtual_memory()
        busy = 1.0 - _shares(before, now).get("idle", 1.0)
        return HostLoad(_ratio(busy), _ratio(1.0 - memory.available / memory.total))

    def read(self, now: float) -> list[Measurement]:
        """All measurements; CPU utilisation is that since the last call of read(). ``now`` in Unix seconds."""
        cpu = _cpu_seconds()
        # The kernel counts in hundredths of a second: between two hasty samples none may have passed.
        self._sampled_shares = _shares(self._sampled_cpu, cpu) or self._sampled_shares
        self._sampled_cpu = cpu
        return [
            *_cpu(cpu, self._sampled_shares),
            *_load_average(),
            *_memory(),
            *_disks(self._physical_disks()),
            *_filesystems(),
            *_network(self._interfaces()),
            Measurement(i.UPTIME, {}, max(now - self._boot_time, 0.0)),
        ]

    def _physical_disks(self) -> frozenset[str]:
        """Whole devices with hardware behind them; not their partitions, nor what is stacked on them."""
        return frozenset(path.name for path in _children(self._sys / "block") if (path / "device").exists())

    def _interfaces(self) -> Sequence[str] | None:
        """Physical network interfaces; None where there are none (in a container)."""
        found = [path.name for path in _children(self._sys / "class" / "net") if (path / "device").exists()]
        return found or None


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _ratio(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _cpu_seconds() -> dict[str, float]:
    times = psutil.cpu_times()
    return {
        mode: sum(getattr(times, field, 0.0) for field in fields)
        for mode, fields in CPU_MODES.items()
        if any(hasattr(times, field) for field in fields)
    }


def _shares(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Share of each mode in the time that passed; nothing when no time did. iowait may run backwards on Linux."""
    passed = {mode: max(seconds - before.get(mode, 0.0), 0.0) for mode, seconds in after.items()}
    total = sum(passed.values())
    return {mode: seconds / total for mode, seconds in passed.items()} if total > 0 else {}


def _cpu(seconds_by_mode: dict[str, float], shares: dict[str, float]) -> Iterator[Measurement]:
    for mode, seconds in seconds_by_mode.items():
        yield Measurement(i.CPU_TIME, {"cpu.mode": mode}, seconds)
    for mode, share in shares.items():
        yield Measurement(i.CPU_UTILIZATION, {"cpu.mode": mode}, share)
    yield Measurement(i.CPU_COUNT, {}, psutil.cpu_count() or os.cpu_count() or 1)


def _load_average() -> Iterator[Measurement]:
    averages = psutil.getloadavg()
    for instrument, value in zip((i.LOAD_1M, i.LOAD_5M, i.LOAD_15M), averages, strict=True):
        yield Measurement(instrument, {}, value)


def _memory() -> Iterator[Measurement]:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    used = max(memory.total - memory.free - memory.buffers - memory.cached, 0)
    states = {"used": used, "free": memory.free, "cached": memory.cached, "buffers": memory.buffers}
    for state, size in states.items():
        yield Measurement(i.MEMORY_USAGE, {"system.memory.state": state}, size)
    yield Measurement(i.MEMORY_LIMIT, {}, memory.total)
    yield Measurement(i.MEMORY_AVAILABLE, {}, memory.available)
    for state, size in (("used", swap.used), ("free", swap.free)):
        yield Measurement(i.PAGING_USAGE, {"system.paging.state": state}, size)


def _disks(physical: frozenset[str]) -> Iterator[Measurement]:
    counters = psutil.disk_io_counters(perdisk=True, nowrap=True) or {}
    for device in sorted(physical & counters.keys()):
        for direction, size in (("read", counters[device].read_bytes), ("write", counters[device].write_bytes)):
            yield Measurement(i.DISK_IO, {"system.device": device, "disk.io.direction": direction}, size)


def _filesystems() -> Iterator[Measurement]:
    """File systems on real devices, each device once however often it is mounted.

    Network file systems are left out: they belong to another host, and asking a dead one blocks for ever.
    """
    seen = set()
    for partition in sorted(psutil.disk_partitions(all=False), key=lambda p: (p.device, len(p.mountpoint))):
        options = partition.opts.split(",")
        if partition.device in seen or partition.fstype in ("squashfs", "iso9660"):
            continue
        try:
            usage = psutil.disk_usage(partition.mountpoint)
        except OSError:
            continue  # unmounted in between, or not ours to see
        if usage.total == 0:
            continue
        seen.add(partition.device)
        attributes = {
            "system.device": partition.device,
            "system.filesystem.mountpoint": partition.mountpoint,
            "system.filesystem.mode": "ro" if "ro" in options else "rw",
            "system.filesystem.type": partition.fstype,
        }
        reserved = max(usage.total - usage.used - usage.free, 0)
        for state, size in (("used", usage.used), ("free", usage.free), ("reserved", reserved)):
            yield Measurement(i.FILESYSTEM_USAGE, attributes | {"system.filesystem.state": state}, size)
        yield Measurement(i.FILESYSTEM_LIMIT, attributes, usage.total)


def _network(physical: Sequence[str] | None) -> Iterator[Measurement]:
    counters = psutil.net_io_counters(pernic=True, nowrap=True)
    names = counters.keys() - {name for name in counters if name.startswith(VIRTUAL_INTERFACES)}
    if physical is not None:
        names = counters.keys() & set(physical)
    for name in sorted(names):
        for direction, size in (("receive", counters[name].bytes_recv), ("transmit", counters[name].bytes_sent)):
            yield Measurement(i.NETWORK_IO, {"network.interface.name": name, "network.io.direction": direction}, size)
