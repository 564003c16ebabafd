"""How any client of ours reaches the brokers."""

import ssl
from typing import Any

from aiokafka.helpers import create_ssl_context

from fleetpulse.settings import StreamSettings


def connection_options(settings: StreamSettings, client_id: str) -> dict[str, Any]:
    """Keyword arguments that every aiokafka client takes."""
    return {
        "bootstrap_servers": settings.bootstrap,
        "client_id": client_id,
        "request_timeout_ms": int(settings.request_timeout_seconds * 1000),
        # A broker that came back on another address is found within this time.
        "metadata_max_age_ms": 30_000,
        "retry_backoff_ms": 100,
    } | _security(settings)


def _security(settings: StreamSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"security_protocol": settings.security_protocol}
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        password = settings.sasl_password
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": password.get_secret_value() if password else None,
        }
    return options


def _ssl_context(settings: StreamSettings) -> ssl.SSLContext:
    authorities = str(settings.ssl_ca_file) if settings.ssl_ca_file else None
    context: ssl.SSLContext = create_ssl_context(cafile=authorities)
    return context
