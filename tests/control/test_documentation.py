import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from control.api.application import all_endpoints
from control.api.families import FAMILIES
from control.api.resources.workers import Worker

TEXT = (Path(__file__).parents[2] / "docs" / "control.md").read_text()


def section(title: str) -> str:
    return re.split(r"^##+ ", TEXT.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def first_column(text: str) -> list[str]:
    cells = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_field_of_an_activity_row_is_documented_in_order(family: Any) -> None:
    text = section(f"`/{family.name}/activity`")
    assert first_column(text) == [field for field, _, _ in family.fields(coarse=False)]
    assert ", ".join(f"`{field}`" for field in family.identity(None)) in text


def test_every_field_of_a_worker_is_documented() -> None:
    assert set(first_column(section("Workers"))) == set(Worker.__struct_fields__) - {"worker_id", "instance_id"}


async def test_every_metric_is_documented(serve: Any) -> None:
    api = await serve()
    async with (
        api.session.get(f"{api.url}/workers", headers=api.admin),
        api.session.get(f"{api.url}/metrics") as answer,
    ):
        families = {one.name: one.type for one in text_string_to_metric_families(await answer.text())}
    names = {f"{name}_total" if kind == "counter" else name for name, kind in families.items()}
    documented = set(first_column(section("Metrics"))) - {"fleetpulse_control_stream_lag_records"}
    assert {name for name in names if not name.endswith("_created")} == documented


def test_every_endpoint_is_in_the_table_with_its_scope() -> None:
    rows = re.findall(r"^\| (`[A-Z]+ /.*?) \| (.*?) \|", TEXT, re.MULTILINE)
    told = {name: rights for names, rights in rows for name in re.findall(r"`([A-Z]+ /[^`]*)`", names)}
    wanted = {
        f"{one.method} {one.path}": (one.scope or "open") + (", operators" if one.operators else "")
        for one in all_endpoints()
    }
    assert told == wanted
