"""The provider ``mock``: machines that are processes of a small cloud, ``python -m control.providers.mock``.

Everything on such a machine is real: an agent that reads simulated GPUs, and a mock engine. Only the machine is not.
"""

from control.providers.interface import Provider
from control.providers.mock.provider import MockProvider
from fleetpulse.settings import MockProviderSettings, load


def provider() -> Provider:
    """The provider by its settings. Raises SettingsError."""
    return MockProvider(load(MockProviderSettings))
