"""The collector."""

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fleetpulse.settings.fields import Port, PositiveSeconds, split


class CollectorSettings(BaseSettings):
    """The collector."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_COLLECTOR_", extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: Port = Field(8002, description="Port of /metrics, /healthz, /readyz and the HTTP door")
    worker_tokens: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = Field(
        (), description="SHA-256 digests (hex) of the tokens that open the HTTP door, comma-separated; none closes it"
    )
    batch_rows: int = Field(20_000, ge=1, le=1_000_000, description="Most rows written in one transaction, roughly")
    batch_age_seconds: PositiveSeconds = Field(0.01, description="Shortest time between small transactions")
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
    usage_interval_seconds: PositiveSeconds = Field(
        5.0, description="How often costs and sums of new usage records are computed"
    )
    ledger_window_seconds: int = Field(
        300, ge=1, le=86_400, description="The token ledger compares proxy and engines over windows of this length"
    )
    ledger_interval_seconds: PositiveSeconds = Field(
        120.0, description="How often the token ledger is brought up to date"
    )
    ledger_settle_seconds: PositiveSeconds = Field(
        60.0, description="A window is compared this long after its end, when the last records and samples are there"
    )
    ledger_lookback_seconds: PositiveSeconds = Field(
        1_800.0, description="... and again while it ended less than this long ago, for what comes late"
    )
    maintenance_interval_seconds: PositiveSeconds = Field(
        600.0, description="Plain PostgreSQL: how often partitions are made ahead and dropped"
    )
