"""Brokers of both kinds, and a wait that is bounded."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleetpulse.local.apache_kafka import ApacheKafka
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.local.processes import StartError
from fleetpulse.settings import StreamSettings
from fleetpulse.stream.admin import ensure_topics

WAIT_SECONDS = 20.0


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Poll a condition until it holds."""

    def wait(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="module", params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
def broker(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    require_lane: Callable[[str, str], None],
) -> Iterator[EmbeddedBroker | ApacheKafka]:
    """A running broker of each kind in turn. Tests that stop it start it again."""
    folder, port = tmp_path_factory.mktemp(f"broker-{request.param}"), free_port()
    made: EmbeddedBroker | ApacheKafka
    made = ApacheKafka(folder, port) if request.param == "apache" else EmbeddedBroker(folder, port)
    try:
        made.start()
    except StartError as error:
        if request.param == "apache":
            require_lane("kafka", str(error))
        raise
    yield made
    made.stop()


@pytest.fixture(scope="module")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A running embedded broker."""
    made = EmbeddedBroker(tmp_path_factory.mktemp("broker"), free_port())
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def stream(embedded_broker: EmbeddedBroker) -> StreamSettings:
    """Settings of the embedded broker, which has our topics."""
    settings = StreamSettings(bootstrap=embedded_broker.bootstrap, partitions=2)
    asyncio.run(ensure_topics(settings))
    return settings


@pytest.fixture
def sleeper(tmp_path: Path) -> list[str]:
    """A command that runs until it is ended."""
    return ["sleep", "600"]
