"""The proxy."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fleetpulse.settings.fields import BearerKey, Port, PositiveSeconds, split


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

    engine_api_key: BearerKey | None = Field(None, description="Key that all engines ask for, as vLLM's --api-key")
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
    engine_connections_idle: int = Field(1_024, ge=0, le=65_535, description="Most idle connections kept to one engine")
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
    engine_paths: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = Field(
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
