import hashlib
from base64 import b64encode

from hypothesis import given
from hypothesis import strategies as st

from control.access import keys, passwords
from control.access.attempts import Attempts
from control.access.cache import Cache
from control.access.principal import ADMIN


def test_keys_are_long_and_all_different() -> None:
    made = [keys.make().text for _ in range(1000)]
    assert len(set(made)) == 1000
    # 32 of 62 characters are 190 bits.
    assert {len(text) for text in made} == {len("fp_") + 32 + 6}
    assert not any(keys.is_mistyped(text) for text in made)


@given(st.data())
def test_any_single_mistake_is_noticed(data: st.DataObject) -> None:
    text = keys.make().text
    place = data.draw(st.integers(3, len(text) - 1))
    wrong = data.draw(st.characters(categories=["L", "N"]).filter(lambda one: one != text[place]))
    assert keys.is_mistyped(text[:place] + wrong + text[place + 1 :])


@given(st.text())
def test_whatever_is_given_is_judged_without_an_error(text: str) -> None:
    keys.is_mistyped(text)
    keys.digest(text)


async def test_a_password_is_kept_with_salt_and_parameters() -> None:
    first, second = await passwords.stored("p"), await passwords.stored("p")
    assert first != second
    assert await passwords.is_right("p", first)
    assert not await passwords.is_right("P", first)
    assert not await passwords.is_right("p", None)


async def test_a_digest_made_with_other_parameters_stays_valid() -> None:
    digest = hashlib.scrypt(b"p", salt=b"salt", n=16, r=1, p=1, dklen=32)
    kept = f"scrypt$16$1$1${b64encode(b'salt').decode()}${b64encode(digest).decode()}"
    assert await passwords.is_right("p", kept)
    assert not await passwords.is_right("q", kept)


def test_what_the_database_said_before_a_change_is_not_kept() -> None:
    cache = Cache(60.0)
    asked = cache.generation
    cache.forget()
    cache.put(b"k", ADMIN, asked)
    assert cache.get(b"k") == (False, None)
    cache.put(b"k", None, cache.generation)
    assert cache.get(b"k") == (True, None)


def test_attempts_are_counted_by_key_and_taken_back() -> None:
    attempts = Attempts(2, 60.0)
    for _ in range(2):
        assert attempts.wait_seconds("a") == 0
        attempts.failed("a")
    assert 59 < attempts.wait_seconds("a") <= 60
    assert attempts.wait_seconds("a", factor=2) == 0
    assert attempts.wait_seconds("b") == 0
    attempts.withdraw("a")
    assert attempts.wait_seconds("a") == 0
    attempts.failed("a")
    attempts.forget("a")
    assert attempts.wait_seconds("a") == 0
