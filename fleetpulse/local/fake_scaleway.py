"""Scaleway's instance and block API over HTTP, as far as our provider uses it, with servers that are not there.

What it answers has the shape and the field names of the real answers.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web

from fleetpulse.http import serving

SECRET_KEY: Final = "11111111-2222-3333-4444-555555555555"  # noqa: S105 - of nothing
PROJECT: Final = "66666666-7777-8888-9999-aaaaaaaaaaaa"
_GIB: Final = 2**30

_SERVER_TYPES: Final[dict[str, Any]] = {
    "L4-1-24G": {
        "hourly_price": 0.75,
        "monthly_price": 547.5,
        "alt_names": [],
        "ncpus": 8,
        "ram": 48 * _GIB,
        "arch": "x86_64",
        "gpu": 1,
        "gpu_info": {"gpu_manufacturer": "NVIDIA", "gpu_name": "L4", "gpu_memory": 24 * _GIB},
        "scratch_storage_max_volumes_count": 0,
        "end_of_service": False,
    },
    "H100-1-80G": {
        "hourly_price": 2.73,
        "monthly_price": 1992.9,
        "alt_names": [],
        "ncpus": 24,
        "ram": 240 * _GIB,
        "arch": "x86_64",
        "gpu": 1,
        "gpu_info": {"gpu_manufacturer": "NVIDIA", "gpu_name": "H100-PCIe", "gpu_memory": 80 * _GIB},
        "scratch_storage_max_volumes_count": 1,
        "end_of_service": False,
    },
    "GP1-L": {
        "hourly_price": 0.789,
        "monthly_price": 576.262,
        "alt_names": [],
        "ncpus": 32,
        "ram": 128 * _GIB,
        "arch": "x86_64",
        "gpu": 0,
        "gpu_info": None,
        "scratch_storage_max_volumes_count": 0,
        "end_of_service": True,
    },
}


class FakeScaleway:
    """Its servers and volumes, by zone and id, and what it was asked. ``refusals`` are the answers of the next
    requests, each a status and a body."""

    def __init__(self) -> None:
        self.url = ""
        self.servers: dict[tuple[str, str], dict[str, Any]] = {}
        self.local_volumes: dict[tuple[str, str], dict[str, Any]] = {}
        self.block_volumes: dict[tuple[str, str], dict[str, Any]] = {}
        self.user_data: dict[str, str] = {}
        self.refusals: list[tuple[int, str]] = []
        self.requests: list[str] = []

    def application(self) -> web.Application:
        """The endpoints."""
        app = web.Application(middlewares=[self._authenticated])
        instance, block = "/instance/v1/zones/{zone}", "/block/v1/zones/{zone}"
        app.add_routes(
            [
                web.get(f"{instance}/products/servers", self._types),
                web.get(f"{instance}/products/servers/availability", self._availability),
                web.get(f"{instance}/servers", self._list),
                web.post(f"{instance}/servers", self._create),
                web.get(f"{instance}/servers/{{id}}", self._get),
                web.delete(f"{instance}/servers/{{id}}", self._delete),
                web.post(f"{instance}/servers/{{id}}/action", self._act),
                web.patch(f"{instance}/servers/{{id}}/user_data/cloud-init", self._set_user_data),
                web.get(f"{instance}/volumes", self._list_local),
                web.delete(f"{instance}/volumes/{{id}}", self._delete_local),
                web.get(f"{block}/volumes", self._list_block),
                web.delete(f"{block}/volumes/{{id}}", self._delete_block),
            ]
        )
        return app

    @web.middleware
    async def _authenticated(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        if self.refusals:
            status, body = self.refusals.pop(0)
            return web.Response(status=status, text=body, content_type="application/json")
        if request.headers.get("X-Auth-Token") != SECRET_KEY:
            return _refusal(401, "authentication is denied", "denied_authentication")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _types(self, request: web.Request) -> web.Response:
        return web.json_response({"servers": _SERVER_TYPES if _first_page(request) else {}})

    async def _availability(self, request: web.Request) -> web.Response:
        known = {"L4-1-24G": {"availability": "available"}, "H100-1-80G": {"availability": "shortage"}}
        return web.json_response({"servers": known if _first_page(request) else {}})

    async def _list(self, request: web.Request) -> web.Response:
        wanted = set(request.query.get("tags", "").split(",")) - {""}
        zone = request.match_info["zone"]
        found = [each for (where, _), each in self.servers.items() if where == zone and wanted <= set(each["tags"])]
        return web.json_response({"servers": found if _first_page(request) else []})

    async def _create(self, request: web.Request) -> web.Response:
        asked, zone = await request.json(), request.match_info["zone"]
        if asked["commercial_type"] not in _SERVER_TYPES:
            details = [{"argument_name": "commercial_type", "reason": "constraint"}]
            body = {"type": "invalid_arguments", "message": "invalid argument(s)", "details": details}
            return web.json_response(body, status=400)
        server_id, volume_id = str(uuid.uuid4()), str(uuid.uuid4())
        root = asked["volumes"]["0"]
        volume = {"id": volume_id, "volume_type": root["volume_type"], "boot": True, "zone": zone}
        server = {
            "id": server_id,
            "name": asked["name"],
            "organization": PROJECT,
            "project": asked["project"],
            "allowed_actions": ["poweron", "backup"],
            "tags": asked["tags"],
            "commercial_type": asked["commercial_type"],
            "creation_date": "2026-11-21T10:00:00.000000+00:00",
            "dynamic_ip_required": asked["dynamic_ip_required"],
            "hostname": asked["name"],
            "protected": asked["protected"],
            "public_ips": [],
            "state": "stopped",
            "state_detail": "",
            "boot_type": "local",
            "volumes": {"0": volume},
            "arch": "x86_64",
            "zone": zone,
        }
        self.servers[zone, server_id] = server
        self._keep_volume(zone, volume_id, root, server)
        return web.json_response({"server": server}, status=201)

    def _keep_volume(self, zone: str, volume_id: str, root: dict[str, Any], server: dict[str, Any]) -> None:
        kept = {"id": volume_id, "name": root["name"], "size": root["size"], "zone": zone, "tags": []}
        if root["volume_type"] == "sbs_volume":
            owner = {
                "id": str(uuid.uuid4()),
                "product_resource_type": "instance_server",
                "product_resource_id": server["id"],
                "type": "exclusive",
                "status": "attached",
            }
            kept |= {"type": "sbs_5k", "project_id": PROJECT, "references": [owner], "status": "in_use"}
            self.block_volumes[zone, volume_id] = kept
        else:
            owner = {"id": server["id"], "name": server["name"]}
            kept |= {"volume_type": "l_ssd", "project": PROJECT, "organization": PROJECT, "state": "available"}
            self.local_volumes[zone, volume_id] = kept | {"server": owner}

    async def _get(self, request: web.Request) -> web.Response:
        """What was begun is done by the time of the second look."""
        place = request.match_info["zone"], request.match_info["id"]
        if place not in self.servers:
            return _not_found("instance_server", place[1])
        server = self.servers[place]
        shown = dict(server)
        if server["state"] == "starting":
            server["state"] = "running"
            server["public_ips"] = [_address()]
        elif server["state"] == "stopping":
            self._remove(place, with_local=True)
        return web.json_response({"server": shown})

    async def _delete(self, request: web.Request) -> web.Response:
        place = request.match_info["zone"], request.match_info["id"]
        if place not in self.servers:
            return _not_found("instance_server", place[1])
        if self.servers[place]["state"] not in ("stopped", "stopped in place"):
            return _refusal(400, "instance should be powered off", "invalid_request_error")
        self._remove(place, with_local=False)
        return web.Response(status=204)

    async def _act(self, request: web.Request) -> web.Response:
        place, action = (request.match_info["zone"], request.match_info["id"]), (await request.json())["action"]
        if place not in self.servers:
            return _not_found("instance_server", place[1])
        server = self.servers[place]
        server["state"] = {"poweron": "starting", "stop_in_place": "stopped in place", "terminate": "stopping"}[action]
        task = {"id": str(uuid.uuid4()), "description": f"server_{action}", "status": "pending", "progress": 0}
        return web.json_response({"task": task | {"href_from": "", "href_result": "", "zone": place[0]}}, status=202)

    async def _set_user_data(self, request: web.Request) -> web.Response:
        if request.content_type != "text/plain":
            return _refusal(400, "user data must be text/plain", "invalid_request_error")
        self.user_data[request.match_info["id"]] = await request.text()
        return web.Response(status=204)

    async def _list_local(self, request: web.Request) -> web.Response:
        return web.json_response({"volumes": self._volumes(self.local_volumes, request)})

    async def _list_block(self, request: web.Request) -> web.Response:
        found = self._volumes(self.block_volumes, request)
        return web.json_response({"volumes": found, "total_count": len(found)})

    def _volumes(self, kept: dict[tuple[str, str], dict[str, Any]], request: web.Request) -> list[dict[str, Any]]:
        zone, name = request.match_info["zone"], request.query.get("name", "")
        return [
            each for (where, _), each in kept.items() if where == zone and name in each["name"] and _first_page(request)
        ]

    async def _delete_local(self, request: web.Request) -> web.Response:
        place = request.match_info["zone"], request.match_info["id"]
        if place not in self.local_volumes:
            return _not_found("instance_volume", place[1])
        if self.local_volumes[place]["server"] is not None:
            return _refusal(400, "volume is attached to a server", "invalid_request_error")
        del self.local_volumes[place]
        return web.Response(status=204)

    async def _delete_block(self, request: web.Request) -> web.Response:
        place = request.match_info["zone"], request.match_info["id"]
        if place not in self.block_volumes:
            return _not_found("volume", place[1])
        if self.block_volumes[place]["references"]:
            return _refusal(412, "volume is in use", "precondition_failed")
        del self.block_volumes[place]
        return web.Response(status=204)

    def _remove(self, place: tuple[str, str], with_local: bool) -> None:
        """Block volumes stay and are detached; local ones go with a server that is terminated."""
        server = self.servers.pop(place)
        for volume in server["volumes"].values():
            there = place[0], volume["id"]
            if there in self.block_volumes:
                self.block_volumes[there] |= {"references": [], "status": "available"}
            elif with_local:
                del self.local_volumes[there]
            else:
                self.local_volumes[there]["server"] = None


@asynccontextmanager
async def fake_scaleway() -> AsyncIterator[FakeScaleway]:
    """The API on a port of its own while the block runs."""
    fake = FakeScaleway()
    async with serving(fake.application(), "127.0.0.1", 0) as port:
        fake.url = f"http://127.0.0.1:{port}"
        yield fake


def _address() -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "address": "127.0.0.1",
        "gateway": "62.210.0.1",
        "netmask": "32",
        "family": "inet",
        "dynamic": True,
        "provisioning_mode": "dhcp",
        "tags": [],
        "state": "attached",
        "ipam_id": str(uuid.uuid4()),
    }


def _first_page(request: web.Request) -> bool:
    return request.query.get("page", "1") == "1"


def _refusal(status: int, message: str, kind: str) -> web.Response:
    return web.json_response({"type": kind, "message": message}, status=status)


def _not_found(resource: str, resource_id: str) -> web.Response:
    body = {"type": "not_found", "message": "resource is not found", "resource": resource, "resource_id": resource_id}
    return web.json_response(body, status=404)
