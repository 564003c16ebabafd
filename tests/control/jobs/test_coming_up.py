"""From an instance to a ready worker, and to every way in which that fails."""

import asyncio
from typing import Any

import pytest

from control.providers.interface import Address, MachineRequest, ProviderError


async def test_an_instance_becomes_ready_step_by_step(fleet: Any, worker: Any) -> None:
    fleet.provider.default_address = worker.address()
    await fleet.make("i-1", options={"fault": "none"})
    async with fleet.running():
        await fleet.until_state("i-1", "ready")
    assert [state for state, _ in await fleet.history("i-1")] == ["provisioning", "booting", "installing", "ready"]
    request: MachineRequest = fleet.provider.requests[0]
    assert request.worker_environment == {
        "FLEETPULSE_AGENT_INSTANCE_ID": "i-1",
        "FLEETPULSE_AGENT_WORKER_ID": "i-1",
        "FLEETPULSE_KAFKA_BOOTSTRAP": "broker:9092",
    }
    assert request.options == {"fault": "none"}
    rows = await fleet.rows("SELECT machine_id, address, agent_url, engine_url, ready_at IS NOT NULL FROM instances")
    assert rows == [("m-i-1", "127.0.0.1", worker.url, worker.url, True)]
    evidence = await fleet.evidence("i-1")
    assert evidence["probes"]["engine"] == {
        "succeeded": True,
        "detail": "answered 200",
        "target": f"{worker.url}/v1/models",
    }


async def test_a_worker_that_answers_and_is_not_ready_is_starting(fleet: Any, worker: Any) -> None:
    worker.ready = False
    fleet.provider.default_address = worker.address()
    await fleet.make("i-1", "booting")
    async with fleet.running():
        await fleet.until_state("i-1", "starting")
        worker.ready, worker.models = True, []
        await fleet.until(lambda: "/v1/models" in worker.asked, "a look at the models")
        assert await fleet.state("i-1") == "starting"
        worker.models = ["a/b"]
        await fleet.until_state("i-1", "ready")
    results = await fleet.rows("SELECT probe, succeeded, detail FROM health_results ORDER BY result_id")
    assert ("agent", False, "the agent is not ready: stream: none") in results
    assert ("engine", False, "the engine lists no model yet") in results
    assert len(results) <= 5, "only changes are kept"


async def test_an_engine_with_another_model_is_not_ready(fleet: Any, worker: Any) -> None:
    model = await fleet.rows("INSERT INTO models (hugging_face_id, name) VALUES ('c/d', 'D') RETURNING model_id")
    fleet.provider.default_address = worker.address()
    await fleet.make("i-1", "starting", model_id=model[0][0])
    async with fleet.running():
        await fleet.until(lambda: worker.asked.count("/v1/models") >= 2, "looks at the models")
        assert await fleet.state("i-1") == "starting"
        worker.models = ["c/d"]
        await fleet.until_state("i-1", "ready")


async def test_no_address_yet_is_a_success_that_says_so_once(fleet: Any, worker: Any) -> None:
    await fleet.make("i-1", "installing")
    async with fleet.running():
        await fleet.until(lambda: fleet.provider.calls.count("address") >= 5, "several looks for an address")
        fleet.provider.default_address = worker.address()
        await fleet.until_state("i-1", "ready")
    told = await fleet.rows(
        "SELECT succeeded, detail ->> 'ip_available' FROM action_log WHERE action = 'provider.address'"
        " ORDER BY action_id"
    )
    assert told == [(True, "false"), (True, "true")]


async def test_a_provider_without_capacity_is_asked_again_and_each_failure_recorded(
    fleet: Any, provider_error: Any
) -> None:
    fleet.provider.fail["create"] = provider_error()
    await fleet.make("i-1")
    async with fleet.running("provisioning"):
        await fleet.until(lambda: fleet.provider.calls.count("create") >= 3, "three attempts")
        del fleet.provider.fail["create"]
        await fleet.until_state("i-1", "booting")
    told = await fleet.rows(
        "SELECT succeeded, detail FROM action_log WHERE action = 'provider.create' ORDER BY action_id"
    )
    assert [succeeded for succeeded, _ in told] == [False] * (len(told) - 1) + [True]
    assert told[0][1] == {"error": "no capacity", "retryable": True}
    assert (await fleet.evidence("i-1"))["error"] == "no capacity"


async def test_a_provider_that_never_will_is_not_asked_again(fleet: Any, provider_error: Any) -> None:
    fleet.provider.fail["create"] = provider_error(retryable=False)
    await fleet.make("i-1")
    async with fleet.running("provisioning"):
        await fleet.until_state("i-1", "startup_failed")
    assert fleet.provider.calls.count("create") == 1
    assert await fleet.rows("SELECT failure FROM instances") == [("no capacity",)]
    assert (await fleet.history("i-1"))[-1] == ("startup_failed", "machine_refused")


async def test_two_instances_never_share_a_machine(fleet: Any) -> None:
    await fleet.make("i-1", "ready")
    fleet.provider.machines["m-i-1"] = fleet.provider.add("m-i-1", "i-2")
    await fleet.make("i-2")
    async with fleet.running("provisioning"):
        await fleet.until_state("i-2", "startup_failed")
    assert (await fleet.history("i-2"))[-1][1] == "machine_taken"


async def test_a_runtime_that_does_not_start_is_tried_again(fleet: Any, provider_error: Any) -> None:
    fleet.provider.fail["start_runtime"] = provider_error()
    await fleet.make("i-1", "booting")
    async with fleet.running("health_check"):
        await fleet.until(lambda: fleet.provider.calls.count("start_runtime") >= 2, "two attempts")
        del fleet.provider.fail["start_runtime"]
        await fleet.until_state("i-1", "installing")


async def test_too_many_failed_checks_are_a_failed_start(make_fleet: Any, unused_port: int) -> None:
    fleet = await make_fleet(startup_failures=4)
    url = f"http://127.0.0.1:{unused_port}"
    fleet.provider.default_address = Address("127.0.0.1", url, url, ssh_port=unused_port)
    await fleet.make("i-1", "installing")
    async with fleet.running("health_check"):
        await fleet.until_state("i-1", "startup_failed")
    assert (await fleet.history("i-1"))[-1][1] == "too_many_failed_checks"
    evidence = await fleet.evidence("i-1")
    assert evidence["checks"] == 4
    results = await fleet.rows("SELECT probe, detail FROM health_results")
    assert sorted(results) == [("agent", "connection refused"), ("ssh", "connection refused")]


async def test_a_start_does_not_fail_while_nobody_can_tell(make_fleet: Any, unused_port: int) -> None:
    fleet = await make_fleet(startup_failures=2)
    fleet.reader.connected = False
    url = f"http://127.0.0.1:{unused_port}"
    fleet.provider.default_address = Address("127.0.0.1", url, url, ssh_port=None)
    await fleet.make("i-1", "installing")
    async with fleet.running("health_check"):
        await fleet.until(lambda: fleet.provider.calls.count("address") >= 5, "five checks")
        assert await fleet.state("i-1") == "installing"
        fleet.reader.connected = True
        await fleet.until_state("i-1", "startup_failed")


async def test_an_instance_that_fails_too_often_is_left_alone_for_a_while(make_fleet: Any, unused_port: int) -> None:
    fleet = await make_fleet(circuit_failures=3, circuit_open_seconds=3600)
    url = f"http://127.0.0.1:{unused_port}"
    fleet.provider.default_address = Address("127.0.0.1", url, url, ssh_port=None)
    await fleet.make("i-1", "installing")
    async with fleet.running("health_check"):

        async def is_open() -> bool:
            return bool(await fleet.rows("SELECT FROM action_log WHERE action = 'circuit_opened'"))

        await fleet.until(is_open, "an open circuit")

        async def put_back() -> bool:
            return bool(await fleet.rows("SELECT FROM job_work WHERE due_at > now() + interval '50 minutes'"))

        await fleet.until(put_back, "a long pause")
        asked = fleet.provider.calls.count("address")
        assert asked == 3
        # The pause is over: one trial, which starts the runtime anew in case it is gone.
        await fleet.sql.execute("UPDATE job_work SET due_at = now()")
        await fleet.until(lambda: fleet.provider.calls.count("address") == 4, "a trial")
        assert fleet.provider.calls.count("start_runtime") == 1


async def test_an_ssh_server_that_answers_shows_that_the_machine_is_up(fleet: Any, unused_port: int) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-test\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{unused_port}"
        fleet.provider.default_address = Address("127.0.0.1", url, url, ssh_port=port)
        await fleet.make("i-1", "installing")
        async with fleet.running("health_check"):

            async def told() -> bool:
                return bool(await fleet.rows("SELECT FROM health_results WHERE probe = 'ssh' AND succeeded"))

            await fleet.until(told, "a result of SSH")


@pytest.mark.parametrize(
    "body",
    [
        b'{"missing": {"a\\u0000b": "c\\ud800d"}}',
        b'{"missing": {"stream": "' + b"x" * 60_000 + b'"}}',
        b"[" * 60_000,
        b'{"missing": ' + b'{"a":' * 10_000,
        b"\xff\xfe\x00",
        b'{"missing": 7}',
    ],
    ids=["nul and half a character", "huge", "deep", "deeper", "not text", "wrong type"],
)
async def test_whatever_an_agent_says_of_itself_is_an_answer_that_can_be_kept(
    fleet: Any, worker: Any, body: bytes
) -> None:
    worker.ready, worker.unready_body = False, body
    fleet.provider.default_address = worker.address()
    await fleet.make("i-1", "booting")
    async with fleet.running("health_check"):
        await fleet.until_state("i-1", "starting")
        worker.ready, worker.models = True, ["\x00\ud800"]
        await fleet.until_state("i-1", "ready")
    ((longest,),) = await fleet.rows("SELECT max(length(detail)) FROM health_results")
    assert longest < 1_000
    assert fleet.metric("job_outcomes_total", job="health_check", outcome="error") in (None, 0)


async def test_a_providers_refusal_is_kept_whatever_its_words(fleet: Any) -> None:
    fleet.provider.fail["create"] = ProviderError("no \x00 and no \ud800", retryable=False)
    await fleet.make("i-1")
    async with fleet.running("provisioning"):
        await fleet.until_state("i-1", "startup_failed")
    ((failure,),) = await fleet.rows("SELECT failure FROM instances")
    assert failure.startswith("no ")


async def test_a_providers_passing_error_is_tried_again_whatever_its_words(fleet: Any) -> None:
    fleet.provider.fail["create"] = ProviderError("no \x00 and no \ud800", retryable=True)
    await fleet.make("i-1")
    async with fleet.running("provisioning"):

        async def tried() -> bool:
            return bool(await fleet.rows("SELECT FROM job_work WHERE attempts >= 2"))

        await fleet.until(tried, "two attempts")
        del fleet.provider.fail["create"]
        await fleet.until_state("i-1", "booting")
