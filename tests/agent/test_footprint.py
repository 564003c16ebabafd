"""What the start needed is given back, and the process goes on."""

import subprocess
import sys

from agent.footprint import _unchanged_code

PROGRAM = """
import agent.main, fleetpulse.stream.producer
from agent.footprint import release_start_memory
from agent.system import SystemReader
import psutil
before = psutil.Process().memory_info().rss
asked = release_start_memory()
after = psutil.Process().memory_info().rss
readings = SystemReader().read(2e9)
print(asked, before - after, len(readings))
"""


def test_a_process_that_has_imported_everything_shrinks_and_still_works() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    asked, released, readings = map(int, done.stdout.split())
    assert asked >= released > 3_000_000
    assert readings > 20


def test_only_unchanged_code_from_files_is_dropped() -> None:
    def mapping(address: str, permissions: str, path: str, dirty_kilobytes: int) -> str:
        return f"{address} {permissions} 00000000 08:01 1234   {path}\nRss: 8 kB\nPrivate_Dirty: {dirty_kilobytes} kB\n"

    smaps = (
        mapping("1000-3000", "r-xp", "/usr/lib/libc.so.6", 0)
        + mapping("3000-4000", "r--p", "/usr/lib/libc.so.6", 0)
        + mapping("5000-6000", "rw-p", "/usr/lib/libc.so.6", 0)
        + mapping("7000-8000", "r-xp", "/usr/lib/relocated.so", 4)
        + mapping("9000-a000", "r-xp", "[vdso]", 0)
        + mapping("b000-c000", "r-xp", "", 0)
    )
    assert _unchanged_code(smaps) == [(0x1000, 0x2000)]
