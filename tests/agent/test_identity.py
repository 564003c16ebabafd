"""Where a worker's ids come from."""

from pathlib import Path

import pytest

from agent.identity import identify, package_checksum, state_folder
from agent.lanes import spool_folder
from fleetpulse.settings import AgentSettings, SettingsError

MACHINE_ID = "0123456789abcdef0123456789abcdef"


def machine_id_file(folder: Path, content: str = MACHINE_ID + "\n") -> tuple[Path, ...]:
    path = folder / "machine-id"
    path.write_text(content)
    return (folder / "missing", path)


def test_the_settings_win(tmp_path: Path) -> None:
    settings = AgentSettings(worker_id="w", instance_id="i")
    identity = identify(settings, machine_id_file(tmp_path))
    assert (identity.worker_id, identity.instance_id, identity.host_id) == ("w", "i", MACHINE_ID)


def test_the_machine_id_names_the_worker_without_being_passed_on(tmp_path: Path) -> None:
    first, second = (identify(AgentSettings(), machine_id_file(tmp_path)) for _ in range(2))
    assert first.worker_id == second.worker_id == first.instance_id
    assert MACHINE_ID not in first.worker_id
    assert len(first.worker_id) == 32


@pytest.mark.parametrize("content", ["", "uninitialized\n", "not a machine id"])
def test_without_a_machine_id_an_id_is_made_and_kept(tmp_path: Path, content: str) -> None:
    settings = AgentSettings(state_dir=tmp_path / "kept")
    files = machine_id_file(tmp_path, content)
    first, second = identify(settings, files), identify(settings, files)
    assert first.worker_id == second.worker_id == first.host_id
    assert len(first.worker_id) == 32
    assert identify(AgentSettings(state_dir=tmp_path / "other"), files).worker_id != first.worker_id


@pytest.mark.parametrize("wrong", ["with space", "ü", "x" * 201, "tab\t"])
def test_an_id_that_readers_would_refuse_is_refused_here(wrong: str) -> None:
    with pytest.raises(SettingsError, match="FLEETPULSE_AGENT_WORKER_ID"):
        identify(AgentSettings(worker_id=wrong))


def test_an_id_that_cannot_be_kept_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="FLEETPULSE_AGENT_WORKER_ID"):
        identify(AgentSettings(state_dir=tmp_path / "file"), ())


def test_the_state_folder_is_the_settings_then_systemds_then_the_users(tmp_path: Path) -> None:
    environment = {"STATE_DIRECTORY": "/var/lib/x:/y", "XDG_STATE_HOME": "/home/u/.local/state"}
    assert state_folder(AgentSettings(state_dir=tmp_path), environment) == tmp_path
    assert state_folder(AgentSettings(), environment) == Path("/var/lib/x")
    del environment["STATE_DIRECTORY"]
    assert state_folder(AgentSettings(), environment) == Path("/home/u/.local/state/fleetpulse-agent")


def test_workers_of_one_host_have_spools_of_their_own(tmp_path: Path) -> None:
    settings = AgentSettings(state_dir=tmp_path)
    folders = {spool_folder(settings, worker) for worker in ("a", "b", "../c")}
    assert len(folders) == 3
    assert all(folder.resolve().parent == tmp_path / "spool" for folder in folders)


def test_the_checksum_covers_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("2")
    sums = [package_checksum(tmp_path)]
    (tmp_path / "b.py").write_text("3")
    sums.append(package_checksum(tmp_path))
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    sums.append(package_checksum(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    assert len(set(sums)) == 3
    assert package_checksum(tmp_path) == sums[-1]
