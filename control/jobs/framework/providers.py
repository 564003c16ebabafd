"""Finding an instance's provider among those that this process has."""

from control.jobs.framework.context import JobContext
from control.providers.interface import Provider, ProviderError


def provider_of(context: JobContext, name: str) -> Provider:
    """Raises ProviderError for one that is not configured here; another process may have it."""
    provider = context.providers.get(name)
    if provider is None:
        raise ProviderError(
            f"the provider {name} is not configured: add it to FLEETPULSE_CONTROL_PROVIDERS", retryable=True
        )
    return provider
