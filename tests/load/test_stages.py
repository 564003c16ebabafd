"""Stages of a load: what is due when."""

import itertools

import pytest

from fleetpulse.local.load_stages import Stage, arrivals, parse, target_at, total_seconds
from fleetpulse.settings import SettingsError


def due(text: str) -> list[float]:
    return [at for at, _ in arrivals(parse(text))]


def test_a_ramp_goes_from_the_target_before_it_to_its_own() -> None:
    assert parse("2:10,3:10,down=1:0") == [
        Stage("0 to 10", 2, 0, 10),
        Stage("hold 10", 3, 10, 10),
        Stage("down", 1, 10, 0),
    ]


def test_a_stage_without_time_is_a_jump() -> None:
    stages = parse("hold=0:20,hold=5:20,spike=0:60,spike=5:60")
    assert [(stage.name, stage.begin, stage.end) for stage in stages] == [("hold", 20, 20), ("spike", 60, 60)]
    assert total_seconds(stages) == 10


def test_stages_of_the_same_name_are_told_apart() -> None:
    assert [stage.name for stage in parse("a=1:1,b=1:2,a=1:3")] == ["1: a", "b", "3: a"]


def test_a_hold_spaces_its_requests_evenly() -> None:
    times = due("0:20,5:20")
    assert len(times) == 100
    assert all(after - before == pytest.approx(0.05) for before, after in itertools.pairwise(times))


@pytest.mark.parametrize(
    ("text", "count"),
    [("10:20", 100), ("10:20,10:0", 200), ("10:20,10:0,10:20", 300), ("0:0.3,10:0.3,0:0.7,10:0.7", 10), ("4:1,4:1", 6)],
)
def test_as_many_come_as_the_targets_add_up_to(text: str, count: int) -> None:
    times = due(text)
    assert abs(len(times) - count) <= 1
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] <= total_seconds(parse(text)) + 1e-9


def test_a_ramp_has_as_many_by_each_moment_as_the_line_has_below_it() -> None:
    times = due("10:50")
    for moment in (2.0, 5.0, 9.0):
        assert sum(time <= moment for time in times) == pytest.approx(50 / 10 * moment**2 / 2, abs=1)


def test_each_request_knows_its_stage() -> None:
    found = {stage.name: at for at, stage in arrivals(parse("a=0:5,a=2:5,b=3:5"))}
    assert found["a"] <= 2 < found["b"] <= 5


def test_the_target_of_a_moment_is_on_the_line() -> None:
    stages = parse("4:8,4:8,4:0")
    targets = [target_at(stages, moment) for moment in (0, 2, 6, 10)]
    assert [found and found[1] for found in targets] == [0, 4, 8, 4]
    assert target_at(stages, 12) is None


@pytest.mark.parametrize("text", ["", "5", "5:", ":5", "x:5", "5:-1", "5:nan", "inf:5", "5:0", "0:5", "1:2,,"])
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--stages"):
        parse(text)
