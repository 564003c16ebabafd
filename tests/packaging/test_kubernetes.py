"""The Helm chart, and the manifests that were rendered from it."""

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema_rs
import pytest
import yaml

from fleetpulse import __version__
from fleetpulse.settings import GROUPS, ProxySettings, names

WORKLOADS = ("Deployment", "DaemonSet")
EVERYTHING = {
    "images": {"repository": "images.example/team", "pullSecrets": ["pull"]},
    "kafka": {"bootstrap": "a:9092,b:9092", "securityProtocol": "SASL_SSL", "caConfigMap": "kafka-ca"},
    "secrets": {service: f"own-{service}" for service in ("agent", "collector", "proxy", "kafka", "machines")},
    "settings": {"FLEETPULSE_LOG_LEVEL": "debug", "FLEETPULSE_KAFKA_PARTITIONS": 32},
    "agent": {
        "settings": {"FLEETPULSE_AGENT_ENGINE": "vllm", "FLEETPULSE_AGENT_SPOOL_BYTES": 1_073_741_824},
        "nodeSelector": {"nvidia.com/gpu.present": None, "pool": "gpu"},
    },
    "collector": {"replicas": 1},
    "control": {"nodeSelector": {"pool": "system"}, "settings": {"FLEETPULSE_CONTROL_PROVIDERS": "static"}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}


@pytest.fixture(scope="module")
def chart(root: Path) -> Path:
    return root / "deploy" / "helm" / "fleetpulse"


@pytest.fixture(scope="module")
def values(chart: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((chart / "values.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def render(root: Path) -> ModuleType:
    """deploy/helm/render.py."""
    specification = importlib.util.spec_from_file_location("render", root / "deploy" / "helm" / "render.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workloads(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Deployments and the DaemonSet, by service."""
    return {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: each
        for each in manifests
        if each["kind"] in WORKLOADS
    }


def containers(workload: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = workload["spec"]["template"]["spec"]["containers"]
    return found


def test_the_manifests_were_rendered_from_the_chart_as_it_is(render: ModuleType) -> None:
    first = render.FILE.read_text().partition("\n")[0] + "\n"
    assert first == render.heading(), "run python deploy/helm/render.py"


def test_the_chart_is_of_this_version(chart: Path) -> None:
    described = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert (described["version"], described["appVersion"]) == (__version__, __version__)


def test_there_is_a_workload_for_each_service_and_one_of_agents_on_each_node(
    workloads: dict[str, dict[str, Any]],
) -> None:
    kinds = {service: each["kind"] for service, each in workloads.items()}
    assert kinds == {"agent": "DaemonSet", "collector": "Deployment", "control": "Deployment", "proxy": "Deployment"}


@pytest.mark.parametrize("service", ["agent", "collector", "control", "proxy"])
def test_a_workload_is_hardened_probed_and_bounded(
    service: str, workloads: dict[str, dict[str, Any]], ports: dict[str, int]
) -> None:
    pod = workloads[service]["spec"]["template"]["spec"]
    (container,) = containers(workloads[service])
    allowed = pod["securityContext"] | container["securityContext"]
    assert (allowed["runAsNonRoot"], allowed["runAsUser"], allowed["seccompProfile"]["type"]) == (
        True,
        65532,
        "RuntimeDefault",
    )
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    assert container["args"] == [service]
    assert container["image"] == f"fleetpulse-{service}:{__version__}"
    assert container["ports"][0]["containerPort"] == ports[service]
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes["startupProbe"] == probes["livenessProbe"] == {"path": "/healthz", "port": "http"}
    assert probes["readinessProbe"] == {"path": "/readyz", "port": "http"}
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"]["cpu"]


def test_agents_have_no_privileges_beyond_the_nodes_network_and_one_folder(
    workloads: dict[str, dict[str, Any]],
) -> None:
    pod = workloads["agent"]["spec"]["template"]["spec"]
    assert pod["hostNetwork"] is True
    assert not {"hostPID", "hostIPC"} & set(pod)
    assert [each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each] == ["/var/lib/fleetpulse-agent"]
    (prepare,) = pod["initContainers"]
    assert prepare["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}


def test_every_name_that_a_manifest_refers_to_is_made_or_is_a_secret_of_the_values(
    manifests: list[dict[str, Any]], workloads: dict[str, dict[str, Any]], values: dict[str, Any]
) -> None:
    made = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    secrets = {name for name in values["secrets"].values() if name}
    for service, workload in workloads.items():
        (container,) = containers(workload)
        for source in container["envFrom"]:
            if "configMapRef" in source:
                assert ("ConfigMap", source["configMapRef"]["name"]) in made, service
            else:
                assert source["secretRef"]["name"] in secrets, service
        assert ("Service", workload["metadata"]["name"]) in made
        volumes = {each["name"] for each in workload["spec"]["template"]["spec"]["volumes"]}
        assert {each["name"] for each in container["volumeMounts"]} <= volumes


def test_agents_never_get_the_databases_secret(workloads: dict[str, dict[str, Any]]) -> None:
    (agent,) = containers(workloads["agent"])
    assert [source for source in agent["envFrom"] if "secretRef" in source] == []


def test_selectors_find_the_pods_and_no_others(manifests: list[dict[str, Any]], workloads: dict[str, Any]) -> None:
    labels = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in workloads.items()}
    for each in manifests:
        selector = each.get("spec", {}).get("selector")
        if selector is None:
            continue
        wanted = selector.get("matchLabels", selector)
        found = [name for name, having in labels.items() if wanted.items() <= having.items()]
        assert found == [each["metadata"]["labels"]["app.kubernetes.io/component"]]


def test_every_setting_in_it_exists(
    manifests: list[dict[str, Any]], workloads: dict[str, dict[str, Any]], settings: set[str], chart: Path
) -> None:
    named = {name for each in manifests if each["kind"] == "ConfigMap" for name in each["data"]}
    named |= {each["name"] for workload in workloads.values() for each in containers(workload)[0].get("env", ())}
    assert named - settings == {"NODE_ADDRESS"}
    assert "FLEETPULSE_KAFKA_SSL_CA_FILE" in settings
    assert {name for name in named if name.endswith("_HOST")} == {
        f"FLEETPULSE_{service.upper()}_HOST" for service in workloads
    }


def test_a_proxy_has_time_to_finish_its_requests(workloads: dict[str, dict[str, Any]]) -> None:
    grace = workloads["proxy"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > ProxySettings.model_fields["drain_seconds"].default


@pytest.fixture(scope="module")
def accepts(chart: Path) -> Callable[[object], bool]:
    """Whether the chart's schema takes some values."""
    validator = jsonschema_rs.validator_for(json.loads((chart / "values.schema.json").read_text()))
    return lambda given: bool(validator.is_valid(given))


def test_the_schema_takes_the_charts_own_values(accepts: Callable[[object], bool], values: dict[str, Any]) -> None:
    assert accepts(values)


def test_the_schema_refuses_no_setting_but_secrets_and_those_that_the_chart_makes(
    accepts: Callable[[object], bool], values: dict[str, Any], settings: set[str], manifests: list[dict[str, Any]]
) -> None:
    made = {name for each in manifests if each["kind"] == "ConfigMap" for name in each["data"]}
    made -= values["settings"].keys() | values["agent"]["settings"].keys()
    made |= {name.replace("_HOST", "_PORT") for name in made if name.endswith("_HOST")}
    made |= {"FLEETPULSE_KAFKA_SSL_CA_FILE", "FLEETPULSE_AGENT_WORKER_ID", "FLEETPULSE_AGENT_ADVERTISED_URL"}
    made |= {"FLEETPULSE_STATIC_MACHINES_FILE"}
    secret = {
        variable
        for group in GROUPS
        for name, variable in names(group).items()
        if "SecretStr" in str(group.model_fields[name].annotation)
    }
    digests = {"FLEETPULSE_COLLECTOR_WORKER_TOKENS"}
    refused = {name for name in settings if not accepts(values | {"settings": {name: "1"}})}
    assert refused == made | secret | digests


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("images", "tag"), "latest"),
        (("kafka", "bootstrap"), "kafka"),
        (("secrets", "database"), ""),
        (("settings", "FLEETPULSE_DATABASE_URL"), "postgresql://a:b@c/d"),
        (("settings", "FLEETPULSE_KAFKA_BOOTSTRAP"), "twice:9092"),
        (("control", "settings", "FLEETPULSE_CONTROL_ADMIN_KEY"), "fpa-1"),
        (("collector", "settings", "FLEETPULSE_COLLECTOR_WORKER_TOKENS"), "abc"),
        (("control", "settings", "NOT_OURS"), "1"),
        (("proxy", "replicas"), 0),
        (("proxy", "replica"), 2),
        (("agent", "stateDir"), "var"),
    ],
)
def test_the_schema_refuses_what_would_fail_later_or_show_a_secret(
    place: tuple[str, ...], wrong: object, accepts: Callable[[object], bool], values: dict[str, Any]
) -> None:
    given: dict[str, Any] = json.loads(json.dumps(values))
    inner = given
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = wrong
    assert not accepts(given)


def test_helm_finds_no_fault_and_renders_what_is_kept(
    render: ModuleType, chart: Path, tmp_path: Path, enter_lane: Callable[[str], None]
) -> None:
    enter_lane("helm")
    subprocess.run(["helm", "lint", "--strict", str(chart)], check=True, capture_output=True)
    assert list(yaml.safe_load_all(rendered(render, chart))) == list(yaml.safe_load_all(render.FILE.read_text()))
    (tmp_path / "values.json").write_text(json.dumps(EVERYTHING))
    full = list(yaml.safe_load_all(rendered(render, chart, "--values", str(tmp_path / "values.json"))))
    kinds = [each["kind"] for each in full]
    assert (kinds.count("ServiceMonitor"), kinds.count("PodDisruptionBudget")) == (4, 2)
    settings = {name: text for each in full if each["kind"] == "ConfigMap" for name, text in each["data"].items()}
    assert {"FLEETPULSE_KAFKA_SSL_CA_FILE", "FLEETPULSE_KAFKA_PARTITIONS", "FLEETPULSE_AGENT_ENGINE"} <= settings.keys()
    assert settings["FLEETPULSE_AGENT_SPOOL_BYTES"] == "1073741824"
    pods = {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in full if each["kind"] in WORKLOADS}
    secrets = {
        name: [source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"] if "secretRef" in source]
        for name, pod in pods.items()
    }
    assert secrets == {
        "fleetpulse-agent": ["own-kafka", "own-agent"],
        "fleetpulse-collector": ["own-kafka", "fleetpulse-database", "own-collector"],
        "fleetpulse-control": ["own-kafka", "fleetpulse-database", "fleetpulse-control"],
        "fleetpulse-proxy": ["own-kafka", "fleetpulse-database", "own-proxy"],
    }
    assert pods["fleetpulse-agent"]["nodeSelector"] == {"pool": "gpu"}
    assert settings["FLEETPULSE_STATIC_MACHINES_FILE"] == "/etc/fleetpulse/machines/machines.toml"
    holders = {name: volume for name, pod in pods.items() for volume in pod["volumes"] if volume["name"] == "machines"}
    assert holders.keys() == {"fleetpulse-control"}
    assert holders["fleetpulse-control"]["secret"]["secretName"] == "own-machines"
    (control,) = pods["fleetpulse-control"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in control["volumeMounts"]}
    assert mounts["machines"] == "/etc/fleetpulse/machines"


def test_a_release_with_dots_in_its_name_has_services_that_kubernetes_takes(
    render: ModuleType, chart: Path, enter_lane: Callable[[str], None]
) -> None:
    enter_lane("helm")
    made = list(yaml.safe_load_all(rendered(render, chart, name="gpu.example.org")))
    services = {each["metadata"]["name"] for each in made if each["kind"] == "Service"}
    assert services == {f"gpu-example-org-{name}" for name in ("agent", "collector", "control", "proxy")}


def test_values_are_written_in_full_and_those_taken_away_not_at_all(chart: Path) -> None:
    """Helm's lane sees what becomes of them; this holds where there is no Helm."""
    templates = "".join(path.read_text() for path in (chart / "templates").iterdir())
    assert "toString" not in templates
    assert templates.count("range $name, $value") == 1
    assert templates.count('include "fleetpulse.texts"') == 5


def test_a_value_of_the_charts_own_that_was_taken_away_stays_so(
    accepts: Callable[[object], bool], values: dict[str, Any]
) -> None:
    """`helm upgrade --reuse-values` holds the null itself to the schema."""
    assert accepts(values | {"settings": {"FLEETPULSE_LOG_LEVEL": None}})
    assert accepts(values | {"agent": values["agent"] | {"nodeSelector": {"nvidia.com/gpu.present": None}}})


def rendered(render: ModuleType, chart: Path, *more: str, name: str = "fleetpulse") -> str:
    command = ["helm", "template", name, str(chart), "--kube-version", render.KUBERNETES, *more]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
