"""Creating the stream's topics."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, NoError, TopicAlreadyExistsError, for_code

from fleetpulse.settings import StreamSettings
from fleetpulse.stream.client import connection_options
from fleetpulse.stream.topics import ALL, Topic


class TopicError(Exception):
    """The broker refuses a topic; the message says which, why, and what to do."""


async def ensure_topics(settings: StreamSettings) -> list[str]:
    """Create the topics that do not exist and return their names; topics that exist stay as they are.

    Any number of processes may do this at once. Raises KafkaError or OSError while there is no broker, and TopicError
    when the broker refuses a topic.
    """
    async with _administrator(settings) as administrator:
        missing = await _missing(administrator)
        if not missing:
            return []
        answer = await administrator.create_topics([_new_topic(topic, settings) for topic in missing])
    # A row is (name, code, text), in newer protocol versions followed by more.
    return _created({str(row[0]): int(row[1]) for row in answer.topic_errors}, settings)


async def missing_topics(settings: StreamSettings) -> list[str]:
    """Names of our topics that the broker lacks. Raises KafkaError or OSError while there is no broker."""
    async with _administrator(settings) as administrator:
        return [topic.name for topic in await _missing(administrator)]


@asynccontextmanager
async def _administrator(settings: StreamSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    administrator = AIOKafkaAdminClient(**connection_options(settings, "fleetpulse-topics"))
    try:
        await administrator.start()
        yield administrator
    finally:
        await administrator.close()


async def _missing(administrator: AIOKafkaAdminClient) -> Sequence[Topic]:
    existing = set(await administrator.list_topics())
    return [topic for topic in ALL if topic.name not in existing]


def _new_topic(topic: Topic, settings: StreamSettings) -> NewTopic:
    return NewTopic(topic.name, settings.partitions, settings.replication_factor, topic_configs=topic.settings())


def _created(codes: dict[str, int], settings: StreamSettings) -> list[str]:
    """Topics that are new; another process may have been quicker with the others."""
    created = []
    for name, code in codes.items():
        problem: type[KafkaError] = for_code(code)
        if problem is NoError:
            created.append(name)
        elif problem is not TopicAlreadyExistsError:
            raise TopicError(
                f"the broker at {settings.bootstrap} refuses topic {name} ({problem.__name__}): create it yourself, or "
                "change FLEETPULSE_KAFKA_PARTITIONS or FLEETPULSE_KAFKA_REPLICATION_FACTOR"
            )
    return created
