"""The picture of the fleet that heartbeats add up to: who is alive, who fell silent, who was never heard.

Control, the proxy and the collector's staleness check each feed one of these, so they cannot disagree. It does no
I/O and reads no clock: every call takes the receiver's monotonic clock (seconds), because a worker's clock may be
wrong and the wall clock may jump.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from fleetpulse.stream.heartbeat import Heartbeat

State = Literal["alive", "stale", "never_seen"]
Observation = Literal["first", "next", "restart", "duplicate"]
Reason = Literal["not_following", "just_joined", "many_silent"]

STATES: Final[tuple[State, ...]] = ("alive", "stale", "never_seen")
# Best last: which of a worker's instances stands for it.
_RANK: Final[dict[State, int]] = {"never_seen": 0, "stale": 1, "alive": 2}
# Boots remembered per instance, so that a late message of an earlier boot is not taken for another restart.
EARLIER_BOOTS: Final = 4
PRUNE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class FleetRules:
    """Thresholds. A 2 s stall right after a 1 s heartbeat makes a gap of 3.0 s, hence 3.3 and not 3."""

    stale_after_seconds: float = 3.3
    stale_intervals: float = 3.3
    """A worker is stale after the longer of ``stale_after_seconds`` and this many of its own intervals."""
    silence_share: float = 0.5
    silence_least_workers: int = 3
    silence_window_seconds: float = 30.0
    """Mass silence: more than this share, and at least so many workers, were last heard within one window."""
    settle_seconds: float = 30.0
    """For so long after joining the stream, silence proves nothing."""
    forget_after_seconds: float = 86_400.0
    most_instances: int = 100_000


class WorkerView(msgspec.Struct, frozen=True):
    """One worker as seen now. None is unknown, never zero."""

    worker_id: str
    instance_id: str
    state: State
    heartbeat: Heartbeat | None
    """The newest heartbeat; None for a worker that was never heard."""
    heartbeat_age_seconds: float | None
    stale_after_seconds: float
    stale_for_seconds: float | None
    """Time since it went stale; None unless it is."""
    recorded_age_seconds: float | None
    """For a worker never heard: age of its newest heartbeat in the database, where there is one."""
    heartbeats: int
    heartbeats_missed: int
    """Sequence numbers skipped, over all boots."""
    sequence_gaps: int
    restarts: int
    duplicates: int
    """Repeated or older heartbeats, which are counted and otherwise ignored."""
    clock_skew_seconds: float | None
    """The worker's clock minus the receiver's, the way included; positive is ahead."""
    engine_stalled_seconds: float | None
    """Time without an engine step while there was work, as of the newest heartbeat; None when that is unknown."""


@dataclass(frozen=True, slots=True)
class MassSilence:
    """Whether silence says more about the pipeline than about workers: destructive actions wait while ``active``."""

    active: bool
    reason: Reason | None = None
    silent_workers: int = 0
    """Workers that fell silent together."""
    workers: int = 0
    """Workers that were not silent before."""


@dataclass(slots=True)
class _EngineProgress:
    """When the engine last did a step, and since when it has had work."""

    step_count: int | None = None
    stepped_at: float = 0.0
    busy_since: float | None = None
    observed_at: float = 0.0

    def observe(self, heartbeat: Heartbeat, now: float) -> None:
        engine = heartbeat.engine
        steps = engine.step_count if engine else None
        work = (
            [count for count in (engine.requests_running, engine.requests_waiting) if count is not None]
            if engine
            else []
        )
        self.observed_at = now
        if steps is None or not work:
            self.step_count = self.busy_since = None
            return
        # Any change is progress: a smaller count is an engine that was started anew.
        if steps != self.step_count:
            self.step_count, self.stepped_at = steps, now
        if not any(work):
            self.busy_since = None
        elif self.busy_since is None:
            self.busy_since = now

    def stalled_seconds(self) -> float | None:
        if self.step_count is None:
            return None
        if self.busy_since is None:
            return 0.0
        return self.observed_at - max(self.stepped_at, self.busy_since)


@dataclass(slots=True)
class _Instance:
    worker_id: str
    instance_id: str
    appeared_at: float
    stale_after_seconds: float
    heartbeat: Heartbeat | None = None
    heard_at: float | None = None
    """When it was last heard; before the first heartbeat, when the database last heard it, on our clock."""
    heartbeats: int = 0
    missed: int = 0
    gaps: int = 0
    restarts: int = 0
    duplicates: int = 0
    clock_skew_seconds: float | None = None
    earlier_boots: tuple[str, ...] = ()
    engine: _EngineProgress = field(default_factory=_EngineProgress)

    def last_sign(self) -> float:
        return self.appeared_at if self.heard_at is None else self.heard_at

    def state(self, now: float) -> State:
        if self.heartbeat is None or self.heard_at is None:
            return "never_seen"
        return "stale" if now - self.heard_at > self.stale_after_seconds else "alive"

    def observe(self, heartbeat: Heartbeat, now: float, skew_seconds: float | None) -> Observation:
        observation = self._place(heartbeat)
        if observation == "duplicate":
            self.duplicates += 1
            return observation
        if observation == "first":
            self.appeared_at = now
        self.worker_id = heartbeat.worker_id
        self.heartbeat, self.heard_at = heartbeat, now
        self.heartbeats += 1
        self.clock_skew_seconds = skew_seconds
        self.engine.observe(heartbeat, now)
        return observation

    def _place(self, heartbeat: Heartbeat) -> Observation:
        """Where a heartbeat belongs in the sequence, counting what was skipped before it."""
        last = self.heartbeat
        if last is None:
            return "first"
        if heartbeat.boot_id in self.earlier_boots:
            return "duplicate"
        if heartbeat.boot_id != last.boot_id:
            self.earlier_boots = (*self.earlier_boots, last.boot_id)[-EARLIER_BOOTS:]
            self.restarts += 1
            self.engine = _EngineProgress()
            return "restart"
        skipped = heartbeat.sequence - last.sequence - 1
        if skipped < 0:
            return "duplicate"
        self.missed += skipped
        self.gaps += skipped > 0
        return "next"


class FleetView:
    """The fleet by instance id. A worker that came back under a new instance id is shown once."""

    def __init__(self, rules: FleetRules | None = None) -> None:
        self.rules = rules or FleetRules()
        self._instances: dict[str, _Instance] = {}
        self._joined_at: float | None = None
        self._pruned_at = float("-inf")

    def __len__(self) -> int:
        return len(self._instances)

    def join(self, now_monotonic: float) -> None:
        """The caller follows the stream's newest messages from now on; has no effect while it already does."""
        if self._joined_at is None:
            self._joined_at = now_monotonic

    def leave(self) -> None:
        """The caller lost the stream, or is far behind it."""
        self._joined_at = None

    def joined_for_seconds(self, now_monotonic: float) -> float | None:
        """How long the stream has been followed; None while it is not."""
        return None if self._joined_at is None else max(0.0, now_monotonic - self._joined_at)

    def observe(
        self, heartbeat: Heartbeat, received_monotonic: float, received_unix_seconds: float | None = None
    ) -> Observation:
        """Take a heartbeat in. The receiver's wall clock serves only to tell the worker's clock skew."""
        instance = self._instances.get(heartbeat.instance_id)
        if instance is None:
            instance = self._add(heartbeat.worker_id, heartbeat.instance_id, received_monotonic)
        sent_seconds = heartbeat.sent_unix_nano / 1e9
        skew = None if received_unix_seconds is None else sent_seconds - received_unix_seconds
        observation = instance.observe(heartbeat, max(received_monotonic, instance.last_sign()), skew)
        if observation != "duplicate":
            instance.stale_after_seconds = self._stale_after(heartbeat)
        return observation

    def know(
        self,
        worker_id: str,
        instance_id: str,
        now_monotonic: float,
        heard_seconds_ago: float | None = None,
    ) -> None:
        """A worker that the database knows, and how long ago it was last heard of there. Heartbeats overrule it."""
        if heard_seconds_ago is not None and heard_seconds_ago >= self.rules.forget_after_seconds:
            return
        instance = self._instances.get(instance_id) or self._add(worker_id, instance_id, now_monotonic)
        if instance.heartbeat is None and heard_seconds_ago is not None:
            instance.heard_at = now_monotonic - heard_seconds_ago

    def forget(self, instance_id: str) -> None:
        """Drop an instance that was ended on purpose."""
        self._instances.pop(instance_id, None)

    def get(self, instance_id: str, now_monotonic: float) -> WorkerView | None:
        """One instance, also one that another instance of the same worker has replaced."""
        instance = self._instances.get(instance_id)
        if instance is None or self._is_forgotten(instance, now_monotonic):
            return None
        return self._view(instance, now_monotonic)

    def worker(self, worker_id: str, now_monotonic: float) -> WorkerView | None:
        """The instance that stands for a worker."""
        mine = [instance for instance in self._instances.values() if instance.worker_id == worker_id]
        return next((self._view(instance, now_monotonic) for instance in self._visible(mine, now_monotonic)), None)

    def snapshot(self, now_monotonic: float) -> list[WorkerView]:
        """Every worker once, by worker id."""
        visible = sorted(self._visible(self._instances.values(), now_monotonic), key=lambda one: one.worker_id)
        return [self._view(instance, now_monotonic) for instance in visible]

    def counts(self, now_monotonic: float) -> dict[State, int]:
        """Workers in each state."""
        counts: dict[State, int] = dict.fromkeys(STATES, 0)
        for instance in self._visible(self._instances.values(), now_monotonic):
            counts[instance.state(now_monotonic)] += 1
        return counts

    def mass_silence(self, now_monotonic: float) -> MassSilence:
        """Whether destructive actions must wait.

        Silence counts from the last heartbeat, so that workers with different intervals that an outage cuts off at
        the same time fall into the same window. It lasts until they are heard again, forgotten, or outnumbered.
        Workers that were draining have said goodbye and do not count.
        """
        joined_for = self.joined_for_seconds(now_monotonic)
        if joined_for is None:
            return MassSilence(active=True, reason="not_following")
        alive, silent = 0, []
        for instance in self._visible(self._instances.values(), now_monotonic):
            if instance.state(now_monotonic) == "alive":
                alive += 1
            elif instance.heard_at is not None and not _said_goodbye(instance):
                silent.append(instance.heard_at)
        fell, of = _fell_together(sorted(silent), alive, self.rules)
        if joined_for < self.rules.settle_seconds:
            return MassSilence(active=True, reason="just_joined", silent_workers=fell, workers=of)
        if fell:
            return MassSilence(active=True, reason="many_silent", silent_workers=fell, workers=of)
        return MassSilence(active=False, workers=of)

    def _add(self, worker_id: str, instance_id: str, now: float) -> _Instance:
        self._make_room(now)
        instance = _Instance(worker_id, instance_id, now, self.rules.stale_after_seconds)
        self._instances[instance_id] = instance
        return instance

    def _make_room(self, now: float) -> None:
        if now - self._pruned_at >= PRUNE_SECONDS or len(self._instances) >= self.rules.most_instances:
            self._pruned_at = now
            for instance in [one for one in self._instances.values() if self._is_forgotten(one, now)]:
                del self._instances[instance.instance_id]
        if len(self._instances) >= self.rules.most_instances:
            # Many at once, or each newcomer of a flood of made-up names would cost a pass over all.
            surplus = max(1, self.rules.most_instances // 100)
            for instance in heapq.nsmallest(surplus, self._instances.values(), key=_eviction_order):
                del self._instances[instance.instance_id]

    def _is_forgotten(self, instance: _Instance, now: float) -> bool:
        return now - instance.last_sign() >= self.rules.forget_after_seconds

    def _visible(self, instances: Iterable[_Instance], now: float) -> Iterable[_Instance]:
        """The instance that stands for each worker: a live one before a stale one, then the latest to appear."""
        best: dict[str, tuple[tuple[int, float], _Instance]] = {}
        for instance in instances:
            if self._is_forgotten(instance, now):
                continue
            rank = (_RANK[instance.state(now)], instance.appeared_at)
            rival = best.get(instance.worker_id)
            if rival is None or rank >= rival[0]:
                best[instance.worker_id] = rank, instance
        return [instance for _, instance in best.values()]

    def _stale_after(self, heartbeat: Heartbeat) -> float:
        return max(self.rules.stale_after_seconds, self.rules.stale_intervals * heartbeat.interval_seconds)

    def _view(self, instance: _Instance, now: float) -> WorkerView:
        age = None if instance.heard_at is None else max(0.0, now - instance.heard_at)
        state = instance.state(now)
        stale_after = instance.stale_after_seconds
        heard = instance.heartbeat is not None
        return WorkerView(
            worker_id=instance.worker_id,
            instance_id=instance.instance_id,
            state=state,
            heartbeat=instance.heartbeat,
            heartbeat_age_seconds=age if heard else None,
            stale_after_seconds=stale_after,
            stale_for_seconds=age - stale_after if state == "stale" and age is not None else None,
            recorded_age_seconds=None if heard else age,
            heartbeats=instance.heartbeats,
            heartbeats_missed=instance.missed,
            sequence_gaps=instance.gaps,
            restarts=instance.restarts,
            duplicates=instance.duplicates,
            clock_skew_seconds=instance.clock_skew_seconds,
            engine_stalled_seconds=instance.engine.stalled_seconds(),
        )


def _said_goodbye(instance: _Instance) -> bool:
    return instance.heartbeat is not None and instance.heartbeat.status == "draining"


def _eviction_order(instance: _Instance) -> tuple[bool, float]:
    """Those never heard go first, then those silent for longest."""
    return instance.heartbeat is not None, instance.last_sign()


def _fell_together(silent_since: list[float], alive: int, rules: FleetRules) -> tuple[int, int]:
    """The largest mass silence as (how many fell silent in one window, of how many live at its start), or (0, alive).

    ``silent_since`` is in ascending order.
    """
    fell, of = 0, alive
    end = 0
    for start, first in enumerate(silent_since):
        while end < len(silent_since) and silent_since[end] <= first + rules.silence_window_seconds:
            end += 1
        together, live = end - start, alive + len(silent_since) - start
        is_mass = together >= rules.silence_least_workers and together > rules.silence_share * live
        if is_mass and together > fell:
            fell, of = together, live
    return fell, of
