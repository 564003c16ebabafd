"""``python deploy/helm/render.py``: write the chart with its own values to deploy/kubernetes/fleetpulse.yaml.

For clusters without Helm, and for tests where it is missing. The first line names the chart that it was made of by its
digest, so that a chart that was changed since is noticed where there is no helm. Needs helm on the PATH.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

CHART = Path(__file__).parent / "fleetpulse"
FILE = Path(__file__).parents[1] / "kubernetes" / "fleetpulse.yaml"
# The oldest that Chart.yaml admits.
KUBERNETES = "1.27.0"


def heading() -> str:
    """The first line: which chart the file was made of."""
    digest = hashlib.sha256()
    for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(CHART).as_posix()}\0{path.read_text()}\0".encode())
    return f"# Made by `python deploy/helm/render.py` of the chart {digest.hexdigest()}.\n"


def main() -> int:
    """Render; the exit status is helm's."""
    command = ["helm", "template", "fleetpulse", str(CHART), "--kube-version", KUBERNETES]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        print(made.stderr, file=sys.stderr)
        return made.returncode
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(heading() + "\n".join(line.rstrip() for line in made.stdout.splitlines()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
