"""What control learns of workers from the database before they are heard."""

import time

import psycopg

from control.database import Database
from control.directory import Directory
from fleetpulse.settings import ControlSettings, DatabaseSettings
from fleetpulse.stream.fleet_view import FleetView

INSTANCE = """
INSERT INTO instances (instance_id, organization_id, provider, zone, instance_type, state, created_by)
SELECT %s, organization_id, 'p', 'z', 't', %s, 'test' FROM organizations WHERE slug = 'o'
"""


async def test_a_worker_whose_instance_has_ended_is_not_waited_for(database_settings: DatabaseSettings) -> None:
    url = database_settings.url.get_secret_value()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO organizations (slug, name) VALUES ('o', 'o')")
        for instance_id, state in (("lives", "ready"), ("ended", "terminated"), ("kept", "archived"), ("foreign", "")):
            connection.execute("INSERT INTO workers (worker_id, instance_id) VALUES (%s, %s)", (instance_id,) * 2)
            if state:
                connection.execute(INSTANCE, (instance_id, state))
    view = FleetView()
    async with Database(ControlSettings(), database_settings) as database:
        database.accept()
        await Directory().refresh(database, view)
    assert {each.instance_id for each in view.snapshot(time.monotonic())} == {"lives", "foreign"}
