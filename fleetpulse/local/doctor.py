"""``fleetpulse doctor``: checks each dependency and says what to do about what is wrong."""

from collections.abc import Callable

from pydantic import SecretStr

from fleetpulse.local import checks
from fleetpulse.local.state_file import running_state
from fleetpulse.settings import DatabaseSettings, LocalSettings, StreamSettings, load


async def doctor(tell: Callable[[str], None] = print) -> int:
    """Run all checks and tell the findings; the exit status, 1 when something is wrong."""
    stream, database, local = load(StreamSettings), load(DatabaseSettings), load(LocalSettings)
    running = running_state(local.data_dir)
    if running:
        tell(f"a stack is up in {local.data_dir}: its database and its broker are looked at")
        stream = stream.model_copy(update={"bootstrap": running["kafka_bootstrap"]})
        database = database.model_copy(update={"url": SecretStr(running["database_url"])})
    found = [
        *await checks.check_python(),
        *await checks.check_packages(),
        *await checks.check_protobuf(),
        *await checks.check_kafka(stream),
        *await checks.check_database(database),
        *await checks.check_gpus(),
        *await checks.check_ports(),
        *await checks.check_disk(local.data_dir),
        *await checks.check_java(),
    ]
    for finding in found:
        tell(finding.line())
    wrong = sum(finding.verdict == "wrong" for finding in found)
    tell(f"{wrong} wrong" if wrong else "all is well")
    return 1 if wrong else 0
