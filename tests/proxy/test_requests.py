"""What a client sees when all is well."""

import json

import openai
import pytest

from fleetpulse.settings import ProxySettings


@pytest.fixture
async def client(site):
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0) as client:
        yield client


CHAT = {"model": "acme/mock-model", "messages": [{"role": "user", "content": "how is the fleet"}], "max_tokens": 5}


async def test_the_sdk_gets_an_answer_in_one_piece(client, site) -> None:
    answer = await client.chat.completions.create(**CHAT)
    assert answer.choices[0].message.content == "the fleet is well and "
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 5)
    (record,) = await site.usage(1)
    assert (record.prompt_tokens, record.completion_tokens, record.token_source) == (4, 5, "engine")
    assert (record.outcome, record.status, record.is_stream) == ("completed", 200, False)


async def test_the_sdk_gets_a_stream_without_the_usage_it_did_not_ask_for(client, site) -> None:
    stream = await client.chat.completions.create(**CHAT, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "the fleet is well and "
    assert all(chunk.usage is None for chunk in chunks)
    (record,) = await site.usage(1)
    assert (record.prompt_tokens, record.completion_tokens, record.token_source) == (4, 5, "engine")
    assert record.first_token_seconds is not None


async def test_the_sdk_gets_the_usage_of_a_stream_when_it_asks(client) -> None:
    stream = await client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5


async def test_the_sdk_completes_text(client) -> None:
    answer = await client.completions.create(model="acme/mock-model", prompt="once upon a time", max_tokens=3)
    assert answer.choices[0].text == "the fleet is "


async def test_the_sdk_lists_models(client) -> None:
    assert [model.id for model in (await client.models.list()).data] == ["acme/mock-model"]
    assert (await client.models.retrieve("acme/mock-model")).owned_by == "acme"


async def test_an_engine_that_asks_for_a_key_gets_its_own_and_not_the_clients(site) -> None:
    await site.start(engine_api_key="sk-engine")
    engine = await site.scripted()
    await site.worker(engine.url)
    await site.routed(1)
    assert (await site.chat())[0] == 200
    head = engine.requests[0][0].decode()
    assert [line for line in head.split("\r\n") if line.startswith("Authorization")] == [
        "Authorization: Bearer sk-engine"
    ]


@pytest.mark.parametrize("key", ["", "with a space", "two\r\nX-Lines: 1", "müller"])
def test_a_key_that_no_header_can_hold_is_refused_at_the_start(key: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII"):
        ProxySettings(engine_api_key=key)


async def test_many_streams_at_once_are_all_whole(site) -> None:
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    import asyncio

    answers = await asyncio.gather(*(site.chat(stream=True) for _ in range(100)))
    for status, body in answers:
        assert status == 200
        assert body.endswith(b"data: [DONE]\n\n")
    records = await site.usage(100)
    assert len({record.record_id for record in records}) == 100
    assert sum(record.completion_tokens for record in records) == sum(
        json.loads(event[6:])["choices"][0]["delta"]["content"].count(" ")
        for _, body in answers
        for event in body.split(b"\n\n")
        if event.startswith(b"data: {")
    )
