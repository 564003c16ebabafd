"""A fleet's catalogue, and keys of others than the admin."""

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

CATALOGUE = """
INSERT INTO providers (provider, catalogue_read_at) VALUES ('mock', now());
INSERT INTO zones (provider, zone, available) VALUES ('mock', 'here', true), ('mock', 'there', false);
INSERT INTO instance_types
    (provider, instance_type, gpu_model, gpu_count, gpu_memory_bytes, cpu_count, memory_bytes, price_per_hour, zones,
        available)
VALUES
    ('mock', 'small', 'L4', 1, 24000000000, 8, 32000000000, 0.85, ARRAY['here'], true),
    ('mock', 'large', 'H100', 8, 80000000000, 96, 960000000000, NULL, ARRAY['here', 'there'], true),
    ('mock', 'gone', NULL, 0, NULL, NULL, NULL, 0.01, ARRAY['here'], false),
    ('mock', 'elsewhere', NULL, 0, NULL, NULL, NULL, 0.01, ARRAY['there'], true)
"""
DEPLOYMENT = {"provider": "mock", "zone": "here", "instance_type": "small"}


@pytest.fixture
async def fleet(api: Any, sql: psycopg.AsyncConnection[Any]) -> Any:
    """The endpoints, with something to deploy."""
    await sql.execute(CATALOGUE)
    return api


@pytest.fixture
def deploy(fleet: Any) -> Callable[..., Awaitable[list[str]]]:
    """Make instances; their ids."""

    async def made(count: int = 1, key: str | None = None, **changes: Any) -> list[str]:
        deployment = await fleet.ask("POST", "/deployments", 201, key, json=DEPLOYMENT | {"count": count} | changes)
        shown = await fleet.get(f"/deployments/{deployment['deployment_id']}")
        return [one["instance_id"] for one in shown["instances"]]

    return made


@pytest.fixture
def new_key(api: Any) -> Callable[..., Awaitable[str]]:
    """Make a key; its text."""

    async def made(*scopes: str, **more: Any) -> str:
        body = {"name": "test", "scopes": list(scopes)} | more
        return str((await api.ask("POST", "/api-keys", 201, json=body))["key"])

    return made
