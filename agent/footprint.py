"""The memory that only the start needed, given back.

Importing runs far more code of the interpreter's and the libraries' than the agent does afterwards: of 20 MB of machine
code that the start brought into memory, the agent goes on to use a few. The kernel drops the rest by itself, but only
once memory is short, which on an inference host is too late.
"""

import ctypes
import re
from pathlib import Path
from typing import Final

_MADV_DONTNEED: Final = 4
# glibc's mallopt(3): give the top of the heap back once so much of it is free, and keep one heap for all threads, which
# wait more than they allocate.
_M_TRIM_THRESHOLD: Final = -1
_M_ARENA_MAX: Final = -8
_TRIM_BYTES: Final = 65_536
_SMAPS: Final = Path("/proc/self/smaps")
# Machine code that comes from a file. Unchanged, it can be read from the file again at any time.
_CODE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ \d+\s+/")


def keep_heap_small() -> None:
    """Have the C library give memory back early. Does nothing where it is not glibc. Call it before threads start."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def release_start_memory() -> int:
    """Drop code pages from memory; those still in use come back at once. Returns how many bytes were asked for.

    Does nothing where the kernel is not Linux. Takes about ten milliseconds.
    """
    try:
        ranges = _unchanged_code(_SMAPS.read_text(errors="replace"))
    except OSError:
        return 0
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    madvise = library.madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # A refusal (an old kernel, a locked page) leaves the pages where they are.
    return sum(size for start, size in ranges if madvise(start, size, _MADV_DONTNEED) == 0)


def _unchanged_code(smaps: str) -> list[tuple[int, int]]:
    """Start and size of mappings of code of which this process has changed no page."""
    found = []
    current: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if line.startswith("Private_Dirty:"):
            if current is not None and line.split()[1] == "0":
                found.append(current)
        elif "-" in line.partition(" ")[0]:
            match = _CODE.match(line)
            current = (int(match[1], 16), int(match[2], 16) - int(match[1], 16)) if match else None
    return found
