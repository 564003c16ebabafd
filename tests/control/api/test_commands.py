"""``fleetpulse instances``, ``deploy``, ``terminate`` and ``why``, as people type them."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from control.lifecycle import transition
from fleetpulse.client.commands import COMMANDS
from fleetpulse.client.place import Place, place
from fleetpulse.client.shown import duration, story
from fleetpulse.command import main
from fleetpulse.http import serving
from fleetpulse.local.ports import free_port
from fleetpulse.local.state_file import STATE_FILE, locked, write_state
from fleetpulse.settings import ClientSettings, LocalSettings, SettingsError

DEPLOY = ("deploy", "--provider", "mock", "--zone", "here", "--instance-type", "small")
Typed = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def typed(fleet: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Run a command against the endpoints: exit status, output and errors."""
    monkeypatch.setenv("FLEETPULSE_CONTROL_URL", fleet.url)
    monkeypatch.setenv("FLEETPULSE_CONTROL_API_KEY", fleet.admin["Authorization"].removeprefix("Bearer "))

    async def run(*arguments: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, arguments)
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


async def move(api: Any, instance_id: str, *states: Any) -> None:
    for state in states:
        async with api.parts.database.transaction() as connection:
            await transition(
                connection, instance_id, state, reason="test", detail="a test", evidence={}, actor="job:test"
            )


async def test_instances_are_deployed_listed_and_ended(fleet: Any, typed: Typed) -> None:
    status, out, _ = await typed(*DEPLOY, "--count", "2", "--option", 'faults={"slow": true}')
    assert status == 0
    assert "2 instances: 2 provisioning" in out
    status, out, _ = await typed("instances")
    heading, *lines = out.splitlines()
    assert (status, heading.split()[:3], len(lines)) == (0, ["INSTANCE", "STATE", "FOR"], 2)
    first = lines[0].split()[0]
    assert await typed("terminate", first) == (0, f"{first} is terminating\n", "")
    _, out, _ = await typed("instances", "--state", "terminating", "--json")
    assert [one["instance_id"] for one in json.loads(out)] == [first]
    await move(fleet, first, "terminated", "archived")
    _, out, _ = await typed("instances", "--json")
    assert first not in out
    _, out, _ = await typed("instances", "--all", "--json")
    assert first in out
    assert await typed("instances", "--provider", "nobody") == (0, "no instances\n", "")


async def test_deploy_waits_until_all_are_ready(fleet: Any, typed: Typed) -> None:
    waiting = asyncio.create_task(typed(*DEPLOY, "--wait"))
    await move(fleet, await deployed(fleet), "booting", "ready")
    status, out, _ = await waiting
    assert status == 0
    assert out.splitlines()[-1].endswith("  ready")


async def test_deploy_fails_when_an_instance_does_and_says_where_to_look(fleet: Any, typed: Typed) -> None:
    waiting = asyncio.create_task(typed(*DEPLOY, "--wait"))
    instance_id = await deployed(fleet)
    await move(fleet, instance_id, "booting", "startup_failed")
    status, out, _ = await waiting
    assert status == 1
    assert out.splitlines()[-1] == f"see: fleetpulse why {instance_id}"


async def test_deploy_waits_no_longer_than_it_was_told(fleet: Any, typed: Typed) -> None:
    status, out, _ = await typed(*DEPLOY, "--wait", "--timeout", "0.1", "--json")
    assert status == 1
    assert json.loads(out)["states"] == {"provisioning": 1}


async def deployed(fleet: Any) -> str:
    """The one instance, once it is there."""
    async with asyncio.timeout(20):
        while True:
            found = (await fleet.get("/instances"))["instances"]
            if found:
                return str(found[0]["instance_id"])
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((*DEPLOY, "--model", "unknown"), "fleetpulse: control refuses: model: there is no active model unknown"),
        ((*DEPLOY, "--count", "0"), "fleetpulse: control refuses: count: input should be greater than or equal to 1"),
        (("terminate", "nobody"), "fleetpulse: control refuses: there is no instance nobody"),
        (("terminate", "../models"), "fleetpulse: control refuses: there is no instance ../models"),
    ],
)
async def test_a_refusal_is_one_line(typed: Typed, arguments: tuple[str, ...], line: str) -> None:
    assert await typed(*arguments) == (1, "", f"{line}\n")


async def test_a_wrong_key_and_a_control_that_is_away_are_one_line(
    typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETPULSE_CONTROL_API_KEY", "wrong")
    told = "fleetpulse: control refuses: wrong key; FLEETPULSE_CONTROL_API_KEY says which key is sent\n"
    assert await typed("instances") == (1, "", told)
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("FLEETPULSE_CONTROL_URL", url)
    status, _, err = await typed("instances")
    assert status == 1
    assert err.startswith(f"fleetpulse: control at {url} does not answer: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("why", "i", "--at", "soon"), (*DEPLOY, "--option", "x"), ("deploy",)])
def test_wrong_arguments_end_with_status_2(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_unset_settings_mean_the_stack_that_runs_here(tmp_path: Path) -> None:
    local = LocalSettings(data_dir=tmp_path)
    with pytest.raises(SettingsError, match=r"no fleetpulse up runs in .*FLEETPULSE_CONTROL_URL"):
        place(ClientSettings(), local)
    with locked(tmp_path):
        write_state(tmp_path, {"control_url": "http://here", "admin_key": "k"})
        assert place(ClientSettings(), local) == Place("http://here", "k")
        assert place(ClientSettings(api_key="own"), local) == Place("http://here", "own")
        # The stack's key is never sent elsewhere.
        with pytest.raises(SettingsError, match="FLEETPULSE_CONTROL_API_KEY is not set"):
            place(ClientSettings(url="http://there"), local)
    assert (tmp_path / STATE_FILE).exists()
    with pytest.raises(SettingsError):
        place(ClientSettings(), local)


def test_times_are_told_in_the_unit_that_suits() -> None:
    told = [duration(seconds) for seconds in (-1, 0, 119, 120, 7199, 7200, 172_800)]
    assert told == ["0 s", "0 s", "119 s", "2 min", "120 min", "2 h", "2 d"]


def test_a_story_has_a_line_a_sentence() -> None:
    at = datetime(2026, 11, 21, 7, 25, tzinfo=UTC)
    why = {"instance_id": "i", "state": "ready", "sentences": [{"at": at.isoformat(), "text": "It answered."}]}
    local = at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert story(why) == f"i is ready\n{local}  It answered."
    assert set(COMMANDS) == {"instances", "deploy", "terminate", "why", "usage", "chat"}


async def test_costs_are_shown_by_model_and_by_machine(fleet: Any, typed: Typed, deploy: Any) -> None:
    (instance_id,) = await deploy(1)
    await move(fleet, instance_id, "booting", "installing", "ready")
    status, out, _ = await typed("usage", "--costs")
    assert (status, out.splitlines()[0].split()[:3]) == (0, ["MODEL", "MACHINES", "SERVING"])
    assert out.splitlines()[1].startswith("no model")
    status, out, _ = await typed("usage", "--costs", "--by", "machine", "--window", "1h")
    assert (status, out.splitlines()[0].split()[0], out.splitlines()[1].split()[0]) == (0, "MACHINE", instance_id)
    status, out, _ = await typed("usage", "--costs", "--json")
    assert (status, json.loads(out)["group_by"]) == (0, "model")


@pytest.mark.parametrize("wrong", [("--costs", "--by", "key"), ("--by", "machine"), ("--ledger", "--by", "machine")])
async def test_what_costs_are_not_by_is_said_in_one_line(typed: Typed, wrong: tuple[str, ...]) -> None:
    status, out, err = await typed("usage", *wrong)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--costs" in err


async def test_who_does_not_answer_or_is_not_control_is_said_with_what_to_do(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, fleet: Any
) -> None:
    monkeypatch.setenv("FLEETPULSE_CONTROL_API_KEY", "not the key")
    status, _, err = await typed("instances")
    assert (status, err.count("\n"), "wrong key; FLEETPULSE_CONTROL_API_KEY" in err) == (1, 1, True)
    async with serving(web.Application(), "127.0.0.1", 0) as port:
        for url, expected, told in (
            ("http://127.0.0.1:1", 1, "nobody listens there; start it, or say in FLEETPULSE_CONTROL_URL where it is"),
            ("http://control.invalid", 1, "does not answer"),
            (
                f"http://127.0.0.1:{port}",
                1,
                f"404 Not Found, which is not how control answers: is http://127.0.0.1:{port}",
            ),
            ("127.0.0.1:8001", 2, "FLEETPULSE_CONTROL_URL: '127.0.0.1:8001' is not an address like http://"),
        ):
            monkeypatch.setenv("FLEETPULSE_CONTROL_URL", url)
            status, out, err = await typed("instances")
            assert (status, out, err.count("\n")) == (expected, "", 1)
            assert told in err
