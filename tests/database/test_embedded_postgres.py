"""The embedded PostgreSQL server."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.local.processes import StartError

FAST = {"fsync": "off"}
RUN_AND_WAIT = """
import sys, time
from pathlib import Path
from fleetpulse.local.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), parameters={"fsync": "off"})
server.start()
print(server.pid, server.url(), flush=True)
time.sleep(60)
"""


def await_status(process: psutil.Process, status: str) -> None:
    deadline = time.monotonic() + 10
    while process.status() != status:
        assert time.monotonic() < deadline, f"{process} is not {status}"
        time.sleep(0.005)


@pytest.fixture
def folder():
    # Not pytest's own folder: others may not pass through it, and the server runs as another account under root.
    path = Path(tempfile.mkdtemp(prefix="fleetpulse-test-"))
    yield path
    shutil.rmtree(path)


def test_data_survives_a_stop_and_a_crash(folder):
    server = EmbeddedPostgres(folder / "postgres")  # with fsync, as in use
    server.start()
    try:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (a int)")
            connection.execute("INSERT INTO kept VALUES (1)")
        server.kill()
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("INSERT INTO kept VALUES (2)")
        server.stop()
        server.start()
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("SELECT a FROM kept ORDER BY a").fetchall() == [(1,), (2,)]
    finally:
        server.stop()


def test_it_listens_on_the_loopback_address_alone_and_asks_for_the_password(folder):
    with EmbeddedPostgres(folder / "postgres", parameters=FAST) as server:
        listening = {
            connection.laddr.ip
            for connection in psutil.Process(server.pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        assert not list(Path("/tmp").glob(f".s.PGSQL.{server.port}"))
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host="127.0.0.1", port=server.port, user="postgres", password="wrong")
        assert (folder / "postgres" / "password").stat().st_mode & 0o077 == 0


def test_it_ends_with_the_process_that_started_it(folder):
    with subprocess.Popen(
        [sys.executable, "-c", RUN_AND_WAIT, folder / "postgres"], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid, _ = parent.stdout.readline().split()
        server = psutil.Process(int(pid))
        parent.kill()
    server.wait(20)
    assert not server.is_running()
    with EmbeddedPostgres(folder / "postgres", parameters=FAST):
        pass


def test_a_folder_in_use_is_refused(folder):
    with (
        EmbeddedPostgres(folder / "postgres", parameters=FAST),
        pytest.raises(StartError, match="belongs to a running PostgreSQL"),
    ):
        EmbeddedPostgres(folder / "postgres").start()


def test_a_pid_file_that_names_another_program_does_not_stop_the_start(folder):
    server = EmbeddedPostgres(folder / "postgres", parameters=FAST)
    server.start()
    server.kill()
    pid_file = folder / "postgres" / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    with server:
        assert psutil.pid_exists(server.pid)
    assert not psutil.pid_exists(server.pid)


def test_an_interrupted_first_start_is_begun_again(folder):
    unfinished = folder / "postgres" / "data.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(folder / "postgres", parameters=FAST) as server:
        psycopg.connect(server.url()).close()


def test_a_frozen_server_answers_again_when_thawed(folder):
    with EmbeddedPostgres(folder / "postgres", parameters=FAST) as server:
        with psycopg.connect(server.url()) as connection:
            server.freeze()
            for pid in (server.pid, connection.info.backend_pid):
                await_status(psutil.Process(pid), psutil.STATUS_STOPPED)
            server.thaw()
            assert connection.execute("SELECT 1").fetchone() == (1,)
        server.freeze()  # and a frozen one can be stopped


def test_a_parameter_it_does_not_know_is_reported_with_the_servers_words(folder):
    server = EmbeddedPostgres(folder / "postgres", parameters={"no_such_parameter": "1"})
    with pytest.raises(StartError, match="no_such_parameter"):
        server.start()
    server.child.signal(signal.SIGKILL)  # nothing is left to signal
    assert not server.child.running


def test_a_missing_installation_is_named(folder):
    with pytest.raises(StartError, match="initdb"):
        EmbeddedPostgres(folder / "postgres", binaries=folder).start()
