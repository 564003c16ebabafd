"""Passwords of users: scrypt, with its parameters stored beside the digest so that they can be raised later."""

import asyncio
import base64
import hashlib
import hmac
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Final

# OWASP's recommendation for scrypt with 32 MiB: N = 2^15, r = 8, p = 3; about 0.2 s of a core.
COST: Final = 2**15
BLOCK_SIZE: Final = 8
PARALLELIZATION: Final = 3
SALT_BYTES: Final = 16
DIGEST_BYTES: Final = 32
# Each takes 32 MiB and a core, and logins must not take all cores.
_workers: Final = ThreadPoolExecutor(max_workers=2, thread_name_prefix="fleetpulse-passwords")


async def stored(password: str) -> str:
    """What to keep of a password."""
    salt = os.urandom(SALT_BYTES)
    digest = await _digest(password, salt, COST, BLOCK_SIZE, PARALLELIZATION)
    return f"scrypt${COST}${BLOCK_SIZE}${PARALLELIZATION}${_text(salt)}${_text(digest)}"


async def is_right(password: str, kept: str | None) -> bool:
    """Whether a password is the one of which ``kept`` was made. Takes as long for a user that does not exist (None)."""
    if kept is None:
        await _digest(password, bytes(SALT_BYTES), COST, BLOCK_SIZE, PARALLELIZATION)
        return False
    _, cost, block_size, parallelization, salt, expected = kept.split("$")
    given = await _digest(password, base64.b64decode(salt), int(cost), int(block_size), int(parallelization))
    return hmac.compare_digest(given, base64.b64decode(expected))


async def _digest(password: str, salt: bytes, cost: int, block_size: int, parallelization: int) -> bytes:
    def work() -> bytes:
        return hashlib.scrypt(
            password.encode(),
            salt=salt,
            n=cost,
            r=block_size,
            p=parallelization,
            # OpenSSL's own limit is exactly what the parameters need, and it counts a little more.
            maxmem=128 * cost * block_size * 2,
            dklen=DIGEST_BYTES,
        )

    return await asyncio.get_running_loop().run_in_executor(_workers, work)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
