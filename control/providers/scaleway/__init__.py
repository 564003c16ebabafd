"""The provider ``scaleway``: GPU instances of Scaleway, made by its own SDK; cloud-init installs the agent."""

from control.providers.interface import Provider
from control.providers.scaleway.provider import ScalewayProvider
from fleetpulse.settings import ScalewaySettings, load


def provider() -> Provider:
    """The provider by its settings. Raises SettingsError."""
    return ScalewayProvider(load(ScalewaySettings))
