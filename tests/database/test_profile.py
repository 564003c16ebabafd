"""The profile is what the server offers, unless somebody said otherwise, and never changes afterwards."""

import pytest

from fleetpulse.database import DatabaseError, prepare
from fleetpulse.database.connect import connect
from fleetpulse.database.profile import detect, ensure_extension
from fleetpulse.settings import DatabaseSettings


async def test_a_server_without_timescaledb_gets_the_postgres_profile(empty_database_url):
    assert await prepare(DatabaseSettings(url=empty_database_url)) == "postgres"


async def test_asking_for_timescale_where_it_is_not_there_says_what_to_do(empty_database_url):
    with pytest.raises(DatabaseError, match="needs TimescaleDB, but the extension timescaledb is not there: install"):
        await prepare(DatabaseSettings(url=empty_database_url, profile="timescale"))


async def test_a_database_keeps_the_profile_it_was_made_for(database_url):
    with pytest.raises(DatabaseError, match="made for the profile postgres"):
        await prepare(DatabaseSettings(url=database_url, profile="timescale"))


async def test_a_timescale_database_on_a_server_without_timescaledb_is_refused(database_settings):
    async with await connect(database_settings) as connection:
        await connection.execute("UPDATE database_profile SET name = 'timescale'")
    with pytest.raises(DatabaseError, match="needs TimescaleDB, but"):
        await prepare(database_settings)


@pytest.mark.timescale
async def test_a_server_with_timescaledb_gets_the_timescale_profile_unless_told_otherwise(empty_timescale_url):
    settings = DatabaseSettings(url=empty_timescale_url)
    plain = settings.model_copy(update={"profile": "postgres"})
    await ensure_extension(plain)
    async with await connect(settings) as connection:
        assert await detect(connection, plain) == "postgres"
    await ensure_extension(settings)
    async with await connect(settings) as connection:
        assert await detect(connection, settings) == "timescale"
        assert await detect(connection, plain) == "postgres"
