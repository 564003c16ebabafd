"""The workers that requests can go to, from heartbeats and lifecycle messages alone.

Freshness is measured against the newest heartbeat of any worker, not against the clock: one silent worker among others
is silent itself, while a silence of all of them says that the stream has gone, and then the last known good holds.
"""

import ipaddress
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec

from fleetpulse.stream.fleet_view import FleetView, WorkerView
from fleetpulse.stream.heartbeat import Heartbeat
from fleetpulse.stream.lifecycle import LifecycleEvent
from fleetpulse.telemetry import logger
from proxy.affinity import hash64
from proxy.ejection import Ejection

_log = logger(__name__)

# States of an instance that is over: no heartbeat brings it back.
_OVER: Final = frozenset({"terminated", "archived"})
# States in which an instance finishes what it has.
_KEEPS_REQUESTS: Final = frozenset({"ready", "draining"})
_NAME_CHARACTERS: Final = 253
# A host's name. One that ends in a number is an IPv4 address in one of the ways of writing it that resolvers know.
_NAME: Final = re.compile(r"(?!.*(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$)(?:[a-z0-9_][a-z0-9_-]{0,62}(?:\.|$))+")


class Lease(Protocol):
    """A request that a worker has now."""

    def worker_lost(self, reason: str) -> None:
        """The worker will not answer; a request that has no answer yet can go elsewhere."""

    def cut_off(self) -> None:
        """The proxy ends: end the answer too, and say so."""


class Address(msgspec.Struct, frozen=True):
    """Where an engine is."""

    host: str
    port: int
    tls: bool
    base_path: str
    authority: str
    """Host and port as a Host header has them."""


@dataclass(slots=True, eq=False)
class Worker:
    """One instance. ``leases`` are the requests that it has from this process, ``recent`` those among them that its
    newest heartbeat cannot know."""

    instance_id: str
    hash: int
    address: Address | None = None
    version: int = 0
    is_ready: bool = False
    """What lifecycle says."""
    worker_id: str = ""
    models: frozenset[str] = frozenset()
    is_serving: bool = False
    """What the newest heartbeat says: the engine answers."""
    is_well: bool = False
    """... and nothing is wrong with the worker."""
    is_progressing: bool = True
    waiting: int = 0
    heard_at: float = float("-inf")
    served_at: float = float("-inf")
    """When it was last heard to serve: a busy engine may miss a question now and then."""
    stale_after_seconds: float = 0.0
    ejection: Ejection = field(default_factory=Ejection)
    leases: set[Lease] = field(default_factory=set)
    recent: set[Lease] = field(default_factory=set)

    @property
    def load(self) -> int:
        """Requests that wait there, as of the newest heartbeat, and those sent since."""
        return self.waiting + len(self.recent)

    def hold(self, lease: Lease) -> None:
        """A request goes there."""
        self.leases.add(lease)
        self.recent.add(lease)

    def release(self, lease: Lease) -> None:
        """The request is over."""
        self.leases.discard(lease)
        self.recent.discard(lease)


class Fleet:
    """All workers by instance id, and by the models that they serve."""

    def __init__(self, view: FleetView, stalled_seconds: float) -> None:
        self.view = view
        self.newest_at = float("-inf")
        self.ignores_silence = False
        """While many fell silent together: that is the stream's doing, or needs a person."""
        self._stalled_seconds = stalled_seconds
        self._workers: dict[str, Worker] = {}
        self._by_model: dict[str, list[Worker]] | None = None
        """None after a change: made anew when it is needed, not at each of many messages."""

    def __len__(self) -> int:
        return len(self._workers)

    def workers(self) -> Collection[Worker]:
        """Every worker that lifecycle knows."""
        return self._workers.values()

    def serving(self, names: Sequence[str]) -> tuple[str, Sequence[Worker]]:
        """The first of a model's names that an engine serves, with all workers that do, whatever their state."""
        by_model = self._by_model
        if by_model is None:
            by_model = self._by_model = self._index()
        for name in names:
            workers = by_model.get(name)
            if workers:
                return name, workers
        return "", ()

    def is_fresh(self, worker: Worker) -> bool:
        """Whether it was heard lately, as far as anybody was."""
        return self.ignores_silence or self.newest_at - worker.heard_at <= worker.stale_after_seconds

    def observe(self, heartbeat: Heartbeat, now: float) -> None:
        """Take a heartbeat in."""
        self.view.observe(heartbeat, now)
        self.newest_at = max(self.newest_at, now)
        worker = self._workers.get(heartbeat.instance_id)
        view = self.view.get(heartbeat.instance_id, now) if worker is not None else None
        if worker is not None and view is not None and view.heartbeat is heartbeat:
            self._update(worker, view, now)

    def move(self, event: LifecycleEvent, now: float) -> None:
        """Take a lifecycle message in; one that is older than what is known has no effect."""
        worker = self._workers.get(event.instance_id)
        if worker is not None and event.version < worker.version:
            return
        if event.state in _OVER:
            self.remove(event.instance_id)
            return
        if worker is None:
            worker = Worker(event.instance_id, hash64(event.instance_id.encode()))
            self._workers[event.instance_id] = worker
        became_ready = event.state == "ready" and not worker.is_ready
        address = parse_address(event.engine_url)
        if event.engine_url is not None and address is None:
            _log.warning("unusable engine address", extra={"instance_id": event.instance_id})
        worker.version, worker.address, worker.is_ready = event.version, address, event.state == "ready"
        if became_ready:
            worker.ejection = Ejection()
        view = self.view.get(event.instance_id, now)
        if view is not None and view.heartbeat is not None:
            self._update(worker, view, now - (view.heartbeat_age_seconds or 0.0))
        self._by_model = None
        if event.state not in _KEEPS_REQUESTS:
            _abandon(worker, event.state)

    def remove(self, instance_id: str) -> None:
        """An instance is over."""
        self.view.forget(instance_id)
        worker = self._workers.pop(instance_id, None)
        if worker is not None:
            self._by_model = None
            _abandon(worker, "over")

    def look(self, now: float) -> None:
        """Once a second: is it the stream that is silent? And whoever waits for a worker that has gone moves on."""
        silence = self.view.mass_silence(now)
        self.ignores_silence = silence.reason == "many_silent"
        for worker in self._workers.values():
            if worker.leases and self._is_gone(worker):
                _abandon(worker, "silent")

    def _is_gone(self, worker: Worker) -> bool:
        unreachable = worker.heard_at - worker.served_at > worker.stale_after_seconds
        return unreachable or not worker.is_progressing or not self.is_fresh(worker)

    def _update(self, worker: Worker, view: WorkerView, heard_at: float) -> None:
        heartbeat = view.heartbeat
        assert heartbeat is not None
        engine = heartbeat.engine
        models = frozenset(engine.models) if engine is not None else frozenset()
        worker.worker_id = heartbeat.worker_id
        worker.heard_at, worker.stale_after_seconds = heard_at, view.stale_after_seconds
        worker.is_serving = engine is not None and engine.state == "ready" and heartbeat.status != "draining"
        if worker.is_serving:
            worker.served_at = heard_at
        worker.is_well = heartbeat.status == "ready"
        stalled = view.engine_stalled_seconds
        worker.is_progressing = stalled is None or stalled < self._stalled_seconds
        worker.waiting = (engine.requests_waiting or 0) if engine is not None else 0
        worker.recent = set()
        if models != worker.models:
            worker.models = models
            self._by_model = None

    def _index(self) -> dict[str, list[Worker]]:
        by_model: dict[str, list[Worker]] = {}
        for worker in self._workers.values():
            if worker.is_ready and worker.address is not None:
                for name in worker.models:
                    by_model.setdefault(name, []).append(worker)
        return by_model


def _abandon(worker: Worker, reason: str) -> None:
    for lease in tuple(worker.leases):
        lease.worker_lost(reason)


def parse_address(url: str | None) -> Address | None:
    """Where an engine is; None for what no engine's address can be, link-local ones (cloud metadata) among them."""
    try:
        parts = urlsplit(url or "")
        port = parts.port
    except ValueError:
        return None
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or parts.query:
        return None
    if "%" in host or not parts.path.isascii() or any(character <= " " for character in parts.path) or port == 0:
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if len(host) > _NAME_CHARACTERS or not _NAME.fullmatch(host):
            return None
    else:
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            return None
    tls = parts.scheme == "https"
    port = port or (443 if tls else 80)
    return Address(host, port, tls, parts.path.rstrip("/"), f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def clock() -> float:
    """The clock of all times here."""
    return time.monotonic()
