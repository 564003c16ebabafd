"""A database with an organisation and a model, and control's way of writing it."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import SecretStr

from control.database import Database
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.settings import ControlSettings, DatabaseSettings

# What tests write, in an order that references allow.
CLEAR = """
DELETE FROM job_work; DELETE FROM job_states; DELETE FROM lifecycle_outbox; DELETE FROM action_log; DELETE FROM volumes;
DELETE FROM orphan_machines; DELETE FROM outdated_agents; DELETE FROM heartbeats; DELETE FROM workers;
DELETE FROM instances; DELETE FROM models; DELETE FROM instance_types; DELETE FROM zones; DELETE FROM providers;
DELETE FROM organizations; UPDATE lifecycle_publisher SET owner = NULL, lease_until = NULL
"""


@pytest.fixture(scope="session")
def lifecycle_database_url(postgres_server: EmbeddedPostgres, template_database: str) -> str:
    """One database for all tests here: making one takes half a second."""
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE control_lifecycle TEMPLATE {template_database}")
    return postgres_server.url("control_lifecycle")


@pytest.fixture
def database_settings(lifecycle_database_url: str) -> DatabaseSettings:
    """Settings of that database."""
    return DatabaseSettings(url=SecretStr(lifecycle_database_url))


@pytest.fixture
async def sql(lifecycle_database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection of the test's own; afterwards the database is empty."""
    async with await psycopg.AsyncConnection.connect(lifecycle_database_url, autocommit=True) as connection:
        yield connection
        await connection.execute(CLEAR)


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
