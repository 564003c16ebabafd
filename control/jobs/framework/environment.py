"""The settings that control hands to the agents of its instances."""

from pydantic import SecretStr

from fleetpulse.settings import AgentSettings, JobSettings, SettingsError, StreamSettings, names


def worker_environment(settings: JobSettings, stream: StreamSettings) -> dict[str, str]:
    """What was set here of the stream, so that agents write where control reads, and what the settings add.

    Raises SettingsError.
    """
    found = {}
    variables = names(StreamSettings)
    for field in stream.model_fields_set | {"bootstrap"}:
        value = getattr(stream, field)
        if value is not None:
            found[variables[field]] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    if settings.engine_api_key is not None:
        found[names(AgentSettings)["engine_api_key"]] = settings.engine_api_key.get_secret_value()
    for entry in settings.worker_environment:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise SettingsError(f"FLEETPULSE_JOBS_WORKER_ENVIRONMENT: {entry!r} is not NAME=VALUE")
        found[name] = value
    return dict(sorted(found.items()))
