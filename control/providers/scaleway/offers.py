"""Scaleway's server types as a catalogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from scaleway_async.instance.v1 import ServerType

from control.providers.interface import Catalogue, InstanceType


@dataclass(frozen=True, slots=True)
class ZoneOffers:
    """Server types of a zone, and whether there are any left of each: available, scarce or shortage."""

    zone: str
    types: Mapping[str, ServerType]
    availability: Mapping[str, str]


def catalogue(offers: Sequence[ZoneOffers]) -> Catalogue:
    """All zones together; a type is available when any of them has some left."""
    zones: dict[str, list[str]] = {}
    types: dict[str, ServerType] = {}
    available: dict[str, bool] = {}
    for offer in offers:
        for name, kind in offer.types.items():
            zones.setdefault(name, []).append(offer.zone)
            types.setdefault(name, kind)
            here = not kind.end_of_service and offer.availability.get(name, "available") != "shortage"
            available[name] = available.get(name, False) or here
    found = (_instance_type(name, kind, tuple(zones[name]), available[name]) for name, kind in sorted(types.items()))
    return Catalogue(tuple(offer.zone for offer in offers), tuple(found))


def _instance_type(name: str, kind: ServerType, zones: tuple[str, ...], available: bool) -> InstanceType:
    gpu = kind.gpu_info
    return InstanceType(
        name=name,
        gpu_model=f"{gpu.gpu_manufacturer} {gpu.gpu_name}".strip() if gpu is not None else None,
        gpu_count=kind.gpu or 0,
        gpu_memory_bytes=gpu.gpu_memory if gpu is not None else None,
        cpu_count=kind.ncpus,
        memory_bytes=kind.ram,
        # A type that is not for sale has no price; 0 would make it free.
        price_per_hour=Decimal(str(kind.hourly_price)) if kind.hourly_price else None,
        currency="EUR",
        zones=zones,
        available=available,
    )
