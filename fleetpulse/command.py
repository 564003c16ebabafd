"""The ``fleetpulse`` command.

Each subcommand imports what it needs when it runs: an agent's host has neither psycopg nor numpy.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from fleetpulse import __version__
from fleetpulse.client.parser import add_commands
from fleetpulse.settings import (
    AgentSettings,
    CollectorSettings,
    ControlSettings,
    DatabaseSettings,
    JobSettings,
    LocalSettings,
    ProxySettings,
    ServiceSettings,
    SettingsError,
    StreamSettings,
    load,
    warn_of_unknown_names,
)

WRONG_SETTINGS: Final = 2
FAILED: Final = 1
INTERRUPTED: Final = 130
_OURS: Final = ("fleetpulse", "agent", "collector", "control", "proxy")


class CommandError(Exception):
    """The command cannot do its work; the message is one line for people."""


def main(given: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 for what failed, 2 for wrong settings or arguments."""
    asked = _parser().parse_args(given)
    try:
        warn_of_unknown_names()
        return int(asked.run(asked))
    except SettingsError as error:
        return _say(str(error), WRONG_SETTINGS)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", *_OURS):
            raise
        return _say(f"{module} is not installed: pip install 'fleetpulse[{asked.extra}]'", FAILED)
    except CommandError as error:
        return _say(str(error), FAILED)
    except OSError as error:
        return _say(error.strerror or str(error), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def _say(line: str, status: int) -> int:
    print(f"fleetpulse: {line}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleetpulse",
        description="Metrics pipeline and control layer for fleets of GPU inference workers.",
        epilog="Settings are environment variables, FLEETPULSE_*; docs/settings.md lists them.",
    )
    parser.add_argument("--version", action="version", version=f"fleetpulse {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], extra: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run, extra=extra)
        return made

    up = command("up", _up, "local", "Start the embedded stack and show the fleet")
    up.add_argument("--workers", type=int, help="workers to start; the first reads this host")
    up.add_argument("--data-dir", type=Path, help="folder of data and logs (default: .fleetpulse)")
    up.add_argument("--broker", choices=("embedded", "apache"), help="which Kafka broker to start")
    command("agent", _agent, "agent", "Run the worker agent")
    command("collector", _collector, "collector", "Run the collector")
    command("control", _control, "control", "Run the control service")
    proxy = command("proxy", _proxy, "proxy", "Run the proxy")
    proxy.add_argument("--processes", type=int, metavar="N", help="processes that share the port (default: 1)")
    _add_simulate(command("simulate", _simulate, "local", "Drive simulated agents from one process"))
    _add_load(command("load", _load, "local", "Drive the proxy through stages of load"))
    report = command("report", _report, "report", "Write tables and pictures of recorded runs")
    report.add_argument("folder", type=Path, metavar="FOLDER", help="a run's folder, or one that holds several")
    add_commands(command, _asking)
    command("migrate", _migrate, "collector", "Bring the database's schema up to date and verify it")
    command("doctor", _doctor, "local", "Check each dependency and say what to do")
    return parser


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", type=int, required=True, metavar="N", help="simulated agents")
    parser.add_argument(
        "--interval", type=float, default=5.0, metavar="SECONDS", help="time between an agent's samples (default: 5)"
    )
    parser.add_argument(
        "--heartbeat-interval",
        type=float,
        metavar="SECONDS",
        help="time between an agent's heartbeats (default: as samples)",
    )
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="end after this long (default: at Ctrl-C)")
    parser.add_argument("--gpus", type=int, default=2, metavar="N", help="GPUs of each agent (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the counts to this file")
    _add_record(parser)


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stages",
        metavar="NAME=SECONDS:TARGET,…",
        help="each goes in a straight line from the target before it to its own; 0 seconds is a jump"
        " (default: ramp to 20, hold, spike to 60, recover)",
    )
    parser.add_argument(
        "--arrivals",
        choices=("open", "closed"),
        default="open",
        help="what targets are: requests a second, whatever becomes of them (open, default), or clients (closed)",
    )
    parser.add_argument("--stream-share", type=float, default=0.5, metavar="RATIO", help="of requests (default: 0.5)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="of a request (default: 60)")
    parser.add_argument("--max-tokens", type=int, default=16, metavar="N", help="of an answer (default: 16)")
    parser.add_argument("--prompt-words", type=int, default=50, metavar="N", help="of a request (default: 50)")
    parser.add_argument("--model", metavar="NAME", help="model to ask for (default: that of fleetpulse up)")
    parser.add_argument("--url", help="proxy, without /v1; its key is in OPENAI_API_KEY (default: of fleetpulse up)")
    parser.add_argument("--seed", type=int, default=0, help="decides which requests are streamed (default: 0)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--out", type=Path, metavar="FOLDER", help="write the counts and each request here")
    _add_record(output)


def _add_record(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--record", type=Path, metavar="FOLDER", help="of the running fleetpulse up, keep what fleetpulse report needs"
    )


def _serve(main_coroutine: Callable[[asyncio.Event], Awaitable[object]], fast_loop: bool = False) -> int:
    """Run a service until it is told to stop."""
    from fleetpulse.garbage import keep_collections_short
    from fleetpulse.http import run_until_stopped

    keep_collections_short()
    with asyncio.Runner(loop_factory=_fast_loop() if fast_loop else None) as runner:
        runner.run(run_until_stopped(main_coroutine))
    return 0


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it can be imported (the services' extras have it, but it is not built for every platform)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _log() -> None:
    from fleetpulse.telemetry import configure_logging

    configure_logging(load(ServiceSettings))


def _agent(_: argparse.Namespace) -> int:
    from agent.main import run

    _log()
    settings, stream = load(AgentSettings), load(StreamSettings)
    return _serve(lambda stop: run(settings, stream, stop))


def _collector(_: argparse.Namespace) -> int:
    from collector.main import run

    _log()
    settings, stream, database = load(CollectorSettings), load(StreamSettings), load(DatabaseSettings)
    return _serve(lambda stop: run(settings, stream, database, stop), fast_loop=True)


def _control(_: argparse.Namespace) -> int:
    from control.main import run

    _log()
    settings, jobs = load(ControlSettings), load(JobSettings)
    stream, database = load(StreamSettings), load(DatabaseSettings)
    return _serve(lambda stop: run(settings, jobs, stream, database, stop), fast_loop=True)


def _proxy(asked: argparse.Namespace) -> int:
    from proxy.main import run
    from proxy.processes import check, run_processes

    _log()
    settings = load(ProxySettings, processes=asked.processes)
    stream, database = load(StreamSettings), load(DatabaseSettings)
    check(settings)

    def serve(process: int | None) -> int:
        return _serve(lambda stop: run(settings, stream, database, stop, process), fast_loop=True)

    return serve(None) if settings.processes == 1 else run_processes(settings.processes, serve)


def _up(asked: argparse.Namespace) -> int:
    from fleetpulse.local.processes import StartError
    from fleetpulse.local.up import up

    _log()
    settings = load(LocalSettings, workers=asked.workers, data_dir=asked.data_dir, broker=asked.broker)
    try:
        return _serve(lambda stop: up(settings, stop))
    except StartError as error:
        raise CommandError(str(error)) from error


def _simulate(asked: argparse.Namespace) -> int:
    from fleetpulse.local.load_commands import recorded, simulation_stream
    from fleetpulse.local.simulate import Plan, simulate

    _log()
    plan = Plan.checked(
        asked.agents, asked.interval, asked.heartbeat_interval or asked.interval, asked.duration, asked.gpus
    )
    stream = simulation_stream()
    with recorded(asked.record, "simulate"):
        return _serve(lambda stop: simulate(plan, stream, stop, asked.json, folder=asked.record), fast_loop=True)


def _load(asked: argparse.Namespace) -> int:
    from fleetpulse.local.load import DEFAULT_STAGES, Plan
    from fleetpulse.local.load import load as drive
    from fleetpulse.local.load_commands import recorded, target

    _log()
    plan = Plan.checked(asked.stages or DEFAULT_STAGES, asked.arrivals, asked.stream_share, asked.timeout, asked.seed)
    place = target(asked.url, asked.model, asked.prompt_words, asked.max_tokens)
    with recorded(asked.record, "load"):
        return _serve(lambda stop: drive(plan, place, stop, asked.record or asked.out), fast_loop=True)


def _report(asked: argparse.Namespace) -> int:
    from fleetpulse.report.main import ReportError, report

    try:
        for path in report(asked.folder):
            print(path)
    except ReportError as error:
        raise CommandError(str(error)) from error
    return 0


def _asking(name: str) -> Callable[[argparse.Namespace], int]:
    """A command that asks control or the proxy."""

    def run(asked: argparse.Namespace) -> int:
        from fleetpulse.client.commands import COMMANDS
        from fleetpulse.client.errors import AskError

        try:
            return COMMANDS[name](asked)
        except AskError as error:
            raise CommandError(str(error)) from error

    return run


def _migrate(_: argparse.Namespace) -> int:
    from fleetpulse.database import DatabaseError, prepare

    _log()
    try:
        profile = asyncio.run(prepare(load(DatabaseSettings)))
    except DatabaseError as error:
        raise CommandError(str(error)) from error
    print(f"the database is up to date (profile {profile})")
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from fleetpulse.local.doctor import doctor

    _log()
    return asyncio.run(doctor())
