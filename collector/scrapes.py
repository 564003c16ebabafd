"""A stock collector's scrape as one row: its scrapers report a few columns each, at times some milliseconds apart."""

from typing import Final

import numpy as np
import numpy.typing as npt

from collector.template import ABSENT_BITS, Floats, Integers

# Longer than a scrape takes; of two scrapes within it the columns collide, which keeps them apart.
SCRAPE_NANOSECONDS: Final = 1_000_000_000


def join(times: Integers, workers: Integers, values: Floats, candidates: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Move the values of a scrape into its first row, whose time they get; returns which rows are still needed.

    Rows are joined when they are of one worker, within SCRAPE_NANOSECONDS, and have no column in common. Only
    ``candidates`` are looked at.
    """
    needed = np.ones(len(times), dtype=np.bool_)
    order = candidates[np.lexsort((times[candidates], workers[candidates]))]
    near = (np.diff(workers[order]) == 0) & (np.diff(times[order]) <= SCRAPE_NANOSECONDS)
    present = values[order].view(np.uint64) != ABSENT_BITS
    first = 0
    for place in range(1, len(order)):
        row, onto = order[place], order[first]
        is_part = (
            near[place - 1]
            and times[row] - times[onto] <= SCRAPE_NANOSECONDS
            and not (present[place] & present[first]).any()
        )
        if not is_part:
            first = place
            continue
        values[onto, present[place]] = values[row, present[place]]
        present[first] |= present[place]
        needed[row] = False
    return needed
