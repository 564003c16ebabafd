"""``/sessions``: logging in and out."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, Self
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from aiohttp import web
from pydantic import Field, model_validator

from control.access import passwords
from control.access.principal import NotAdmittedError, Principal, Scope
from control.api.authentication import CHALLENGE, COOKIE, require_same_origin
from control.api.call import Call
from control.api.endpoint import JSON, Endpoint
from control.api.fields import Body, Email, Nothing
from control.api.problems import ProblemError

TAG: Final = "Access"
# Of one address for whatever users, in times of what it may fail for one user; and of all addresses for one user.
ADDRESS_FACTOR: Final = 5
USER_FACTOR: Final = 10


class Login(Body):
    """Who, and the proof: email and password, or a key, which a browser then need not keep."""

    email: Email | None = None
    password: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    key: Annotated[str, Field(min_length=1, max_length=200, description="An API key, or the admin key")] | None = None

    @model_validator(mode="after")
    def _one_proof(self) -> Self:
        if (self.key is None) == (self.email is None) or (self.email is None) != (self.password is None):
            raise ValueError("give email and password, or a key")
        return self


class Session(msgspec.Struct, frozen=True):
    """Who asks, and what they may do. Of a key or a session without end, expires_at is null."""

    actor: str
    organization_id: UUID | None
    operator: bool
    scopes: Sequence[Scope]
    expires_at: datetime | None


_USER: Final = """
SELECT user_id, password_digest FROM users WHERE lower(email) = lower(%(email)s) AND disabled_at IS NULL
"""
_PRUNE: Final = """
DELETE FROM sessions WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM sessions WHERE expires_at <= now() ORDER BY expires_at LIMIT 100 FOR UPDATE SKIP LOCKED
))
"""
_BEGIN: Final = """
INSERT INTO sessions (session_id, user_id, expires_at)
VALUES (%(session_id)s, %(user_id)s, now() + %(seconds)s * interval '1 s')
RETURNING created_at, expires_at
"""
_END: Final = "UPDATE sessions SET ended_at = now() WHERE session_id = %(session_id)s AND ended_at IS NULL"


async def log_in(call: Call[Nothing, Login]) -> web.Response:
    """Check the proof and answer with the cookie."""
    require_same_origin(call.request, needed=False)
    seconds = call.parts.settings.session_seconds
    if call.body.key is not None:
        try:
            principal, token = await call.parts.admission.given_key(call.body.key.strip(), seconds)
        except NotAdmittedError as error:
            raise ProblemError(401, str(error), headers=CHALLENGE) from error
    else:
        principal, token = await _begin(call, await _known(call))
    response = web.Response(body=msgspec.json.encode(_shown(principal)), status=201, content_type=JSON)
    response.set_cookie(
        COOKIE,
        token,
        max_age=round(seconds),
        path="/",
        httponly=True,
        samesite="Strict",
        secure=_is_https(call.request),
    )
    return response


async def _begin(call: Call[Nothing, Login], user_id: UUID) -> tuple[Principal, str]:
    """A session of the user, and its token."""
    parts, session_id = call.parts, uuid.uuid4()
    values = {"session_id": session_id, "user_id": user_id, "seconds": parts.settings.session_seconds}
    async with parts.database.transaction() as connection:
        await connection.execute(_PRUNE)
        row = await (await connection.execute(_BEGIN, values)).fetchone()
        assert row is not None
    token = parts.admission.signer.token(session_id, user_id, *row)
    return await parts.admission.by_session(token), token


def _shown(principal: Principal) -> Session:
    return Session(
        principal.actor,
        principal.organization_id,
        principal.is_operator,
        sorted(principal.scopes),
        principal.expires_at,
    )


async def _known(call: Call[Nothing, Login]) -> UUID:
    """The user, if the password is right. Raises ProblemError (401, 429)."""
    assert call.body.email is not None
    assert call.body.password is not None
    attempts, email = call.parts.attempts, call.body.email.lower()
    address = call.request.remote or ""
    # Per user and address first, so that a stranger who fails on purpose does not lock the user out at once.
    counted = ((f"{email} {address}", 1), (address, ADDRESS_FACTOR), (email, USER_FACTOR))
    wait = max(attempts.wait_seconds(key, factor) for key, factor in counted)
    if wait > 0:
        raise ProblemError(429, "too many failed logins: wait", headers={"Retry-After": str(int(wait) + 1)})
    for key, _ in counted:
        # Before anything is waited for: many at once must not all pass.
        attempts.failed(key)
    rows = await call.parts.database.rows(_USER, {"email": email})
    user_id, kept = rows[0] if rows else (None, None)
    if not await passwords.is_right(call.body.password, kept):
        raise ProblemError(401, "wrong email or password", headers=CHALLENGE)
    # Whoever has an account must not clear the counts of the others that he tries.
    attempts.forget(counted[0][0])
    for key, _ in counted[1:]:
        attempts.withdraw(key)
    return UUID(str(user_id))


def _is_https(request: web.Request) -> bool:
    """Whether the browser came by https, also where a proxy in front of us ended the TLS."""
    return request.secure or urlsplit(request.headers.get("Origin", "")).scheme == "https"


async def show(call: Call[Nothing, Nothing]) -> Session:
    """Who asks."""
    return _shown(call.caller)


async def log_out(call: Call[Nothing, Nothing]) -> web.Response:
    """End the session of the cookie, everywhere and at once."""
    session_id = call.caller.session_id
    if session_id is not None:
        async with call.parts.database.transaction() as connection:
            await connection.execute(_END, {"session_id": session_id})
        call.parts.admission.forget()
    response = web.Response(status=204)
    response.del_cookie(COOKIE, path="/", httponly=True, samesite="Strict", secure=_is_https(call.request))
    return response


ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/sessions",
        "Log in: the answer sets the session's cookie",
        TAG,
        log_in,
        scope=None,
        status=201,
        answer=Session,
        in_transaction=False,
        refusals={
            401: "The email, the password or the key is wrong",
            403: "Another site's page asked",
            429: "Too many failed logins; Retry-After says how long to wait",
        },
    ),
    Endpoint("GET", "/sessions", "Who asks, and what they may do", TAG, show, scope="any"),
    Endpoint(
        "DELETE",
        "/sessions",
        "Log out",
        TAG,
        log_out,
        scope="any",
        status=204,
        answer=type(None),
        in_transaction=False,
    ),
)
