"""Documents that drift fail: each is held against the code that it describes."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement

from fleetpulse import documentation
from fleetpulse.settings import GROUPS, names
from fleetpulse.stream import topics
from fleetpulse.stream.dictionary import TABLES
from fleetpulse.stream.errors import MessageError
from fleetpulse.stream.heartbeat import Engine, Heartbeat, Load

SERIES = re.compile(r"\bfleetpulse_(?:agent|collector|control|proxy)_[a-z0-9_]+")
# The agent shows a series for each column; its page describes them by the table.
BY_COLUMN = re.compile(r"\bfleetpulse_agent_(gpu|system|engine)_<column>")
# Shown only once the broker has answered; the services of these tests have none.
NEEDS_A_BROKER = {"fleetpulse_control_stream_lag_records"}
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")


def test_generated_pages_are_up_to_date() -> None:
    assert documentation.main(["--check"]) == 0, f"run {sys.executable} -m fleetpulse.documentation"


def test_a_page_that_is_out_of_date_is_told_and_then_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(documentation, "FOLDER", tmp_path)
    (tmp_path / "settings.md").write_text("old")
    assert documentation.main(["--check"]) == 1
    assert "docs/settings.md is out of date" in capsys.readouterr().err
    assert documentation.main([]) == 0
    assert documentation.main(["--check"]) == 0


def test_every_setting_and_every_measure_is_described(pages: dict[str, str]) -> None:
    for variable in (variable for group in GROUPS for variable in names(group).values()):
        assert f"`{variable}`" in pages["docs/settings.md"]
    for measure in (measure for table in TABLES for measure in table.measures):
        assert f"`{measure.column}`" in pages["docs/measures.md"]


def test_every_setting_that_a_page_names_exists(root: Path, pages: dict[str, str]) -> None:
    known = {variable for group in GROUPS for variable in names(group).values()}
    known |= {"FLEETPULSE_TEST_REQUIRE", "FLEETPULSE_TEST_DATABASE_URL"}
    runbooks = {path.name: path.read_text() for path in (root / "docs" / "runbooks").glob("*.md")}
    for page, text in (pages | runbooks).items():
        named = set(re.findall(r"\bFLEETPULSE_[A-Z_]+[A-Z]\b(?!_?\*)", text))
        prefixes = {name for name in named if any(other.startswith(f"{name}_") for other in known)}
        others = {f"FLEETPULSE_AGENT_{name}" for name in re.findall(r"\bWORKER_(SIMULATE_GPU_[A-Z_]+[A-Z])\b", text)}
        aliases = {name for name in named | others if name.replace("FLEETPULSE_AGENT", "WORKER") in known}
        assert named - known - prefixes - aliases == set(), page


def test_every_series_of_every_service_is_described(pages: dict[str, str], metrics_texts: dict[str, str]) -> None:
    text = "\n".join(pages.values())
    described = set(SERIES.findall(text))
    by_column = {
        f"fleetpulse_agent_{subject}_{column}"
        for subject, table in zip(("gpu", "system", "engine"), TABLES, strict=True)
        if subject in BY_COLUMN.findall(text)
        for column in table.columns
    }
    for service, shown in metrics_texts.items():
        assert series(shown) - described - by_column == set(), service


def test_every_series_that_a_page_names_exists(pages: dict[str, str], metrics_texts: dict[str, str]) -> None:
    columns = {
        f"fleetpulse_agent_{s}_{c}" for s, t in zip(("gpu", "system", "engine"), TABLES, strict=True) for c in t.columns
    }
    shown = {name for text in metrics_texts.values() for name in series(text)} | columns | NEEDS_A_BROKER
    for page, text in pages.items():
        described = {name for name in SERIES.findall(BY_COLUMN.sub("", text)) if not name.endswith("_")}
        assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in described - shown} - shown == set(), page


def series(text: str) -> set[str]:
    """Names in an exposition, as they are queried; prometheus_client's creation times aside."""
    types = re.findall(r"^# TYPE (fleetpulse_\S+) (\S+)$", text, re.MULTILINE)
    return {name for name, _ in types if not name.endswith("_created")}


def test_the_table_of_topics_is_the_topics(pages: dict[str, str]) -> None:
    rows = re.findall(r"^\| `(\S+)` \|.*\| ([^|]+) \|$", pages["docs/stream.md"], re.MULTILINE)
    described = {name: kept.strip() for name, kept in rows if name in {topic.name for topic in topics.ALL}}
    assert described == {topic.name: kept_for(topic) for topic in topics.ALL}


def kept_for(topic: topics.Topic) -> str:
    if topic.cleanup_policy == "compact":
        return "the newest of each key"
    days, rest = divmod(topic.retention_ms, topics.DAY_MS)
    return f"{days} days" if not rest else f"{topic.retention_ms // topics.HOUR_MS} hours"


def test_every_field_of_a_heartbeat_is_described(pages: dict[str, str]) -> None:
    for part, prefix in ((Heartbeat, ""), (Engine, "engine."), (Load, "load.")):
        for field in msgspec.structs.fields(part):
            assert f"`{prefix}{field.encode_name}`" in pages["docs/stream.md"]


def test_every_reason_of_a_dead_letter_is_described(pages: dict[str, str]) -> None:
    for reason in {each.reason for each in MessageError.__subclasses__()} | {"missing_identity"}:
        assert f"`{reason}`" in pages["docs/stream.md"]


def test_every_kind_of_faulty_data_is_described(root: Path, pages: dict[str, str]) -> None:
    found = re.compile(r"refuse\(\"(\w+)\"|\"(?:rejected|clamped|late)\", \"(\w+)\"")
    code = "\n".join(path.read_text() for path in (root / "collector").glob("*.py"))
    reasons = {one or other for one, other in found.findall(code)}
    assert reasons >= {"time_in_future", "series_cap", "no_time"}
    for reason in reasons:
        assert f"`{reason}`" in pages["docs/collector.md"]


def test_every_file_of_the_collector_has_its_place_in_the_pipeline(root: Path, pages: dict[str, str]) -> None:
    for path in (root / "collector").glob("[a-z]*.py"):
        assert f"`{path.name}`" in pages["docs/collector.md"]


def test_the_readme_leads_to_every_page(pages: dict[str, str]) -> None:
    assert [page for page in pages if page != "README.md" and f"({page})" not in pages["README.md"]] == []


def test_every_dependency_has_a_reason(root: Path, pages: dict[str, str]) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    for name in {Requirement(each).name for each in listed} - {"fleetpulse"}:
        assert re.search(rf"^\| `{re.escape(name)}` \| \S", pages["ARCHITECTURE.md"], re.MULTILINE), name


def test_every_command_is_described(pages: dict[str, str]) -> None:
    told = subprocess.run([sys.executable, "-m", "fleetpulse", "--help"], capture_output=True, text=True, check=True)
    commands = re.findall(r"^    ([a-z]+) ", told.stdout, re.MULTILINE)
    assert "up" in commands
    for command in commands:
        assert f"fleetpulse {command}" in pages["README.md"] + pages["ARCHITECTURE.md"], command


def test_every_target_of_the_makefile_that_a_page_names_exists(root: Path, pages: dict[str, str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    for page, text in pages.items():
        assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE)) - targets == set(), page


def test_links_lead_somewhere(root: Path, pages: dict[str, str]) -> None:
    for page, text in pages.items():
        for target in LINK.findall(text):
            assert ((root / page).parent / target).exists(), f"{page} links to {target}"
