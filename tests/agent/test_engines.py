"""Adapters against pages as their engines show them, and the watch over a live one."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from agent.engines import page as page_module
from agent.engines import watch as watch_module
from agent.engines.adapter import EngineReading
from agent.engines.measurements import measurements
from agent.engines.page import parse
from agent.engines.registry import ADAPTERS
from agent.engines.watch import EngineWatch
from agent.instruments import ENGINE_BY_COLUMN
from fleetpulse.http import serving
from fleetpulse.settings import AgentSettings
from fleetpulse.stream import dictionary, heartbeat

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def read(kind: str, text: str, models: tuple[str, ...] = (MODEL,)) -> list[EngineReading]:
    adapter = ADAPTERS[kind]
    return adapter.read(parse(text, adapter.series), models)


def test_the_setting_and_the_registry_name_the_same_engines() -> None:
    choices = AgentSettings.model_fields["engine"].annotation.__args__
    assert set(choices) == {"none", *ADAPTERS}
    assert all(adapter.kind == name for name, adapter in ADAPTERS.items())


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_fill_columns_that_exist(kind: str) -> None:
    assert ADAPTERS[kind].columns <= set(dictionary.ENGINE.columns) == set(ENGINE_BY_COLUMN)


def test_current_vllm(fixture_page: Callable[[str], str]) -> None:
    assert read("vllm", fixture_page("vllm_current.txt")) == [
        EngineReading(
            MODEL,
            "0",
            {
                "requests_running": 3,
                "requests_waiting": 7,
                "kv_cache_usage_ratio": 0.4375,
                "steps_total": 1200,
                "prompt_tokens_total": 120_000,
                "generation_tokens_total": 30_000,
                "preemptions_total": 12,
                "prefix_cache_queries_total": 108_000,
                "prefix_cache_hits_total": 36_000,
                "requests_finished_total": 182,
            },
        )
    ]


def test_older_vllm_names_fill_the_same_columns(fixture_page: Callable[[str], str]) -> None:
    (reading,) = read("vllm", fixture_page("vllm_before_0_9.txt"))
    assert reading.values["kv_cache_usage_ratio"] == 0.62
    assert reading.values["prefix_cache_hits_total"] == 17_000
    assert reading.values["steps_total"] == 51_234 + 20_480, "without a step histogram, tokens show progress"
    assert set(reading.values) == ADAPTERS["vllm"].columns


def test_several_engines_and_models_are_rows_of_their_own(fixture_page: Callable[[str], str]) -> None:
    readings = read("vllm", fixture_page("vllm_engines_and_models.txt"))
    running = {(r.model_id, r.engine_index): r.values["requests_running"] for r in readings}
    assert running == {(MODEL, "0"): 3, (MODEL, "1"): 5, ("sql-adapter", "0"): 1}


def test_a_current_name_hides_its_older_alias() -> None:
    text = 'vllm:kv_cache_usage_perc{model_name="m"} 0.5\nvllm:gpu_cache_usage_perc{model_name="m"} 0.25\n'
    (reading,) = read("vllm", text)
    assert reading.values == {"kv_cache_usage_ratio": 0.5}


def test_sglang_counts_tensor_parallel_ranks_once(fixture_page: Callable[[str], str]) -> None:
    first, second = read("sglang", fixture_page("sglang.txt"))
    assert (first.engine_index, second.engine_index) == ("0", "1")
    assert (first.values["requests_running"], second.values["requests_running"]) == (3, 5)
    assert second.values["kv_cache_usage_ratio"] == 0.5
    assert first.values["steps_total"] == 23_811
    assert first.values["prefix_cache_hits_total"] == 1_234


def test_tgi_takes_the_model_from_its_list(fixture_page: Callable[[str], str]) -> None:
    (reading,) = read("tgi", fixture_page("tgi.txt"), ("bigcode/starcoder",))
    assert reading.model_id == "bigcode/starcoder"
    assert reading.values == {
        "requests_running": 5,
        "requests_waiting": 3,
        "steps_total": 4_650,
        "prompt_tokens_total": 18_000,
        "generation_tokens_total": 24_500,
        "requests_finished_total": 150,
    }


def test_llamacpp_has_no_kv_reading_in_current_builds(fixture_page: Callable[[str], str]) -> None:
    (reading,) = read("llamacpp", fixture_page("llamacpp.txt"))
    assert "kv_cache_usage_ratio" not in reading.values
    assert reading.values["requests_waiting"] == 46
    assert reading.values["steps_total"] == 39_303


def test_llamacpps_prompts_are_counted_with_what_was_in_its_cache(fixture_page: Callable[[str], str]) -> None:
    (reading,) = read("llamacpp", fixture_page("llamacpp_2026.txt"))
    assert reading.values == {
        "requests_running": 1,
        "requests_waiting": 0,
        "steps_total": 287,
        "prompt_tokens_total": 93 + 403,
        "generation_tokens_total": 301,
        "prefix_cache_hits_total": 403,
    }
    (older,) = read("llamacpp", fixture_page("llamacpp.txt"))
    assert older.values["prompt_tokens_total"] == 512
    assert "prefix_cache_hits_total" not in older.values


def test_a_name_that_did_not_arrive_is_absent_rather_than_zero() -> None:
    (reading,) = read("vllm", 'vllm:num_requests_running{engine="0",model_name="m"} 0.0\n')
    assert reading.values == {"requests_running": 0.0}


@pytest.mark.parametrize(
    "name", ["vllm_current.txt", "vllm_engines_and_models.txt", "vllm_before_0_9.txt", "sglang.txt"]
)
def test_the_parser_agrees_with_the_reference_parser(fixture_page: Callable[[str], str], name: str) -> None:
    text = fixture_page(name)
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    ours = parse(text, {s.name for s in samples})
    assert sorted((n, sorted(s.labels.items()), s.value) for n, found in ours.items() for s in found) == sorted(
        (s.name, sorted(s.labels.items()), s.value) for s in samples
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('a{m="x\\"y\\\\z\\n"} 1', [({"m": 'x"y\\z\n'}, 1.0)]),
        ('a{m="}"} 1 1790347303000', [({"m": "}"}, 1.0)]),
        ('a{m="x",} 1 # {trace="y"} 0.5', [({"m": "x"}, 1.0)]),
        ("a 5e-3", [({}, 0.005)]),
        ('a 7 # {trace="x"} 1', [({}, 7.0)]),
        ('a { m = "x" , n="y" } 7', [({"m": "x", "n": "y"}, 7.0)]),
        ("a\t7", None),
        ("a NaN", None),
        ("a +Inf", None),
        ("a", None),
        ("a{", None),
        ('a{m="x} 1', None),
        ("a{} x", None),
        ("ab 1", None),
        ("# a 1", None),
        ("", None),
    ],
)
def test_the_parser_passes_over_what_is_no_sample(line: str, expected: list | None) -> None:
    found = parse(f"junk\n{line}\n\x00\xff", {"a"})
    assert found == ({"a": expected} if expected else {})


@pytest.fixture
async def watch(engine) -> AsyncIterator[EngineWatch]:
    settings = AgentSettings(engine="vllm", engine_url=f"{engine.url}/", engine_timeout_seconds=0.3)
    async with aiohttp.ClientSession() as session:
        yield EngineWatch(ADAPTERS["vllm"], settings, session)


async def test_an_engine_that_answers_is_ready(engine, watch: EngineWatch) -> None:
    assert watch.latest.state == "unreachable"
    snapshot = await watch.poll()
    assert snapshot.summary() == heartbeat.Engine(
        state="ready",
        kind="vllm",
        url=engine.url,
        models=(MODEL,),
        requests_waiting=7,
        requests_running=3,
        kv_cache_usage_ratio=0.4375,
        step_count=1200,
    )
    assert snapshot.missing == frozenset()


async def test_the_summary_adds_engines_up_and_takes_the_fullest_cache(engine, watch, fixture_page) -> None:
    engine.page = fixture_page("vllm_engines_and_models.txt")
    summary = (await watch.poll()).summary()
    assert (summary.requests_running, summary.requests_waiting, summary.step_count) == (9, 9, 2150)
    assert summary.kv_cache_usage_ratio == 0.875


async def test_an_engine_without_models_is_starting(engine, watch: EngineWatch) -> None:
    engine.models = []
    assert (await watch.poll()).state == "starting"


async def test_an_engine_that_says_unavailable_is_starting(engine, watch: EngineWatch) -> None:
    engine.status = 503
    assert (await watch.poll()).state == "starting"


async def test_an_engine_that_fails_is_unreachable_and_shows_no_old_readings(engine, watch: EngineWatch) -> None:
    await watch.poll()
    engine.status = 500
    snapshot = await watch.poll()
    assert snapshot.state == "unreachable"
    assert snapshot.summary().requests_running is None
    assert list(measurements(snapshot)) == []


async def test_an_engine_that_hangs_is_unreachable_in_time(engine, watch: EngineWatch) -> None:
    engine.delay_seconds = 5
    began = time.monotonic()
    assert (await watch.poll()).state == "unreachable"
    assert time.monotonic() - began < 4


async def test_an_engine_that_is_not_there_is_unreachable() -> None:
    async with aiohttp.ClientSession() as session:
        settings = AgentSettings(engine="vllm", engine_url="http://127.0.0.1:1")
        assert (await EngineWatch(ADAPTERS["vllm"], settings, session).poll()).state == "unreachable"


TROUBLES = {
    "a key is wanted": ({"status": 401, "page": '{"error":"Unauthorized"}'}, "/metrics: status 401"),
    "a flag is missing": ({"status": 501, "page": "Start it with `--metrics`"}, "Start it with `--metrics`"),
    "no model yet": ({"models": []}, "lists no model"),
    "it takes too long": ({"delay_seconds": 5}, "no whole answer within 0.3 s"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_what_keeps_an_engine_from_being_read_is_told_once_from_the_first_time(
    engine, watch: EngineWatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    setup, expected = TROUBLES[trouble]
    for name, value in setup.items():
        setattr(engine, name, value)
    for _ in range(3):
        await watch.poll()
    told = [record.__dict__["error"] for record in caplog.records if "error" in record.__dict__]
    assert len([error for error in told if expected in error]) == 1


async def test_an_engine_that_is_ready_in_between_is_told_of_again(engine, watch, caplog) -> None:
    watch.settings.engine_timeout_seconds = 10
    for status in (500, 200, 500):
        engine.status = status
        await watch.poll()
    assert len([record for record in caplog.records if "error" in record.__dict__]) == 2


RAW = {
    "a status line that is none": b"hello\r\n\r\n",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nvllm:num_requests_running 1\n",
    "less than was announced": b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nvllm:num_requests_running 1\n",
    "gzip that is none": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\njunk",
    "a redirect round and round": b"HTTP/1.1 307 Go\r\nLocation: /metrics\r\nContent-Length: 0\r\n\r\n",
    "a redirect to nowhere": b"HTTP/1.1 307 Go\r\nLocation: http://[::x/\r\nContent-Length: 0\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("answer", RAW)
async def test_a_server_that_is_no_good_is_unreachable_in_one_line(answer: str, caplog) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(RAW[answer])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings = AgentSettings(engine="vllm", engine_url=url, engine_timeout_seconds=10)
    async with server, aiohttp.ClientSession() as session:
        snapshot = await EngineWatch(ADAPTERS["vllm"], settings, session).poll()
    assert (snapshot.state, list(snapshot.readings)) == ("unreachable", [])
    (told,) = [record.__dict__["error"] for record in caplog.records if "error" in record.__dict__]
    assert "\n" not in told
    assert len(told) <= watch_module.REASON_CHARACTERS


@pytest.mark.parametrize("models", [b"[" * 100_000, b'{"x":' + b"[" * 100_000, b"<html>", b'{"data":null}'])
async def test_a_list_of_models_that_is_none_costs_the_reading_and_not_the_agent(
    engine, watch, monkeypatch: pytest.MonkeyPatch, models: bytes
) -> None:
    ask = watch._get

    async def get(path: str) -> bytes:
        return models if path == "/v1/models" else await ask(path)

    monkeypatch.setattr(EngineWatch, "_get", lambda _, path: get(path))
    assert (await watch.poll()).state == "unreachable"


async def test_a_model_without_a_name_is_none(engine, watch: EngineWatch) -> None:
    engine.models = ["", "named"]
    watch.settings.engine_timeout_seconds = 10
    assert (await watch.poll()).models == ("named",)


async def test_an_endless_page_is_refused(engine, watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "PAGE_BYTES", 1_000)
    assert (await watch.poll()).state == "unreachable"


async def test_a_name_that_never_arrived_is_told_once(engine, watch, caplog: pytest.LogCaptureFixture) -> None:
    engine.page = engine.page.replace("vllm:kv_cache_usage_perc", "vllm:kv_usage")
    for _ in range(3):
        snapshot = await watch.poll()
    assert snapshot.missing == {"kv_cache_usage_ratio"}
    assert snapshot.summary().kv_cache_usage_ratio is None
    told = [record for record in caplog.records if "measures" in record.__dict__]
    assert [record.__dict__["measures"] for record in told] == [["kv_cache_usage_ratio"]]
    engine.page = engine.page.replace("vllm:kv_usage", "vllm:kv_cache_usage_perc")
    assert (await watch.poll()).missing == frozenset()


async def test_an_engine_that_shows_nothing_at_all_misses_everything(engine, watch: EngineWatch) -> None:
    engine.page = "# nothing\n"
    snapshot = await watch.poll()
    assert snapshot.missing == ADAPTERS["vllm"].columns
    assert snapshot.summary().requests_waiting is None


async def test_a_page_of_countless_models_makes_no_countless_rows(engine, watch: EngineWatch) -> None:
    engine.page = "".join(f'vllm:num_requests_running{{model_name="m{n}"}} 1\n' for n in range(20_000))
    # On a busy machine so long a page takes a while.
    watch.settings = watch.settings.model_copy(update={"engine_timeout_seconds": 60.0})
    assert len((await watch.poll()).readings) == watch_module.READINGS_MOST


async def test_polling_leaves_the_event_loop_free(engine, watch: EngineWatch) -> None:
    """A large page costs milliseconds: it is read every second, beside heartbeats."""
    engine.page = engine.page * 50
    began = time.thread_time()
    parse(engine.page, ADAPTERS["vllm"].series)
    assert time.thread_time() - began < 0.5
    assert (await asyncio.gather(watch.poll()))[0].state == "ready"
    assert page_module.parse("", ()) == {}


async def test_an_engine_that_asks_for_a_key_gets_it(fixture_page: Callable[[str], str]) -> None:
    page = fixture_page("vllm_current.txt")

    async def answer(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer sk-engine":
            return web.Response(status=401)
        return web.Response(text=page) if request.path == "/metrics" else web.json_response({"data": [{"id": "m"}]})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with serving(app, "127.0.0.1", 0) as port, aiohttp.ClientSession() as session:
        states = []
        for key in (None, "sk-engine"):
            settings = AgentSettings(
                engine="vllm", engine_url=f"http://127.0.0.1:{port}", engine_timeout_seconds=10, engine_api_key=key
            )
            states.append((await EngineWatch(ADAPTERS["vllm"], settings, session).poll()).state)
    assert states == ["unreachable", "ready"]
