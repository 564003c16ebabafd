"""``python compose/constraints.py``: write constraints.txt, the versions that images are built with.

They are those of the environment that runs this, which is the one that the tests have passed in.
"""

import importlib.metadata
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILE = ROOT / "compose" / "constraints.txt"
EXTRAS = ("agent", "collector", "control", "proxy", "scaleway", "ssh")
HEADING = "# Made by `python compose/constraints.py`: what the images are built with.\n"


def listed() -> list[Requirement]:
    """What pyproject.toml asks for, in the extras that images have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [Requirement(each) for each in (*project["dependencies"], *(line for e in EXTRAS for line in optional[e]))]


def versions(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Version of each distribution that is needed, and of those that they need in turn."""
    found: dict[str, str] = {}
    done: set[str] = set()
    waiting = [(each, "") for each in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if str(requirement) + extra in done:
            continue
        done.add(str(requirement) + extra)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        found[name] = importlib.metadata.version(name)
        needs = [Requirement(each) for each in importlib.metadata.requires(name) or ()]
        waiting += [(need, extra) for need in needs for extra in ("", *sorted(requirement.extras))]
    return found


if __name__ == "__main__":
    lines = [f"{name}=={version}\n" for name, version in sorted(versions(listed()).items())]
    FILE.write_text(HEADING + "".join(lines))
    print(f"{FILE.relative_to(ROOT)}: {len(lines)} distributions")
