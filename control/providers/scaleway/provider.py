"""The provider ``scaleway``: servers found by their tags, so that a lost answer loses no server."""

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from scaleway_async.instance.v1 import Server, ServerAction, ServerType

from control.providers.installation import AGENT_PORT
from control.providers.interface import (
    Address,
    Catalogue,
    Machine,
    MachineRequest,
    NoSuchMachineError,
    ProviderError,
    Volume,
)
from control.providers.scaleway.api import Scaleway
from control.providers.scaleway.cloud_init import cloud_init
from control.providers.scaleway.offers import ZoneOffers, catalogue
from fleetpulse.settings import ScalewaySettings, SettingsError

TAG: Final = "fleetpulse"
_INSTANCE_TAG: Final = "fleetpulse-instance:"
_NAME: Final = "fleetpulse-"
# The most that the API gives in one page.
_PAGE: Final = 100
_AT_REST: Final = ("stopped", "stopped in place", "stopped_in_place")


class ScalewayProvider:
    """Machine ids are server ids."""

    name = "scaleway"

    def __init__(self, settings: ScalewaySettings) -> None:
        if settings.secret_key is None:
            raise SettingsError("FLEETPULSE_SCALEWAY_SECRET_KEY is not set: the provider scaleway needs an API key")
        if settings.project_id is None:
            raise SettingsError("FLEETPULSE_SCALEWAY_PROJECT_ID is not set: machines are made in a project")
        self._settings = settings
        self._scaleway = Scaleway(settings, settings.secret_key.get_secret_value())
        self._api = self._scaleway.instances
        self._call = self._scaleway.call

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._scaleway.close()

    async def catalogue(self) -> Catalogue:
        """What the configured zones have. Raises ProviderError."""
        return catalogue(await asyncio.gather(*(self._offers(zone) for zone in self._settings.zones)))

    async def create(self, request: MachineRequest) -> Machine:
        """The server is there, and does not run yet. Raises ProviderError."""
        tag = f"{_INSTANCE_TAG}{request.instance_id}"
        for server in await self._servers(request.zone, TAG):
            if tag in server.tags:
                return _machine(server, request.zone)
        name = _NAME + re.sub(r"[^A-Za-z0-9.-]", "-", request.instance_id)
        server = await self._call(
            self._api.create, request.zone, self._settings, request.instance_type, name, [TAG, tag]
        )
        return _machine(server, request.zone)

    async def start_runtime(self, machine: Machine, request: MachineRequest) -> None:
        """Switch the server on; at its first start it installs agent and engine, later it starts them by itself.

        Raises ProviderError.
        """
        server = await self._server(machine)
        if server.state not in _AT_REST:
            return
        text = cloud_init(request, self._settings)
        await self._call(self._api.set_cloud_init, machine.zone, server.id, text)
        await self._act(machine, ServerAction.POWERON)

    async def stop_runtime(self, machine: Machine) -> None:
        """Switch it off; it keeps its place. Raises ProviderError."""
        server = await self._server(machine)
        if server.state in ("running", "starting"):
            await self._act(machine, ServerAction.STOP_IN_PLACE)

    async def address(self, machine: Machine) -> Address | None:
        """Raises NoSuchMachineError, ProviderError."""
        server = await self._server(machine)
        for ip in server.public_ips:
            if ip.family == "inet" and ip.address:
                engine = f"http://{ip.address}:{self._settings.engine_port}" if self._settings.engine_command else None
                return Address(ip.address, f"http://{ip.address}:{AGENT_PORT}", engine)
        return None

    async def delete(self, machine: Machine) -> None:
        """A running server is gone after a while, and block volumes are detached only then: call it until the
        inventory does not have the machine; what is left of its volumes is found by ``volumes``.

        Raises ProviderError.
        """
        try:
            server = await self._server(machine)
        except NoSuchMachineError:
            return
        if server.state == "stopping":
            return
        reserved = [ip.id for ip in server.public_ips if not ip.dynamic and TAG in ip.tags]
        if server.state in _AT_REST:
            with suppress(NoSuchMachineError):
                await self._call(self._api.delete_server, server_id=server.id, zone=machine.zone)
            for volume_id in [volume.id for volume in server.volumes.values()]:
                await self._delete_volume(volume_id, machine.zone)
        else:
            await self._act(machine, ServerAction.TERMINATE)
        for ip_id in reserved:
            with suppress(NoSuchMachineError):
                await self._call(self._api.delete_ip, ip=ip_id, zone=machine.zone)

    async def inventory(self) -> Sequence[Machine]:
        """Raises ProviderError."""
        zones = self._settings.zones
        found = await asyncio.gather(*(self._servers(zone, TAG) for zone in zones))
        return [_machine(server, zone) for zone, servers in zip(zones, found, strict=True) for server in servers]

    async def volumes(self) -> Sequence[Volume]:
        """Those named as ``create`` names them. Raises ProviderError."""
        found = await asyncio.gather(*(self._volumes(zone) for zone in self._settings.zones))
        return [volume for volumes in found for volume in volumes]

    async def delete_volume(self, volume: Volume) -> None:
        """Raises ProviderError."""
        await self._delete_volume(volume.volume_id, volume.zone)

    async def _offers(self, zone: str) -> ZoneOffers:
        types: dict[str, ServerType] = {}
        availability: dict[str, str] = {}
        page = 1
        while True:
            offers = await self._call(self._api.list_servers_types, zone=zone, per_page=_PAGE, page=page)
            known = await self._call(self._api.get_server_types_availability, zone=zone, per_page=_PAGE, page=page)
            types |= offers.servers
            availability |= {name: str(each.availability) for name, each in known.servers.items()}
            if len(offers.servers) < _PAGE:
                return ZoneOffers(zone, types, availability)
            page += 1

    async def _servers(self, zone: str, tag: str) -> list[Server]:
        return await self._call(self._api.list_servers_all, zone=zone, tags=[tag], per_page=_PAGE)

    async def _server(self, machine: Machine) -> Server:
        answer = await self._call(self._api.get_server, server_id=machine.machine_id, zone=machine.zone)
        if answer.server is None:
            raise ProviderError(f"Scaleway answers without the server {machine.machine_id}", retryable=True)
        return answer.server

    async def _act(self, machine: Machine, action: ServerAction) -> None:
        await self._call(self._api.server_action, server_id=machine.machine_id, zone=machine.zone, action=action)

    async def _volumes(self, zone: str) -> list[Volume]:
        local = await self._call(self._api.list_volumes_all, zone=zone, name=_NAME, per_page=_PAGE)
        block = await self._call(
            self._scaleway.block.list_volumes_all, include_deleted=False, zone=zone, name=_NAME, page_size=_PAGE
        )
        found = [(each.id, each.name, each.size, each.server.id if each.server else None) for each in local]
        for each in block:
            owners = [owner.product_resource_id for owner in each.references]
            found.append((each.id, each.name, each.size, owners[0] if owners else None))
        return [
            Volume(volume_id, zone, name, size, machine_id, name.removeprefix(_NAME))
            for volume_id, name, size, machine_id in found
            if name.startswith(_NAME)
        ]

    async def _delete_volume(self, volume_id: str, zone: str) -> None:
        """Local and block volumes have ids of one kind and are deleted in different places."""
        with suppress(NoSuchMachineError):
            await self._call(self._scaleway.block.delete_volume, volume_id=volume_id, zone=zone)
            return
        with suppress(NoSuchMachineError):
            await self._call(self._api.delete_volume, volume_id=volume_id, zone=zone)


def _machine(server: Server, zone: str) -> Machine:
    instance_id = next((tag.removeprefix(_INSTANCE_TAG) for tag in server.tags if tag.startswith(_INSTANCE_TAG)), None)
    return Machine(server.id, zone, instance_id, server.commercial_type, str(server.state))
