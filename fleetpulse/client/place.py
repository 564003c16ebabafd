"""Where control and the proxy are, and with which key: by the settings, else the stack that ``fleetpulse up`` runs
here."""

from dataclasses import dataclass

from fleetpulse.local.state_file import running_state
from fleetpulse.settings import ChatSettings, ClientSettings, LocalSettings, SettingsError


@dataclass(frozen=True, slots=True)
class Place:
    """A service and a key for it."""

    url: str
    key: str


def place(settings: ClientSettings, local: LocalSettings) -> Place:
    """Control. Raises SettingsError where nothing says where it is, or with which key."""
    if settings.url is not None and not settings.url.startswith(("http://", "https://")):
        raise SettingsError(f"FLEETPULSE_CONTROL_URL: {settings.url!r} is not an address like http://127.0.0.1:8001")
    return _place(settings, local, "control_url", "admin_key", "FLEETPULSE_CONTROL")


def proxy_place(settings: ChatSettings, local: LocalSettings) -> Place:
    """The proxy. Raises SettingsError where nothing says where it is, or with which key."""
    return _place(settings, local, "proxy_url", "inference_key", "FLEETPULSE_CHAT")


def _place(
    settings: ClientSettings | ChatSettings, local: LocalSettings, url_name: str, key_name: str, prefix: str
) -> Place:
    """``url_name`` and ``key_name`` are what the stack's state file calls them."""
    if settings.url is not None and settings.api_key is not None:
        return Place(settings.url, settings.api_key.get_secret_value())
    state = running_state(local.data_dir)
    url = settings.url or state.get(url_name)
    if url is None:
        raise SettingsError(
            f"no fleetpulse up runs in {local.data_dir}: start one, or set {prefix}_URL and {prefix}_API_KEY"
        )
    if settings.api_key is not None:
        return Place(url, settings.api_key.get_secret_value())
    # The stack's key is for the stack alone.
    if url != state.get(url_name):
        raise SettingsError(f"{prefix}_API_KEY is not set: {url} needs a key")
    return Place(url, state[key_name])
