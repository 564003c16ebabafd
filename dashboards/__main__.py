"""``python -m dashboards`` writes the dashboards; with ``--check`` it only says which are not as they should be."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dashboards import control, fleet, pipeline, proxy, usage, worker

FOLDER: Final = Path(__file__).parent
_COMMAND: Final = "python -m dashboards"
_MODULES: Final = (fleet, worker, pipeline, control, proxy, usage)


def files() -> dict[str, str]:
    """File name and content of each dashboard."""
    made = [module.DASHBOARD for module in _MODULES]
    return {f"{one.name}.json": json.dumps(one.model(), indent=1, ensure_ascii=False) + "\n" for one in made}


def main(given: Sequence[str] | None = None) -> int:
    """Write the files, or check them; returns 1 when one is not as it should be."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description="Write the dashboards.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    asked = parser.parse_args(given)
    stale = [name for name, text in files().items() if not _is_current(FOLDER / name, text)]
    for name in stale:
        if asked.check:
            print(f"dashboards/{name} is out of date: run {_COMMAND}", file=sys.stderr)
        else:
            (FOLDER / name).write_text(files()[name])
            print(f"wrote dashboards/{name}")
    return 1 if asked.check and stale else 0


def _is_current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
