"""The control service and its jobs."""

from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fleetpulse.settings.fields import BearerKey, Port, PositiveSeconds, split


class ControlSettings(BaseSettings):
    """The control service."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_CONTROL_", extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: Port = Field(8001, description="Port of the API, /metrics, /healthz and /readyz")
    admin_key: SecretStr | None = Field(
        None, description="Key of the API (Authorization: Bearer) that may do everything; unset, only keys and users do"
    )
    session_secret: SecretStr | None = Field(
        None, min_length=32, description="Signs session cookies, the same in every process; random at start when unset"
    )
    session_seconds: PositiveSeconds = Field(43_200.0, description="A session ends this long after the login")
    login_attempts: int = Field(
        10, ge=1, description="Failed logins of one address for one user in a window, before further ones are refused"
    )
    login_window_seconds: PositiveSeconds = Field(300.0, description="Window in which failed logins are counted")
    access_cache_seconds: PositiveSeconds = Field(
        5.0, description="Longest that a looked-up key or session is used without looking again"
    )
    idempotency_seconds: PositiveSeconds = Field(
        86_400.0, description="A POST sent again with its Idempotency-Key within this time has the first answer"
    )
    body_bytes: int = Field(262_144, ge=1_024, description="Largest body of a request")
    events_kept: int = Field(10_000, ge=1, le=1_000_000, description="Events kept for clients that come back")
    event_clients: int = Field(200, ge=1, description="Most clients of /events at a time")
    event_interval_seconds: PositiveSeconds = Field(
        15.0, description="A stream of events says at least this often that it lives"
    )
    database_connections: int = Field(8, ge=1, le=1_000, description="Most database connections")
    query_timeout_seconds: PositiveSeconds = Field(10.0, description="Longest a query of the API may take")
    rows_per_response: int = Field(20_000, ge=1, le=1_000_000, description="Most rows one answer holds")
    alertmanager_url: str | None = Field(
        None, pattern=r"^https?://", description="Alertmanager, whose alerts the console then shows too"
    )
    providers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = Field(
        (), description="Providers that machines are made at, comma-separated, by the names of their entry points"
    )


class JobSettings(BaseSettings):
    """Control's jobs."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_JOBS_", extra="ignore")

    poll_interval_seconds: PositiveSeconds = Field(0.5, description="How often due work is looked for")
    batch_items: int = Field(200, ge=1, le=10_000, description="Most items of a job claimed at once")
    concurrent_items: int = Field(100, ge=1, le=10_000, description="Most items of a job worked on at once")
    lease_seconds: PositiveSeconds = Field(10.0, description="A process silent for this long loses what it works on")
    worker_environment: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = Field(
        (), description="Further settings of every agent, NAME=VALUE, comma-separated; the Kafka ones are passed on"
    )

    provisioning_interval_seconds: PositiveSeconds = Field(2.0, description="First pause after a machine was not made")
    provisioning_most_seconds: PositiveSeconds = Field(60.0, description="Longest pause after a machine was not made")
    provisioning_timeout_seconds: PositiveSeconds = Field(60.0, description="Longest wait for a machine to be made")

    health_check_interval_seconds: PositiveSeconds = Field(1.0, description="First pause between checks of an instance")
    health_check_most_seconds: PositiveSeconds = Field(5.0, description="Longest pause between checks of an instance")
    health_check_timeout_seconds: PositiveSeconds = Field(
        900.0, description="Longest a check may take, the start of the runtime included"
    )
    engine_api_key: BearerKey | None = Field(
        None, description="Key that all engines ask for, as vLLM's --api-key; agents of new workers get it"
    )
    probe_timeout_seconds: PositiveSeconds = Field(2.0, description="Longest wait for the answer to one probe")
    probe_cache_seconds: float = Field(0.5, ge=0, lt=30, description="A probe's result is used again for this long")
    startup_failures: int = Field(
        100, ge=1, le=100_000, description="So many failed checks in one state on the way to ready are a failed start"
    )
    circuit_failures: int = Field(
        10, ge=1, le=10_000, description="After so many failed checks in a row an instance is left alone for a while"
    )
    circuit_open_seconds: PositiveSeconds = Field(30.0, description="How long such an instance is left alone")

    terminator_interval_seconds: PositiveSeconds = Field(1.0, description="First pause until a machine must be gone")
    terminator_most_seconds: PositiveSeconds = Field(60.0, description="Longest pause between attempts to delete")
    terminator_timeout_seconds: PositiveSeconds = Field(60.0, description="Longest one attempt to delete may take")

    draining_interval_seconds: PositiveSeconds = Field(1.0, description="Pause between looks at a draining engine")
    draining_most_seconds: PositiveSeconds = Field(600.0, description="Draining is cut short after this long")

    archive_after_seconds: PositiveSeconds = Field(86_400.0, description="Terminated instances are archived after this")

    watch_dog_interval_seconds: PositiveSeconds = Field(15.0, description="Pause between readings of the inventory")
    watch_dog_timeout_seconds: PositiveSeconds = Field(30.0, description="Longest wait for the inventory")
    watch_dog_confirmations: int = Field(2, ge=1, le=100, description="Inventories in a row that must lack a machine")
    inventory_loss_share: float = Field(
        0.5, gt=0, le=1, description="An inventory that lacks more than this share of our machines proves nothing"
    )
    inventory_loss_machines: int = Field(3, ge=1, description="... if it lacks at least so many")
    leftover_grace_seconds: PositiveSeconds = Field(
        60.0, description="A machine of an instance that is over is deleted after this long"
    )
    orphan_grace_seconds: PositiveSeconds | None = Field(
        None, description="A machine or volume that nobody here knows is deleted after this long; never when unset"
    )

    recovery_interval_seconds: PositiveSeconds = Field(5.0, description="How often stuck instances are looked for")
    recovery_timeout_seconds: PositiveSeconds = Field(30.0, description="Longest one look may take")
    provisioning_stuck_seconds: PositiveSeconds = Field(900.0, description="Longest an instance may be provisioning")
    booting_stuck_seconds: PositiveSeconds = Field(900.0, description="Longest an instance may be booting")
    installing_stuck_seconds: PositiveSeconds = Field(1800.0, description="Longest an instance may be installing")
    starting_stuck_seconds: PositiveSeconds = Field(1800.0, description="Longest an instance may be starting")
    terminating_stuck_seconds: PositiveSeconds = Field(600.0, description="Longest before a deletion is begun anew")
    stuck_floor_seconds: PositiveSeconds = Field(
        60.0, description="Times learned from earlier instances never make these limits shorter than this"
    )
    failed_keep_seconds: PositiveSeconds = Field(300.0, description="A failed start is terminated after this long")
    dead_keep_seconds: PositiveSeconds = Field(
        900.0, description="A dead worker is terminated after this long; one that waits for its engine, as a start is"
    )

    revival_interval_seconds: PositiveSeconds = Field(
        10.0, description="A dead worker's runtime is started again, should it be gone, after this long"
    )
    revival_most_seconds: PositiveSeconds = Field(120.0, description="Longest pause between such starts")

    worker_watchdog_interval_seconds: PositiveSeconds = Field(0.2, description="How often silence is looked for")
    suspicion_intervals: float = Field(
        1.6, ge=1.5, le=100, description="A worker silent for so many of its heartbeat intervals is probed"
    )
    answering_silence_seconds: PositiveSeconds = Field(
        120.0, description="A worker that answers probes but is not heard for this long counts as dead"
    )
    engine_stall_seconds: PositiveSeconds = Field(
        120.0, description="An engine with work and without a step for this long is stalled, its worker dead"
    )
    engine_unreachable_seconds: PositiveSeconds = Field(
        120.0, description="An engine that answers neither its agent nor control for this long is gone, its worker dead"
    )
    flap_deaths: int = Field(5, ge=2, le=1000, description="A worker that died so often in the flap window flaps")
    flap_window_seconds: PositiveSeconds = Field(600.0, description="The flap window")
    flap_quiet_seconds: PositiveSeconds = Field(120.0, description="How long a flapping worker stays dead at least")

    volumes_interval_seconds: PositiveSeconds = Field(60.0, description="Pause between comparisons of the volumes")
    volumes_timeout_seconds: PositiveSeconds = Field(120.0, description="Longest one comparison may take")

    agent_versions_interval_seconds: PositiveSeconds = Field(
        30.0, description="How often agents' versions are compared"
    )
    agent_version: str | None = Field(None, description="Version agents should have; control's own when unset")

    catalogue_interval_seconds: PositiveSeconds = Field(300.0, description="Pause between readings of the catalogue")
    catalogue_timeout_seconds: PositiveSeconds = Field(60.0, description="Longest wait for the catalogue")

    records_interval_seconds: PositiveSeconds = Field(3600.0, description="How often old records are looked for")
    records_days: float = Field(
        400.0,
        gt=0,
        le=36_500,
        description="The action log, and archived instances with their history, are kept so long",
    )
