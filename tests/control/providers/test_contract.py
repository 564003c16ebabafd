"""What every provider must do, held against each of ours over its real interface."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pydantic import SecretStr

from control.providers.interface import Address, Machine, MachineRequest, NoSuchMachineError, Provider, ProviderError
from control.providers.mock.provider import MockProvider
from control.providers.scaleway.provider import ScalewayProvider
from control.providers.static.machines import StaticMachine
from control.providers.static.provider import StaticProvider
from fleetpulse.local.fake_scaleway import PROJECT, SECRET_KEY, fake_scaleway
from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.settings import MockProviderSettings, ScalewaySettings, StaticSettings

Until = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Subject:
    """A provider, and a place where it has room for two machines."""

    provider: Provider
    zone: str
    instance_type: str

    def request(self, instance_id: str, wanted: Callable[..., MachineRequest]) -> MachineRequest:
        return wanted(instance_id, zone=self.zone, instance_type=self.instance_type)


@asynccontextmanager
async def mock(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    cloud = request.getfixturevalue("mock_cloud")
    async with MockProvider(MockProviderSettings(url=cloud.url)) as provider:
        yield Subject(provider, "mock-east-1", "mock-l4-1")


@asynccontextmanager
async def scaleway(_: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with fake_scaleway() as fake:
        settings = ScalewaySettings(
            secret_key=SecretStr(SECRET_KEY), project_id=PROJECT, api_url=fake.url, zones=("fr-par-2", "pl-waw-2")
        )
        async with ScalewayProvider(settings) as provider:
            yield Subject(provider, "pl-waw-2", "L4-1-24G")


@asynccontextmanager
async def static(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    server = request.getfixturevalue("ssh_server")
    machines = [
        StaticMachine(
            name=name,
            host=LOOPBACK,
            port=server.port,
            user=server.user,
            key_file=str(server.key_file),
            known_hosts=str(server.known_hosts),
            instance_type="box",
            folder=name,
            # Starting real agents is what the tests of this provider do.
            agent_command=("sleep", "600"),
            agent_port=free_port(),
        )
        for name in ("box-1", "box-2")
    ]
    async with StaticProvider(StaticSettings(), machines) as provider:
        try:
            yield Subject(provider, "static", "box")
        finally:
            for machine in await provider.inventory():
                await provider.delete(machine)


SUBJECTS = {"mock": mock, "scaleway": scaleway, "static": static}


@pytest.fixture(params=SUBJECTS)
def open_subject(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Opens each provider in turn."""
    if request.param == "static":
        request.getfixturevalue("ssh_server")
    elif request.param == "mock":
        request.getfixturevalue("mock_cloud")
    return lambda: SUBJECTS[request.param](request)


@pytest.fixture
async def subject(open_subject: Callable[[], Any]) -> AsyncIterator[Subject]:
    async with open_subject() as opened:
        yield opened


async def deleted(subject: Subject, machine: Machine, until: Until) -> None:
    """As control does it: again and again, until the inventory does not have the machine."""

    async def gone() -> bool:
        await subject.provider.delete(machine)
        found = {each.machine_id for each in await subject.provider.inventory() if not each.gone}
        return machine.machine_id not in found

    assert await until(gone)


async def test_the_catalogue_has_the_zone_and_the_instance_type(subject: Subject) -> None:
    catalogue = await subject.provider.catalogue()
    assert subject.zone in catalogue.zones
    (offer,) = [each for each in catalogue.instance_types if each.name == subject.instance_type]
    assert subject.zone in offer.zones
    assert offer.available
    assert {zone for each in catalogue.instance_types for zone in each.zones} <= set(catalogue.zones)
    for each in catalogue.instance_types:
        assert each.price_per_hour is None or each.price_per_hour > 0
        assert (each.gpu_count == 0) == (each.gpu_memory_bytes is None)


async def test_a_machine_from_its_creation_to_its_end(
    subject: Subject, wanted: Callable[..., MachineRequest], until: Until
) -> None:
    provider, request = subject.provider, subject.request("i-1", wanted)
    machine = await provider.create(request)
    assert (machine.instance_id, machine.zone, machine.gone) == ("i-1", subject.zone, False)
    assert machine.instance_type == subject.instance_type
    for _ in range(2):
        await provider.start_runtime(machine, request)

    async def address() -> Address | None:
        return await provider.address(machine)

    found = await until(address)
    assert found.agent_url.startswith(f"http://{found.host}:")
    for _ in range(2):
        await provider.stop_runtime(machine)
    await provider.start_runtime(machine, request)
    await deleted(subject, machine, until)
    await provider.delete(machine)
    with pytest.raises(NoSuchMachineError):
        await provider.address(machine)


async def test_a_creation_that_is_asked_for_again_finds_the_first(
    subject: Subject, open_subject: Callable[[], Any], wanted: Callable[..., MachineRequest]
) -> None:
    request = subject.request("i-1", wanted)
    first = await subject.provider.create(request)
    assert (await subject.provider.create(request)).machine_id == first.machine_id
    other = await subject.provider.create(subject.request("i-2", wanted))
    assert other.machine_id != first.machine_id
    inventory = {each.instance_id: each.machine_id for each in await subject.provider.inventory()}
    assert inventory == {"i-1": first.machine_id, "i-2": other.machine_id}


async def test_volumes_belong_to_machines_and_none_is_left_when_all_are_deleted(
    subject: Subject, wanted: Callable[..., MachineRequest], until: Until
) -> None:
    machine = await subject.provider.create(subject.request("i-1", wanted))
    for volume in await subject.provider.volumes():
        assert (volume.machine_id, volume.instance_id) == (machine.machine_id, "i-1")
    await deleted(subject, machine, until)
    for volume in await subject.provider.volumes():
        assert volume.machine_id is None
        for _ in range(2):
            await subject.provider.delete_volume(volume)
    assert await subject.provider.volumes() == ([] if subject.provider.name != "static" else ())


async def test_what_is_not_offered_is_refused_for_good(subject: Subject, wanted: Callable[..., MachineRequest]) -> None:
    request = replace(subject.request("i-1", wanted), instance_type="no-such-type")
    with pytest.raises(ProviderError) as caught:
        await subject.provider.create(request)
    assert not caught.value.retryable
    assert not isinstance(caught.value, NoSuchMachineError)
    assert await subject.provider.inventory() == []


async def test_a_machine_that_never_was_is_unknown(subject: Subject) -> None:
    nobody = Machine("00000000-0000-0000-0000-000000000000", subject.zone, "i-9", subject.instance_type, "running")
    await subject.provider.delete(nobody)
    with pytest.raises(NoSuchMachineError):
        await subject.provider.address(nobody)
    with pytest.raises(NoSuchMachineError):
        await subject.provider.stop_runtime(nobody)
