"""What a worker's silence, or an engine's, proves: rules over what was heard and probed, without I/O."""

from dataclasses import dataclass
from typing import Any, Final

from control.jobs.framework.probes import ProbeResult
from fleetpulse.settings import JobSettings
from fleetpulse.stream.fleet_view import WorkerView
from fleetpulse.stream.heartbeat import Heartbeat

# Of a worker that was never heard by this process.
ASSUMED_INTERVAL_SECONDS: Final = 1.0
# Without an address to probe, silence must outlast what the reader needs to notice a broker that is gone.
UNPROBED_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Silence:
    """For how long a worker was not heard, and how long it may be not heard."""

    seconds: float
    interval_seconds: float
    stale_after_seconds: float
    heartbeat: Heartbeat | None

    def told(self) -> dict[str, Any]:
        """As evidence."""
        return {
            "silent_for_seconds": self.seconds,
            "heartbeat_interval_seconds": self.interval_seconds,
            "stale_after_seconds": self.stale_after_seconds,
            "last_heartbeat": self.heartbeat,
        }


@dataclass(frozen=True, slots=True)
class Death:
    """Why a worker counts as dead."""

    reason: str
    detail: str


def silence_of(worker: WorkerView | None, known_for_seconds: float, stale_after_seconds: float) -> Silence:
    """A worker that was not heard yet is silent for as long as we would have heard it."""
    if worker is None or worker.heartbeat is None or worker.heartbeat_age_seconds is None:
        return Silence(known_for_seconds, ASSUMED_INTERVAL_SECONDS, stale_after_seconds, None)
    return Silence(
        worker.heartbeat_age_seconds, worker.heartbeat.interval_seconds, worker.stale_after_seconds, worker.heartbeat
    )


def death_by_silence(
    settings: JobSettings, silence: Silence, probe: ProbeResult | None, others_alive: bool
) -> Death | None:
    """Whether a suspect is dead. Silence and a refusal are proof at once; an answer is a sign of life."""
    silent = f"It was not heard for {silence.seconds:.1f} s"
    if probe is None:
        if silence.seconds > silence.stale_after_seconds + UNPROBED_SECONDS:
            return Death("silent", f"{silent}, and there is no address to ask at.")
        return None
    if probe.refused:
        return Death("silent_and_refused", f"{silent}, and its machine says that no agent runs there.")
    if not probe.answered:
        if silence.seconds > silence.stale_after_seconds:
            return Death("silent", f"{silent}, and its agent does not answer: {probe.detail}.")
        return None
    # It lives, so its way to the stream is cut: others must be heard, or the stream itself may be.
    if silence.seconds > settings.answering_silence_seconds and others_alive:
        return Death("silent_though_answering", f"{silent}, though its agent answers; other workers are heard.")
    return None


def engine_is_away(engine_url: str | None, worker: WorkerView) -> bool:
    """Whether a live worker's engine gives its agent no usable answer; of a worker that was ready without an engine
    none is expected."""
    engine = worker.heartbeat.engine if worker.heartbeat is not None else None
    return engine_url is not None and engine is not None and engine.state in ("unreachable", "starting")


def death_by_mute_engine(seconds: float, probe: ProbeResult) -> Death:
    """Its agent and control have both asked in vain."""
    detail = f"Its agent has had no answer of its engine for {seconds:.0f} s, and control has none: {probe.detail}."
    return Death("engine_unreachable", detail)


def death_by_stall(settings: JobSettings, worker: WorkerView) -> Death | None:
    """Whether the engine has work and does nothing."""
    stalled = worker.engine_stalled_seconds
    if stalled is None or stalled <= settings.engine_stall_seconds:
        return None
    return Death("engine_stalled", f"Its engine has had work for {stalled:.0f} s and did not do a step.")


def stands_still(worker: WorkerView, step_count: int | None) -> bool:
    """Whether the engine has work and is not beyond a step that it was seen at before.

    How long it has been so tells nothing: that is counted from when this process, or the agent, was started.
    """
    engine = worker.heartbeat.engine if worker.heartbeat is not None else None
    if engine is None or engine.step_count is None:
        return False
    return bool(engine.requests_running or engine.requests_waiting) and engine.step_count == step_count
