"""What the mock cloud has to offer."""

from decimal import Decimal
from typing import Final

from control.providers.interface import Catalogue, InstanceType

ZONES: Final = ("mock-east-1", "mock-west-1")
_GIB: Final = 2**30

VOLUME_BYTES: Final = 100 * _GIB
DEFAULT_MODEL: Final = "mock-model"

# Memory as the cards have it, prices near those of public clouds in 2026.
CATALOGUE: Final = Catalogue(
    ZONES,
    (
        InstanceType("mock-cpu", None, 0, None, 4, 16 * _GIB, Decimal("0.10"), "EUR", ZONES),
        InstanceType("mock-l4-1", "NVIDIA L4", 1, 24 * _GIB, 8, 48 * _GIB, Decimal("0.75"), "EUR", ZONES),
        InstanceType("mock-l40s-4", "NVIDIA L40S", 4, 48 * _GIB, 32, 384 * _GIB, Decimal("5.60"), "EUR", ZONES),
        InstanceType(
            "mock-h100-2", "NVIDIA H100 80GB HBM3", 2, 80 * _GIB, 48, 480 * _GIB, Decimal("5.46"), "EUR", ZONES
        ),
        InstanceType(
            "mock-h100-8", "NVIDIA H100 80GB HBM3", 8, 80 * _GIB, 192, 1_920 * _GIB, Decimal("21.84"), "EUR", ZONES[:1]
        ),
        InstanceType("mock-b200-8", "NVIDIA B200", 8, 180 * _GIB, 224, 2_048 * _GIB, None, "EUR", ZONES[:1], False),
    ),
)


def offered(instance_type: str, zone: str) -> InstanceType | None:
    """The instance type, if the zone has it."""
    for offer in CATALOGUE.instance_types:
        if offer.name == instance_type and zone in offer.zones:
            return offer
    return None
