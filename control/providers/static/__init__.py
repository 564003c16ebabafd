"""The provider ``static``: machines that are there already; the agent is installed and started over SSH."""

from control.providers.interface import Provider
from control.providers.static.machines import read
from control.providers.static.provider import StaticProvider
from fleetpulse.settings import StaticSettings, load


def provider() -> Provider:
    """The provider by its settings. Raises SettingsError."""
    settings = load(StaticSettings)
    return StaticProvider(settings, read(settings.machines_file))
