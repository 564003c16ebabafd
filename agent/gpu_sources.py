"""Which GPUs an agent reads."""

from agent.gpu_reading import DriverState, GpuReading, GpuSource
from fleetpulse.settings import AgentSettings


class NoGpus:
    """A worker that is told to read none."""

    state: DriverState = "absent"

    def start(self) -> None:
        """Nothing to open."""

    def read(self) -> list[GpuReading]:
        """No GPU."""
        return []

    def stop(self) -> None:
        """Nothing to let go of."""


def choose(settings: AgentSettings, worker_id: str) -> GpuSource:
    """The source that the settings name. NVML and the simulation are imported only where they are used."""
    if settings.gpus == "none":
        return NoGpus()
    if settings.gpus == "simulated" or (settings.gpus == "auto" and settings.simulate_gpu_count > 0):
        from agent.simulated_gpu import SimulatedGpus

        return SimulatedGpus(worker_id, settings)
    from agent.gpu import NvmlGpus

    return NvmlGpus()
