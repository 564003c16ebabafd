"""An engine's readings as OTLP measurements."""

from collections.abc import Iterator

from agent import instruments as i
from agent.engines.watch import EngineSnapshot
from agent.instruments import Measurement


def measurements(engine: EngineSnapshot) -> Iterator[Measurement]:
    """What the engine reported; nothing while it is not ready."""
    for reading in engine.readings:
        attributes = {"gen_ai.request.model": reading.model_id, "fleetpulse.engine.index": reading.engine_index}
        for column, value in reading.values.items():
            yield Measurement(i.ENGINE_BY_COLUMN[column], attributes, value)
    if engine.state == "ready":
        yield Measurement(i.ENGINE_NAMES_MISSING, {}, len(engine.missing))
