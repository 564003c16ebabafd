"""``python -m control.providers.mock --port 8010 --data-dir FOLDER``."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from control.providers.mock.cloud import Cloud
from control.providers.mock.server import application
from fleetpulse.http import run_until_stopped, serving
from fleetpulse.local.ports import LOOPBACK
from fleetpulse.local.processes import StartError
from fleetpulse.settings import ServiceSettings, SettingsError, load
from fleetpulse.telemetry import configure_logging, logger

_log = logger(__name__)


def main(given: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m control.providers.mock", description="A cloud of processes")
    # Loopback only: whoever reaches it can start programs here.
    parser.add_argument("--port", type=int, default=8010, help="port to listen on, on the loopback address")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of its machines and their logs")
    asked = parser.parse_args(given)
    data_dir: Path = asked.data_dir.absolute()

    async def serve(stop: asyncio.Event) -> None:
        async with Cloud.opened(data_dir) as cloud, serving(application(cloud), LOOPBACK, asked.port) as port:
            _log.info("mock cloud started", extra={"port": port, "data_dir": str(data_dir)})
            await stop.wait()

    try:
        configure_logging(load(ServiceSettings))
        asyncio.run(run_until_stopped(serve))
    except SettingsError as error:
        print(f"mock cloud: {error}", file=sys.stderr)
        return 2
    except (OSError, StartError, ValueError) as error:
        print(f"mock cloud: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
