"""From the Authorization header to the key that it holds."""

import hashlib
import hmac
import time

from proxy.access import SCOPE, Key, Snapshot
from proxy.errors import ProxyError


def digest_of(authorization: str | None) -> bytes:
    """The digest of the key in a header. Raises ProxyError with status 401 where there is no key.

    Keys are found by their whole digest: comparing digests tells nothing about the key, however long it takes, and no
    part of a key is ever compared.
    """
    if authorization is None:
        raise _unknown("there is no API key: send Authorization: Bearer YOUR_KEY")
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer" or not (text := text.strip()):
        raise _unknown("the Authorization header is not: Bearer YOUR_KEY")
    # Header bytes that are not UTF-8 arrive as lone surrogates.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def authenticate(digest: bytes, snapshot: Snapshot) -> Key:
    """The key of a digest. Raises ProxyError: 401 for a key that is none, 403 for one without the scope."""
    key = snapshot.keys.get(digest)
    if key is None or not hmac.compare_digest(key.digest, digest):
        raise _unknown("this API key is not known, or it was revoked")
    if key.expires_unix is not None and time.time() >= key.expires_unix:
        raise _unknown("this API key has expired")
    if SCOPE not in key.scopes:
        raise ProxyError(403, "insufficient_scope", f"this API key lacks the scope {SCOPE}")
    return key


def _unknown(message: str) -> ProxyError:
    return ProxyError(401, "invalid_api_key", message)
