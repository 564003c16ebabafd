"""Idempotency-Key: a request that comes again does nothing again and has the first answer.

The key's row is written in the transaction that does what the request asks for. So there is no moment at which one is
done and the other is not, and a second request that comes meanwhile waits at the row for the first.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from psycopg import AsyncConnection
from psycopg.errors import LockNotAvailable

from control.access.principal import Principal
from control.api.problems import FieldError, ProblemError, unprocessable
from control.database import Row

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
_VALID: Final = re.compile(r"[\x21-\x7e]{1,200}")
WAIT: Final = "2s"

_EXPIRED: Final = """
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys WHERE expires_at <= now() ORDER BY expires_at LIMIT 100 FOR UPDATE SKIP LOCKED
))
"""
_CLAIM: Final = """
INSERT INTO idempotency_keys (principal, key_digest, method, path, body_digest, expires_at)
VALUES (%(principal)s, %(key_digest)s, %(method)s, %(path)s, %(body_digest)s, now() + %(seconds)s * interval '1 s')
ON CONFLICT DO NOTHING
RETURNING true
"""
_FIRST: Final = """
SELECT method, path, body_digest, status, answer FROM idempotency_keys
WHERE principal = %(principal)s AND key_digest = %(key_digest)s
"""
_KEEP: Final = """
UPDATE idempotency_keys SET status = %(status)s, answer = %(answer)s
WHERE principal = %(principal)s AND key_digest = %(key_digest)s
"""


@dataclass(frozen=True, slots=True)
class Done:
    """What a request was answered. ``kept`` is the answer for later, without what is shown only once."""

    status: int
    answer: bytes
    kept: bytes
    replayed: bool = False


async def once(
    connection: AsyncConnection[Row],
    request: web.Request,
    principal: Principal,
    body: bytes,
    seconds: float,
    work: Callable[[], Awaitable[Done]],
) -> Done:
    """Do the work, or find what it answered the first time.

    Raises ProblemError: 422 for a key that is none or was used for something else, 409 while the first is under way.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return await work()
    if not _VALID.fullmatch(key):
        raise unprocessable([FieldError(HEADER, "must be 1 to 200 printable ASCII characters without spaces")])
    asked = {
        "principal": principal.identity,
        "key_digest": hashlib.sha256(key.encode()).digest(),
        "method": request.method,
        "path": request.path_qs,
        "body_digest": hashlib.sha256(body).digest(),
        "seconds": seconds,
    }
    await connection.execute(_EXPIRED)
    first = await _claimed(connection, asked)
    if first is not None:
        method, path, body_digest, status, answer = first
        if (method, path, body_digest) != (asked["method"], asked["path"], asked["body_digest"]):
            raise unprocessable([FieldError(HEADER, "was used for another request: take a new one")])
        return Done(status, answer, answer, replayed=True)
    done = await work()
    await connection.execute(_KEEP, {**asked, "status": done.status, "answer": done.kept})
    return done


async def _claimed(connection: AsyncConnection[Row], asked: dict[str, object]) -> Row | None:
    """None when the key is ours now; else the row of the request that had it first."""
    try:
        await connection.execute(f"SET LOCAL lock_timeout = '{WAIT}'")
        claimed = await (await connection.execute(_CLAIM, asked)).fetchone()
        await connection.execute("SET LOCAL lock_timeout = 0")
    except LockNotAvailable as error:
        raise ProblemError(409, "the first request with this Idempotency-Key is still under way") from error
    if claimed is not None:
        return None
    return await (await connection.execute(_FIRST, asked)).fetchone()
