"""The spool keeps order, survives crashes, and never outgrows its bound."""

import random
from pathlib import Path

import pytest

from agent.spool import HEADER, Spool

BOUND = 1 << 20


def drain(spool: Spool, most: int = 7) -> list[bytes]:
    found = []
    while batch := spool.peek(most):
        found += [value for _, value in batch]
        spool.advance(batch[-1][0])
    return found


def message(number: int, size: int = 100) -> bytes:
    return f"{number:08d}".encode().ljust(size, b".")


def only_segment(folder: Path) -> Path:
    (segment,) = folder.glob("*.segment")
    return segment


def test_messages_come_out_in_the_order_they_went_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path, BOUND)
    sent = [message(n, size=random.randrange(8, 3_000)) for n in range(500)]
    for value in sent:
        assert spool.append(value) is not None
    assert spool.messages == 500
    assert drain(spool) == sent
    assert spool.empty
    assert spool.size_bytes == 0
    assert list(tmp_path.glob("*.segment")) == []


def test_what_is_not_advanced_past_stays(tmp_path: Path) -> None:
    spool = Spool(tmp_path, BOUND)
    for n in range(5):
        spool.append(message(n))
    batch = spool.peek(3)
    spool.advance(batch[1][0])
    assert [value for _, value in spool.peek(9)] == [message(n) for n in (2, 3, 4)]


def test_messages_survive_a_restart_in_order(tmp_path: Path) -> None:
    first = Spool(tmp_path, BOUND)
    for n in range(10):
        first.append(message(n))
    first.advance(first.peek(4)[-1][0])
    first.close()
    second = Spool(tmp_path, BOUND)
    assert second.messages == 6
    second.append(message(10))
    assert drain(second) == [message(n) for n in range(4, 11)]


def test_messages_survive_a_crash_that_closed_nothing(tmp_path: Path) -> None:
    crashed = Spool(tmp_path, BOUND)
    for n in range(10):
        crashed.append(message(n))
    assert drain(Spool(tmp_path, BOUND)) == [message(n) for n in range(10)]


@pytest.mark.parametrize("torn_bytes", [1, HEADER.size - 1, HEADER.size, HEADER.size + 1, HEADER.size + 99])
def test_a_torn_tail_is_dropped_and_the_rest_is_kept(tmp_path: Path, torn_bytes: int) -> None:
    spool = Spool(tmp_path, BOUND)
    for n in range(3):
        spool.append(message(n))
    spool.close()
    segment = only_segment(tmp_path)
    whole = segment.read_bytes()
    record = len(whole) // 3
    segment.write_bytes(whole[: 2 * record + torn_bytes])
    again = Spool(tmp_path, BOUND)
    assert again.size_bytes == 2 * record == segment.stat().st_size
    again.append(message(9))
    assert drain(again) == [message(0), message(1), message(9)]


def test_a_flipped_bit_ends_its_segment_and_not_the_next(tmp_path: Path) -> None:
    first = Spool(tmp_path, BOUND)
    for n in range(3):
        first.append(message(n))
    first.close()
    second = Spool(tmp_path, BOUND)  # a new run writes a new segment
    second.append(message(3))
    second.close()
    damaged = min(tmp_path.glob("*.segment"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3 + HEADER.size + 5] ^= 0x01
    damaged.write_bytes(content)
    assert drain(Spool(tmp_path, BOUND)) == [message(0), message(3)]


def test_damage_that_appears_while_running_loses_its_segment_and_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, BOUND)
    for n in range(3):
        spool.append(message(n))
    only_segment(tmp_path).unlink()
    assert spool.peek(5) == []
    assert spool.empty
    assert spool.dropped == 3
    spool.append(message(4))
    assert drain(spool) == [message(4)]


def test_the_oldest_is_dropped_and_counted_when_the_bound_is_reached(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100_000)
    total = 2_000
    for n in range(total):
        spool.append(message(n))
        assert spool.size_bytes <= 100_000
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.segment"))
    assert on_disk == spool.size_bytes <= 100_000
    left = drain(spool)
    assert left == [message(n) for n in range(total - len(left), total)]
    assert spool.dropped == total - len(left)
    assert len(left) > 0.85 * 100_000 / (100 + HEADER.size)


def test_a_message_larger_than_the_bound_is_dropped_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10_000)
    spool.append(message(1))
    assert spool.append(bytes(20_000)) is None
    assert spool.dropped == 1
    assert drain(spool) == [message(1)]


def test_a_bound_of_zero_keeps_nothing_and_touches_no_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    assert spool.append(b"x") is None
    assert spool.dropped == 1
    assert not (tmp_path / "spool").exists()


def test_advancing_past_what_was_dropped_meanwhile_loses_nothing_more(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 70_000)
    spool.append(message(0))
    (position, _), *_ = spool.peek(1)
    for n in range(1, 1_000):
        spool.append(message(n))
    before = spool.messages
    spool.advance(position)
    assert spool.messages == before


def test_a_full_disk_costs_the_message_and_not_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, BOUND)
    spool.append(message(0))

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agent.spool.os.write", full)
        assert spool.append(message(1)) is None
    spool.append(message(2))
    assert spool.dropped == 1
    assert drain(spool) == [message(0), message(2)]


def test_a_short_write_leaves_no_half_record_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    spool = Spool(tmp_path, BOUND)
    spool.append(message(0))
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr("agent.spool.os.write", lambda descriptor, data: write(descriptor, data[:20]))
        assert spool.append(message(1)) is None
    spool.append(message(2))
    assert drain(spool) == [message(0), message(2)]


def test_a_cursor_that_is_nonsense_means_sending_again(tmp_path: Path) -> None:
    first = Spool(tmp_path, BOUND)
    for n in range(3):
        first.append(message(n))
    first.advance(first.peek(1)[0][0])
    first.close()
    (tmp_path / "cursor").write_text("garbage")
    assert drain(Spool(tmp_path, BOUND)) == [message(n) for n in range(3)]


def test_any_sequence_of_appends_advances_and_crashes_keeps_order(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    spool, made, delivered = Spool(tmp_path, BOUND), 0, []
    for _ in range(300):
        match chance.randrange(4):
            case 0 | 1:
                spool.append(message(made, chance.randrange(8, 500)))
                made += 1
            case 2:
                batch = spool.peek(chance.randrange(1, 9))
                if batch:
                    delivered += [int(value[:8]) for _, value in batch]
                    spool.advance(batch[-1][0])
            case 3:
                spool = Spool(tmp_path, BOUND)
    delivered += [int(value[:8]) for value in drain(spool)]
    assert delivered == list(range(made))
