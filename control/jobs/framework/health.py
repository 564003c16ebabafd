"""What probes say about an instance that is coming up."""

import json
from dataclasses import dataclass
from typing import Any, Final

from control.jobs.framework.item import Instance
from control.jobs.framework.probes import ProbeResult, Probes
from control.providers.interface import Address

# Of what an agent or engine says of itself: enough for people, and little to keep however often it changes.
MOST_CHARACTERS: Final = 500
# A body is whatever somebody sent.
UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Findings:
    """Results of the probes that were needed. ``lacking`` is what still keeps it from being ready, for people."""

    agent: ProbeResult
    engine: ProbeResult | None
    ssh: ProbeResult | None
    lacking: str | None

    def told(self) -> dict[str, dict[str, Any]]:
        """By probe, as it is kept."""
        found = {"agent": self.agent, "engine": self.engine, "ssh": self.ssh}
        return {name: self._result(result) for name, result in found.items() if result is not None}

    def _result(self, result: ProbeResult) -> dict[str, Any]:
        """An answer that is not good enough is told by what it lacks; an engine's 200 is not yet its model."""
        enough = result.succeeded and (result is not self.engine or self.lacking is None)
        detail = self.lacking if result.answered and not enough else result.detail
        return {"succeeded": enough, "detail": detail, "target": result.target}


async def look(probes: Probes, instance: Instance, address: Address) -> Findings:
    """Ask the agent; the engine once the agent is ready; SSH, where there is one, while the agent is silent."""
    agent = await probes.http(f"{address.agent_url.rstrip('/')}/readyz")
    if not agent.answered:
        ssh = await probes.ssh(address.host, address.ssh_port) if address.ssh_port is not None else None
        return Findings(agent, None, ssh, _silent(agent, ssh))
    if not agent.succeeded:
        return Findings(agent, None, None, _unready(agent))
    if address.engine_url is None:
        return Findings(agent, None, None, None)
    engine = await probes.engine(f"{address.engine_url.rstrip('/')}/v1/models")
    return Findings(agent, engine, None, _engine_lacks(engine, instance.model))


def _silent(agent: ProbeResult, ssh: ProbeResult | None) -> str:
    told = f"the agent does not answer: {agent.detail}"
    if ssh is None:
        return told
    return f"{told}; the machine is up ({ssh.detail})" if ssh.succeeded else f"{told}; nor does SSH: {ssh.detail}"


def _unready(agent: ProbeResult) -> str:
    try:
        missing = json.loads(agent.body)["missing"]
        told = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        return f"the agent is not ready: {told[:MOST_CHARACTERS]}"
    except UNREADABLE:
        return f"the agent is not ready: it {agent.detail}"


def _engine_lacks(engine: ProbeResult, model: str | None) -> str | None:
    if not engine.succeeded:
        return f"the engine is not ready: {engine.detail}"
    try:
        models = [str(one["id"]) for one in json.loads(engine.body)["data"]]
    except UNREADABLE:
        return "the engine is not ready: its list of models cannot be read"
    if not models:
        return "the engine lists no model yet"
    if model is not None and model not in models:
        return f"the engine does not list {model}, but {', '.join(models[:5])[:MOST_CHARACTERS]}"
    return None
