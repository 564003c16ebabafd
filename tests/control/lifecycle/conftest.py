"""A database with an organisation and a model, and control's way of writing it."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from control.database import Database
from fleetpulse.settings import ControlSettings, DatabaseSettings


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection of the test's own."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def organization_id(sql: psycopg.AsyncConnection[Any]) -> UUID:
    """An organisation."""
    cursor = await sql.execute(
        "INSERT INTO organizations (slug, name) VALUES ('acme', 'Acme') RETURNING organization_id"
    )
    row = await cursor.fetchone()
    assert row is not None
    return UUID(str(row[0]))


@pytest.fixture
async def database(database_settings: DatabaseSettings) -> AsyncIterator[Database]:
    """Control's database, usable."""
    async with Database(ControlSettings(), database_settings) as database:
        database.accept()
        yield database
