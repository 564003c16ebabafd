"""How far a run is: a bar on a terminal, else a line every few seconds."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

Show = Callable[[float, str], None]
"""Called as often as one likes with the seconds that have passed and what to say."""

_LINE_SECONDS: Final = 5.0
_BAR_SECONDS: Final = 0.25


def say(line: str) -> None:
    """A line on standard output, at once."""
    print(line, flush=True)


@contextlib.contextmanager
def progress(seconds: float | None, tell: Callable[[str], None]) -> Iterator[Show]:
    """Show how far a run of so many seconds is (None: until stopped); ``tell`` gets the lines where there is no
    terminal."""
    if tell is not say or not sys.stdout.isatty():
        yield _Seldom(_LINE_SECONDS, lambda _, line: tell(line))
        return
    share = TextColumn("{task.percentage:>3.0f}%" if seconds else "")
    text = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    console = Console(highlight=False)
    # Refreshed by us: a thread of its own would take time from the run, which may need all there is.
    with Progress(BarColumn(20), share, text, console=console, auto_refresh=False, expand=True) as bar:
        task = bar.add_task("", total=seconds)

        def draw(elapsed_seconds: float, line: str) -> None:
            bar.update(task, completed=elapsed_seconds, description=line, refresh=True)

        yield _Seldom(_BAR_SECONDS, draw)


class _Seldom:
    def __init__(self, every_seconds: float, show: Show) -> None:
        self._every_seconds = every_seconds
        self._show = show
        self._shown_at = 0.0

    def __call__(self, elapsed_seconds: float, line: str) -> None:
        if elapsed_seconds - self._shown_at >= self._every_seconds:
            self._shown_at = elapsed_seconds
            self._show(elapsed_seconds, line)
