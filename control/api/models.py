"""Finding the model that a name means: UUID, Hugging Face id, alias, or an offering as ``organisation/code``."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from psycopg import AsyncConnection

from control.database import Row

_RESOLVE: Final = """
SELECT m.model_id, m.hugging_face_id, m.active,
    m.public OR EXISTS (
        SELECT FROM model_access AS a WHERE a.model_id = m.model_id AND a.organization_id = %(organization_id)s
    )
FROM (
    SELECT model_id, 1 AS rank FROM models WHERE model_id::text = lower(%(name)s)
    UNION ALL SELECT model_id, 2 FROM models WHERE hugging_face_id = %(name)s
    UNION ALL SELECT model_id, 3 FROM model_aliases WHERE alias = %(name)s
    UNION ALL SELECT o.model_id, 4 FROM offerings AS o JOIN organizations USING (organization_id)
        WHERE slug || '/' || o.code = %(name)s AND o.active
) AS named JOIN models AS m USING (model_id)
ORDER BY named.rank LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Model:
    """A model, and whether the organisation that asks may use it."""

    model_id: UUID
    hugging_face_id: str
    active: bool
    accessible: bool


async def resolve(connection: AsyncConnection[Row], name: str, organization_id: UUID) -> Model | None:
    """The model of that name; None when there is none."""
    cursor = await connection.execute(_RESOLVE, {"name": name, "organization_id": organization_id})
    row = await cursor.fetchone()
    return Model(*row) if row else None
