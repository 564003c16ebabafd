"""Who may use the API: holders of the admin key; on a loopback address, for reading, anyone on this machine."""

import hashlib
import hmac
import ipaddress
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from control.api.problems import ProblemError
from fleetpulse.settings import ControlSettings, SettingsError

# Monitoring must work where the key is not known; these tell nothing about single workers.
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_READING: Final = frozenset({"GET", "HEAD"})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a service that listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(settings: ControlSettings) -> None:
    """Refuse to serve others without a key. Raises SettingsError."""
    key = settings.admin_key
    if key is not None and not key.get_secret_value().strip():
        raise SettingsError("FLEETPULSE_CONTROL_ADMIN_KEY is empty: unset it or give a key")
    if key is None and not is_loopback(settings.host):
        raise SettingsError(
            f"FLEETPULSE_CONTROL_ADMIN_KEY is not set, and others can reach {settings.host or 'every address'}: set a "
            "key, or FLEETPULSE_CONTROL_HOST=127.0.0.1"
        )


def authenticated(settings: ControlSettings) -> Middleware:
    """Let requests through that may pass; 401 for the rest."""
    key = settings.admin_key
    expected = _digest(key.get_secret_value()) if key else None
    local = is_loopback(settings.host)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in OPEN_PATHS:
            _admit(request, expected, local)
        return await handler(request)

    return middleware


def _admit(request: web.Request, expected: bytes | None, local: bool) -> None:
    given = request.headers.get("Authorization")
    if given is None:
        # Without any key a loopback service is its user's own.
        if local and (expected is None or request.method in _READING):
            return
        raise _refusal("this needs Authorization: Bearer with the admin key")
    scheme, _, credential = given.partition(" ")
    if scheme.lower() != "bearer":
        raise _refusal("the only accepted scheme is Bearer")
    if expected is None:
        raise _refusal("this service has no admin key: send no credentials, or set FLEETPULSE_CONTROL_ADMIN_KEY")
    # Digests have one length: neither the key's length nor its beginning shows in the time taken.
    if not hmac.compare_digest(_digest(credential.strip()), expected):
        raise _refusal("wrong admin key")


def _refusal(detail: str) -> ProblemError:
    return ProblemError(401, detail, headers={"WWW-Authenticate": 'Bearer realm="fleetpulse control"'})


def _digest(text: str) -> bytes:
    # Header bytes that are not UTF-8 arrive as lone surrogates.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
