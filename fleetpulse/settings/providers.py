"""The providers of machines."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fleetpulse.settings.fields import EngineKind, PositiveSeconds, split


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
    zones: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = Field(
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
    engine: EngineKind | None = Field(
        None, description="Kind of that engine, for the agent; vllm when unset, unless the workers' environment has one"
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
