"""Catalogue: keeps providers, zones, instance types and prices as the providers tell them."""

from typing import Any, Final

from control.jobs.framework.calls import call
from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Item, Outcome
from control.jobs.framework.job import Job
from control.jobs.framework.providers import provider_of
from control.providers.interface import Catalogue, ProviderError
from fleetpulse.settings import JobSettings

_PROVIDER: Final = """
INSERT INTO providers AS p (provider, catalogue_read_at, failure)
VALUES (%(provider)s, CASE WHEN %(failure)s::text IS NULL THEN now() END, %(failure)s)
ON CONFLICT (provider) DO UPDATE SET
    catalogue_read_at = coalesce(EXCLUDED.catalogue_read_at, p.catalogue_read_at), failure = EXCLUDED.failure
"""
_ZONES: Final = """
INSERT INTO zones (provider, zone) SELECT %(provider)s, zone FROM unnest(%(zones)s::text[]) AS zone
ON CONFLICT (provider, zone) DO UPDATE SET available = true
"""
_OTHER_ZONES: Final = """
UPDATE zones SET available = false WHERE provider = %(provider)s AND NOT (zone = ANY(%(zones)s::text[]))
"""
_TYPE: Final = """
INSERT INTO instance_types (
    provider, instance_type, gpu_model, gpu_count, gpu_memory_bytes, cpu_count, memory_bytes, price_per_hour, currency,
    zones, available
)
VALUES (
    %(provider)s, %(name)s, %(gpu_model)s, %(gpu_count)s, %(gpu_memory_bytes)s, %(cpu_count)s, %(memory_bytes)s,
    %(price_per_hour)s, %(currency)s, %(zones)s, %(available)s
)
ON CONFLICT (provider, instance_type) DO UPDATE SET
    gpu_model = EXCLUDED.gpu_model, gpu_count = EXCLUDED.gpu_count, gpu_memory_bytes = EXCLUDED.gpu_memory_bytes,
    cpu_count = EXCLUDED.cpu_count, memory_bytes = EXCLUDED.memory_bytes, price_per_hour = EXCLUDED.price_per_hour,
    currency = EXCLUDED.currency, zones = EXCLUDED.zones, available = EXCLUDED.available
"""
_OTHER_TYPES: Final = """
UPDATE instance_types SET available = false
WHERE provider = %(provider)s AND NOT (instance_type = ANY(%(types)s::text[]))
"""


def job(settings: JobSettings) -> Job:
    """The job."""
    most = settings.catalogue_interval_seconds
    return Job("catalogue", work, settings.catalogue_timeout_seconds, min(5.0, most), most, per="provider")


async def work(context: JobContext, item: Item) -> Outcome:
    """Read one provider's catalogue; what it no longer has stays, as not available. Raises ProviderError."""
    provider = provider_of(context, item.subject)
    try:
        catalogue = await call(context, item, "catalogue", item.subject, provider.catalogue(), log_success=False)
    except ProviderError as error:
        async with context.fenced(item) as connection:
            await connection.execute(_PROVIDER, {"provider": item.subject, "failure": str(error)})
        raise
    async with context.fenced(item) as connection:
        common = _parameters(item.subject, catalogue)
        for statement in (_PROVIDER, _ZONES, _OTHER_ZONES, _OTHER_TYPES):
            await connection.execute(statement, common)
        cursor = connection.cursor()
        await cursor.executemany(_TYPE, _types(item.subject, catalogue))
    return Outcome("read", context.settings.catalogue_interval_seconds)


def _parameters(provider: str, catalogue: Catalogue) -> dict[str, Any]:
    return {
        "provider": provider,
        "failure": None,
        "zones": list(catalogue.zones),
        "types": [one.name for one in catalogue.instance_types],
    }


def _types(provider: str, catalogue: Catalogue) -> list[dict[str, Any]]:
    return [
        {
            "provider": provider,
            "name": one.name,
            "gpu_model": one.gpu_model,
            "gpu_count": one.gpu_count,
            "gpu_memory_bytes": one.gpu_memory_bytes,
            "cpu_count": one.cpu_count,
            "memory_bytes": one.memory_bytes,
            "price_per_hour": one.price_per_hour,
            "currency": one.currency,
            "zones": list(one.zones),
            "available": one.available,
        }
        for one in catalogue.instance_types
    ]
