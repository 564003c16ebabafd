"""The fleet on a screen: control's ``/workers`` as a table, or as one line."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleetpulse.local.state_file import STATE_FILE

_STATE_STYLES: Final = {"alive": "green", "stale": "red", "never_seen": "yellow"}
_NOTHING: Final = "-"
# A line that nobody can read tells nothing.
_MOST_IN_LINE: Final = 8


def url_table(urls: Mapping[str, str], data_dir: str) -> Table:
    """Where everything listens."""
    table = Table(
        title="fleetpulse is up",
        title_justify="left",
        caption=f"control is the console, too; keys and process ids: {data_dir}/{STATE_FILE}",
    )
    table.add_column("part")
    table.add_column("URL")
    for name, url in urls.items():
        table.add_row(name, url)
    return table


def lines_to_paste(proxy_url: str, inference_key: str, control_url: str, admin_key: str, model: str) -> str:
    """A request to each of the two APIs for a shell, and one to the proxy for Python with OpenAI's SDK."""
    message = '{"role": "user", "content": "hello"}'
    return (
        f"curl {proxy_url}/v1/chat/completions -H 'Authorization: Bearer {inference_key}'"
        f' -H \'Content-Type: application/json\' -d \'{{"model": "{model}", "messages": [{message}]}}\'\n'
        f"curl {control_url}/workers -H 'Authorization: Bearer {admin_key}'\n"
        "in Python:\n"
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{proxy_url}/v1", api_key="{inference_key}")\n'
        f'answer = client.chat.completions.create(model="{model}", messages=[{message}])\n'
        "print(answer.choices[0].message.content)"
    )


def fleet_table(answer: Mapping[str, Any]) -> RenderableType:
    """The workers, and what is wrong with hearing them."""
    table = Table(title=f"fleet: {_summary(answer)}", title_justify="left")
    for heading in ("worker", "state", "status", "heard", "host"):
        table.add_column(heading)
    for heading in ("CPU", "memory", "GPUs", "GPU use", "GPU memory", "engine", "running", "waiting", "KV cache"):
        table.add_column(heading, justify="right")
    for worker in answer["workers"]:
        table.add_row(*_row(worker))
    return Group(table, *_warnings(answer))


def fleet_line(answer: Mapping[str, Any]) -> str:
    """The fleet for a log: how many are in which state, and the load of the first few, those in trouble first."""
    workers = sorted(answer["workers"], key=lambda one: not _trouble(one))
    told, others = workers[:_MOST_IN_LINE], workers[_MOST_IN_LINE:]
    return " · ".join([f"fleet: {_summary(answer)}", *map(_load, told), *_more(others), *_warnings(answer)])


def _load(worker: Mapping[str, Any]) -> str:
    load = worker["load"] or {}
    told = [f"{worker['worker_id']} {worker['state']}{_trouble_of_live(worker)}"]
    told.append(f"cpu {_percent(load.get('cpu_utilization_ratio'))}")
    if load.get("gpu_count"):
        told.append(f"{load['gpu_count']} GPUs {_percent(load.get('gpu_utilization_ratio'))}")
    return " ".join(told)


def _trouble(worker: Mapping[str, Any]) -> bool:
    return worker["state"] != "alive" or bool(_trouble_of_live(worker))


def _trouble_of_live(worker: Mapping[str, Any]) -> str:
    """For after its state, empty where there is none."""
    if worker["state"] != "alive":
        return ""
    degraded = " degraded" if worker["status"] == "degraded" else ""
    engine = worker["engine"] or {}
    return f"{degraded}, engine unreachable" if engine.get("state") == "unreachable" else degraded


def _more(others: Sequence[Mapping[str, Any]]) -> list[str]:
    if not others:
        return []
    troubled = sum(map(_trouble, others))
    return [f"{len(others):,} more" + (f", {troubled:,} of them in trouble" if troubled else "")]


def _summary(answer: Mapping[str, Any]) -> str:
    states = {state: count for state, count in answer["summary"].items() if state != "workers"}
    return ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in states.items())


def _warnings(answer: Mapping[str, Any]) -> list[str]:
    if answer["stream"]["connected"]:
        return []
    return ["control does not hear the stream: ages are of what was heard before"]


def _row(worker: Mapping[str, Any]) -> list[RenderableType]:
    load, engine = worker["load"] or {}, worker["engine"] or {}
    style = _STATE_STYLES.get(worker["state"], "")
    return [
        worker["worker_id"],
        Text(worker["state"].replace("_", " "), style),
        worker["status"] or _NOTHING,
        _ago(worker["heartbeat_age_seconds"]),
        worker["host_name"] or _NOTHING,
        _percent(load.get("cpu_utilization_ratio")),
        _percent(load.get("memory_utilization_ratio")),
        _number(load.get("gpu_count")),
        _percent(load.get("gpu_utilization_ratio")),
        _percent(load.get("gpu_memory_utilization_ratio")),
        engine.get("state", _NOTHING),
        _number(engine.get("requests_running")),
        _number(engine.get("requests_waiting")),
        _percent(engine.get("kv_cache_usage_ratio")),
    ]


def _ago(seconds: float | None) -> str:
    return _NOTHING if seconds is None else f"{seconds:.1f} s ago"


def _percent(ratio: float | None) -> str:
    return _NOTHING if ratio is None else f"{ratio:.0%}"


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:g}"
