"""The mock cloud fails as it is told to, and leaves nothing behind."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import psutil
import pytest

from control.providers.interface import MachineRequest, NoSuchMachineError, ProviderError
from control.providers.mock.provider import MockProvider
from fleetpulse.settings import MockProviderSettings

Request = Callable[..., MachineRequest]
Until = Callable[..., Awaitable[Any]]
Metrics = Callable[..., Awaitable[str]]


@pytest.fixture
async def mock(mock_cloud: Any) -> AsyncIterator[MockProvider]:
    async with MockProvider(MockProviderSettings(url=mock_cloud.url)) as provider:
        yield provider


def stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


async def test_a_machine_has_the_gpus_of_its_type_and_an_engine_under_load(
    mock: MockProvider, wanted: Request, until: Until, metrics_of: Metrics
) -> None:
    request = wanted("i-1", options={"engine_requests_per_second": 50})
    machine = await mock.create(request)
    await mock.start_runtime(machine, request)
    address = await mock.address(machine)
    assert address is not None
    assert address.engine_url is not None
    page = await metrics_of(address.agent_url, 'fleetpulse_agent_gpu_memory_total_bytes{hw_id="')
    assert page.count("fleetpulse_agent_gpu_memory_total_bytes{") == 2
    assert 'fleetpulse_agent_engine_state{state="ready"} 1.0' in await metrics_of(
        address.agent_url, 'fleetpulse_agent_engine_state{state="ready"} 1.0'
    )
    async with aiohttp.ClientSession() as session, session.get(f"{address.engine_url}/v1/models") as response:
        assert [card["id"] for card in (await response.json())["data"]] == ["tiny"]

    async def steps() -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{address.engine_url}/metrics") as response:
            return "vllm:iteration_tokens_total_count" in await response.text()

    assert await until(steps)


async def test_a_machine_can_be_this_host(
    mock: MockProvider, mock_cloud: Any, wanted: Request, metrics_of: Metrics
) -> None:
    request = wanted("i-1", instance_type="mock-cpu", options={"host": True})
    machine = await mock.create(request)
    await mock.start_runtime(machine, request)
    address = await mock.address(machine)
    assert address is not None
    assert address.engine_url is None
    await metrics_of(address.agent_url, "fleetpulse_agent_system_cpu_utilization_ratio")
    assert (await mock_cloud.machine(machine.machine_id))["engine_pid"] is None


async def test_a_creation_that_fails_succeeds_once_it_failed_often_enough(mock: MockProvider, wanted: Request) -> None:
    request = wanted("i-1", options={"create_fails": 2})
    for _ in range(2):
        with pytest.raises(ProviderError, match="no machine of this type is free") as caught:
            await mock.create(request)
        assert caught.value.retryable
    assert (await mock.create(request)).instance_id == "i-1"
    assert len(await mock.inventory()) == 1


async def test_a_creation_that_was_not_heard_of_is_found_by_the_next(mock_cloud: Any, wanted: Request) -> None:
    request = wanted("i-1", options={"create_slow_seconds": 30})
    async with MockProvider(MockProviderSettings(url=mock_cloud.url, timeout_seconds=0.3)) as impatient:
        with pytest.raises(ProviderError) as caught:
            await impatient.create(request)
        assert caught.value.retryable
        machine = await impatient.create(request)
        assert [each.machine_id for each in await impatient.inventory()] == [machine.machine_id]


async def test_a_machine_may_have_no_address_yet(mock: MockProvider, mock_cloud: Any, wanted: Request) -> None:
    request = wanted("i-1", options={"address_after_seconds": 3600})
    machine = await mock.create(request)
    await mock.start_runtime(machine, request)
    assert await mock.address(machine) is None
    await mock_cloud.post(f"/machines/{machine.machine_id}/faults", {"options": {"address_after_seconds": 0}})
    assert await mock.address(machine) is not None


async def test_a_machine_that_dies_while_booting_is_gone_and_never_runs(
    mock: MockProvider, wanted: Request, until: Until
) -> None:
    request = wanted("i-1", options={"dies_while_booting": True, "boot_seconds": 0.3})
    machine = await mock.create(request)
    await mock.start_runtime(machine, request)
    assert (machine.status, machine.gone) == ("booting", False)

    async def gone() -> bool:
        (found,) = await mock.inventory()
        return found.gone and found.status == "failed"

    assert await until(gone)
    assert await mock.address(machine) is None
    await mock.delete(machine)
    assert await mock.inventory() == []


async def test_a_machine_that_vanishes_takes_its_processes_along_and_may_leave_its_disk(
    mock: MockProvider, mock_cloud: Any, wanted: Request, until: Until
) -> None:
    request = wanted("i-1", options={"leaves_volume": True})
    machine = await mock.create(request)
    await mock.start_runtime(machine, request)
    running = await mock_cloud.machine(machine.machine_id)
    await mock_cloud.post(f"/machines/{machine.machine_id}/faults", {"options": {"vanishes_after_seconds": 0}})

    async def empty() -> bool:
        return await mock.inventory() == []

    assert await until(empty)
    assert not psutil.pid_exists(running["agent_pid"])
    assert not psutil.pid_exists(running["engine_pid"])
    with pytest.raises(NoSuchMachineError):
        await mock.address(machine)
    (orphan,) = await mock.volumes()
    assert (orphan.machine_id, orphan.instance_id) == (None, "i-1")
    await mock.delete_volume(orphan)
    await mock.delete_volume(orphan)
    assert await mock.volumes() == []


async def test_a_deletion_may_be_answered_as_done_and_not_be(mock: MockProvider, wanted: Request) -> None:
    machine = await mock.create(wanted("i-1", options={"delete_silently_fails": 1}))
    await mock.delete(machine)
    assert len(await mock.inventory()) == 1
    await mock.delete(machine)
    assert await mock.inventory() == []


async def test_an_engine_may_never_get_ready(mock: MockProvider, wanted: Request, metrics_of: Metrics) -> None:
    request = wanted("i-1", options={"engine_never_ready": True})
    machine = await mock.create(request)
    await mock.start_runtime(machine, request)
    address = await mock.address(machine)
    assert address is not None
    await metrics_of(address.agent_url, 'fleetpulse_agent_engine_state{state="starting"} 1.0')
    async with aiohttp.ClientSession() as session, session.get(f"{address.engine_url}/v1/models") as response:
        assert response.status == 503


async def test_an_engine_can_be_made_to_stall_while_it_runs(
    mock: MockProvider, mock_cloud: Any, wanted: Request, until: Until, metrics_of: Metrics
) -> None:
    request = wanted("i-1", options={"engine_requests_per_second": 50})
    machine = await mock.create(request)
    await mock.start_runtime(machine, request)
    address = await mock.address(machine)
    assert address is not None
    await metrics_of(address.agent_url, 'fleetpulse_agent_engine_state{state="ready"} 1.0')
    await mock_cloud.post(f"/machines/{machine.machine_id}/faults", {"options": {"engine_stalls": True}})

    async def steps_and_waiting() -> tuple[float, float]:
        async with aiohttp.ClientSession() as session, session.get(f"{address.engine_url}/metrics") as response:
            values = {
                line.partition("{")[0]: float(line.rpartition(" ")[2])
                for line in (await response.text()).splitlines()
                if line.startswith(("vllm:iteration_tokens_total_count", "vllm:num_requests_waiting"))
            }
        return values["vllm:iteration_tokens_total_count"], values["vllm:num_requests_waiting"]

    steps, waiting = await steps_and_waiting()

    async def more_waits() -> bool:
        return (await steps_and_waiting())[1] > waiting

    assert await until(more_waits)
    assert (await steps_and_waiting())[0] == steps


async def test_the_processes_of_a_machine_can_be_killed_frozen_and_brought_back(
    mock: MockProvider, mock_cloud: Any, wanted: Request
) -> None:
    request = wanted("i-1")
    machine = await mock.create(request)
    await mock.start_runtime(machine, request)
    before = await mock_cloud.machine(machine.machine_id)
    faults = f"/machines/{machine.machine_id}/faults"
    await mock_cloud.post(faults, {"acts": {"agent": "freeze", "engine": "kill"}})
    assert stopped(before["agent_pid"])
    assert not psutil.pid_exists(before["engine_pid"])
    await mock_cloud.post(faults, {"acts": {"agent": "thaw", "engine": "start"}})
    after = await mock_cloud.machine(machine.machine_id)
    assert after["agent_pid"] == before["agent_pid"]
    assert not stopped(after["agent_pid"])
    assert after["engine_pid"] not in (None, before["engine_pid"])
    await mock_cloud.post(faults, {"acts": {"agent": "kill"}})
    await mock.start_runtime(machine, request)
    assert (await mock_cloud.machine(machine.machine_id))["agent_pid"] not in (None, before["agent_pid"])


async def test_starting_a_runtime_twice_changes_nothing_unless_its_settings_differ(
    mock: MockProvider, mock_cloud: Any, wanted: Request
) -> None:
    request = wanted("i-1")
    machine = await mock.create(request)
    await mock.start_runtime(machine, request)
    first = await mock_cloud.machine(machine.machine_id)
    await mock.start_runtime(machine, request)
    assert await mock_cloud.machine(machine.machine_id) == first
    await mock.start_runtime(machine, wanted("i-1"))  # with the address of another broker
    again = await mock_cloud.machine(machine.machine_id)
    assert again["agent_pid"] not in (None, first["agent_pid"])


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_nothing_is_left_when_the_cloud_ends_and_all_comes_back_with_it(
    how: str, mock: MockProvider, mock_cloud: Any, wanted: Request, until: Until, metrics_of: Metrics
) -> None:
    requests = [wanted("i-1"), wanted("i-2")]
    machines = [await mock.create(request) for request in requests]
    await mock.start_runtime(machines[0], requests[0])
    before = await mock_cloud.machine(machines[0].machine_id)
    pids = [before["agent_pid"], before["engine_pid"]]
    await asyncio.to_thread(mock_cloud.child.stop if how == "stopped" else mock_cloud.child.kill)

    async def all_ended() -> bool:
        return not any(psutil.pid_exists(pid) and os.getpgid(pid) == pid for pid in pids)

    assert await until(all_ended)
    with pytest.raises(ProviderError, match="does not answer") as caught:
        await mock.inventory()
    assert caught.value.retryable
    await asyncio.to_thread(mock_cloud.start)
    assert {each.instance_id for each in await mock.inventory()} == {"i-1", "i-2"}
    address = await mock.address(machines[0])
    assert address is not None
    await metrics_of(address.agent_url, "fleetpulse_agent_")
    assert (await mock_cloud.machine(machines[1].machine_id))["agent_pid"] is None


async def test_options_of_machines_to_come_can_be_set_beforehand(
    mock: MockProvider, mock_cloud: Any, wanted: Request
) -> None:
    await mock_cloud.post("/preset", {"create_fails": 1})
    with pytest.raises(ProviderError):
        await mock.create(wanted("i-1"))
    await mock.create(wanted("i-2", options={"create_fails": 0}))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"instance_type": "none"}, "there is no instance type none in zone mock-east-1"),
        ({"zone": "mock-west-1", "instance_type": "mock-h100-8"}, "there is no instance type mock-h100-8"),
        ({"options": {"explodes": True}}, "options: Object contains unknown field `explodes`"),
        ({"options": {"create_fails": "often"}}, "options: Expected `int`"),
    ],
)
async def test_a_request_that_never_can_be_met_says_so(
    changes: dict[str, Any], why: str, mock: MockProvider, wanted: Request
) -> None:
    with pytest.raises(ProviderError, match=why) as caught:
        await mock.create(wanted("i-1", **changes))
    assert not caught.value.retryable


async def test_no_setting_can_reach_beyond_the_agent(mock: MockProvider, wanted: Request) -> None:
    request = wanted("i-1")
    machine = await mock.create(request)
    request = MachineRequest("i-1", "mock-east-1", "mock-h100-2", None, {"LD_PRELOAD": "evil.so"})
    with pytest.raises(ProviderError, match="environment"):
        await mock.start_runtime(machine, request)


async def test_the_agents_settings_are_kept_from_others(mock: MockProvider, mock_cloud: Any, wanted: Request) -> None:
    request = wanted("i-1")
    machine = await mock.create(request)
    await mock.start_runtime(machine, request)
    assert "environment" not in await mock_cloud.machine(machine.machine_id)
    assert (mock_cloud.folder / "cloud.json").stat().st_mode & 0o077 == 0


async def test_a_second_cloud_does_not_take_the_folder(mock_cloud: Any) -> None:
    other = type(mock_cloud)(mock_cloud.folder)
    other.child.start()
    await asyncio.to_thread(other.child._process.wait, 20)
    assert other.child.exit_status == 1
