import random

from collector.duplicates import WINDOW, Position, Verdict, stored_position


def verdicts(*sequences: int) -> list[Verdict]:
    position = Position()
    return [position.judge(sequence)[0] for sequence in sequences]


def test_numbers_in_order_are_new():
    assert verdicts(1, 2, 3) == [Verdict.NEW] * 3


def test_a_number_seen_before_is_a_duplicate():
    assert verdicts(1, 2, 2, 1) == [Verdict.NEW, Verdict.NEW, Verdict.DUPLICATE, Verdict.DUPLICATE]


def test_a_number_that_was_left_out_may_come_late_once():
    assert verdicts(1, 5, 3, 3) == [Verdict.NEW, Verdict.NEW, Verdict.OUT_OF_ORDER, Verdict.DUPLICATE]


def test_left_out_numbers_are_counted_but_not_before_the_first_one_heard():
    position = Position()
    assert position.judge(100) == (Verdict.NEW, 0)
    assert position.judge(104) == (Verdict.NEW, 3)


def test_what_is_older_than_the_window_was_resent():
    assert verdicts(1, WINDOW + 2, 2)[2] is Verdict.DUPLICATE


def test_a_stored_position_judges_as_the_one_that_was_stored():
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)
    position, seen, high = Position(), set(), 0
    for _ in range(3_000):
        sequence = max(1, high + draw.randint(-WINDOW + 1, 20))
        position = stored_position(position.high_water, position.window_bytes())
        verdict, _ = position.judge(sequence)
        if sequence <= high - WINDOW:
            continue
        assert (verdict is Verdict.DUPLICATE) == (sequence in seen), sequence
        seen.add(sequence)
        high = max(high, sequence)
