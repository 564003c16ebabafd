"""``python -m fleetpulse.local.mock_engine --port 8100 --model NAME``."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from fleetpulse.http import run_until_stopped
from fleetpulse.local.mock_engine.scheduler import EngineLimits
from fleetpulse.local.mock_engine.server import mock_engine


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fleetpulse.local.mock_engine", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8100, help="port to listen on")
    parser.add_argument("--model", default="mock-model", help="name of the model it pretends to serve")
    parser.add_argument("--load", type=float, default=0.0, help="background requests a second")
    parser.add_argument("--step-seconds", type=float, default=EngineLimits().step_seconds, help="time for one token")
    parser.add_argument("--stalled", action="store_true", help="accept requests and do nothing with them")
    parser.add_argument("--loading", action="store_true", help="answer 503, as if the model were still being loaded")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    asked = _arguments(given)
    limits = EngineLimits(step_seconds=asked.step_seconds)

    async def serve(stop: asyncio.Event) -> None:
        async with mock_engine(
            asked.port, asked.model, asked.load, limits, asked.host, stalled=asked.stalled, loading=asked.loading
        ) as port:
            print(f"mock engine: {asked.model} on http://{asked.host}:{port}", flush=True)
            await stop.wait()

    try:
        asyncio.run(run_until_stopped(serve))
    except OSError as error:
        print(f"mock engine: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
