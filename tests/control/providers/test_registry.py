"""Providers are found by name, ours and others' alike; the example of the documents is one."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.providers.interface import Machine, MachineRequest
from control.providers.registry import check, installed, opened
from fleetpulse.settings import ControlSettings, SettingsError

PAGE = Path(__file__).parents[3] / "docs" / "providers.md"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example of docs/providers.md, installed as a distribution of its own."""
    blocks = re.findall(r"```(python|toml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (program,) = [text for kind, text in blocks if kind == "python"]
    (project,) = [text for kind, text in blocks if kind == "toml" and "entry-points" in text]
    (name, value) = re.findall(r'^(\w+) = "(shelf:\w+)"$', project, re.MULTILINE)[0]
    (tmp_path / "shelf.py").write_text(program)
    information = tmp_path / "fleetpulse_shelf-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fleetpulse-shelf\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[fleetpulse.providers]\n{name} = {value}\nbroken = no_such:thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("shelf", None)


def test_ours_are_installed() -> None:
    assert {"mock", "scaleway", "static"} <= set(installed())


def test_an_unknown_provider_is_named_with_those_that_are_installed() -> None:
    with pytest.raises(SettingsError, match=r"there is no provider 'mokc'; installed are: .*mock, scaleway, static"):
        check(ControlSettings(providers=("mock", "mokc")))


def test_providers_are_set_as_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ControlSettings().providers == ()
    monkeypatch.setenv("FLEETPULSE_CONTROL_PROVIDERS", "mock, static")
    assert ControlSettings().providers == ("mock", "static")


async def test_opening_asks_a_provider_nothing() -> None:
    async with opened(["mock", "mock"]) as providers:
        assert {name: provider.name for name, provider in providers.items()} == {"mock": "mock"}


async def test_a_provider_with_wrong_settings_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEETPULSE_SCALEWAY_SECRET_KEY", raising=False)
    with pytest.raises(SettingsError, match="FLEETPULSE_SCALEWAY_SECRET_KEY is not set"):
        async with opened(["scaleway"]):
            pass


async def test_a_provider_whose_package_is_missing_says_what_to_install(example: None) -> None:
    with pytest.raises(SettingsError, match="the provider broken needs the package no_such"):
        async with opened(["broken"]):
            pass


async def test_the_example_of_the_documents_is_a_provider(example: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELF_HOSTS", "10.0.0.1,10.0.0.2")
    requests = [MachineRequest(f"i-{place}", "shelf", "box", None, {}) for place in range(2)]
    async with opened(["shelf"]) as providers:
        shelf = providers["shelf"]
        machines = [await shelf.create(request) for request in requests]
        assert [each.machine_id for each in machines] == ["10.0.0.1", "10.0.0.2"]
        assert await shelf.create(requests[0]) == machines[0]
        address = await shelf.address(machines[0])
        assert address is not None
        assert address.agent_url == "http://10.0.0.1:8003"
        await shelf.delete(machines[0])
        await shelf.delete(machines[0])
        found: list[Machine] = list(await shelf.inventory())
        assert found == machines[1:]
