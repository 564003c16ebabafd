"""The worker agent."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from fleetpulse.settings.fields import BearerKey, EngineKind, Port, PositiveSeconds


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
    engine: Literal["none", EngineKind] = Field("none", description="Kind of the inference engine beside the agent")
    engine_url: str = Field("http://127.0.0.1:8000", description="Base URL of the engine")
    engine_api_key: BearerKey | None = Field(None, description="Key that the engine asks for, as vLLM's --api-key")
    engine_timeout_seconds: PositiveSeconds = Field(0.8, description="Longest wait for the engine's answer")
    log_events: int = Field(1_000, ge=1, le=100_000, description="Events kept for /logs")
