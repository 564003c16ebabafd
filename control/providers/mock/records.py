"""What the mock cloud remembers of its machines and disks, in one file that only its owner can read."""

import os
import time
import uuid
from pathlib import Path

import msgspec

from control.providers.mock.messages import NewMachine, Options, Runtime, VolumeView
from control.providers.mock.offers import VOLUME_BYTES


class MachineRecord(msgspec.Struct):
    """A machine. ``runtime`` is what should run on it, None while nothing should."""

    machine_id: str
    wanted: NewMachine
    options: Options
    asked_at: float
    """Unix time."""
    agent_port: int
    engine_port: int
    runtime: Runtime | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended when it should have been up."""
        return self.options.dies_while_booting and time.time() >= self.asked_at + self.options.boot_seconds

    @property
    def booted(self) -> bool:
        """Whether programs can run on it."""
        return not self.options.dies_while_booting and time.time() >= self.asked_at + self.options.boot_seconds

    @property
    def reachable(self) -> bool:
        """Whether it has an address."""
        return self.booted and time.time() >= self.asked_at + self.options.address_after_seconds

    @property
    def status(self) -> str:
        """In the cloud's words."""
        if self.failed:
            return "failed"
        return "running" if self.booted else "booting"


class Records(msgspec.Struct):
    """All of it. ``refused`` counts the creations refused so far, by instance."""

    machines: dict[str, MachineRecord] = {}
    volumes: dict[str, VolumeView] = {}
    refused: dict[str, int] = {}
    preset: Options = Options()
    """Options of new machines, where they are asked for without."""

    def of_instance(self, instance_id: str) -> MachineRecord | None:
        """The machine that was made for an instance, if there is one."""
        return next((each for each in self.machines.values() if each.wanted.instance_id == instance_id), None)

    def add(self, wanted: NewMachine, options: Options, agent_port: int, engine_port: int) -> MachineRecord:
        """A new machine with its disk."""
        machine_id = f"m-{uuid.uuid4().hex[:16]}"
        record = MachineRecord(machine_id, wanted, options, time.time(), agent_port, engine_port)
        self.machines[machine_id] = record
        volume_id = f"v-{uuid.uuid4().hex[:16]}"
        self.volumes[volume_id] = VolumeView(
            volume_id, wanted.zone, f"root-{wanted.instance_id}", VOLUME_BYTES, machine_id, wanted.instance_id
        )
        return record

    def remove(self, record: MachineRecord) -> None:
        """The machine, and its disk unless that stays behind."""
        del self.machines[record.machine_id]
        for volume in [each for each in self.volumes.values() if each.machine_id == record.machine_id]:
            if record.options.leaves_volume:
                self.volumes[volume.volume_id] = msgspec.structs.replace(volume, machine_id=None)
            else:
                del self.volumes[volume.volume_id]


def read(path: Path) -> Records:
    """What was kept; nothing at the first start. Raises OSError, and ValueError when the file is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Records)
    except FileNotFoundError:
        return Records()
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the cloud starts with no machines") from error


def write(path: Path, records: Records) -> None:
    """All at once. The agents' settings in it hold secrets."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.encode(records))
    partial.replace(path)
