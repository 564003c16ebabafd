"""Commands: those that ask control, and ``fleetpulse up``."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from fleetpulse.settings.fields import PositiveSeconds


class ClientSettings(BaseSettings):
    """The commands that ask control."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_CONTROL_", extra="ignore")

    url: str | None = Field(None, description="Control's API; that of the running `fleetpulse up` when unset")
    api_key: SecretStr | None = Field(None, description="Key for it; that of the running `fleetpulse up` when unset")


class ChatSettings(BaseSettings):
    """``fleetpulse chat``."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_CHAT_", extra="ignore")

    url: str | None = Field(None, description="The proxy, without /v1; that of the running `fleetpulse up` when unset")
    api_key: SecretStr | None = Field(None, description="Key for it; that of the running `fleetpulse up` when unset")


class LocalSettings(BaseSettings):
    """``fleetpulse up``."""

    model_config = SettingsConfigDict(env_prefix="FLEETPULSE_LOCAL_", extra="ignore")

    data_dir: Path = Field(Path(".fleetpulse"), description="Folder of the embedded stack's data and logs")
    workers: int = Field(3, ge=1, le=64, description="Workers started; the first reads this host")
    broker: Literal["embedded", "apache"] = Field("embedded", description="Which Kafka broker is started")
    ready_timeout_seconds: PositiveSeconds = Field(60.0, description="Longest wait for the first samples")
