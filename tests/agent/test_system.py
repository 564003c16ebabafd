"""Host readings against psutil's own and the operating system's."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from agent import instruments as i
from agent import system as system_module
from agent.instruments import Instrument, Measurement
from agent.system import SystemReader


def values(measurements: list[Measurement], instrument: Instrument, attribute: str = "") -> dict[str, float]:
    return {str(m.attributes.get(attribute, "")): m.value for m in measurements if m.instrument is instrument}


@pytest.fixture
def read() -> list[Measurement]:
    return SystemReader().read(time.time())


def test_cpu_time_by_mode_is_the_hosts(read: list[Measurement]) -> None:
    times = psutil.cpu_times()
    found = values(read, i.CPU_TIME, "cpu.mode")
    assert set(found) == {"user", "nice", "system", "idle", "iowait", "interrupt", "steal"}
    assert found["user"] == pytest.approx(times.user, abs=2)
    assert found["interrupt"] == pytest.approx(times.irq + times.softirq, abs=2)


def test_cpu_utilization_is_the_share_since_the_last_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [
        {"user": 10.0, "system": 5.0, "idle": 100.0, "iowait": 3.0},
        {"user": 12.0, "system": 6.0, "idle": 107.0, "iowait": 2.5},  # iowait may run backwards
    ]
    monkeypatch.setattr(system_module, "_cpu_seconds", lambda: seconds.pop(0) if len(seconds) > 1 else seconds[0])
    found = values(SystemReader().read(0), i.CPU_UTILIZATION, "cpu.mode")
    assert found == {"user": 0.2, "system": 0.1, "idle": 0.7, "iowait": 0.0}


def test_memory_states_do_not_overlap(read: list[Measurement]) -> None:
    states = values(read, i.MEMORY_USAGE, "system.memory.state")
    (limit,) = values(read, i.MEMORY_LIMIT).values()
    assert set(states) == {"used", "free", "cached", "buffers"}
    assert sum(states.values()) == limit == psutil.virtual_memory().total


def test_available_memory_and_swap_are_the_hosts(read: list[Measurement]) -> None:
    (available,) = values(read, i.MEMORY_AVAILABLE).values()
    assert available == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert sum(values(read, i.PAGING_USAGE, "system.paging.state").values()) == psutil.swap_memory().total


def test_load_count_and_uptime_are_the_hosts(read: list[Measurement]) -> None:
    assert values(read, i.CPU_COUNT) == {"": os.cpu_count()}
    assert values(read, i.LOAD_1M)[""] == pytest.approx(os.getloadavg()[0], abs=1)
    assert values(read, i.UPTIME)[""] == pytest.approx(float(Path("/proc/uptime").read_text().split()[0]), abs=5)


def test_only_physical_disks_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "block/sda/device").mkdir(parents=True)
    (tmp_path / "block/dm-0").mkdir()
    (tmp_path / "block/loop0").mkdir()
    io = SimpleNamespace(read_bytes=300, write_bytes=400)
    devices = {"sda": io, "sda1": io, "dm-0": io, "loop0": io}
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: devices)
    read = SystemReader(tmp_path).read(0)
    assert values(read, i.DISK_IO, "system.device").keys() == {"sda"}
    assert values(read, i.DISK_IO, "disk.io.direction") == {"read": 300, "write": 400}


def test_a_device_mounted_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def mounted(device: str, mountpoint: str, fstype: str = "ext4") -> object:
        return SimpleNamespace(device=device, mountpoint=mountpoint, fstype=fstype, opts="rw")

    mounts = [
        mounted("/dev/a", "/"),
        mounted("/dev/a", "/etc/hosts"),
        mounted("/dev/b", "/"),
        mounted("/dev/l", "/", "squashfs"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    read = SystemReader().read(0)
    assert values(read, i.FILESYSTEM_LIMIT, "system.device").keys() == {"/dev/a", "/dev/b"}
    assert values(read, i.FILESYSTEM_LIMIT, "system.filesystem.mountpoint").keys() == {"/"}


def test_states_of_a_file_system_sum_to_its_limit(read: list[Measurement]) -> None:
    limits = values(read, i.FILESYSTEM_LIMIT, "system.device")
    assert limits
    for device, limit in limits.items():
        states = [
            m.value for m in read if m.instrument is i.FILESYSTEM_USAGE and m.attributes["system.device"] == device
        ]
        assert len(states) == 3
        assert sum(states) == limit


@pytest.mark.parametrize(
    ("physical", "counted"), [((), {"eth0", "wlan0"}), (("eth0",), {"eth0"})], ids=["container", "host"]
)
def test_traffic_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, physical: tuple[str, ...], counted: set[str]
) -> None:
    for name in physical:
        (tmp_path / "class/net" / name / "device").mkdir(parents=True)
    io = SimpleNamespace(bytes_recv=2, bytes_sent=1)
    names = ["lo", "eth0", "veth12", "docker0", "br-1", "wlan0"]
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: dict.fromkeys(names, io))
    read = SystemReader(tmp_path).read(0)
    assert values(read, i.NETWORK_IO, "network.interface.name").keys() == counted
    assert values(read, i.NETWORK_IO, "network.io.direction") == {"receive": 2, "transmit": 1}


def test_the_heartbeats_load_is_a_share() -> None:
    load = SystemReader().load()
    assert 0 <= load.cpu_utilization_ratio <= 1
    assert 0 < load.memory_utilization_ratio < 1
