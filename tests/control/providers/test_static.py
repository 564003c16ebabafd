"""Machines that are there already, over SSH."""

import asyncio
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import asyncssh
import msgspec
import psutil
import pytest

from agent.engines.registry import ADAPTERS
from control.providers.interface import Machine, MachineRequest, NoSuchMachineError, ProviderError
from control.providers.static.machines import StaticMachine, read
from control.providers.static.provider import StaticProvider
from control.providers.static.remote import SCRIPT
from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.settings import SettingsError, StaticSettings

Until = Callable[..., Awaitable[Any]]
AGENT = (sys.executable, "-m", "fleetpulse", "agent")
ENGINE = f"{sys.executable} -m fleetpulse.local.mock_engine --model {{model}} --port"


def wanted(instance_id: str = "i-1", **changes: Any) -> MachineRequest:
    environment = {
        "FLEETPULSE_KAFKA_BOOTSTRAP": f"{LOOPBACK}:1",
        "FLEETPULSE_AGENT_HOST": LOOPBACK,
        "FLEETPULSE_AGENT_WORKER_ID": "it's a $(touch evil); `touch evil`\\\"",
        "WORKER_SIMULATE_GPU_COUNT": "1",
    }
    # An id may have no spaces.
    environment["FLEETPULSE_AGENT_WORKER_ID"] = environment["FLEETPULSE_AGENT_WORKER_ID"].replace(" ", "_")
    given = {"zone": "static", "instance_type": "box", "model": "tiny", "worker_environment": environment}
    return MachineRequest(instance_id=instance_id, **(given | changes))


def listed(ssh_server: Any, name: str = "box-1", **changes: Any) -> StaticMachine:
    engine_port = free_port()
    given = {
        "name": name,
        "host": LOOPBACK,
        "port": ssh_server.port,
        "user": ssh_server.user,
        "key_file": str(ssh_server.key_file),
        "known_hosts": str(ssh_server.known_hosts),
        "instance_type": "box",
        "folder": f"fleetpulse-{name}",
        "agent_command": AGENT,
        "agent_port": free_port(),
        "engine_port": engine_port,
        "engine_command": f"{ENGINE} {engine_port}",
    }
    return StaticMachine(**(given | changes))


def provider(*machines: StaticMachine, **settings: Any) -> StaticProvider:
    return StaticProvider(StaticSettings(**settings), machines)


@pytest.fixture
async def box(ssh_server: Any) -> AsyncIterator[StaticProvider]:
    """A provider of one machine, which is given back in the end."""
    async with provider(listed(ssh_server)) as static:
        yield static
        for machine in await static.inventory():
            await static.delete(machine)


async def answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


def pids(ssh_server: Any, name: str = "box-1") -> list[int]:
    folder = ssh_server.home / f"fleetpulse-{name}"
    return [int((folder / f"{each}.pid").read_text().split()[0]) for each in ("agent", "engine")]


async def test_agent_and_engine_run_after_the_connection_and_end_when_the_machine_is_given_back(
    box: StaticProvider, ssh_server: Any, until: Until
) -> None:
    machine = await box.create(wanted())
    await box.start_runtime(machine, wanted())
    address = await box.address(machine)
    assert address is not None
    assert address.engine_url is not None
    for url in (f"{address.agent_url}/healthz", f"{address.engine_url}/v1/models"):
        assert await until(lambda url=url: answers(url), url)
    running = pids(ssh_server)
    folder = ssh_server.home / "fleetpulse-box-1"
    assert folder.joinpath("agent.env").stat().st_mode & 0o077 == 0
    assert not list(ssh_server.home.rglob("evil"))
    await box.delete(machine)
    assert not any(psutil.pid_exists(pid) and alive(pid) for pid in running)
    assert not folder.joinpath("agent.env").exists()
    assert await box.inventory() == []
    with pytest.raises(NoSuchMachineError):
        await box.address(machine)


def alive(pid: int) -> bool:
    """Whether a process runs: without an init that collects them, ended ones stay listed."""
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("engine", "of_all_workers", "expected"),
    [
        (None, None, "vllm"),
        (None, "sglang", "sglang"),
        ("llamacpp", None, "llamacpp"),
        ("llamacpp", "sglang", "llamacpp"),
    ],
)
async def test_the_agent_is_told_its_machines_kind_of_engine(
    ssh_server: Any, engine: str | None, of_all_workers: str | None, expected: str
) -> None:
    given = {} if of_all_workers is None else {"FLEETPULSE_AGENT_ENGINE": of_all_workers}
    request = wanted(worker_environment={**wanted().worker_environment, **given})
    async with provider(listed(ssh_server, engine=engine, engine_command="", agent_command=("true",))) as static:
        machine = await static.create(request)
        await static.start_runtime(machine, request)
        settings = (ssh_server.home / "fleetpulse-box-1" / "agent.env").read_text().splitlines()
        await static.delete(machine)
    assert f'FLEETPULSE_AGENT_ENGINE="{expected}"' in settings


async def test_a_runtime_that_runs_is_left_alone_until_its_settings_change(
    box: StaticProvider, ssh_server: Any, until: Until
) -> None:
    request = wanted()
    machine = await box.create(request)
    await box.start_runtime(machine, request)

    async def running() -> bool:
        return [each.status for each in await box.inventory()] == ["running"]

    assert await until(running)
    before = pids(ssh_server)
    await box.start_runtime(machine, request)
    assert await until(running)
    assert pids(ssh_server) == before
    changed = wanted(worker_environment={**request.worker_environment, "FLEETPULSE_AGENT_WORKER_ID": "other"})
    await box.start_runtime(machine, changed)
    assert await until(running)
    assert pids(ssh_server)[0] != before[0]
    await box.stop_runtime(machine)
    await box.stop_runtime(machine)
    (stopped,) = await box.inventory()
    assert (stopped.status, stopped.instance_id) == ("stopped", "i-1")


async def test_an_engine_that_died_beside_its_agent_is_started_again(
    box: StaticProvider, ssh_server: Any, until: Until
) -> None:
    machine = await box.create(wanted())
    for _ in range(2):
        await box.start_runtime(machine, wanted())

        async def running() -> bool:
            return [each.status for each in await box.inventory()] == ["running"]

        assert await until(running)
        agent, engine = pids(ssh_server)
        os.killpg(engine, signal.SIGKILL)

        async def stopped() -> bool:
            return [each.status for each in await box.inventory()] == ["stopped"]

        assert await until(stopped)
        assert alive(agent)


async def test_two_who_claim_at_once_get_different_machines(ssh_server: Any) -> None:
    machines = [listed(ssh_server, name) for name in ("box-1", "box-2", "box-3")]
    async with provider(*machines) as one, provider(*machines) as other:
        asked = [each.create(wanted(f"i-{place}")) for place, each in enumerate((one, other, one))]
        claimed = await asyncio.gather(*asked)
        assert {machine.machine_id for machine in claimed} == {"box-1", "box-2", "box-3"}
        with pytest.raises(ProviderError, match="all 3 machines of type box in zone static are taken") as caught:
            await one.create(wanted("i-9"))
        assert caught.value.retryable
        assert await other.create(wanted("i-1")) == Machine(claimed[1].machine_id, "static", "i-1", "box", "stopped")
        # Only the instance that has a machine can give it back.
        await one.delete(Machine(claimed[0].machine_id, "static", "i-9", "box", "stopped"))
        assert {each.instance_id for each in await one.inventory()} == {"i-0", "i-1", "i-2"}


async def test_a_wheel_is_copied_over_and_installed_into_an_environment_of_its_own(
    ssh_server: Any, tmp_path: Path, until: Until
) -> None:
    """With a package that needs no others: the real one needs minutes."""
    said = tmp_path / "said"
    wheel = tiny_wheel(tmp_path, f"import pathlib, sys; pathlib.Path({str(said)!r}).write_text(sys.prefix)")
    machine = listed(ssh_server, agent_command=(), engine_command="", python=sys.executable)
    async with provider(machine, agent_package=f"{wheel}[agent]") as static:
        claimed = await static.create(wanted())
        await static.start_runtime(claimed, wanted())
        assert await until(lambda: asyncio.to_thread(said.exists), "the agent's start", 60.0)

        async def installed() -> bool:
            return (await static.inventory())[0].status != "installing"

        assert await until(installed)
        await static.delete(claimed)
    assert said.read_text() == str((ssh_server.home / "fleetpulse-box-1" / "venv").resolve())


async def test_an_installation_that_fails_is_told_by_the_next_call_and_tried_again_by_the_one_after(
    ssh_server: Any, tmp_path: Path, until: Until
) -> None:
    machine = listed(ssh_server, agent_command=(), python="no-such-python")
    request = wanted()
    async with provider(machine) as static:
        claimed = await static.create(request)
        for _ in range(2):
            await static.start_runtime(claimed, request)

            async def failed() -> bool:
                return (await static.inventory())[0].status == "failed"

            assert await until(failed)
            with pytest.raises(ProviderError, match=r"installing failed: .*no-such-python.* not found") as caught:
                await static.start_runtime(claimed, request)
            assert caught.value.retryable
        await static.delete(claimed)


def tiny_wheel(folder: Path, program: str) -> Path:
    """A wheel whose command ``fleetpulse`` runs a line of Python."""
    wheel = folder / "fleetpulse-9.9-py3-none-any.whl"
    information = "fleetpulse-9.9.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fleetpulse_tiny.py", f"def main():\n    {program}\n")
        archive.writestr(
            f"{information}/METADATA", "Metadata-Version: 2.1\nName: fleetpulse\nVersion: 9.9\nProvides-Extra: agent\n"
        )
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/entry_points.txt", "[console_scripts]\nfleetpulse = fleetpulse_tiny:main\n")
        archive.writestr(f"{information}/RECORD", "")
    return wheel


async def test_a_machine_with_another_host_key_is_not_talked_to(ssh_server: Any) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    ssh_server.known_hosts.write_text(f"[{LOOPBACK}]:{ssh_server.port} {other}")
    async with provider(listed(ssh_server)) as static:
        (seen,) = await static.inventory()
        assert seen.status == "unreachable"
        with pytest.raises(ProviderError, match=r"[Hh]ost key") as caught:
            await static.address(Machine("box-1", "static", "i-1", "box", ""))
        assert not caught.value.retryable


async def test_a_user_who_is_not_let_in_is_no_passing_trouble(ssh_server: Any, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    strange.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
    async with provider(listed(ssh_server, key_file=str(strange))) as static:
        with pytest.raises(ProviderError, match="box-1") as caught:
            await static.address(Machine("box-1", "static", "i-1", "box", ""))
        assert not caught.value.retryable


async def test_machines_that_cannot_be_reached_stay_in_the_inventory(ssh_server: Any, silent_port: int) -> None:
    machines = [
        listed(ssh_server, "off", port=free_port()),
        listed(ssh_server, "silent", port=silent_port),
        listed(ssh_server, "well"),
    ]
    async with provider(*machines, timeout_seconds=1.0) as static:
        claimed = await static.create(wanted())
        assert claimed.machine_id == "well"
        assert {each.machine_id: each.status for each in await static.inventory()} == {
            "off": "unreachable",
            "silent": "unreachable",
            "well": "stopped",
        }
        with pytest.raises(ProviderError) as caught:
            await static.address(Machine("off", "static", "i-1", "box", ""))
        assert caught.value.retryable
        with pytest.raises(ProviderError, match=r"cannot be reached \(off, silent\)"):
            await static.create(wanted("i-2"))


@pytest.mark.parametrize("account", ["root", "somebody"])
def test_with_systemd_the_runtime_is_a_service(account: str, tmp_path: Path) -> None:
    """The programs of systemd are stand-ins that write down how they are called."""
    programs, home, calls = tmp_path / "bin", tmp_path / "home", tmp_path / "calls"
    systemd = tmp_path / "systemd"
    folder = home / "fleetpulse"
    for each in (programs, systemd, folder):
        each.mkdir(parents=True)
    for name in ("systemctl", "loginctl"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{calls}\n')
    (programs / "id").write_text(f"#!/bin/sh\necho {0 if account == 'root' else 1000}\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = {
        "HOME": str(home),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FLEETPULSE_SYSTEMD_FOLDER": str(systemd),
        "FLEETPULSE_SYSTEMD_UNITS": str(tmp_path / "units"),
    }

    def act(action: str, *arguments: str) -> str:
        command = ["sh", "-c", SCRIPT, "worker", action, "fleetpulse", *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    (folder / "agent.sh").write_text("exec sleep 60\n")
    act("bring-up", "")
    unit = (tmp_path / "units" / "fleetpulse-agent.service").read_text()
    assert f'ExecStart=/bin/sh "{folder}/agent.sh"' in unit
    manager = "systemctl" if account == "root" else "systemctl --user"
    started = [
        *(["loginctl enable-linger"] if account == "somebody" else []),
        *(f"{manager} {each}" for each in ("daemon-reload", "enable fleetpulse-agent.service")),
        f"{manager} restart fleetpulse-agent.service",
    ]
    assert calls.read_text().splitlines() == started
    assert act("status").splitlines()[1] == "running"
    act("stop")
    assert calls.read_text().splitlines()[-1] == f"{manager} disable --now fleetpulse-agent.service"
    assert list((tmp_path / "units").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.toml", "[[machines]]\nname = 'x'", "missing required field `host`"),
        ("a.toml", "[[machines", "Expected"),
        ("a.json", '{"machines": 5}', "Expected `array`"),
        ("a.json", '{"machines": [], "machine": 1}', "unknown field `machine`"),
        ("a.toml", 2 * "[[machines]]\nname='x'\nhost='h'\nuser='u'\ninstance_type='t'\n", "the name x is given twice"),
        (
            "a.toml",
            "[[machines]]\nname='x'\nhost='h'\nuser='u'\ninstance_type='t'\nprice_per_hour=-1",
            "price of x is below 0",
        ),
        ("a.toml", "[[machines]]\nname='x'\nhost='h'\nuser='u'\ninstance_type='t'\nengine='vlm'\n", "enum value 'vlm'"),
        (
            "a.toml",
            "[[machines]]\nname='x'\nhost='h'\nuser='u'\ninstance_type='t'\nengine='tgi'\n",
            "the engine of x has no engine_port",
        ),
        ("a.toml", "[[machines]]\nname='../x'\nhost='h'\nuser='u'\ninstance_type='t'\n", "name"),
    ],
)
def test_a_wrong_list_of_machines_is_told_in_one_line(name: str, text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SettingsError, match=why) as caught:
        read(path)
    assert str(caught.value).startswith(f"FLEETPULSE_STATIC_MACHINES_FILE: {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", list(ADAPTERS))
def test_a_machine_may_have_every_engine_that_the_agent_knows(engine: str) -> None:
    given = {"name": "x", "host": "h", "user": "u", "instance_type": "t", "engine_port": 8000, "engine": engine}
    assert msgspec.convert(given, StaticMachine).engine == engine


def test_a_list_of_machines_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read(tmp_path / "none.toml")


async def test_the_catalogue_is_what_the_file_lists(tmp_path: Path) -> None:
    path = tmp_path / "machines.toml"
    path.write_text(
        """
[[machines]]
name = "box-1"
host = "10.0.0.5"
user = "gpu"
zone = "rack-1"
instance_type = "h100-8"
gpu_model = "NVIDIA H100 80GB HBM3"
gpu_count = 8
price_per_hour = 12.34

[[machines]]
name = "box-2"
host = "10.0.0.6"
user = "gpu"
zone = "rack-2"
instance_type = "h100-8"
gpu_count = 8
price_per_hour = 12.34
"""
    )
    catalogue = await provider(*read(path)).catalogue()
    assert catalogue.zones == ("rack-1", "rack-2")
    (offer,) = catalogue.instance_types
    assert (offer.zones, offer.gpu_count, offer.price_per_hour) == (("rack-1", "rack-2"), 8, Decimal("12.34"))
