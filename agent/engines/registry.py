"""The kinds of engines the agent can read; the names are those of the setting FLEETPULSE_AGENT_ENGINE."""

from collections.abc import Mapping
from typing import Final

from agent.engines import llamacpp, sglang, tgi, vllm
from agent.engines.adapter import Adapter

ADAPTERS: Final[Mapping[str, Adapter]] = {
    "vllm": vllm.ADAPTER,
    "sglang": sglang.ADAPTER,
    "tgi": tgi.ADAPTER,
    "llamacpp": llamacpp.ADAPTER,
}
