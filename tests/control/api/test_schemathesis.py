"""The served document, held against the service by made-up requests of all kinds, with a real database behind it."""

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

# A stream that does not end has tests of its own.
ENDLESS = "/events"
# Whether a name is known and a cursor was given is not for a schema to say.
NOT_CHECKED = "positive_data_acceptance"


@pytest.mark.timeout(180)
async def test_no_made_up_request_has_a_5xx_or_an_answer_that_is_not_documented(
    fleet: Any, deploy: Any, tmp_path: Path
) -> None:
    await deploy(2)
    await fleet.ask("POST", "/models", 201, json={"hugging_face_id": "o/m"})
    seed = os.environ.get("FLEETPULSE_TEST_SEED") or str(random.randrange(2**32))
    print(f"FLEETPULSE_TEST_SEED={seed}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{fleet.url}/openapi.json"),
        *("--header", f"Authorization: {fleet.admin['Authorization']}"),
        *("--checks", "all", "--exclude-checks", NOT_CHECKED, "--exclude-path", ENDLESS),
        *("--phases", "coverage,fuzzing", "--max-examples", "8", "--seed", seed),
        *("--suppress-health-check", "all", "--warnings", "off", "--no-color"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, "\n".join(line[:300] for line in output.decode().splitlines())
