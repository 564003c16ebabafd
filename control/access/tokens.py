"""The cookie of a session: a signed JWT that names the session, or the key that a browser was given. What its user or
key may do is looked up, not signed."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import jwt

from control.access.principal import NotAdmittedError
from fleetpulse.settings import ControlSettings
from fleetpulse.telemetry import logger

_log = logger(__name__)

ALGORITHM: Final = "HS256"
# One key per purpose: a token that this secret signed for anything else is none of ours.
AUDIENCE: Final = "fleetpulse-control-session"
KEY_AUDIENCE: Final = "fleetpulse-control-key-session"
SECRET_BYTES: Final = 48
_OVER: Final = "the session is not valid any more: log in"


@dataclass(frozen=True, slots=True)
class KeySession:
    """A browser that was given a key. The key itself is not in the cookie."""

    identity: str
    """The key's, as its principal has it."""
    mark: str
    """See ``Signer.mark``; empty for a key that the database knows by its identity."""
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Signer:
    """Makes and reads tokens."""

    secret: str

    def token(self, session_id: UUID, user_id: UUID, created_at: datetime, expires_at: datetime) -> str:
        """The token of a session."""
        claims = {"aud": AUDIENCE, "jti": str(session_id), "sub": str(user_id), "iat": created_at, "exp": expires_at}
        return jwt.encode(claims, self.secret, ALGORITHM)

    def session_id(self, token: str) -> UUID:
        """Which session a token is of. Raises NotAdmittedError."""
        try:
            claims = jwt.decode(
                token,
                self.secret,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                options={"require": ["aud", "jti", "sub", "iat", "exp"]},
            )
            return UUID(claims["jti"])
        except (jwt.PyJWTError, ValueError) as error:
            raise NotAdmittedError(_OVER) from error

    def mark(self, digest: bytes) -> str:
        """Tells whether a key is still the one that a cookie was made for, and nothing about the key: one that people
        made up could be guessed from its digest."""
        return hmac.new(self.secret.encode(), digest, hashlib.sha256).hexdigest()

    def key_token(self, session: KeySession, created_at: datetime) -> str:
        """The token of a browser that was given a key."""
        claims = {
            "aud": KEY_AUDIENCE,
            "sub": session.identity,
            "mark": session.mark,
            "iat": created_at,
            "exp": session.expires_at,
        }
        return jwt.encode(claims, self.secret, ALGORITHM)

    def key_session(self, token: str) -> KeySession | None:
        """What ``key_token`` made; None for the token of a user's session. Raises NotAdmittedError."""
        try:
            claims = jwt.decode(
                token,
                self.secret,
                algorithms=[ALGORITHM],
                audience=KEY_AUDIENCE,
                options={"require": ["aud", "sub", "iat", "exp"]},
            )
            return KeySession(claims["sub"], str(claims["mark"]), datetime.fromtimestamp(claims["exp"], UTC))
        except jwt.InvalidAudienceError:
            return None
        except (jwt.PyJWTError, KeyError) as error:
            raise NotAdmittedError(_OVER) from error


def signer(settings: ControlSettings) -> Signer:
    """By the secret of the settings, or a random one, which is said in the log."""
    if settings.session_secret is not None:
        return Signer(settings.session_secret.get_secret_value())
    _log.warning(
        "sessions end with this process, and other control processes do not know them",
        extra={"reason": "FLEETPULSE_CONTROL_SESSION_SECRET is not set"},
    )
    return Signer(secrets.token_urlsafe(SECRET_BYTES))
