"""From a credential to the principal that it stands for."""

import hmac
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from control.access import keys
from control.access.cache import Cache
from control.access.principal import ADMIN, OPERATORS, NotAdmittedError, Principal
from control.access.tokens import KeySession, Signer, signer
from control.database import Database, Row
from fleetpulse.settings import ControlSettings, SettingsError

KEY_IDENTITY: Final = "key:"
_KEY: Final = """
SELECT k.digest, k.key_id, k.prefix, k.scopes, k.organization_id, o.slug, k.expires_at
FROM api_keys AS k JOIN organizations AS o USING (organization_id)
WHERE k.digest = %(digest)s AND k.revoked_at IS NULL
"""
_KEY_BY_ID: Final = """
SELECT k.digest, k.key_id, k.prefix, k.scopes, k.organization_id, o.slug, k.expires_at
FROM api_keys AS k JOIN organizations AS o USING (organization_id)
WHERE k.key_id = %(key_id)s AND k.revoked_at IS NULL
"""
_SESSION: Final = """
SELECT u.user_id, u.email, u.scopes, u.organization_id, o.slug, s.expires_at
FROM sessions AS s JOIN users AS u USING (user_id) JOIN organizations AS o USING (organization_id)
WHERE s.session_id = %(session_id)s AND s.ended_at IS NULL AND u.disabled_at IS NULL
"""


def check(settings: ControlSettings) -> None:
    """Raises SettingsError for an admin key that is none."""
    key = settings.admin_key
    if key is not None and not key.get_secret_value().strip():
        raise SettingsError("FLEETPULSE_CONTROL_ADMIN_KEY is empty: unset it or give a key")


class Admission:
    """Knows the admin key, and asks the database for all others; answers are kept for a short while."""

    def __init__(self, settings: ControlSettings, database: Database) -> None:
        admin_key = settings.admin_key
        self._admin_digest = keys.digest(admin_key.get_secret_value().strip()) if admin_key else None
        self._database = database
        self._cache = Cache(settings.access_cache_seconds)
        self.signer: Signer = signer(settings)

    def forget(self) -> None:
        """Access changed: look everybody up anew."""
        self._cache.forget()

    async def by_key(self, text: str) -> Principal:
        """Whose key it is. Raises NotAdmittedError, UnavailableError."""
        digest = keys.digest(text)
        # Digests have one length: neither the key's length nor its beginning shows in the time taken.
        if self._admin_digest is not None and hmac.compare_digest(digest, self._admin_digest):
            return ADMIN
        if not keys.is_ours(text):
            raise NotAdmittedError("wrong key")
        if keys.is_mistyped(text):
            raise NotAdmittedError("this key is mistyped: its checksum does not fit; copy it once more")
        known, principal = self._cache.get(digest)
        if not known:
            generation = self._cache.generation
            rows = await self._database.rows(_KEY, {"digest": digest})
            principal = next((_of_key(row) for row in rows if hmac.compare_digest(row[0], digest)), None)
            self._cache.put(digest, principal, generation)
        if principal is None:
            raise NotAdmittedError("this key is not known, or it was revoked")
        if principal.is_expired():
            raise NotAdmittedError("this key has expired")
        return principal

    async def given_key(self, text: str, seconds: float) -> tuple[Principal, str]:
        """Whose key it is, and a token with which a browser may come back for so long, or until the key ends.

        Raises NotAdmittedError, UnavailableError.
        """
        principal = await self.by_key(text)
        now = datetime.now(UTC)
        ends = min(now + timedelta(seconds=seconds), principal.expires_at or datetime.max.replace(tzinfo=UTC))
        mark = self.signer.mark(keys.digest(text)) if principal is ADMIN else ""
        token = self.signer.key_token(KeySession(principal.identity, mark, ends), now)
        return replace(principal, expires_at=ends), token

    async def by_session(self, token: str) -> Principal:
        """Who is logged in. Raises NotAdmittedError, UnavailableError."""
        given = self.signer.key_session(token)
        if given is not None:
            return await self._by_key_session(given)
        session_id = self.signer.session_id(token)
        known, principal = self._cache.get(session_id.bytes)
        if not known:
            generation = self._cache.generation
            rows = await self._database.rows(_SESSION, {"session_id": session_id})
            principal = _of_user(rows[0], session_id) if rows else None
            self._cache.put(session_id.bytes, principal, generation)
        if principal is None or principal.is_expired():
            raise NotAdmittedError("the session is over: log in")
        return principal

    async def _by_key_session(self, session: KeySession) -> Principal:
        if session.identity == ADMIN.identity:
            mark = self.signer.mark(self._admin_digest) if self._admin_digest is not None else ""
            if not mark or not hmac.compare_digest(mark, session.mark):
                raise NotAdmittedError("the admin key is another one now: log in")
            return replace(ADMIN, expires_at=session.expires_at)
        key_id = UUID(session.identity.removeprefix(KEY_IDENTITY))
        remembered = KEY_IDENTITY.encode() + key_id.bytes
        known, principal = self._cache.get(remembered)
        if not known:
            generation = self._cache.generation
            rows = await self._database.rows(_KEY_BY_ID, {"key_id": key_id})
            principal = _of_key(rows[0]) if rows else None
            self._cache.put(remembered, principal, generation)
        if principal is None or principal.is_expired():
            raise NotAdmittedError("the key that was given is not valid any more: log in")
        return replace(principal, expires_at=session.expires_at)


def _of_key(row: Row) -> Principal:
    _, key_id, prefix, scopes, organization_id, slug, expires_at = row
    return Principal(
        actor=f"key:{prefix}",
        identity=f"{KEY_IDENTITY}{key_id}",
        scopes=frozenset(scopes),
        organization_id=organization_id,
        is_operator=slug == OPERATORS,
        expires_at=expires_at,
    )


def _of_user(row: Row, session_id: UUID) -> Principal:
    user_id, email, scopes, organization_id, slug, expires_at = row
    return Principal(
        actor=f"user:{email}",
        identity=f"user:{user_id}",
        scopes=frozenset(scopes),
        organization_id=organization_id,
        is_operator=slug == OPERATORS,
        expires_at=expires_at,
        session_id=session_id,
    )
