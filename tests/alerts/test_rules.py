"""The rules and Alertmanager's configuration as files: complete, tested, and about metrics that exist."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleetpulse.local.metric_catalogue import families

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "alerts"
RULE_FILES = sorted((FOLDER / "rules").glob("*.yml"))
RUNBOOKS = ROOT / "docs" / "runbooks"
RUNBOOK_URL = "https://github.com/fleetpulse/fleetpulse/blob/main/docs/runbooks/{}.md"
SEVERITIES = {"critical", "warning", "info", "none"}
SCOPES = {"pipeline", "worker", "gpu", "model", "instance", "control", "objective"}
METRIC = re.compile(r"(?<![\w:\"])(?:fleetpulse|gen_ai)_[a-z0-9_]+")
RECORDED = re.compile(r"\bfleetpulse:[a-z0-9_:]+")


def rules(kind: str) -> list[dict[str, Any]]:
    found = [yaml.safe_load(path.read_text()) for path in RULE_FILES]
    return [rule for file in found for group in file["groups"] for rule in group["rules"] if kind in rule]


ALERTS = rules("alert")
NAMES = sorted({alert["alert"] for alert in ALERTS})


UNIT_TESTS = [
    test for path in sorted((FOLDER / "tests").glob("*.yml")) for test in yaml.safe_load(path.read_text())["tests"]
]


def unit_tests(name: str) -> list[dict[str, Any]]:
    return [test for test in UNIT_TESTS if test["name"].partition(":")[0] == name]


def shown_labels(name: str) -> set[str]:
    """Labels that an alert has when it fires."""
    samples = [one for test in unit_tests(name) for look in test["promql_expr_test"] for one in look["exp_samples"]]
    return {label for one in samples for label in re.findall(r'(\w+)="', one["labels"])}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert['alert']}-{alert['labels']['severity']}")
def test_an_alert_says_what_why_and_where_to_go_on(alert: dict[str, Any]) -> None:
    name, labels, annotations = alert["alert"], alert["labels"], alert["annotations"]
    assert re.fullmatch(r"Fleetpulse([A-Z][a-z]+)+", name)
    assert labels["severity"] in SEVERITIES
    assert labels["scope"] in SCOPES
    assert annotations.keys() == {"summary", "description", "reason", "runbook_url"}
    assert "{{" not in annotations["summary"], "a summary is the same for all, so that messages can be grouped"
    assert annotations["runbook_url"] == RUNBOOK_URL.format(name)


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    assert sorted(path.stem for path in RUNBOOKS.glob("*.md")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_runbook_says_what_it_means_how_to_see_it_and_what_to_do(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    assert re.findall(r"^#+ (.+)$", text, re.MULTILINE) == [name, "See", "Do"]
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (RUNBOOKS / link).is_file(), link


def test_everything_that_rules_and_runbooks_name_exists() -> None:
    served = {series for family in families() for series in (family.name, *family.series)}
    recorded = {rule["record"] for rule in rules("record")}
    texts = [rule["expr"] for rule in (*ALERTS, *rules("record"))] + [
        path.read_text() for path in RUNBOOKS.glob("*.md")
    ]
    for text in texts:
        assert set(METRIC.findall(text)) - served == set(), text
        assert set(RECORDED.findall(text)) - recorded == set(), text


def test_each_recorded_series_is_used() -> None:
    used = {name for alert in ALERTS for name in RECORDED.findall(alert["expr"])}
    assert {rule["record"] for rule in rules("record")} == used


@pytest.mark.parametrize("name", [name for name in NAMES if name != "FleetpulseWatchdog"])
def test_an_alert_is_tested_firing_not_firing_and_without_data(name: str) -> None:
    tests = unit_tests(name)
    looks = [look for test in tests for look in test["promql_expr_test"]]
    assert all(look["expr"] == f'ALERTS{{alertname="{name}",alertstate="firing"}}' for look in looks)
    fired = {re.search(r'severity="(\w+)"', one["labels"])[1] for look in looks for one in look["exp_samples"]}
    assert fired == {alert["labels"]["severity"] for alert in ALERTS if alert["alert"] == name}
    quiet = [place for place, look in enumerate(tests[0]["promql_expr_test"]) if not look["exp_samples"]]
    first_fired = next(i for i, look in enumerate(tests[0]["promql_expr_test"]) if look["exp_samples"])
    assert any(place < first_fired for place in quiet), "nothing is asked just below the threshold"
    assert any(place > first_fired for place in quiet), "nothing is asked after the trouble"
    if name != "FleetpulseServiceDown":
        values = [series["values"].split()[0] for series in tests[0]["input_series"]]
        assert any(value.startswith("_") for value in values), "data is never missing"


@pytest.mark.promtool
@pytest.mark.parametrize("rule_file", RULE_FILES, ids=lambda path: path.stem)
def test_rules_do_what_their_unit_tests_say(rule_file: Path) -> None:
    for command in (["check", "rules", str(rule_file)], ["test", "rules", str(FOLDER / "tests" / rule_file.name)]):
        result = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.promtool
def test_the_example_configuration_of_prometheus_is_valid() -> None:
    command = ["promtool", "check", "config", str(FOLDER / "prometheus.yml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_example_scrapes_the_jobs_that_rules_know_on_their_usual_ports() -> None:
    configuration = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    targets = {one["job_name"]: one["static_configs"][0]["targets"] for one in configuration["scrape_configs"]}
    ports = {"proxy": 8000, "control": 8001, "collector": 8002, "agent": 8003}
    assert targets == {f"fleetpulse-{name}": [f"127.0.0.1:{port}"] for name, port in ports.items()}


@pytest.mark.prometheus
def test_the_configuration_of_alertmanager_is_valid_and_routes_by_severity() -> None:
    path = str(FOLDER / "alertmanager.yml")
    result = subprocess.run(["amtool", "check-config", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    wanted = {"critical": "pager", "warning": "chat", "info": "chat"}
    for severity, receiver in wanted.items():
        route = ["amtool", "config", "routes", "test", f"--config.file={path}", f"severity={severity}", "alertname=X"]
        assert subprocess.run(route, capture_output=True, text=True, check=True).stdout.strip() == receiver
    route = [
        "amtool",
        "config",
        "routes",
        "test",
        f"--config.file={path}",
        "severity=none",
        "alertname=FleetpulseWatchdog",
    ]
    assert subprocess.run(route, capture_output=True, text=True, check=True).stdout.strip() == "dead-man"


def test_the_dead_mans_switch_is_told_with_every_round_of_its_group() -> None:
    """A repetition is due a moment after the round that it is as long as, and would wait for the one after."""
    routes = yaml.safe_load((FOLDER / "alertmanager.yml").read_text())["route"]["routes"]
    (route,) = [one for one in routes if one["receiver"] == "dead-man"]
    assert (route["group_interval"], route["repeat_interval"]) == ("1m", "30s")


def test_each_label_that_inhibition_compares_is_on_the_alerts_that_it_concerns() -> None:
    """A label that both lack counts as equal, so that a misspelt one would silence everything."""
    for rule in yaml.safe_load((FOLDER / "alertmanager.yml").read_text())["inhibit_rules"]:
        if any("severity" in matcher for matcher in rule["source_matchers"]):
            continue  # between alerts of one name
        for matchers in (rule["source_matchers"], rule["target_matchers"]):
            concerned = [alert for alert in ALERTS if all(matches(alert, matcher) for matcher in matchers)]
            assert concerned, matchers
            for alert in concerned:
                assert set(rule["equal"]) - {"cluster"} <= shown_labels(alert["alert"]), (alert["alert"], rule["equal"])


def matches(alert: dict[str, Any], matcher: str) -> bool:
    """Whether an alert may match; what a label will be at run time is not known, only whether it is there."""
    label, operator, value = re.fullmatch(r'(\w+) (=~|!=|=) "(.*)"', matcher).groups()
    known = {"alertname": alert["alert"], **alert["labels"]}
    if label not in known:
        return label in shown_labels(alert["alert"])
    if operator == "=~":
        return re.fullmatch(value, known[label]) is not None
    return (known[label] == value) == (operator == "=")
