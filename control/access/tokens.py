"""The cookie of a session: a signed JWT that names the session. What its user may do is looked up, not signed."""

import secrets
from dataclasses import dataclass
from datetime import datetime
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
SECRET_BYTES: Final = 48


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
            raise NotAdmittedError("the session is not valid any more: log in") from error


def signer(settings: ControlSettings) -> Signer:
    """By the secret of the settings, or a random one, which is said in the log."""
    if settings.session_secret is not None:
        return Signer(settings.session_secret.get_secret_value())
    _log.warning(
        "sessions end with this process, and other control processes do not know them",
        extra={"reason": "FLEETPULSE_CONTROL_SESSION_SECRET is not set"},
    )
    return Signer(secrets.token_urlsafe(SECRET_BYTES))
