"""The arguments of the commands that ask control or the proxy."""

import argparse
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from fleetpulse.stream.lifecycle import INSTANCE_STATES

Run = Callable[[argparse.Namespace], int]
Command = Callable[[str, Run, str, str], argparse.ArgumentParser]

_EXTRA: Final = "control"


def add_commands(command: Command, run: Callable[[str], Run]) -> None:
    """Add the commands; ``run`` gives what a command of a name does."""
    listing = command("instances", run("instances"), _EXTRA, "List the instances that control knows")
    listing.add_argument("--state", action="append", choices=INSTANCE_STATES, help="only in this state; repeatable")
    listing.add_argument("--provider", help="only at this provider")
    listing.add_argument("--model", help="only with this model")
    listing.add_argument("--deployment", metavar="ID", help="only of this deployment")
    listing.add_argument("--all", action="store_true", help="archived ones too")

    deploy = command("deploy", run("deploy"), _EXTRA, "Make instances")
    deploy.add_argument("--provider", required=True, help="where to make them")
    deploy.add_argument("--zone", required=True, help="in which zone")
    deploy.add_argument("--instance-type", required=True, metavar="TYPE", help="of which kind")
    deploy.add_argument("--model", help="model to serve: UUID, Hugging Face id, alias or offering")
    deploy.add_argument("--count", type=int, default=1, metavar="N", help="how many (default: 1)")
    deploy.add_argument("--name", help="name of the deployment, for people")
    deploy.add_argument(
        "--option",
        action="append",
        type=_option,
        metavar="NAME=JSON",
        help="an option of the provider; repeatable",
    )
    deploy.add_argument("--wait", action="store_true", help="until they are ready; exit status 1 if any is not")
    deploy.add_argument("--timeout", type=float, default=1800.0, metavar="SECONDS", help="longest wait (default: 1800)")

    terminate = command("terminate", run("terminate"), _EXTRA, "End an instance: its machine is deleted")
    why = command("why", run("why"), _EXTRA, "Tell why an instance is in its state")
    why.add_argument("--at", type=_time, metavar="TIME", help="as of this time, e.g. 2026-11-21T07:25:00")
    for parser in (terminate, why):
        parser.add_argument("instance", metavar="INSTANCE", help="its id")
    usage = command("usage", run("usage"), _EXTRA, "Show what requests used, and what it cost")
    usage.add_argument(
        "--by",
        choices=("model", "organization", "key", "instance", "machine"),
        default="model",
        help="a line each (default: model); costs are by model or machine",
    )
    usage.add_argument(
        "--window", type=_length, default=86_400, metavar="LENGTH", help="until now, e.g. 30m, 24h, 7d (default: 24h)"
    )
    instead = usage.add_mutually_exclusive_group()
    instead.add_argument(
        "--ledger", action="store_true", help="the proxy's tokens against the engines' counters instead"
    )
    instead.add_argument("--costs", action="store_true", help="what machines cost, by what they were, instead")

    chat = command("chat", run("chat"), _EXTRA, "Ask a model, through the proxy")
    chat.add_argument("text", metavar="TEXT", help="what to ask")
    chat.add_argument("--model", help="which model: UUID, Hugging Face id, alias or offering (default: the first)")
    chat.add_argument("--url", help="the proxy, without /v1 (default: that of the running fleetpulse up)")
    chat.add_argument("--key", help="key for it; better in FLEETPULSE_CHAT_API_KEY, as others may see arguments")

    for parser in (listing, deploy, terminate, why, usage):
        parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _time(text: str) -> datetime:
    """A time; without an offset it is the reader's own."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 2026-11-21T07:25:00") from error


def _length(text: str) -> int:
    """Seconds of a length of time."""
    number, unit = text[:-1], {"s": 1, "m": 60, "h": 3_600, "d": 86_400}.get(text[-1:])
    if unit is None or not (number.isascii() and number.isdigit()) or not 0 < int(number) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a length of time like 30m, 24h or 7d")
    return int(number) * unit


def _option(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    try:
        if name and separator:
            return name, json.loads(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not NAME=JSON, e.g. boot_seconds=5")
