"""The mock engine behaves as a vLLM server does, as far as our agent, router and dashboards look."""

import asyncio
import io
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.engines.page import parse
from agent.engines.vllm import ADAPTER
from fleetpulse.local.mock_engine.scheduler import EngineLimits
from fleetpulse.local.mock_engine.server import mock_engine
from fleetpulse.stream.dictionary import ENGINE

FAST = EngineLimits(step_seconds=0.002)


@pytest.fixture
async def engine() -> AsyncIterator[aiohttp.ClientSession]:
    """A client of an idle engine."""
    async with (
        mock_engine(0, "tiny", limits=FAST, seed=7) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        yield session


async def readings(engine: aiohttp.ClientSession) -> dict[str, float]:
    """The engine's state as the agent's own adapter reads it."""
    async with engine.get("/metrics") as response:
        (reading,) = ADAPTER.read(parse(await response.text(), ADAPTER.series), ["tiny"])
    return dict(reading.values)


async def until(engine: aiohttp.ClientSession, column: str, least: float) -> dict[str, float]:
    """Readings once a column has reached a value."""
    async with asyncio.timeout(20):
        while True:
            found = await readings(engine)
            if found[column] >= least:
                return found


async def complete(engine: aiohttp.ClientSession, **asked: object) -> dict[str, object]:
    """A completion in one piece."""
    async with engine.post("/v1/completions", json={"prompt": "one two three", **asked}) as response:
        assert response.status == 200
        answer: dict[str, object] = await response.json()
        return answer


async def test_the_agents_adapter_finds_every_column_of_the_engine_table(engine: aiohttp.ClientSession) -> None:
    assert set(await readings(engine)) == set(ENGINE.columns)


async def test_metrics_have_vllms_types_and_labels(engine: aiohttp.ClientSession) -> None:
    async with engine.get("/metrics") as response:
        families = {family.name: family for family in text_string_to_metric_families(await response.text())}
    kinds = {
        "vllm:num_requests_running": "gauge",
        "vllm:kv_cache_usage_perc": "gauge",
        "vllm:prompt_tokens": "counter",
        "vllm:request_success": "counter",
        "vllm:iteration_tokens_total": "histogram",
        "vllm:time_to_first_token_seconds": "histogram",
    }
    assert {name: families[name].type for name in kinds} == kinds
    (sample,) = families["vllm:num_requests_waiting"].samples
    assert sample.labels == {"model_name": "tiny", "engine": "0"}


async def test_a_completion_says_what_it_used_and_the_counters_agree(engine: aiohttp.ClientSession) -> None:
    answer = await complete(engine, max_tokens=5, ignore_eos=True)
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    counted = await until(engine, "requests_finished_total", 1)
    assert (counted["prompt_tokens_total"], counted["generation_tokens_total"]) == (3, 5)
    assert counted["steps_total"] == 5


async def test_an_idle_engine_does_no_steps(engine: aiohttp.ClientSession) -> None:
    await complete(engine, max_tokens=2)
    before = (await until(engine, "requests_finished_total", 1))["steps_total"]
    await asyncio.sleep(20 * FAST.step_seconds)
    assert (await readings(engine))["steps_total"] == before


@pytest.mark.parametrize("with_usage", [True, False])
async def test_a_chat_streams_token_by_token(engine: aiohttp.ClientSession, with_usage: bool) -> None:
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello there"}],
        "max_tokens": 4,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": with_usage},
    }
    async with engine.post("/v1/chat/completions", json=asked) as response:
        assert response.content_type == "text/event-stream"
        events = [line.removeprefix("data: ") for line in (await response.text()).split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    if with_usage:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    words = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks).split()
    assert len(words) == 4
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"


async def test_a_client_that_hangs_up_aborts_its_request(engine: aiohttp.ClientSession) -> None:
    asked = {"prompt": "long", "max_tokens": 8_000, "ignore_eos": True, "stream": True}
    async with engine.post("/v1/completions", json=asked) as response:
        await response.content.readline()
    await until(engine, "requests_finished_total", 1)
    async with asyncio.timeout(20):
        while (await readings(engine))["requests_running"]:
            pass
    async with engine.get("/metrics") as metrics:
        assert 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"} 1.0' in (
            await metrics.text()
        )


async def test_background_load_can_be_set_and_moves_the_numbers(engine: aiohttp.ClientSession) -> None:
    async with engine.post("/mock/load", json={"requests_per_second": 1_000}) as response:
        assert response.status == 200
    loaded = await until(engine, "requests_waiting", 1)
    assert loaded["requests_running"] > 0
    assert 0 < loaded["kv_cache_usage_ratio"] <= 1


async def test_a_stalled_engine_accepts_work_and_does_no_steps_until_it_is_well_again(
    engine: aiohttp.ClientSession,
) -> None:
    async with engine.post("/mock/state", json={"stalled": True}) as response:
        assert await response.json() == {"stalled": True, "loading": False}
    async with asyncio.TaskGroup() as group:
        completion = group.create_task(complete(engine, max_tokens=2))
        assert (await until(engine, "requests_waiting", 1))["steps_total"] == 0
        async with engine.get("/v1/models") as response:
            assert response.status == 200
        async with engine.post("/mock/state", json={"stalled": False}) as response:
            assert response.status == 200
    assert completion.result()["usage"]


async def test_nothing_of_a_chat_comes_before_its_first_token(engine: aiohttp.ClientSession) -> None:
    await engine.post("/mock/state", json={"stalled": True})
    asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "stream": True}
    async with engine.post("/v1/chat/completions", json=asked) as response:
        first = asyncio.create_task(response.content.readline())
        await until(engine, "requests_waiting", 1)
        assert not first.done()
        await engine.post("/mock/state", json={"stalled": False})
        assert b"assistant" in await first


async def test_a_long_prompt_is_held_to_the_context_and_not_to_a_number_of_bytes(
    engine: aiohttp.ClientSession,
) -> None:
    body = io.BytesIO(json.dumps({"prompt": "word " * 500_000}).encode())
    async with engine.post("/v1/completions", data=body, headers={"Content-Type": "application/json"}) as response:
        assert (response.status, response.content_type) == (400, "application/json")


async def test_an_engine_that_loads_its_model_answers_503(engine: aiohttp.ClientSession) -> None:
    for loading, status in ((True, 503), (False, 200)):
        async with engine.post("/mock/state", json={"loading": loading}) as response:
            assert response.status == 200
        for path in ("/health", "/metrics", "/v1/models"):
            async with engine.get(path) as response:
                assert response.status == status


async def test_requests_wait_while_the_kv_cache_is_full() -> None:
    limits = EngineLimits(step_seconds=0.01, kv_cache_tokens=100)
    async with (
        mock_engine(0, "tiny", limits=limits) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as engine,
        asyncio.TaskGroup() as group,
    ):
        asked = {"prompt": "word " * 60, "max_tokens": 30, "ignore_eos": True}
        for _ in range(2):
            group.create_task(complete(engine, **asked))
        full = await until(engine, "requests_waiting", 1)
        assert full["requests_running"] == 1


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", b"not json", 400),
        ("/v1/completions", b"[]", 400),
        ("/v1/completions", b'{"prompt": 5}', 400),
        ("/v1/completions", b'{"prompt": "x", "max_tokens": -1}', 400),
        ("/v1/completions", b'{"prompt": "x", "model": "other"}', 404),
        ("/v1/chat/completions", b'{"messages": "hello"}', 400),
        ("/v1/chat/completions", b'{"messages": [1]}', 400),
        ("/mock/load", b'{"requests_per_second": -1}', 400),
        ("/mock/load", b"{}", 400),
        ("/mock/state", b"not json", 400),
        ("/mock/state", b'{"stalled": 1}', 400),
        ("/mock/state", b'{"stale": true}', 400),
    ],
)
async def test_wrong_requests_are_refused_in_openais_shape(
    engine: aiohttp.ClientSession, path: str, body: bytes, status: int
) -> None:
    async with engine.post(path, data=body, headers={"Content-Type": "application/json"}) as response:
        assert response.status == status
        error = (await response.json())["error"]
    assert error["code"] == status
    assert error["message"]


async def test_the_engine_is_healthy_and_names_its_model(engine: aiohttp.ClientSession) -> None:
    async with engine.get("/health") as response:
        assert response.status == 200
    async with engine.get("/v1/models") as response:
        assert [card["id"] for card in (await response.json())["data"]] == ["tiny"]
