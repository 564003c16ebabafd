"""How all pictures look."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's colours, which people who cannot tell red from green can tell apart.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#B5A800")
# A part has the same colour in each picture.
PARTS: Final = ("collector", "postgres", "broker", "control", "proxy", "simulate", "mock-cloud", "load")
_REST: Final = "#BBBBBB"
_DOTS_PER_INCH: Final = 130
_STYLE: Final = {
    "figure.facecolor": "white",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "font.size": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def colour(part: str) -> str:
    """Of a part of the stack."""
    if part == "supervisor" or part not in PARTS:
        return _REST
    return COLOURS[PARTS.index(part)]


@contextmanager
def picture(path: Path, title: str, heights: Sequence[float], columns: int = 1) -> Iterator[list[Axes]]:
    """Axes below each other, as high as told in inches, drawn into a PNG at the end."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(10, sum(heights) + 0.6), dpi=_DOTS_PER_INCH, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=list(heights))
        yield list(axes.flat)
        figure.savefig(path)


def thousands(axis: Axes) -> None:
    """Numbers on the y axis as 1,000 rather than 1000."""
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def logarithmic(axis: Axes) -> None:
    """A logarithmic y axis with enough marks for what is drawn already."""
    axis.set_yscale("log")
    lowest, highest = axis.get_ylim()
    marks = (1.0, 2.0, 5.0) if highest > 20 * lowest else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.yaxis.set_major_locator(LogLocator(subs=marks))
    axis.yaxis.set_minor_locator(NullLocator())
    thousands(axis)


def milliseconds(axis: Axes) -> None:
    """A logarithmic y axis of seconds, written as 20 ms."""
    logarithmic(axis)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))


def seconds(value: float) -> str:
    """A time for people."""
    if value >= 1:
        return f"{value:,g} s"
    return f"{value * 1e3:g} ms" if value >= 1e-3 else f"{value * 1e6:g} µs"
