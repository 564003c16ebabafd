"""Reading groups of settings from the environment, and saying what is wrong with it in one line."""

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from pydantic import AliasChoices, ValidationError
from pydantic_settings import BaseSettings

from fleetpulse.settings.agent import AgentSettings
from fleetpulse.settings.client import ChatSettings, ClientSettings, LocalSettings
from fleetpulse.settings.collector import CollectorSettings
from fleetpulse.settings.control import ControlSettings, JobSettings
from fleetpulse.settings.providers import MockProviderSettings, ScalewaySettings, StaticSettings
from fleetpulse.settings.proxy import ProxySettings
from fleetpulse.settings.shared import DatabaseSettings, ServiceSettings, StreamSettings

GROUPS: Final[Sequence[type[BaseSettings]]] = (
    ServiceSettings,
    StreamSettings,
    DatabaseSettings,
    AgentSettings,
    CollectorSettings,
    ControlSettings,
    ProxySettings,
    ClientSettings,
    ChatSettings,
    JobSettings,
    MockProviderSettings,
    ScalewaySettings,
    StaticSettings,
    LocalSettings,
)
# Names that belong to the tests and to the build, not to a service.
FOREIGN_PREFIXES: Final = ("FLEETPULSE_TEST_",)

Group = TypeVar("Group", bound=BaseSettings)


class SettingsError(Exception):
    """A setting that cannot be used; the message is one line: what, where, and what to do."""


def names(group: type[BaseSettings]) -> dict[str, str]:
    """Environment variable of each field of a group."""
    prefix = group.model_config.get("env_prefix", "")
    found = {}
    for name, information in group.model_fields.items():
        alias = information.validation_alias
        if isinstance(alias, AliasChoices):
            found[name] = str(alias.choices[0])
        else:
            found[name] = f"{prefix}{name}".upper()
    return found


def load(group: type[Group], **overrides: object) -> Group:
    """Read a group from the environment; ``overrides`` come from the command line and win.

    Raises SettingsError.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return group(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError(_one_line(group, error)) from error


def _one_line(group: type[BaseSettings], error: ValidationError) -> str:
    environment = names(group)
    problems = []
    for problem in error.errors(include_url=False, include_input=False):
        field = str(problem["loc"][0]) if problem["loc"] else ""
        name = environment.get(field, field)
        problems.append(f"{name}: {problem['msg']}")
    return "; ".join(problems)


def unknown_names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """One line for each ``FLEETPULSE_`` variable that no service reads, with the nearest name that one does."""
    known = [name for group in GROUPS for name in names(group).values()]
    lines = []
    for name in sorted(environment):
        if name.startswith("FLEETPULSE_") and name not in known and not name.startswith(FOREIGN_PREFIXES):
            nearest = difflib.get_close_matches(name, known, n=1)
            lines.append(f"{name} is not a setting" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return lines


def warn_of_unknown_names() -> None:
    """Say on standard error which settings have no effect: a misspelt name must not pass silently."""
    for line in unknown_names():
        print(f"fleetpulse: {line}", file=sys.stderr)
