"""Scaleway's SDK, made safe to use: calls end, do not hold up the event loop, and fail as ProviderError.

The SDK's coroutines block while they wait for an answer, without a limit, and fail in different ways for an error
page, a refused connection and a refused request. So each runs on a thread of its own, and sends its request by
``_Bounded``.
"""

import asyncio
import contextvars
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

import requests
from scaleway_async.block.v1 import BlockV1API
from scaleway_async.instance.v1 import InstanceV1API, Server, VolumeServerTemplate
from scaleway_core.api import API, Body, Params
from scaleway_core.client import Client

from control.providers.interface import NoSuchMachineError, ProviderError
from fleetpulse.settings import ScalewaySettings

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")

_CALLS_AT_ONCE: Final = 8
_JSON: Final = "application/json; charset=utf-8"
# Kinds of refusals that pass, whatever their status.
_PASSING: Final = frozenset({"out_of_stock", "transient_state", "too_many_requests", "resource_still_in_use"})


class _Bounded(API):
    timeout_seconds: float = 20.0

    def _request(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        headers: dict[str, str] | None = None,
        body: Body | None = None,
    ) -> requests.Response:
        """Replaces the SDK's own, which has no timeout. Raises ProviderError for any answer but success."""
        content = body if isinstance(body, bytes) else json.dumps(body or {})
        try:
            response = requests.request(
                method,
                f"{self.client.api_url}{path}",
                params={name: value for name, value in (params or {}).items() if value is not None},
                headers={
                    "Accept": "application/json",
                    "Content-Type": _JSON,
                    "User-Agent": self.client.user_agent,
                    "X-Auth-Token": self.client.secret_key or "",
                    **(headers or {}),
                },
                data=content if method != "GET" else None,
                timeout=self.timeout_seconds,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise ProviderError(
                f"Scaleway does not answer {method} {path}: {type(error).__name__}", retryable=True
            ) from error
        if response.status_code >= 300:
            raise _error(method, path, response)
        return response


class Instances(_Bounded, InstanceV1API):
    """Servers, local volumes and addresses."""

    async def create(
        self, zone: str, settings: ScalewaySettings, instance_type: str, name: str, tags: list[str]
    ) -> Server:
        """A server that is not started yet, with a public address once it is."""
        answer = await self._create_server(
            zone=zone,
            commercial_type=instance_type,
            name=name,
            tags=tags,
            image=settings.image,
            protected=False,
            dynamic_ip_required=True,
            security_group=settings.security_group,
            project=settings.project_id,
            volumes={
                "0": VolumeServerTemplate(
                    volume_type=settings.root_volume_type,  # type: ignore[arg-type]  # the SDK's enumeration is of str
                    name=name,
                    size=settings.root_volume_bytes,
                    boot=True,
                )
            },
        )
        if answer.server is None:
            raise ProviderError("Scaleway answers without the server that it made", retryable=True)
        return answer.server

    async def set_cloud_init(self, zone: str, server_id: str, text: str) -> None:
        """What the server does at its first start; the SDK has no call for it."""
        self._request(
            "PATCH",
            f"/instance/v1/zones/{zone}/servers/{server_id}/user_data/cloud-init",
            headers={"Content-Type": "text/plain"},
            body=text.encode(),
        )


class Block(_Bounded, BlockV1API):
    """Volumes of the block storage."""


class Scaleway:
    """Runs calls of the SDK on threads, as many at once as there are threads."""

    def __init__(self, settings: ScalewaySettings, secret_key: str) -> None:
        client = Client(
            secret_key=secret_key, api_url=settings.api_url.rstrip("/"), default_project_id=settings.project_id
        )
        # It insists on an access key, which no request needs.
        self.instances = Instances(client, bypass_validation=True)
        self.block = Block(client, bypass_validation=True)
        self.instances.timeout_seconds = self.block.timeout_seconds = settings.timeout_seconds
        self._threads = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="scaleway")

    async def call(
        self,
        make: Callable[Parameters, Coroutine[Any, Any, Result]],
        *given: Parameters.args,
        **named: Parameters.kwargs,
    ) -> Result:
        """The result of one of the SDK's coroutines. Raises ProviderError."""

        def run() -> Result:
            return asyncio.run(make(*given, **named))

        context = contextvars.copy_context()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, run)
        except (ValueError, TypeError, KeyError) as error:
            raise ProviderError(f"Scaleway answers something else than expected: {error!r}", retryable=True) from error

    async def close(self) -> None:
        """Returns when the last call has ended, which is within the timeout."""
        await asyncio.to_thread(self._threads.shutdown)


def _error(method: str, path: str, response: requests.Response) -> ProviderError:
    try:
        told = response.json()
    except requests.JSONDecodeError:
        told = None
    told = told if isinstance(told, dict) else {}
    kind, status = str(told.get("type", "")), response.status_code
    why = f"Scaleway answers {method} {path} with {status}: {told.get('message') or kind or response.reason}"
    if told.get("fields") or told.get("details"):
        why += f" ({json.dumps(told.get('fields') or told.get('details'))})"
    if status == 404 and method in ("GET", "DELETE"):
        return NoSuchMachineError(why)
    return ProviderError(why, retryable=status in (408, 409, 425, 429) or status >= 500 or kind in _PASSING)
