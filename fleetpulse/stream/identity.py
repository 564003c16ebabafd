"""Resource attributes that say who sent a metrics message, in OTLP and in our own namespace."""

from typing import Final

SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
HOST_ID: Final = "host.id"
HOST_NAME: Final = "host.name"
WORKER_ID: Final = "fleetpulse.worker.id"
INSTANCE_ID: Final = "fleetpulse.instance.id"
BOOT_ID: Final = "fleetpulse.boot.id"

# A stock collector does not know our namespace: the first of these that is there names the worker.
WORKER_ID_ATTRIBUTES: Final = (WORKER_ID, SERVICE_INSTANCE_ID, HOST_ID, HOST_NAME)

# A cumulative counter that grows by one with each message of a boot: the metrics message's sequence number. A data
# point rather than an attribute, so that all messages of a boot have the same bytes but for their 8-byte values.
EXPORTS_METRIC: Final = "fleetpulse.agent.exports"
