"""Servers at Scaleway, over a fake of its HTTP API."""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from control.providers.interface import MachineRequest, NoSuchMachineError, ProviderError
from control.providers.scaleway.provider import ScalewayProvider
from fleetpulse.local.fake_scaleway import PROJECT, SECRET_KEY, FakeScaleway, fake_scaleway
from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.settings import ScalewaySettings, SettingsError

Until = Callable[..., Awaitable[Any]]
ZONES = ("fr-par-2", "pl-waw-2")


def settings(url: str, **changes: Any) -> ScalewaySettings:
    given = {"secret_key": SecretStr(SECRET_KEY), "project_id": PROJECT, "zones": ZONES, "timeout_seconds": 5.0}
    return ScalewaySettings(api_url=url, **(given | changes))


def wanted(instance_id: str = "i-1", **changes: Any) -> MachineRequest:
    environment = {"FLEETPULSE_KAFKA_BOOTSTRAP": "kafka:9092", "FLEETPULSE_KAFKA_SASL_PASSWORD": 'pa"ss$word`\\'}
    given = {"zone": "fr-par-2", "instance_type": "L4-1-24G", "model": "org/model", "worker_environment": environment}
    return MachineRequest(instance_id=instance_id, **(given | changes))


@pytest.fixture
async def fake() -> AsyncIterator[FakeScaleway]:
    async with fake_scaleway() as running:
        yield running


@pytest.fixture
async def scaleway(fake: FakeScaleway) -> AsyncIterator[ScalewayProvider]:
    async with ScalewayProvider(settings(fake.url)) as provider:
        yield provider


async def test_the_catalogue_is_that_of_all_zones_with_prices(scaleway: ScalewayProvider) -> None:
    catalogue = await scaleway.catalogue()
    assert catalogue.zones == ZONES
    types = {each.name: each for each in catalogue.instance_types}
    h100, l4 = types["H100-1-80G"], types["L4-1-24G"]
    assert (h100.gpu_model, h100.gpu_count, h100.gpu_memory_bytes) == ("NVIDIA H100-PCIe", 1, 80 * 2**30)
    assert (l4.price_per_hour, l4.currency, l4.zones) == (Decimal("0.75"), "EUR", ZONES)
    # One is out of stock, one is not sold any more.
    assert {name: each.available for name, each in types.items()} == {
        "L4-1-24G": True,
        "H100-1-80G": False,
        "GP1-L": False,
    }


async def test_the_first_start_installs_the_agent_with_its_settings_out_of_others_sight(
    scaleway: ScalewayProvider, fake: FakeScaleway
) -> None:
    machine = await scaleway.create(wanted())
    await scaleway.start_runtime(machine, wanted())
    head, _, body = fake.user_data[machine.machine_id].partition("\n")
    assert head == "#cloud-config"
    document = json.loads(body)
    files = {each["path"]: each for each in document["write_files"]}
    secret = files["/etc/fleetpulse/agent.env"]
    assert (secret["permissions"], secret["owner"]) == ("0600", "root:root")
    lines = base64.b64decode(secret["content"]).decode().splitlines()
    assert 'FLEETPULSE_KAFKA_SASL_PASSWORD="pa\\"ss\\$word\\`\\\\"' in lines
    assert 'FLEETPULSE_AGENT_INSTANCE_ID="i-1"' in lines
    assert 'FLEETPULSE_AGENT_ENGINE_URL="http://127.0.0.1:8000"' in lines
    engine = base64.b64decode(files["/etc/systemd/system/fleetpulse-engine.service"]["content"]).decode()
    assert 'ExecStart="docker" "run" "--rm"' in engine
    assert '"--model" "org/model"' in engine
    assert ["/opt/fleetpulse/bin/pip", "install", "--quiet", "fleetpulse[agent]"] in document["runcmd"]
    assert ["systemctl", "enable", "--now", "fleetpulse-agent.service"] in document["runcmd"]
    assert all(isinstance(command, list) for command in document["runcmd"])


async def test_the_agent_is_told_the_kind_of_engine_that_the_command_starts(fake: FakeScaleway) -> None:
    async with ScalewayProvider(settings(fake.url, engine="sglang")) as provider:
        machine = await provider.create(wanted())
        await provider.start_runtime(machine, wanted())
    document = json.loads(fake.user_data[machine.machine_id].partition("\n")[2])
    (secret,) = [each for each in document["write_files"] if each["path"] == "/etc/fleetpulse/agent.env"]
    assert 'FLEETPULSE_AGENT_ENGINE="sglang"' in base64.b64decode(secret["content"]).decode().splitlines()


async def test_a_setting_that_would_add_a_line_to_a_file_is_refused(scaleway: ScalewayProvider) -> None:
    request = wanted(worker_environment={"FLEETPULSE_AGENT_WORKER_ID": "a\nLD_PRELOAD=evil"})
    machine = await scaleway.create(request)
    with pytest.raises(ProviderError, match="cannot be written") as caught:
        await scaleway.start_runtime(machine, request)
    assert not caught.value.retryable


async def test_a_block_volume_outlives_its_server_and_is_found_as_an_orphan(
    scaleway: ScalewayProvider, fake: FakeScaleway, until: Until
) -> None:
    machine = await scaleway.create(wanted())
    await scaleway.start_runtime(machine, wanted())

    async def addressed() -> Any:
        return await scaleway.address(machine)

    assert (await until(addressed)).agent_url == "http://127.0.0.1:8003"
    (attached,) = await scaleway.volumes()
    assert (attached.machine_id, attached.instance_id, attached.name) == (machine.machine_id, "i-1", "fleetpulse-i-1")
    with pytest.raises(ProviderError, match="volume is in use"):
        await scaleway.delete_volume(attached)

    async def gone() -> bool:
        await scaleway.delete(machine)
        return machine.machine_id not in [each.machine_id for each in await scaleway.inventory()]

    assert await until(gone)
    (orphan,) = await scaleway.volumes()
    assert orphan.machine_id is None
    await scaleway.delete_volume(orphan)
    await scaleway.delete_volume(orphan)
    assert await scaleway.volumes() == []


@pytest.mark.parametrize("kind", ["sbs_volume", "l_ssd"])
async def test_a_server_that_never_ran_is_deleted_with_its_volume(kind: str, fake: FakeScaleway) -> None:
    async with ScalewayProvider(settings(fake.url, root_volume_type=kind)) as scaleway:
        machine = await scaleway.create(wanted())
        assert len(await scaleway.volumes()) == 1
        await scaleway.delete(machine)
        assert await scaleway.inventory() == []
        assert await scaleway.volumes() == []


async def test_a_server_whose_answer_was_lost_is_found_by_its_tag(
    scaleway: ScalewayProvider, fake: FakeScaleway
) -> None:
    first = await scaleway.create(wanted())
    assert await scaleway.create(wanted()) == first
    assert len(fake.servers) == 1
    assert (await scaleway.create(wanted("i-2"))).machine_id != first.machine_id


async def test_servers_of_others_are_none_of_ours(scaleway: ScalewayProvider, fake: FakeScaleway) -> None:
    await scaleway.create(wanted())
    (server,) = fake.servers.values()
    server["tags"] = ["somebody", "else"]
    assert await scaleway.inventory() == []
    server["tags"] = ["fleetpulse"]
    (machine,) = await scaleway.inventory()
    assert machine.instance_id is None


@pytest.mark.parametrize(
    ("status", "body", "retryable"),
    [
        (400, '{"type": "invalid_arguments", "message": "invalid argument(s)"}', False),
        (401, '{"type": "denied_authentication", "message": "authentication is denied"}', False),
        (403, '{"type": "permissions_denied", "message": "insufficient permissions"}', False),
        (403, '{"type": "quotas_exceeded", "message": "quota exceeded"}', False),
        (409, '{"type": "transient_state", "message": "resource is in a transient state"}', True),
        (412, '{"type": "out_of_stock", "message": "resource is out of stock"}', True),
        (429, '{"type": "too_many_requests", "message": "slow down"}', True),
        (500, '{"type": "internal", "message": "oops"}', True),
        (502, "<html>Bad Gateway</html>", True),
        (200, "not json", True),
        (200, "[]", True),
    ],
)
async def test_an_error_says_whether_to_try_again(
    status: int, body: str, retryable: bool, scaleway: ScalewayProvider, fake: FakeScaleway
) -> None:
    fake.refusals.append((status, body))
    with pytest.raises(ProviderError) as caught:
        await scaleway.create(wanted())
    assert caught.value.retryable is retryable
    assert SECRET_KEY not in str(caught.value)


async def test_an_unknown_server_type_is_named_and_not_tried_again(scaleway: ScalewayProvider) -> None:
    with pytest.raises(ProviderError, match="commercial_type") as caught:
        await scaleway.create(wanted(instance_type="none"))
    assert not caught.value.retryable


async def test_a_server_that_is_not_there_is_told_apart_from_errors(scaleway: ScalewayProvider) -> None:
    machine = await scaleway.create(wanted())
    await scaleway.delete(machine)
    with pytest.raises(NoSuchMachineError):
        await scaleway.address(machine)


async def test_an_api_that_does_not_answer_ends_within_the_timeout() -> None:
    async with ScalewayProvider(settings(f"http://{LOOPBACK}:{free_port()}")) as away:
        with pytest.raises(ProviderError, match="does not answer") as caught:
            await away.inventory()
        assert caught.value.retryable


async def test_an_api_that_never_answers_ends_within_the_timeout(silent_port: int) -> None:
    async with ScalewayProvider(settings(f"http://{LOOPBACK}:{silent_port}", timeout_seconds=0.3)) as deaf:
        with pytest.raises(ProviderError, match="Timeout") as caught:
            await deaf.inventory()
        assert caught.value.retryable


@pytest.mark.parametrize("missing", ["secret_key", "project_id"])
def test_missing_credentials_are_named(missing: str) -> None:
    with pytest.raises(SettingsError, match=f"FLEETPULSE_SCALEWAY_{missing.upper()} is not set"):
        ScalewayProvider(settings("http://127.0.0.1:1", **{missing: None}))
