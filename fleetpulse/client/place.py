"""Where control is, and with which key: by the settings, else the stack that ``fleetpulse up`` runs here."""

from dataclasses import dataclass

from fleetpulse.local.state_file import running_state
from fleetpulse.settings import ClientSettings, LocalSettings, SettingsError


@dataclass(frozen=True, slots=True)
class Place:
    """A control service and a key for it."""

    url: str
    key: str


def place(settings: ClientSettings, local: LocalSettings) -> Place:
    """Raises SettingsError where nothing says where control is, or with which key."""
    if settings.url is not None and settings.api_key is not None:
        return Place(settings.url, settings.api_key.get_secret_value())
    state = running_state(local.data_dir)
    url = settings.url or state.get("control_url")
    if url is None:
        raise SettingsError(
            f"no fleetpulse up runs in {local.data_dir}: start one, or set FLEETPULSE_CONTROL_URL and "
            "FLEETPULSE_CONTROL_API_KEY"
        )
    if settings.api_key is not None:
        return Place(url, settings.api_key.get_secret_value())
    # The stack's key is for the stack alone.
    if url != state.get("control_url"):
        raise SettingsError(f"FLEETPULSE_CONTROL_API_KEY is not set: {url} needs a key")
    return Place(url, state["admin_key"])
