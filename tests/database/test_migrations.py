"""Migrations: from nothing to complete and back, by any number of processes, with errors that say what to do."""

import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from collector.rollups import roll_up
from fleetpulse.database import DatabaseError, prepare
from fleetpulse.database.connect import connect
from fleetpulse.database.migrate import dbmate_url, run_dbmate, sql_folder
from fleetpulse.database.relations import ROLLUP_SUFFIXES, expected
from fleetpulse.settings import DatabaseSettings, ServiceSettings

SQL = sql_folder(ServiceSettings(sql_dir=None))
PREPARE = """
import asyncio, sys
from fleetpulse.database import prepare
from fleetpulse.settings import DatabaseSettings
print(asyncio.run(prepare(DatabaseSettings(url=sys.argv[1]))))
"""


def columns(url: str, relations: list[str]) -> dict[str, tuple[str, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT name, array_agg(a.attname::text ORDER BY a.attnum) FROM unnest(%s::text[]) AS name"
            " JOIN pg_attribute a ON a.attrelid = to_regclass(name) AND a.attnum > 0 AND NOT a.attisdropped"
            " GROUP BY name",
            (relations,),
        ).fetchall()
    return {relation: tuple(names) for relation, names in rows}


def test_both_profiles_have_the_columns_that_the_dictionary_asks_for_in_its_order(any_database_url):
    with psycopg.connect(any_database_url) as connection:
        (profile,) = connection.execute("SELECT name FROM database_profile").fetchone()
    assert columns(any_database_url, list(expected(profile))) == expected(profile)


def test_measures_are_double_precision_and_counts_bigint_in_both_profiles(any_database_url):
    with psycopg.connect(any_database_url) as connection:
        found = connection.execute(
            "SELECT DISTINCT CASE WHEN attname LIKE '%\\_count' THEN 'count' ELSE 'other' END,"
            " format_type(atttypid, -1)"
            " FROM pg_attribute WHERE attnum > 0"
            " AND attrelid = ANY(ARRAY['gpu_samples_1m', 'gpu_samples_1h', 'gpu_samples_1d']::regclass[]) ORDER BY 1, 2"
        ).fetchall()
    assert found == [
        ("count", "bigint"),
        ("other", "double precision"),
        ("other", "integer"),
        ("other", "timestamp with time zone"),
    ]


def test_ten_processes_at_once_migrate_an_empty_database_once(empty_database_url):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE, empty_database_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(10)
    ]
    ended = [(process.communicate(timeout=100), process.returncode) for process in started]
    assert [(output, code) for (output, _), code in ended] == [("postgres\n", 0)] * 10, ended
    with psycopg.connect(empty_database_url) as connection:
        applied = connection.execute("SELECT version FROM schema_migrations ORDER BY version").fetchall()
    names = [path.name.split("_")[0] for folder in ("common", "postgres") for path in (SQL / folder).glob("*.sql")]
    assert [version for (version,) in applied] == sorted(names)


async def test_every_migration_can_be_rolled_back_and_applied_again(database_settings):
    url = database_settings.url.get_secret_value()
    before = columns(url, list(expected("postgres")))
    async with await connect(database_settings) as connection:
        target = dbmate_url(connection, database_settings)
        cursor = await connection.execute("SELECT count(*) FROM schema_migrations")
        for _ in range((await cursor.fetchone())[0]):
            await run_dbmate(target, SQL, "postgres", "rollback")
    assert columns(url, list(expected("postgres"))) == {}
    await run_dbmate(target, SQL, "postgres")
    assert columns(url, list(expected("postgres"))) == before


@pytest.mark.timescale
async def test_every_timescale_migration_can_be_undone_and_applied_again(timescale_url):
    settings = DatabaseSettings(url=timescale_url)
    before = columns(timescale_url, list(expected("timescale")))
    files = sorted([*(SQL / "common").glob("*.sql"), *(SQL / "timescale").glob("*.sql")], key=lambda path: path.name)
    async with await connect(settings) as connection:
        target = dbmate_url(connection, settings)
        # dbmate's own rollback takes two connections, which is one more than the WASM server has.
        for path in reversed(files):
            await connection.execute(path.read_text().split("-- migrate:down")[1])
        await connection.execute("DELETE FROM schema_migrations")
    assert columns(timescale_url, list(expected("timescale"))) == {}
    await run_dbmate(target, SQL, "timescale")
    assert columns(timescale_url, list(expected("timescale"))) == before


async def test_rolling_back_the_partitions_keeps_the_samples(database_settings):
    async with await connect(database_settings) as connection:
        await connection.execute("INSERT INTO gpu_samples (time, worker_key, gpu_key) VALUES (now(), 1, 2)")
        target = dbmate_url(connection, database_settings)
        while await is_applied(connection, "0005"):
            await run_dbmate(target, SQL, "postgres", "rollback")
        cursor = await connection.execute("SELECT gpu_key FROM gpu_samples")
        assert await cursor.fetchall() == [(2,)]


async def test_groups_of_a_database_that_is_older_than_they_are_hold_what_its_rollups_hold(database_settings):
    now = datetime.now(UTC)
    async with await connect(database_settings) as connection:
        target = dbmate_url(connection, database_settings)
        while await is_applied(connection, "0021"):
            await run_dbmate(target, SQL, "postgres", "rollback")
        await connection.execute(
            "INSERT INTO gpu_samples (time, worker_key, gpu_key, power_watts) SELECT t, gpu %% 2, gpu, gpu"
            " FROM generate_series(1, 5) AS gpu, unnest(%s::timestamptz[]) AS t",
            ([now, now - timedelta(days=13)],),
        )
        await connection.execute(
            "INSERT INTO rollup_dirty SELECT DISTINCT 'gpu_samples', date_trunc('minute', time) FROM gpu_samples"
        )
        await roll_up(connection)
        await run_dbmate(target, SQL, "postgres")
        for suffix in ROLLUP_SUFFIXES:
            cursor = await connection.execute(
                f"SELECT worker_key, series_count, sample_count, power_watts_sum FROM gpu_worker{suffix}"
                " ORDER BY worker_key, bucket"
            )
            assert await cursor.fetchall() == [(0, 2, 2, 6)] * 2 + [(1, 3, 3, 9)] * 2
            cursor = await connection.execute(f"SELECT series_count, power_watts_sum FROM gpu_fleet{suffix}")
            assert await cursor.fetchall() == [(5, 15)] * 2


async def is_applied(connection, version: str) -> bool:
    cursor = await connection.execute("SELECT EXISTS (SELECT FROM schema_migrations WHERE version = %s)", (version,))
    return (await cursor.fetchone())[0]


async def test_a_migration_that_fails_is_named_and_leaves_nothing_behind(empty_database_url, tmp_path):
    shutil.copytree(SQL, tmp_path / "sql")
    broken = tmp_path / "sql" / "common" / "0099_broken.sql"
    broken.write_text("-- migrate:up\nCREATE TABLE half (a int);\nSELECT nonsense();\n-- migrate:down\n")
    settings = DatabaseSettings(url=empty_database_url)
    with pytest.raises(DatabaseError, match=r"migration failed in 0099_broken\.sql: .*nonsense") as caught:
        await prepare(settings, ServiceSettings(sql_dir=tmp_path / "sql"))
    assert "\n" not in str(caught.value)
    async with await connect(settings) as connection:
        cursor = await connection.execute("SELECT to_regclass('half')")
        assert await cursor.fetchone() == (None,)
    broken.unlink()
    assert await prepare(settings, ServiceSettings(sql_dir=tmp_path / "sql")) == "postgres"


async def test_a_process_that_never_finishes_migrating_is_reported_to_those_who_wait(database_url):
    settings = DatabaseSettings(url=database_url, migration_timeout_seconds=0.2)
    async with await connect(settings) as other:
        await other.execute("SELECT pg_advisory_lock(%s)", (int.from_bytes(b"fleetpul"),))
        with pytest.raises(DatabaseError, match=r"another process has been migrating the database for 0\.2 s"):
            await prepare(settings)
    assert await prepare(settings.model_copy(update={"migration_timeout_seconds": 30.0})) == "postgres"


async def test_the_password_is_not_among_the_arguments_of_dbmate(database_settings, tmp_path, monkeypatch):
    spy = tmp_path / "dbmate"
    spy.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n')
    spy.chmod(0o755)
    monkeypatch.setattr("fleetpulse.database.migrate._dbmate", lambda: str(spy))
    async with await connect(database_settings) as connection:
        await run_dbmate(dbmate_url(connection, database_settings), SQL, "postgres")
        assert connection.info.password not in (tmp_path / "arguments").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda url: url.replace("postgres:", "postgres:not", 1), "cannot connect .*authentication failed"),
        (lambda url: url.rsplit("/", 1)[0] + "/nowhere", 'database "nowhere" does not exist'),
        (lambda _: "127.0.0.1:5432", "FLEETPULSE_DATABASE_URL is not a PostgreSQL connection URL"),
    ],
)
async def test_an_error_that_waiting_cannot_cure_is_told_at_once(database_url, change, message):
    changed = change(database_url)
    with pytest.raises(DatabaseError, match=message) as caught:
        await prepare(DatabaseSettings(url=changed))
    assert "\n" not in str(caught.value)
    assert ":not" not in str(caught.value)


async def test_a_server_that_is_not_up_is_waited_for_and_then_reported(unused_port):
    settings = DatabaseSettings(url=f"postgresql://postgres@127.0.0.1:{unused_port}/x", migration_timeout_seconds=0.3)
    with pytest.raises(DatabaseError, match=rf"cannot connect to the database at 127\.0\.0\.1:{unused_port}/x"):
        await prepare(settings)


async def test_a_folder_without_migrations_is_an_error_that_names_the_setting(database_settings, tmp_path):
    with pytest.raises(DatabaseError, match="set FLEETPULSE_SQL_DIR"):
        await prepare(database_settings, ServiceSettings(sql_dir=Path(tmp_path)))


async def test_a_server_that_ends_while_it_is_prepared_is_one_line_and_no_crash(database_url, monkeypatch):
    """Whoever waits for the database, a collector that was just started, say, goes on waiting."""

    async def interrupted(connection, *_: object) -> int:
        async with await connect(settings) as other:
            await other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        await connection.execute("SELECT 1")
        return 0

    settings = DatabaseSettings(url=database_url)
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[prepare.__module__], "make_partitions", interrupted)
        with pytest.raises(DatabaseError, match="the database cannot be prepared: ") as caught:
            await prepare(settings)
    assert "\n" not in str(caught.value)
    assert await prepare(settings) == "postgres"
