"""What providers offer: ``/providers``, ``/zones``, ``/instance-types``."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final

import msgspec
from pydantic import Field

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Code, Nothing, Page
from control.api.paging import Name, after, next_cursor

TAG: Final = "Catalogue"


class Provider(msgspec.Struct, frozen=True):
    """A provider. ``failure`` is why its catalogue could not be read the last time."""

    provider: str
    catalogue_read_at: datetime | None
    failure: str | None


class Providers(msgspec.Struct, frozen=True):
    """Providers, by name."""

    providers: Sequence[Provider]
    next_cursor: str | None


class Zone(msgspec.Struct, frozen=True):
    """A place at a provider."""

    provider: str
    zone: str
    available: bool


class Zones(msgspec.Struct, frozen=True):
    """Zones, by provider and name."""

    zones: Sequence[Zone]
    next_cursor: str | None


class InstanceType(msgspec.Struct, frozen=True):
    """A kind of machine, and what an hour of it costs; null where the provider names no price."""

    provider: str
    instance_type: str
    gpu_model: str | None
    gpu_count: int
    gpu_memory_bytes: int | None
    cpu_count: int | None
    memory_bytes: int | None
    price_per_hour: float | None
    currency: str
    zones: Sequence[str]
    available: bool


class InstanceTypes(msgspec.Struct, frozen=True):
    """Kinds of machines, by provider and name."""

    instance_types: Sequence[InstanceType]
    next_cursor: str | None


class CatalogueQuery(Page):
    """Of whom."""

    provider: Annotated[Code | None, Field(description="Only of this provider")] = None


class InstanceTypesQuery(CatalogueQuery):
    """Where."""

    zone: Annotated[Code | None, Field(description="Only what this zone has")] = None


_PROVIDERS: Final = """
SELECT provider, catalogue_read_at, failure FROM providers
WHERE %(after)s::text IS NULL OR provider > %(after)s
ORDER BY provider LIMIT %(rows)s
"""
_ZONES: Final = """
SELECT provider, zone, available FROM zones
WHERE (%(provider)s::text IS NULL OR provider = %(provider)s)
    AND (%(after_provider)s::text IS NULL OR (provider, zone) > (%(after_provider)s, %(after_name)s))
ORDER BY provider, zone LIMIT %(rows)s
"""
_INSTANCE_TYPES: Final = """
SELECT provider, instance_type, gpu_model, gpu_count, gpu_memory_bytes, cpu_count, memory_bytes,
    price_per_hour::float8, currency, zones, available
FROM instance_types
WHERE (%(provider)s::text IS NULL OR provider = %(provider)s)
    AND (%(zone)s::text IS NULL OR %(zone)s = ANY (zones))
    AND (%(after_provider)s::text IS NULL OR (provider, instance_type) > (%(after_provider)s, %(after_name)s))
ORDER BY provider, instance_type LIMIT %(rows)s
"""


async def providers(call: Call[Page, Nothing]) -> Providers:
    """Who offers machines."""
    page = call.query
    place = after(page, tuple[Name])
    rows = await call.parts.database.rows(_PROVIDERS, {"after": place[0] if place else None, "rows": page.limit + 1})
    shown = [Provider(*row) for row in rows[: page.limit]]
    return Providers(shown, next_cursor(rows, page, (shown[-1].provider,) if shown else None))


async def zones(call: Call[CatalogueQuery, Nothing]) -> Zones:
    """Where."""
    query = call.query
    rows = await call.parts.database.rows(_ZONES, {"provider": query.provider, **_place(query)})
    shown = [Zone(*row) for row in rows[: query.limit]]
    return Zones(shown, next_cursor(rows, query, (shown[-1].provider, shown[-1].zone) if shown else None))


async def instance_types(call: Call[InstanceTypesQuery, Nothing]) -> InstanceTypes:
    """What, and for how much."""
    query = call.query
    rows = await call.parts.database.rows(
        _INSTANCE_TYPES, {"provider": query.provider, "zone": query.zone, **_place(query)}
    )
    shown = [InstanceType(*row) for row in rows[: query.limit]]
    place = (shown[-1].provider, shown[-1].instance_type) if shown else None
    return InstanceTypes(shown, next_cursor(rows, query, place))


def _place(query: CatalogueQuery) -> dict[str, str | int | None]:
    place = after(query, tuple[Name, Name])
    return {
        "after_provider": place[0] if place else None,
        "after_name": place[1] if place else None,
        "rows": query.limit + 1,
    }


ENDPOINTS: Final = (
    Endpoint("GET", "/providers", "Who offers machines", TAG, providers),
    Endpoint("GET", "/zones", "Where machines can be had", TAG, zones),
    Endpoint("GET", "/instance-types", "What machines can be had, and their price", TAG, instance_types),
)
