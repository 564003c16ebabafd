# ruff: noqa: ARG002 - the interface's own parameters
"""A provider for measurements: its machines are the numbers 0 to N, all there and all at one address.

Settings: BENCH_MACHINES (N), BENCH_AGENT_URL.
"""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from control.providers.interface import Address, Catalogue, Machine, MachineRequest, Volume

NAME = "memory"
ZONE = "here"


class MemoryProvider:
    """Answers at once, and changes nothing."""

    name = NAME

    def __init__(self) -> None:
        self._address = Address("127.0.0.1", os.environ["BENCH_AGENT_URL"], None, ssh_port=None)
        self._machines = [
            Machine(f"machine-{place}", ZONE, f"sim-{place:06d}", "small", "running")
            for place in range(int(os.environ["BENCH_MACHINES"]))
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    async def catalogue(self) -> Catalogue:
        return Catalogue((ZONE,), ())

    async def create(self, request: MachineRequest) -> Machine:
        return self._machines[int(request.instance_id.removeprefix("sim-"))]

    async def start_runtime(self, machine: Machine, request: MachineRequest) -> None:
        return

    async def stop_runtime(self, machine: Machine) -> None:
        return

    async def address(self, machine: Machine) -> Address | None:
        return self._address

    async def delete(self, machine: Machine) -> None:
        return

    async def inventory(self) -> Sequence[Machine]:
        return self._machines

    async def volumes(self) -> Sequence[Volume]:
        return ()

    async def delete_volume(self, volume: Volume) -> None:
        return
