"""Finding providers by name: each is an entry point of the group ``fleetpulse.providers``, ours and others' alike.

An entry point is a function without parameters that gives a provider, by its own settings.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from control.providers.interface import Provider
from fleetpulse.settings import ControlSettings, SettingsError

GROUP: Final = "fleetpulse.providers"
# Extras of ours that are not named after their provider.
_EXTRAS: Final = {"mock": "local", "static": "ssh"}


def installed() -> dict[str, Callable[[], Provider]]:
    """What makes a provider, by the provider's name. Nothing is imported until one of them is called.

    Calling one raises SettingsError where its settings are wrong or a package that it needs is missing.
    """
    return {point.name: _maker(point) for point in entry_points(group=GROUP)}


def check(settings: ControlSettings) -> None:
    """Raises SettingsError when a configured provider is not installed."""
    _check(settings.providers)


@asynccontextmanager
async def opened(names: Sequence[str]) -> AsyncIterator[Mapping[str, Provider]]:
    """The providers of these names, open while the block runs. Opening one asks it nothing: it may be away.

    Raises SettingsError for an unknown name or wrong settings.
    """
    _check(names)
    makers = installed()
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(makers[name]()) for name in dict.fromkeys(names)}


def _check(names: Sequence[str]) -> None:
    known = installed()
    for name in names:
        if name not in known:
            raise SettingsError(
                f"FLEETPULSE_CONTROL_PROVIDERS: there is no provider {name!r}; installed are: "
                f"{', '.join(sorted(known)) or 'none'}"
            )


def _maker(point: EntryPoint) -> Callable[[], Provider]:
    def make() -> Provider:
        try:
            factory: Callable[[], Provider] = point.load()
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"FLEETPULSE_CONTROL_PROVIDERS: the provider {point.name} needs the package {error.name}: "
                f"install it, for a provider of ours by pip install 'fleetpulse[{_EXTRAS.get(point.name, point.name)}]'"
            ) from error
        return factory()

    return make
