"""Every setting of every service, in one place.

A setting is read from the environment: the group's prefix and the field's name in capitals, e.g.
``FLEETPULSE_AGENT_SAMPLE_INTERVAL_SECONDS``. `docs/settings.md` is generated from this module.
"""

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PositiveSeconds = Annotated[float, Field(gt=0, le=86_400 * 3650)]
Port = Annotated[int, Field(ge=0, le=65_535)]


def _split(value: object) -> object:
    """A list in the environment: its parts, without the spaces around them."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class StreamSettings(BaseSettings):
    """The health stream."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_KAFKA_", extra="ignore", populate_by_name=True)

    bootstrap: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, comma-separated host:port")
    partitions: int = Field(8, ge=1, le=10_000, description="Partitions of a topic when fleetpulse creates it")
    replication_factor: int = Field(1, ge=1, le=10, description="Replicas of a topic when fleetpulse creates it")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How to talk to the brokers"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="SASL mechanism, where the security protocol uses SASL"
    )
    sasl_username: str | None = Field(None, description="SASL user name")
    sasl_password: SecretStr | None = Field(None, description="SASL password")
    ssl_ca_file: Path | None = Field(None, description="CA certificates of the brokers; the system's when unset")
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "zstd", description="Compression of what fleetpulse writes"
    )
    acks: Literal["all", "1"] = Field("all", description="Replicas that must have a message before it counts as sent")
    request_timeout_seconds: PositiveSeconds = Field(10.0, description="Longest wait for a broker's answer")
    stall_timeout_seconds: PositiveSeconds = Field(
        15.0, description="A client that makes no progress for this long though there is work is rebuilt"
    )
    stale_after_seconds: PositiveSeconds = Field(
        3.3,
        description="A worker silent for this long, or for 3.3 of its own heartbeat intervals if longer, is stale",
        # One name without the group's prefix: no service may think otherwise of who is alive.
        validation_alias=AliasChoices("FLEETPULSE_STALE_AFTER_SECONDS"),
    )


class DatabaseSettings(BaseSettings):
    """PostgreSQL or TimescaleDB."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_DATABASE_", extra="ignore")

    url: SecretStr = Field(
        SecretStr("postgresql://postgres@127.0.0.1:5432/fleetpulse"), description="PostgreSQL connection URL"
    )
    connect_timeout_seconds: PositiveSeconds = Field(5.0, description="Longest wait for a connection")
    profile: Literal["auto", "timescale", "postgres"] = Field(
        "auto", description="Kind of database; auto is what the database was made for, else what the server offers"
    )
    migration_timeout_seconds: PositiveSeconds = Field(
        120.0, description="Longest wait at start for the database, and for other processes that migrate it"
    )
    # TimescaleDB refreshes rollups this far back: 3 hours, 2 days and 8 days; what they are made from must be there.
    retention_raw_days: float = Field(14.0, ge=1, le=3650, description="Raw samples are kept this long")
    retention_minute_days: float = Field(90.0, ge=3, le=36_500, description="Minute rollups are kept this long")
    retention_hour_days: float = Field(730.0, ge=9, le=36_500, description="Hour rollups are kept this long")
    retention_heartbeat_days: float = Field(3.0, gt=0.02, le=3650, description="Stored heartbeats are kept this long")
    compress_after_days: float = Field(
        2.0, ge=0, le=3650, description="TimescaleDB moves raw chunks of this age to the columnstore; 0 is never"
    )


class CollectorSettings(BaseSettings):
    """The collector."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_COLLECTOR_", extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: Port = Field(8002, description="Port of /metrics, /healthz, /readyz and the HTTP door")
    worker_tokens: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="SHA-256 digests (hex) of the tokens that open the HTTP door, comma-separated; none closes it"
    )
    batch_rows: int = Field(20_000, ge=1, le=1_000_000, description="Most rows written in one transaction, roughly")
    batch_age_seconds: PositiveSeconds = Field(0.02, description="Shortest time between small transactions")
    message_bytes: int = Field(4_194_304, ge=1_024, description="Largest message accepted; larger are dead letters")
    lease_seconds: PositiveSeconds = Field(3.0, description="A collector silent for this long loses its partitions")
    future_tolerance_seconds: float = Field(
        300.0, gt=0, le=86_400, description="Samples further ahead of the collector's clock are rejected, seconds"
    )
    late_after_seconds: PositiveSeconds = Field(120.0, description="Samples older than this count as late")
    series_per_worker: int = Field(
        5_000, ge=0, description="Most generic series one worker may create; points of further series are dropped"
    )
    rollup_interval_seconds: PositiveSeconds = Field(
        5.0, description="Plain PostgreSQL: how often changed buckets are rolled up"
    )
    maintenance_interval_seconds: PositiveSeconds = Field(
        600.0, description="Plain PostgreSQL: how often partitions are made ahead and dropped"
    )


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
    providers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="Providers that machines are made at, comma-separated, by the names of their entry points"
    )


class ClientSettings(BaseSettings):
    """The commands that ask control."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_CONTROL_", extra="ignore")

    url: str | None = Field(None, description="Control's API; that of the running `fleetpulse up` when unset")
    api_key: SecretStr | None = Field(None, description="Key for it; that of the running `fleetpulse up` when unset")


class ProxySettings(BaseSettings):
    """The proxy."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_PROXY_", extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: Port = Field(8000, description="Port of the API, /metrics, /healthz and /readyz")
    processes: int = Field(1, ge=1, le=256, description="Processes that share the port")
    metrics_port: Annotated[int, Field(ge=1, le=65_000)] = Field(
        8020, description="With several processes: port of the first one's own /metrics, /healthz and /readyz, then up"
    )
    drain_seconds: float = Field(
        30.0, ge=0, le=86_400, description="At the end, requests under way have this long to finish"
    )
    access_poll_seconds: PositiveSeconds = Field(
        10.0, description="How often keys and models are read even if no change was told"
    )

    session_header: str = Field("X-Session-Id", min_length=1, description="Header that names a session")
    session_load_factor: float = Field(
        1.5, ge=1, le=100, description="A session leaves its worker when that has more load than this many means"
    )
    session_load_slack: int = Field(8, ge=0, le=100_000, description="... and so many requests more")
    prefix_affinity_bytes: int = Field(
        0, ge=0, le=1_048_576, description="Prompts that begin alike for this long go to one worker; 0 is off"
    )
    engine_stalled_seconds: PositiveSeconds = Field(
        10.0, description="An engine with work and without a step for this long gets no requests"
    )
    ejection_seconds: PositiveSeconds = Field(
        1.0, description="A failing worker gets no requests for this long; twice as long each time it fails again"
    )
    ejection_most_seconds: PositiveSeconds = Field(120.0, description="Longest such pause")
    ejection_failures: int = Field(
        5,
        ge=1,
        le=1_000,
        description="Answers 5xx or timeouts in a row that make a failing worker",
    )

    connect_timeout_seconds: PositiveSeconds = Field(1.0, description="Longest wait for a connection to an engine")
    first_byte_timeout_seconds: PositiveSeconds = Field(
        300.0, description="Longest wait for the first byte of an engine's answer"
    )
    chunk_timeout_seconds: PositiveSeconds = Field(60.0, description="Longest pause within an engine's answer")
    total_timeout_seconds: PositiveSeconds = Field(3_600.0, description="Longest a request may take in all")
    body_timeout_seconds: PositiveSeconds = Field(30.0, description="Longest wait for the body of a request")
    write_timeout_seconds: PositiveSeconds = Field(60.0, description="Longest that a client may not read")
    idle_timeout_seconds: PositiveSeconds = Field(
        75.0, description="A client's connection without a whole request for this long is closed"
    )
    keep_alive_seconds: PositiveSeconds = Field(
        15.0, description="A stream that is silent for this long carries a comment, so that nobody gives it up"
    )
    engine_idle_seconds: PositiveSeconds = Field(
        4.0, description="Connections to engines idle for this long are closed; vLLM closes them after 5"
    )
    engine_connections_idle: int = Field(256, ge=0, le=65_535, description="Most idle connections kept to one engine")
    attempts: int = Field(3, ge=1, le=100, description="Most workers tried for one request")
    retry_share: float = Field(
        0.2, ge=0, le=1, description="Requests tried again because of an answer or a timeout, as a share of all"
    )

    requests_in_flight: int = Field(10_000, ge=1, le=1_000_000, description="Most requests at a time; further get 503")
    body_bytes: int = Field(33_554_432, ge=1_024, le=1_073_741_824, description="Largest body of a request")
    header_bytes: int = Field(8_190, ge=256, le=1_048_576, description="Largest header of a request, and request line")
    headers: int = Field(100, ge=8, le=10_000, description="Most headers of a request")
    choices: int = Field(16, ge=1, le=10_000, description="Largest n and best_of of a request")
    output_tokens: int = Field(131_072, ge=1, description="Largest number of tokens a request may ask for")
    messages: int = Field(4_096, ge=1, le=1_000_000, description="Most messages, prompts or inputs of a request")
    event_bytes: int = Field(4_194_304, ge=1_024, le=1_073_741_824, description="Largest event of a stream")
    engine_paths: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="Further paths of engines that may be posted to, comma-separated, e.g. /v1/rerank,/tokenize"
    )

    request_log: Literal["all", "failures", "none"] = Field("all", description="Requests that get a line in the log")
    usage_records_kept: int = Field(
        200_000,
        ge=1,
        le=100_000_000,
        description="Most usage records kept while the broker is away",
    )
    usage_dir: Path | None = Field(
        None, description="Folder for the usage records that are left when the proxy ends; they are lost when unset"
    )


class JobSettings(BaseSettings):
    """Control's jobs."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_JOBS_", extra="ignore")

    poll_interval_seconds: PositiveSeconds = Field(0.5, description="How often due work is looked for")
    batch_items: int = Field(200, ge=1, le=10_000, description="Most items of a job claimed at once")
    concurrent_items: int = Field(100, ge=1, le=10_000, description="Most items of a job worked on at once")
    lease_seconds: PositiveSeconds = Field(10.0, description="A process silent for this long loses what it works on")
    worker_environment: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
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
    dead_keep_seconds: PositiveSeconds = Field(900.0, description="A dead worker is terminated after this long")

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


class MockProviderSettings(BaseSettings):
    """The provider `mock`: a cloud of processes on one machine."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_MOCK_", extra="ignore")

    url: str = Field("http://127.0.0.1:8010", description="Where the mock cloud listens")
    timeout_seconds: PositiveSeconds = Field(10.0, description="Longest wait for an answer of the mock cloud")


_ENGINE_COMMAND: Final = (
    "docker run --rm --name fleetpulse-engine --gpus all --ipc host --network host vllm/vllm-openai "
    "--port 8000 --model {model}"
)


class ScalewaySettings(BaseSettings):
    """The provider `scaleway`."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_SCALEWAY_", extra="ignore")

    secret_key: SecretStr | None = Field(None, description="Secret key of an API key that may manage instances")
    project_id: str | None = Field(None, description="Project that machines are made in")
    api_url: str = Field("https://api.scaleway.com", description="Scaleway's API")
    timeout_seconds: PositiveSeconds = Field(20.0, description="Longest wait for an answer of Scaleway's API")
    zones: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        ("fr-par-2",), min_length=1, description="Availability zones that machines are made in, comma-separated"
    )
    image: str = Field("ubuntu_jammy_gpu_os_12", description="Image of a machine, by label or id")
    security_group: str | None = Field(None, description="Security group of a machine; the project's when unset")
    root_volume_type: Literal["sbs_volume", "l_ssd"] = Field("sbs_volume", description="Kind of a machine's disk")
    root_volume_bytes: int = Field(125_000_000_000, ge=10_000_000_000, description="Size of a machine's disk")
    agent_package: str = Field("fleetpulse[agent]", description="What pip installs on a machine")
    engine_command: str = Field(
        _ENGINE_COMMAND, description="Starts the engine on a machine, {model} being the model's name; empty is none"
    )
    engine_port: Annotated[int, Field(ge=1, le=65_535)] = Field(8000, description="Port of the engine on a machine")


class StaticSettings(BaseSettings):
    """The provider `static`: machines that are there already, reached over SSH."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_STATIC_", extra="ignore")

    machines_file: Path = Field(Path("machines.toml"), description="The machines, as TOML or JSON")
    agent_package: str = Field(
        "fleetpulse[agent]", description="What pip installs on a machine; a wheel of this name here is copied over"
    )
    timeout_seconds: PositiveSeconds = Field(20.0, description="Longest wait for a machine to do one thing")
    install_timeout_seconds: PositiveSeconds = Field(600.0, description="Longest wait for the agent's installation")


class AgentSettings(BaseSettings):
    """The worker agent."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_AGENT_", extra="ignore", populate_by_name=True)

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: Port = Field(8003, description="Port of /metrics, /healthz, /readyz and /logs")
    worker_id: str | None = Field(None, description="Name of this worker; the machine id when unset")
    instance_id: str | None = Field(None, description="Control's id of this machine; the worker id when unset")
    advertised_url: str | None = Field(None, description="URL under which control reaches this agent")
    heartbeat_interval_seconds: PositiveSeconds = Field(1.0, description="Time between heartbeats")
    sample_interval_seconds: PositiveSeconds = Field(5.0, description="Time between metric samples")
    transport: Literal["kafka", "http"] = Field("kafka", description="Where heartbeats and samples go first")
    collector_url: str | None = Field(None, description="Collector's HTTP door, for the http transport")
    worker_token: SecretStr | None = Field(None, description="Token for the collector's HTTP door")
    otlp_endpoint: str | None = Field(None, description="Also send the metrics to this OTLP/HTTP endpoint")
    state_dir: Path | None = Field(
        None, description="Folder of what survives a restart; systemd's or the user's state folder when unset"
    )
    spool_dir: Path | None = Field(None, description="Folder of the spool; a folder below the state folder when unset")
    spool_bytes: int = Field(67_108_864, ge=0, description="Largest spool; the oldest is dropped beyond it")
    gpus: Literal["auto", "nvml", "simulated", "none"] = Field(
        "auto", description="Where GPU readings come from; auto takes simulated ones if configured, else NVML"
    )
    simulate_gpu_count: int = Field(
        0,
        ge=0,
        le=64,
        description="Simulated GPUs",
        validation_alias=AliasChoices("WORKER_SIMULATE_GPU_COUNT", "FLEETPULSE_AGENT_SIMULATE_GPU_COUNT"),
    )
    simulate_gpu_model: str = Field(
        "NVIDIA H100 80GB HBM3",
        description="Model name of simulated GPUs",
        validation_alias=AliasChoices("WORKER_SIMULATE_GPU_MODEL", "FLEETPULSE_AGENT_SIMULATE_GPU_MODEL"),
    )
    simulate_gpu_vram_bytes: int = Field(
        85_899_345_920,
        ge=1,
        description="Memory of a simulated GPU",
        validation_alias=AliasChoices("WORKER_SIMULATE_GPU_VRAM_BYTES", "FLEETPULSE_AGENT_SIMULATE_GPU_VRAM_BYTES"),
    )
    simulate_gpu_load: Literal["daily", "bursty", "steady", "idle"] = Field(
        "bursty",
        description="Load curve of simulated GPUs",
        validation_alias=AliasChoices("WORKER_SIMULATE_GPU_LOAD", "FLEETPULSE_AGENT_SIMULATE_GPU_LOAD"),
    )
    engine: Literal["none", "vllm", "sglang", "tgi", "llamacpp"] = Field(
        "none", description="Kind of the inference engine beside the agent"
    )
    engine_url: str = Field("http://127.0.0.1:8000", description="Base URL of the engine")
    engine_timeout_seconds: PositiveSeconds = Field(0.8, description="Longest wait for the engine's answer")
    log_events: int = Field(1_000, ge=1, le=100_000, description="Events kept for /logs")


class LocalSettings(BaseSettings):
    """``fleetpulse up``."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_LOCAL_", extra="ignore")

    data_dir: Path = Field(Path(".fleetpulse"), description="Folder of the embedded stack's data and logs")
    workers: int = Field(3, ge=1, le=64, description="Workers started; the first reads this host")
    broker: Literal["embedded", "apache"] = Field("embedded", description="Which Kafka broker is started")
    ready_timeout_seconds: PositiveSeconds = Field(60.0, description="Longest wait for the first samples")


class ServiceSettings(BaseSettings):
    """What all services share."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_", extra="ignore")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged")
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto is text on a terminal, else JSON")
    sql_dir: Path | None = Field(None, description="Folder of the migrations; found beside the package when unset")


GROUPS: Final[Sequence[type[BaseSettings]]] = (
    ServiceSettings,
    StreamSettings,
    DatabaseSettings,
    AgentSettings,
    CollectorSettings,
    ControlSettings,
    ProxySettings,
    ClientSettings,
    JobSettings,
    MockProviderSettings,
    ScalewaySettings,
    StaticSettings,
    LocalSettings,
)
# Names that belong to the tests and to the build, not to a service.
FOREIGN_PREFIXES: Final = ("FLEETPULSE_TEST_",)

Group = TypeVar("Group", bound=BaseSettings)


class SettingsError(Exception):
    """A setting that cannot be used; the message is one line: what, where, and what to do."""


def names(group: type[BaseSettings]) -> dict[str, str]:
    """Environment variable of each field of a group."""
    prefix = group.model_config.get("env_prefix", "")
    found = {}
    for name, information in group.model_fields.items():
        alias = information.validation_alias
        if isinstance(alias, AliasChoices):
            found[name] = str(alias.choices[0])
        else:
            found[name] = f"{prefix}{name}".upper()
    return found


def load(group: type[Group], **overrides: object) -> Group:
    """Read a group from the environment; ``overrides`` come from the command line and win.

    Raises SettingsError.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return group(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError(_one_line(group, error)) from error


def _one_line(group: type[BaseSettings], error: ValidationError) -> str:
    environment = names(group)
    problems = []
    for problem in error.errors(include_url=False, include_input=False):
        field = str(problem["loc"][0]) if problem["loc"] else ""
        name = environment.get(field, field)
        problems.append(f"{name}: {problem['msg']}")
    return "; ".join(problems)


def unknown_names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """One line for each ``FLEETPULSE_`` variable that no service reads, with the nearest name that one does."""
    known = [name for group in GROUPS for name in names(group).values()]
    lines = []
    for name in sorted(environment):
        if name.startswith("FLEETPULSE_") and name not in known and not name.startswith(FOREIGN_PREFIXES):
            nearest = difflib.get_close_matches(name, known, n=1)
            lines.append(f"{name} is not a setting" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return lines


def warn_of_unknown_names() -> None:
    """Say on standard error which settings have no effect: a misspelt name must not pass silently."""
    for line in unknown_names():
        print(f"fleetpulse: {line}", file=sys.stderr)
