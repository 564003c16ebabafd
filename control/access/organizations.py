"""Organisations that requests act for."""

from typing import Final
from uuid import UUID

from psycopg import AsyncConnection

from control.access.principal import OPERATORS, Principal
from control.database import Row

_MAKE: Final = """
INSERT INTO organizations (slug, name) VALUES (%(slug)s, 'Operators') ON CONFLICT (slug) DO NOTHING
"""
_FIND: Final = "SELECT organization_id FROM organizations WHERE slug = %(slug)s"


async def organization_of(connection: AsyncConnection[Row], principal: Principal) -> UUID:
    """The organisation that a principal acts for; the operators' is made when it is first needed."""
    if principal.organization_id is not None:
        return principal.organization_id
    slug = {"slug": OPERATORS}
    row = await (await connection.execute(_FIND, slug)).fetchone()
    if row is None:
        await connection.execute(_MAKE, slug)
        row = await (await connection.execute(_FIND, slug)).fetchone()
    assert row is not None
    return UUID(str(row[0]))
