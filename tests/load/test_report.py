"""Reports of made-up recordings say what is in them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from fleetpulse.command import main
from fleetpulse.report import folder as files
from fleetpulse.report import numbers, text
from fleetpulse.report.main import ReportError, report
from fleetpulse.report.read import read

PNG = b"\x89PNG"


def test_percentiles_are_those_of_the_recording(recorded: Callable[..., Path]) -> None:
    found = numbers.latencies(read(recorded())).loc["heartbeats"]
    assert found["messages"] == 1_000
    assert found["p50"] == pytest.approx(500.5)
    assert found["p99"] == pytest.approx(990.01)
    assert found["max"] == pytest.approx(1_000)


def test_what_is_complete_is_said_to_be(recorded: Callable[..., Path]) -> None:
    folder = recorded()
    written = report(folder)
    assert {path.name for path in written} == {
        "latency.png",
        "pipeline.png",
        "processes.png",
        "report.md",
        "summary.csv",
    }
    assert all(path.read_bytes().startswith(PNG) for path in written if path.suffix == ".png")
    page = (folder / "report.md").read_text()
    assert "Nothing is lost, and nothing is doubled." in page
    assert all(f"({path.name})" in page for path in written if path.suffix == ".png")


def test_lost_and_doubled_rows_are_told_and_never_cancel_out(recorded: Callable[..., Path]) -> None:
    run = read(recorded(lost=20, doubled=20))
    page = text.page(run, [])
    assert "20 of 2000 rows of gpu_samples are lost (1.00%)." in page
    assert "20 rows of gpu_samples are there more than once." in page
    assert "Nothing is lost" not in page
    summary = numbers.long(run).set_index(["table", "subject", "measure"])["value"]
    assert summary["rows", "gpu_samples", "lost"] == 20
    assert summary["rows", "gpu_samples", "doubled"] == 20
    assert summary["rows", "heartbeats", "lost"] == 0


def test_what_was_not_read_yet_is_not_called_lost(recorded: Callable[..., Path]) -> None:
    assert numbers.faults(read(recorded(lost=20, unread=1_234))) == [
        "The collector had 1,234 messages left to read when the recording ended.",
        "20 of 2000 rows of gpu_samples are not stored yet (1.00%).",
    ]


def test_lag_and_throughput_are_the_collectors(recorded: Callable[..., Path]) -> None:
    run = read(recorded())
    assert numbers.lag(run)["lag_messages"].max() == 6
    assert numbers.committed_per_second(run)["messages_per_second"].unique() == pytest.approx([20])


def test_cpu_time_of_a_process_that_was_started_again_is_not_negative(recorded: Callable[..., Path]) -> None:
    used = numbers.processes(read(recorded())).loc["collector"]
    assert used["cpu_mean_cores"] == used["cpu_max_cores"] == pytest.approx(0.25)
    assert used["memory_max_bytes"] == 99 * 2**20


def test_what_other_programs_took_is_said(recorded: Callable[..., Path]) -> None:
    run = read(recorded())
    assert list(numbers.processes(run).index) == ["collector"]
    assert "Other programs took 1.5 of the machine's 2 cores meanwhile." in text.page(run, [])


def test_several_runs_are_laid_beside_each_other(recorded: Callable[..., Path]) -> None:
    top = recorded("ten").parent
    recorded("hundred", agents=100, lost=5)
    written = report(top)
    assert {path.name for path in written if path.parent == top} == {"overview.png", "report.md", "summary.csv"}
    page = (top / "report.md").read_text()
    assert page.index("| 10 |") < page.index("| 100 |")
    assert "[hundred](hundred/report.md): 5 of 2000 rows of gpu_samples are lost" in page
    assert set(pd.read_csv(top / "summary.csv")["run"]) == {"ten", "hundred"}


def test_stages_of_a_proxy_load_are_told_apart(recorded: Callable[..., Path]) -> None:
    folder = recorded()
    (folder / files.SIMULATION).unlink()
    stages = [{"name": name, "seconds": 10.0, "begin": 10.0, "end": 10.0} for name in ("calm", "rush")]
    times = {"began_unix_seconds": 1.8e9, "ended_unix_seconds": 1.8e9 + 20}
    (folder / files.LOAD).write_text(json.dumps({"model": "open", "stages": stages, **times}))
    requests = [
        {
            "stage": "calm" if number < 100 else "rush",
            "due": number / 10,
            "sent": number / 10,
            "is_stream": number % 2 == 0,
            "status": 503 if number == 150 else 200,
            "outcome": "failed" if number == 150 else "completed",
            "first_token_seconds": 0.1 if number % 2 == 0 else None,
            "duration_seconds": 1.0 if number < 100 else 2.0,
            "completion_tokens": 7,
        }
        for number in range(200)
    ]
    pd.DataFrame(requests).to_csv(folder / files.REQUESTS, index=False)
    assert "load.png" in {path.name for path in report(folder)}
    table = numbers.stages(read(folder))
    assert list(table["not_completed"]) == [0, 1, 1]
    assert list(table["duration_p50_ms"]) == pytest.approx([1_000, 2_000, 1_000])
    assert list(table["tokens_per_second"]) == pytest.approx([70, 69.3, 69.65])
    assert "1 of 200 requests did not complete." in (folder / "report.md").read_text()


@pytest.mark.parametrize("name", [files.STORED, files.LATENCIES, files.PROCESSES, files.METRICS, files.SIMULATION])
def test_a_missing_file_is_named(name: str, recorded: Callable[..., Path]) -> None:
    folder = recorded()
    (folder / name).unlink()
    with pytest.raises(ReportError, match=name):
        report(folder)


def test_a_folder_without_runs_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no recorded run in {tmp_path}" in line


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    script = "import sys; sys.modules['pandas'] = None; from fleetpulse.command import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", script, "report", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == ["fleetpulse: pandas is not installed: pip install 'fleetpulse[report]'"]
