"""Every setting of every service, in one package.

A setting is read from the environment: the group's prefix and the field's name in capitals, e.g.
``FLEETPULSE_AGENT_SAMPLE_INTERVAL_SECONDS``. `docs/settings.md` is generated from these modules.
"""

from fleetpulse.settings.agent import AgentSettings
from fleetpulse.settings.client import ChatSettings, ClientSettings, LocalSettings
from fleetpulse.settings.collector import CollectorSettings
from fleetpulse.settings.control import ControlSettings, JobSettings
from fleetpulse.settings.fields import Port, PositiveSeconds
from fleetpulse.settings.loading import GROUPS, SettingsError, load, names, unknown_names, warn_of_unknown_names
from fleetpulse.settings.providers import MockProviderSettings, ScalewaySettings, StaticSettings
from fleetpulse.settings.proxy import ProxySettings
from fleetpulse.settings.shared import DatabaseSettings, ServiceSettings, StreamSettings

__all__ = [
    "GROUPS",
    "AgentSettings",
    "ChatSettings",
    "ClientSettings",
    "CollectorSettings",
    "ControlSettings",
    "DatabaseSettings",
    "JobSettings",
    "LocalSettings",
    "MockProviderSettings",
    "Port",
    "PositiveSeconds",
    "ProxySettings",
    "ScalewaySettings",
    "ServiceSettings",
    "SettingsError",
    "StaticSettings",
    "StreamSettings",
    "load",
    "names",
    "unknown_names",
    "warn_of_unknown_names",
]
