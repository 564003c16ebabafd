"""The database: connecting, its profile, migrations, policies, and whether all that should exist does."""

from fleetpulse.database.connect import DatabaseError, connect
from fleetpulse.database.prepare import prepare
from fleetpulse.database.profile import Profile

__all__ = ["DatabaseError", "Profile", "connect", "prepare"]
