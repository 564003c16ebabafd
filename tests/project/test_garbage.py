"""Of fleetpulse.garbage, in a process of its own: what it does stays on."""

import subprocess
import sys

PROGRAM = """
import gc, time
from fleetpulse import garbage

garbage.keep_collections_short()
held = [[] for _ in range(100_000)]
gc.collect()
print(gc.get_freeze_count() > 100_000)
clock = time.monotonic
time.monotonic = lambda: clock() + 3601
gc.collect()
print(gc.get_freeze_count())
print(len(gc.get_objects()) > 100_000)
"""


def test_what_outlives_a_full_collection_is_left_out_of_the_next_ones_for_an_hour() -> None:
    told = subprocess.run((sys.executable, "-c", PROGRAM), capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "0", "True"]
