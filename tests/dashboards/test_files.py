"""The dashboards as files: current, complete, and about metrics and relations that exist."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards import __main__ as program
from fleetpulse.database.relations import expected
from fleetpulse.local.metric_catalogue import Family, families

ROOT = Path(__file__).parents[2]
MODELS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "dashboards").glob("*.json"))}
METRIC = re.compile(r"(?<![\w:\"])(?:fleetpulse|gen_ai)_[a-z0-9_]+(?!\w*\")")
RECORDED = re.compile(r"\bfleetpulse:[a-z0-9_:]+")
# Prometheus's own.
FOREIGN = {"up", "ALERTS"}
# Those that Grafana still develops; graph, singlestat and table-old are gone.
PANEL_TYPES = {"timeseries", "stat", "table", "bargauge"}
PANEL_UNITS = {
    *("short", "none", "s", "bytes", "Bps", "percentunit", "celsius", "watt", "hertz", "reqps"),
}


def panels(model: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in model["panels"] if panel["type"] != "row"]


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, model in MODELS.items():
        for panel in panels(model):
            for target in panel["targets"]:
                yield f"{name}: {panel['title']} {target['refId']}", target


PROMQL = {name: target["expr"] for name, target in targets() if "expr" in target}
SQL = {name: target["rawSql"] for name, target in targets() if "rawSql" in target}
LABELS_LIKE_METRICS = {"gen_ai_request_model", "gen_ai_operation_name"}


@pytest.fixture(scope="module")
def served() -> dict[str, Family]:
    """Metrics by the names of their series."""
    return {series: family for family in families() for series in family.series}


def test_the_files_are_what_the_program_makes() -> None:
    assert program.main(["--check"]) == 0, "run python -m dashboards"
    assert set(MODELS) == {"fleet", "worker", "pipeline", "control", "proxy", "usage"}


def test_a_file_that_is_out_of_date_is_told_and_then_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "FOLDER", tmp_path)
    (tmp_path / "fleet.json").write_text("{}")
    assert program.main(["--check"]) == 1
    assert "dashboards/fleet.json is out of date" in capsys.readouterr().err
    assert program.main([]) == 0
    assert program.main(["--check"]) == 0


def test_uids_and_titles_are_unique() -> None:
    """Two of one in a folder, and Grafana provisions none of the folder."""
    for key in ("uid", "title"):
        assert len({model[key] for model in MODELS.values()}) == len(MODELS)
    assert {model["uid"] for model in MODELS.values()} == {f"fleetpulse-{name}" for name in MODELS}


@pytest.mark.parametrize("name", list(MODELS))
def test_a_dashboard_can_be_provisioned_and_not_edited(name: str) -> None:
    model = MODELS[name]
    assert "id" not in model
    assert model["editable"] is False
    assert model["tags"] == ["fleetpulse"]
    assert model["description"]
    variables = {one["name"]: one for one in model["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["database"]["query"] == "grafana-postgresql-datasource"
    assert all(one["refresh"] == 2 for one in variables.values() if one["type"] == "query")
    assert all(one["label"] for one in variables.values())


def test_the_data_sources_are_those_that_are_provisioned() -> None:
    provisioned = ROOT / "compose" / "grafana" / "provisioning" / "datasources" / "fleetpulse.yaml"
    sources = {one["type"]: one["uid"] for one in yaml.safe_load(provisioned.read_text())["datasources"]}
    for model in MODELS.values():
        for one in model["templating"]["list"]:
            if one["type"] == "datasource":
                assert sources[one["query"]] == one["current"]["value"]


@pytest.mark.parametrize("name", list(MODELS))
def test_a_panel_says_what_it_shows_in_which_unit_and_from_where(name: str) -> None:
    identifiers = [panel["id"] for panel in MODELS[name]["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    titles = [panel["title"] for panel in panels(MODELS[name])]
    for panel in panels(MODELS[name]):
        told = panel["title"]
        assert told, panel["id"]
        assert panel["description"].endswith("."), told
        assert panel["targets"], told
        assert panel["type"] in PANEL_TYPES, told
        assert panel["fieldConfig"]["defaults"]["unit"] in PANEL_UNITS, told
        assert panel["datasource"]["uid"] in {"${datasource}", "${database}"}, told
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"]), told
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])]), told
    assert len(titles) > 5


@pytest.mark.parametrize("name", list(MODELS))
def test_panels_lie_within_the_page_and_not_upon_each_other(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in MODELS[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def metrics(expr: str) -> set[str]:
    return set(METRIC.findall(expr)) - LABELS_LIKE_METRICS


def test_promql_names_metrics_that_exist_with_labels_that_they_have(served: dict[str, Family]) -> None:
    files = [yaml.safe_load(path.read_text()) for path in (ROOT / "alerts" / "rules").glob("*.yml")]
    rules = [rule for file in files for group in file["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    ours = {"job", "instance", "le", "exported_job", "trouble", "alertstate", "alertname", "severity"}
    for panel, expr in PROMQL.items():
        names = metrics(expr)
        assert names - served.keys() == set(), panel
        assert set(RECORDED.findall(expr)) - recorded == set(), panel
        assert names or RECORDED.search(expr) or any(re.search(rf"\b{name}\b", expr) for name in FOREIGN), panel
        known = ours | {label for name in names for label in served[name].labels}
        grouped = {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", expr) for label in labels.split(",")}
        assert grouped <= known, panel


def test_counters_are_only_shown_as_rates_over_the_rate_interval(served: dict[str, Family]) -> None:
    for panel, expr in PROMQL.items():
        for name in metrics(expr):
            if served[name].kind in ("counter", "histogram"):
                rate = rf"(?:rate|increase)\({name}(?:\{{[^}}]*\}})?\[\$__rate_interval\]\)"
                assert len(re.findall(rate, expr)) == len(re.findall(rf"\b{name}\b", expr)), panel


def test_sql_names_relations_that_exist_and_keeps_to_the_time_shown() -> None:
    known = set(expected("postgres")) & set(expected("timescale"))
    timeless = {"ingest_offsets", "instances", "orphan_machines"}
    for panel, query in SQL.items():
        plain = re.sub(r"extract\(epoch FROM [^)]*\)", "", query)
        relations = set(re.findall(r"\b(?:FROM|JOIN) ([a-z][a-z0-9_.]*)", plain))
        assert relations - known == set(), panel
        # Readers see everything but who may log in.
        assert not relations & {"users", "sessions", "api_keys", "idempotency_keys"}, panel
        assert "$__timeFilter" in query or relations & timeless, panel
