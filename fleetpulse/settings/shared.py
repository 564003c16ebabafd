"""What all services share, the stream and the database."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from fleetpulse.settings.fields import PositiveSeconds


class ServiceSettings(BaseSettings):
    """What all services share."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_", extra="ignore")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged")
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto is text on a terminal, else JSON")
    sql_dir: Path | None = Field(None, description="Folder of the migrations; found beside the package when unset")


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
    retention_usage_days: float = Field(400.0, ge=1, le=36_500, description="Usage records are kept this long")
    compress_after_days: float = Field(
        2.0, ge=0, le=3650, description="TimescaleDB moves raw chunks of this age to the columnstore; 0 is never"
    )
