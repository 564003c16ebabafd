"""A load on OpenAI's API: every request is accounted for, and timed from when it was due."""

import asyncio
import csv
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from fleetpulse.command import main
from fleetpulse.http import serving
from fleetpulse.local.load import Plan, load
from fleetpulse.local.load_request import Result, Target
from fleetpulse.local.mock_engine.server import mock_engine
from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.settings import SettingsError

MODEL = "mock-model"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def target(port: int) -> Target:
    return Target(f"http://{LOOPBACK}:{port}", "key", MODEL, prompt_words=5, most_tokens=3)


def plan(stages: str, model: str = "open", stream_share: float = 0.5) -> Plan:
    return Plan.checked(stages, model, stream_share, timeout_seconds=20, seed=1)  # type: ignore[arg-type]


def quiet(_: str) -> None:
    """For progress lines."""


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[int]:
    application = web.Application()
    application.router.add_post("/v1/chat/completions", handler)
    async with serving(application, LOOPBACK, 0) as port:
        yield port


async def outcome_of(handler: Handler, stream_share: float) -> list[Result]:
    async with answering(handler) as port:
        _, results = await load(
            plan("0:10,0.2:10", stream_share=stream_share), target(port), asyncio.Event(), tell=quiet
        )
    return results


async def test_every_request_is_in_the_file_with_its_times_and_tokens(tmp_path: Path) -> None:
    async with mock_engine(0, MODEL, seed=1) as port:
        report, _ = await load(plan("ramp=1:20,hold=1:20"), target(port), asyncio.Event(), tmp_path, quiet)
    with (tmp_path / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == report.requests == report.outcomes["completed"] == 30
    assert Counter(row["stage"] for row in rows) == {"ramp": 10, "hold": 20}
    assert {row["is_stream"] for row in rows} == {"True", "False"}
    for row in rows:
        assert (row["status"], row["prompt_tokens"]) == ("200", "5")
        assert 1 <= int(row["completion_tokens"]) <= 3
        assert (row["first_token_seconds"] != "") == (row["is_stream"] == "True")
        if row["first_token_seconds"]:
            assert 0 < float(row["first_token_seconds"]) <= float(row["duration_seconds"])
    assert json.loads((tmp_path / "load.json").read_text())["stages"][0]["name"] == "ramp"


async def test_a_stall_is_charged_to_all_that_were_due_in_it() -> None:
    go_on = asyncio.Event()
    asked = 0

    async def stalled(_: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if asked == 1:
            asyncio.get_running_loop().call_later(1.0, go_on.set)
        await go_on.wait()
        return web.json_response({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    async with answering(stalled) as port:
        _, results = await load(plan("0:20,1:20", stream_share=0), target(port), asyncio.Event(), tell=quiet)
    assert len(results) == asked == 20
    assert all(result.duration_seconds > 1.0 - result.due for result in results)


async def test_the_closed_model_keeps_as_many_clients_as_it_is_told() -> None:
    under_way = 0
    seen: list[int] = []
    all_there = asyncio.Event()

    async def count(_: web.Request) -> web.StreamResponse:
        nonlocal under_way
        under_way += 1
        seen.append(under_way)
        if under_way == 4:
            all_there.set()
        await all_there.wait()
        await asyncio.sleep(0.02)
        under_way -= 1
        return web.json_response({})

    async with answering(count) as port:
        wanted = plan("0:4,1:4", "closed", stream_share=0)
        report, results = await load(wanted, target(port), asyncio.Event(), tell=quiet)
    assert max(seen) == 4
    assert report.requests == len(results) == len(seen) >= 4


@pytest.mark.parametrize(("status", "outcome"), [(401, "refused"), (429, "limited"), (503, "failed")])
async def test_refusals_are_told_apart(status: int, outcome: str) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=status)

    for result in await outcome_of(refuse, stream_share=0.5):
        assert (result.outcome, result.status) == (outcome, status)
        assert "no" in result.detail


async def test_a_stream_without_an_end_is_broken() -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b'data: {"choices": [{"delta": {"content": "word"}}]}\n\n')
        return answer

    for result in await outcome_of(break_off, stream_share=1):
        assert result.outcome == "broken"
        assert result.first_token_seconds is not None


async def test_an_answer_that_is_none_of_openais_is_broken() -> None:
    async def nonsense(_: web.Request) -> web.StreamResponse:
        return web.json_response([1, 2])

    assert {result.outcome for result in await outcome_of(nonsense, stream_share=0)} == {"broken"}


async def test_a_proxy_that_is_away_is_told() -> None:
    away = target(free_port())
    for model in ("open", "closed"):
        report, _ = await load(plan("0:5,0.3:5", model), away, asyncio.Event(), tell=quiet)
        assert list(report.outcomes) == ["unreachable"]


@pytest.mark.parametrize("model", ["open", "closed"])
async def test_it_ends_at_once_when_stopped_and_counts_what_it_cut_off(model: str) -> None:
    asked, stop = asyncio.Event(), asyncio.Event()

    async def never(_: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with answering(never) as port:
        run = asyncio.create_task(load(plan("0:5,600:5", model), target(port), stop, tell=quiet))
        await asyncio.wait_for(asked.wait(), 20)
        stop.set()
        report, results = await asyncio.wait_for(run, 20)
    assert report.outcomes == {"stopped": len(results)}
    assert len(results) >= 1


@pytest.mark.parametrize(("share", "timeout"), [(1.5, 1), (-1, 1), (float("nan"), 1), (0.5, 0)])
def test_numbers_that_make_no_sense_are_refused(share: float, timeout: float) -> None:
    with pytest.raises(SettingsError, match="--"):
        Plan.checked("1:1", "open", share, timeout, 0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no fleetpulse up runs in"),
        (["--url", "http://127.0.0.1:1"], "--url needs --model, and the proxy's key in OPENAI_API_KEY"),
        (["--stages", "soon"], "--stages: 'soon' is not"),
    ],
)
def test_what_is_missing_is_one_line(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fleetpulse.command._log", lambda: None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["load", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
