"""What the data folder keeps besides the data."""

import json
import socket
import stat
from pathlib import Path

import pytest

from fleetpulse.local.processes import StartError
from fleetpulse.local.state_file import (
    STATE_FILE,
    has_state,
    kept_port,
    kept_secrets,
    leftover_pids,
    locked,
    remove_state,
    running_state,
    write_state,
)


def test_secrets_are_made_once_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    first, second = kept_secrets(tmp_path), kept_secrets(tmp_path)
    assert first == second
    assert len({first.admin_key, first.inference_key, first.worker_token}) == 3
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "{", "[]", '{"admin_key": "x"}'])
def test_damaged_secrets_are_told_and_not_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "secrets.json").write_text(content)
    with pytest.raises(StartError, match=r"secrets.json is damaged.*delete it"):
        kept_secrets(tmp_path)
    assert (tmp_path / "secrets.json").read_text() == content


def test_a_port_is_kept_while_it_is_free(tmp_path: Path) -> None:
    port = kept_port(tmp_path, "postgres")
    assert kept_port(tmp_path, "postgres") == port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        moved = kept_port(tmp_path, "postgres")
    assert moved != port
    assert kept_port(tmp_path, "postgres") == moved


def test_damaged_ports_are_chosen_anew(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text('{"postgres": "x"')
    assert kept_port(tmp_path, "postgres") > 0


def test_the_state_is_private_and_replaced_whole(tmp_path: Path) -> None:
    write_state(tmp_path, {"pids": {"a": 1}})
    write_state(tmp_path, {"pids": {"a": 2}})
    assert json.loads((tmp_path / STATE_FILE).read_text()) == {"pids": {"a": 2}}
    assert stat.S_IMODE((tmp_path / STATE_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    remove_state(tmp_path)
    assert not has_state(tmp_path)


def test_a_second_holder_of_the_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(StartError, match=r"runs in .* already"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_state_counts_only_while_its_stack_is_up(tmp_path: Path) -> None:
    write_state(tmp_path, {"control_url": "http://x", "pids": {"a": 4, "b": "five"}})
    assert running_state(tmp_path) == {}
    with locked(tmp_path):
        assert running_state(tmp_path)["control_url"] == "http://x"
    assert leftover_pids(tmp_path) == [4]
