"""A key works from its first request on, however new it is; keys that are none cost the database next to nothing."""

import asyncio
import hashlib
import itertools
import time
from collections import Counter

import pytest
from pydantic import SecretStr

from fleetpulse.settings import DatabaseSettings
from proxy.access_reader import Access
from proxy.unknown_keys import ASKED_MOST, PAUSE_SECONDS, UnknownKeys


@pytest.fixture
def asked(monkeypatch) -> Counter:
    """How many keys the database was asked about, by the number of the question."""
    questions: Counter = Counter()
    known = Access._known

    async def counted(self, connection, digests):
        questions[len(questions)] = len(digests)
        return await known(self, connection, digests)

    monkeypatch.setattr(Access, "_known", counted)
    return questions


async def models(site, key: str) -> int:
    """The status that the key gets."""
    async with site.session.get(f"{site.url}/v1/models", headers={"Authorization": f"Bearer {key}"}) as answer:
        return answer.status


async def test_a_key_works_at_once_after_it_was_made(site) -> None:
    await site.start(access_poll_seconds=60)
    for _ in range(10):
        assert await models(site, await site.book.key()) == 200
    keys = [await site.book.key() for _ in range(20)]
    assert await asyncio.gather(*(models(site, key) for key in keys for _ in range(5))) == [200] * 100


async def test_unknown_keys_share_few_questions_and_are_refused_soon(site, asked) -> None:
    await site.start(access_poll_seconds=60)
    started = time.monotonic()
    refused = await asyncio.gather(*(models(site, f"fp_wrong{number}") for number in range(300)))
    assert set(refused) == {401}
    assert sum(asked.values()) == 300
    assert len(asked) <= 2 + (time.monotonic() - started) / PAUSE_SECONDS
    # What the database does not know is not asked about again, and what it does is let in among all of it.
    before = len(asked)
    *refused, let_in = await asyncio.gather(
        *(models(site, f"fp_wrong{number}") for number in range(300)), models(site, await site.book.key())
    )
    assert (set(refused), let_in, len(asked) <= before + 1) == ({401}, 200, True)


async def test_a_key_that_was_revoked_or_has_expired_is_not_brought_back(site, asked) -> None:
    await site.start(access_poll_seconds=60)
    revoked, expired = await site.book.key(), await site.book.key()
    await site.book.execute(
        "UPDATE api_keys SET revoked_at = now() WHERE digest = %s", hashlib.sha256(revoked.encode()).digest()
    )
    await site.book.execute(
        "UPDATE api_keys SET expires_at = now() WHERE digest = %s", hashlib.sha256(expired.encode()).digest()
    )

    async def are_refused() -> bool:
        return [await models(site, key) for key in (revoked, expired)] == [401, 401]

    # They were good for a moment, of which the proxy may have heard.
    await site.until(are_refused, "the end of both keys")
    assert await are_refused()


async def test_changes_are_heard_of_while_unknown_keys_keep_coming(site) -> None:
    await site.start(access_poll_seconds=60)
    is_over = False

    async def flood(which: int) -> None:
        number = 0
        while not is_over:
            assert await models(site, f"fp_wrong-{which}-{number}") == 401
            number += 1

    floods = [asyncio.create_task(flood(which)) for which in range(5)]
    try:
        for _ in range(5):
            key = await site.book.key()
            assert await models(site, key) == 200
            await site.book.execute(
                "UPDATE api_keys SET revoked_at = now() WHERE digest = %s", hashlib.sha256(key.encode()).digest()
            )

            async def is_refused(key: str = key) -> bool:
                return await models(site, key) == 401

            await site.until(is_refused, "the key to be refused")
    finally:
        is_over = True
        await asyncio.gather(*floods)


async def test_a_database_that_does_not_answer_holds_nobody_up_for_long(site, monkeypatch) -> None:
    monkeypatch.setattr("proxy.unknown_keys.WAIT_SECONDS", 0.3)
    await site.start(access_poll_seconds=60)
    async with site.book.connection.transaction():
        new = await site.book.key()
        await site.book.execute("LOCK TABLE api_keys")
        waiting = asyncio.create_task(models(site, new))
        # Known ones do not wait.
        assert await models(site, site.key) == 200
        assert await waiting == 401

    async def is_let_in() -> bool:
        return await models(site, new) == 200

    await site.until(is_let_in, "the key once it is there")


async def test_a_database_that_is_away_is_not_asked(asked, until) -> None:
    access = Access()
    nowhere = DatabaseSettings(url=SecretStr("postgresql://127.0.0.1:1/none"))
    keeping = asyncio.create_task(access.keep(nowhere, poll_seconds=60))
    try:
        await until(lambda: "DatabaseError" in (access.failing or ""), "the outage to be noticed")
        async with asyncio.timeout(1):
            await access.look_for(b"x" * 32)
        assert not asked
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})


async def test_so_many_and_no_more_wait_for_an_answer() -> None:
    unknown = UnknownKeys()
    waiting = [asyncio.create_task(unknown.ask(b"%d" % number)) for number in range(ASKED_MOST)]
    async with asyncio.timeout(1):
        await unknown.wanted.wait()
        await unknown.ask(b"one more")
    assert not any(task.done() for task in waiting)
    unknown.answer(unknown.take(), ())
    await asyncio.gather(*waiting)


async def test_reading_again_now_and_then_goes_on_while_unknown_keys_keep_coming(site) -> None:
    """A change that nobody was told of."""
    await site.book.execute("ALTER TABLE api_keys DISABLE TRIGGER tell")
    try:
        await site.start(access_poll_seconds=1)
        assert await models(site, site.key) == 200
        await site.book.execute("UPDATE api_keys SET revoked_at = now()")
        for number in itertools.count():
            assert await models(site, f"fp_wrong{number}") == 401
            if await models(site, site.key) == 401:
                break
            assert number < 500
    finally:
        await site.book.execute("ALTER TABLE api_keys ENABLE TRIGGER tell")
