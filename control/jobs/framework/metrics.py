"""Metrics of the jobs, by the job's name."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class JobMetrics:
    """What every job has, and what only some have."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.runs = Counter("fleetpulse_control_job_runs_total", "Claims that found work", ("job",), registry=registry)
        self.claimed = Counter("fleetpulse_control_job_items_claimed_total", "Items", ("job",), registry=registry)
        self.outcomes = Counter(
            "fleetpulse_control_job_outcomes_total", "What came of the items", ("job", "outcome"), registry=registry
        )
        self.duration_seconds = Histogram(
            "fleetpulse_control_job_duration_seconds", "Work on one item", ("job",), buckets=SECONDS, registry=registry
        )
        self.lateness_seconds = Histogram(
            "fleetpulse_control_job_lateness_seconds",
            "How long an item was due when it was claimed",
            ("job",),
            buckets=SECONDS,
            registry=registry,
        )
        self.oldest_due_seconds = Gauge(
            "fleetpulse_control_job_oldest_due_seconds", "Age of the oldest due item", ("job",), registry=registry
        )
        self.leases_expired = Counter(
            "fleetpulse_control_job_leases_expired_total",
            "Items whose process died or froze over them",
            registry=registry,
        )
        self.holding_still = Gauge(
            "fleetpulse_control_jobs_holding_still",
            "1 while a job does nothing destructive, for this reason",
            ("job", "reason"),
            registry=registry,
        )
        self.circuits_opened = Counter(
            "fleetpulse_control_job_circuits_opened_total",
            "Instances left alone for a while because they fail too often",
            registry=registry,
        )
        self.provider_calls = Counter(
            "fleetpulse_control_provider_calls_total",
            "Calls of providers",
            ("provider", "call", "outcome"),
            registry=registry,
        )
        self.orphan_machines = Gauge(
            "fleetpulse_control_orphan_machines",
            "Machines at a provider that no active instance owns",
            ("provider",),
            registry=registry,
        )
        self.orphan_price = Gauge(
            "fleetpulse_control_orphan_price_per_hour",
            "What orphan machines cost an hour, as far as their prices are known",
            ("provider", "currency"),
            registry=registry,
        )
        self.orphan_volumes = Gauge(
            "fleetpulse_control_orphan_volumes",
            "Volumes at a provider that belong to no active instance",
            ("provider",),
            registry=registry,
        )
        self.stuck = Gauge(
            "fleetpulse_control_instances_stuck",
            "Instances in a state for longer than its limit at the last look",
            ("state",),
            registry=registry,
        )
        self.agents_outdated = Gauge(
            "fleetpulse_control_agents_outdated", "Live agents of another version than wanted", registry=registry
        )
        self.suspects = Gauge(
            "fleetpulse_control_workers_suspect", "Ready workers that are silent for too long", registry=registry
        )
