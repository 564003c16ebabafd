import math
from collections import Counter

import numpy as np
import pytest

from collector.template import ABSENT
from collector.validate import Findings, TimeLimits, check_times, check_values
from fleetpulse.stream.dictionary import GPU, TABLES
from fleetpulse.stream.measure import Measure

MEASURES = [(table, index) for table in TABLES for index in range(len(table.measures))]


def check(table, index: int, value: float) -> tuple[float | None, Counter]:
    values = np.full((1, len(table.measures)), ABSENT)
    values[0, index] = value
    findings = Findings()
    present = check_values(table, values, np.array([0]), findings)
    return (float(values[0, index]) if present[0, index] else None), findings.quality


def named(parameter) -> str:
    return parameter.name if hasattr(parameter, "name") else str(parameter)


@pytest.mark.parametrize(("table", "index"), MEASURES, ids=named)
def test_limits_are_inclusive(table, index):
    measure: Measure = table.measures[index]
    for limit in (measure.minimum, measure.maximum):
        assert check(table, index, limit) == (limit, Counter())


@pytest.mark.parametrize(("table", "index"), MEASURES, ids=named)
def test_a_value_beyond_its_limits_is_clamped_or_rejected_as_the_dictionary_says(table, index):
    measure: Measure = table.measures[index]
    for value, limit in ((measure.minimum - 1, measure.minimum), (measure.maximum * 2 + 1, measure.maximum)):
        stored, quality = check(table, index, value)
        if measure.outside == "clamp":
            assert (stored, quality) == (limit, Counter({(0, "clamped", "out_of_range"): 1}))
        else:
            assert (stored, quality) == (None, Counter({(0, "rejected", "out_of_range"): 1}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("table", "index"), MEASURES, ids=named)
def test_what_is_no_number_is_rejected(table, index, value):
    assert check(table, index, value) == (None, Counter({(0, "rejected", "not_finite"): 1}))


def test_an_absent_value_is_no_fault():
    values = np.full((2, len(GPU.measures)), ABSENT)
    findings = Findings()
    assert not check_values(GPU, values, np.array([0, 0]), findings).any()
    assert not findings.quality


def test_a_broken_sensor_does_not_take_its_neighbours_with_it():
    values = np.full((1, len(GPU.measures)), ABSENT)
    temperature, power = GPU.columns.index("temperature_celsius"), GPU.columns.index("power_watts")
    values[0, temperature], values[0, power] = 900.0, 300.0
    present = check_values(GPU, values, np.array([0]), Findings())
    assert not present[0, temperature]
    assert present[0, power]
    assert values[0, power] == 300.0


def test_a_correction_names_the_raw_value_and_its_worker():
    values = np.full((3, len(GPU.measures)), ABSENT)
    values[:, 0] = [0.5, 1.5, -2.0]
    findings = Findings()
    check_values(GPU, values, np.array([7, 8, 9]), findings)
    (correction,) = findings.corrections
    assert (correction.column, correction.verdict, correction.count) == ("utilization_ratio", "clamped", 2)
    assert (correction.worker, correction.raw_value) == (8, 1.5)
    assert values[:, 0].tolist() == [0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("age_seconds", "kept", "quality"),
    [
        (0, True, {}),
        (119, True, {}),
        (121, True, {(0, "late", "late"): 1}),
        (-299, True, {}),
        (-301, False, {(0, "rejected", "time_in_future"): 1}),
        (-86_400, False, {(0, "rejected", "time_in_future"): 1}),
        (14 * 86_400 + 1, False, {(0, "rejected", "time_too_old"): 1}),
    ],
)
def test_impossible_times_are_rejected_and_late_ones_counted(age_seconds, kept, quality):
    now = 1_800_000_000_000_000_000
    limits = TimeLimits.around(now, 14 * 86_400, 120, 300)
    findings = Findings()
    times = np.array([now - age_seconds * 1_000_000_000])
    assert check_times(times, np.array([0]), limits, findings).tolist() == [kept]
    assert findings.quality == Counter(quality)
