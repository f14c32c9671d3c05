"""The LLM gateway's chart installed alone, and what it has of its own: the model port, files, private model servers, prices."""

import ipaddress
import re
import shlex
from itertools import pairwise
from pathlib import Path

import helm_python
import kubernetes_validate
import pytest
import yaml

from services.common.edges import METHODS
from services.common.settings import parse
from services.llm_gateway.registry_file import registry_parser
from services.llm_gateway.settings import Settings
from tests.chart.test_chart_settings import config_map, mounted

ALONE = {
    "global": {"env": "prod", "state": {"existingSecret": "store"}, "cache": {"existingSecret": "cache"}, "allowDevelopmentParts": False},
    "modelPort": {"enabled": True, "masterKey": {"existingSecret": "operator"}},
    "env": {"BULKHEAD_STATE_REPLICAS": "1"},
}
MODELS = """
model_list:
  - model_name: main
    litellm_params: {model: openai/gpt-x, api_key: os.environ/OPENAI_API_KEY}
"""
PRICES = "openai/gpt-x: {input_cost_per_token: 0.0000004, output_cost_per_token: 0.0000016}\n"
CANARY = {"enabled": True, "image": {"tag": "0.2.0"}}


def merged(base: dict, over: dict) -> dict:
    return {**base, **{key: merged(base.get(key, {}), value) if isinstance(value, dict) else value for key, value in over.items()}}


@pytest.fixture
def alone(render):
    """Renders the chart by itself as an operator installs it, with further values."""

    def rendered(over: dict | None = None) -> list[dict]:
        return render("llm-gateway", merged(merged(ALONE, {"global": {"config": {"models": MODELS, "prices": PRICES}}}), over or {}))

    return rendered


def pod_of(manifests) -> dict:
    (deployment,) = [m for m in manifests if m["kind"] == "Deployment"]
    return deployment["spec"]["template"]["spec"]


def variables_of(manifests) -> dict[str, str]:
    """Variables of the container; those from Secrets as `secret/key`."""
    (container,) = pod_of(manifests)["containers"]
    (settings,) = [m["data"] for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"].endswith("-env")]
    found = dict(settings)
    for variable in container["env"]:
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        found[variable["name"]] = f"{reference['name']}/{reference['key']}" if reference else variable.get("value", "pod")
    return found


def test_alone_it_starts_with_a_model_port_an_operators_key_and_prices(alone, tmp_path, monkeypatch):
    manifests = alone()
    mounted(manifests, "llm-gateway", tmp_path)
    variables = variables_of(manifests)
    assert variables["BULKHEAD_MASTER_KEY"] == "operator/master-key"
    assert variables["BULKHEAD_STATE_URL"] == "store/url"
    assert variables["BULKHEAD_CACHE_URL"] == "cache/url"
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("/etc/bulkhead/", f"{tmp_path}/"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    settings = parse(Settings)
    assert (settings.http_port, settings.http_workers, settings.files_dir) == (8081, 1, None)
    assert settings.price_unknown == "deny"
    assert settings.master_key
    assert {path.name for path in settings.config_dir.iterdir()} == {"models.yaml", "policies.yaml", "prices.yaml"}
    files = {path.name: yaml.safe_load(path.read_text()) for path in settings.config_dir.iterdir()}
    registry = registry_parser({"OPENAI_API_KEY": "sk-test"})(files["models.yaml"], ("prices.yaml", files["prices.yaml"]))
    assert not registry.unpriced


def test_without_prices_there_is_no_file_of_them(render, alone):
    assert "prices.yaml" in config_map(alone(), "bulkhead-llm-gateway-config")
    assert "prices.yaml" not in config_map(render(), "bulkhead-llm-gateway-config")


def test_the_operators_key_is_a_reference_and_nothing_else(alone, render):
    manifests = alone()
    assert "BULKHEAD_MASTER_KEY" not in str([m for m in manifests if m["kind"] == "ConfigMap"])
    assert not [m for m in manifests if m["kind"] == "Secret"]
    assert "BULKHEAD_MASTER_KEY" not in str(render())


def test_files_are_off_until_asked_for(alone):
    manifests = alone()
    assert "BULKHEAD_FILES_DIR" not in variables_of(manifests)
    assert not [m for m in manifests if m["kind"] == "PersistentVolumeClaim"]
    assert "/data/files" not in str(manifests)


def test_files_are_one_folder_that_all_pods_share(alone):
    manifests = alone({"files": {"enabled": True, "storageClass": "shared", "size": "5Gi"}, "canary": CANARY})
    (claim,) = [m for m in manifests if m["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["storageClassName"] == "shared"
    assert claim["spec"]["resources"]["requests"]["storage"] == "5Gi"
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    kubernetes_validate.validate(claim, "1.30", strict=True)
    pods = [m["spec"]["template"]["spec"] for m in manifests if m["kind"] == "Deployment"]
    assert len(pods) == 2
    for pod in pods:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mount = next(m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == "/data/files")
        assert volumes[mount["name"]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["securityContext"]["fsGroup"] == 65532
    (settings,) = [m["data"] for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"].endswith("-env")]
    assert settings["BULKHEAD_FILES_DIR"] == "/data/files"


def test_a_claim_of_ones_own_is_used_as_it_is(alone):
    manifests = alone({"files": {"enabled": True, "existingClaim": "uploads"}})
    assert not [m for m in manifests if m["kind"] == "PersistentVolumeClaim"]
    assert {"claimName": "uploads"} in [v.get("persistentVolumeClaim") for v in pod_of(manifests)["volumes"]]


def test_workers_are_a_setting_of_the_process(alone):
    manifests = alone({"modelPort": {"workers": 3}, "global": {"networkPolicy": {"enabled": True}}})
    assert variables_of(manifests)["BULKHEAD_HTTP_WORKERS"] == "3"
    # Each has metrics of its own, on the ports that follow, and all of them are scraped.
    ports = {port["name"]: port["containerPort"] for port in pod_of(manifests)["containers"][0]["ports"] if "metrics" in port["name"]}
    assert ports == {"metrics": 9463, "metrics-1": 9464, "metrics-2": 9465}
    (policy,) = [m for m in manifests if m["kind"] == "NetworkPolicy"]
    scraped = [rule for rule in policy["spec"]["ingress"] if {"port": "metrics", "protocol": "TCP"} in rule["ports"]]
    assert {port["port"] for rule in scraped for port in rule["ports"]} == set(ports)


def test_private_model_servers_are_let_through_the_policy_by_name(alone):
    servers = {"vllm": {"namespace": "inference", "port": 8000}, "box": {"cidr": "10.1.2.3/32", "port": 8443}}
    over = {"global": {"networkPolicy": {"enabled": True}}}

    def egress(more: dict) -> list[dict]:
        (policy,) = [m for m in alone(merged(over, more)) if m["kind"] == "NetworkPolicy"]
        return policy["spec"]["egress"]

    added = [rule for rule in egress({"modelServers": servers}) if rule not in egress({})]
    assert [rule["ports"][0]["port"] for rule in added] == [8443, 8000]
    assert added[0]["to"] == [{"ipBlock": {"cidr": "10.1.2.3/32"}}]
    assert added[1]["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "inference"}}}]
    assert ipaddress.ip_address("10.1.2.3").is_private  # which the rule for the internet leaves out


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"modelPort": {"workers": 0}}, "workers"),
        ({"modelPort": {"enabled": False, "workers": 2, "masterKey": {"existingSecret": ""}}}, "workers share the model port"),
        ({"modelPort": {"enabled": False}}, "modelPort.masterKey.existingSecret is set but"),
        ({"files": {"existingClaim": "uploads"}}, "files.existingClaim is set but files.enabled is false"),
        ({"modelServers": {"vllm": {"port": 8000}}}, "modelServers"),
        ({"modelServers": {"vllm": {"namespace": "a", "cidr": "10.0.0.0/8", "port": 1}}}, "modelServers"),
        ({"global": {"config": {"price": {}}}}, "price"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(alone, values, told):
    with pytest.raises(Exception, match=told):
        alone(values)


def test_the_page_installs_it_alone_as_it_says(render):
    page = (render.root / "docs/llm-gateway.md").read_text()
    (command,) = re.findall(r"^helm install (models charts/llm-gateway .*)$", page, re.M)
    words = shlex.split(command)
    given = ",".join(argument for option, argument in pairwise(words) if option == "--set")
    files = {argument.partition("=")[0] for option, argument in pairwise(words) if option == "--set-file"}
    assert files == {"global.config.models", "global.config.prices"}
    values = merged(helm_python.parse_set_string(given), {"global": {"config": {"models": MODELS, "prices": PRICES}}})
    manifests = render("llm-gateway", values, release="models")
    (service,) = [m for m in manifests if m["kind"] == "Service" and m["metadata"]["name"].endswith("-models")]
    assert f"`{service['metadata']['name']}:{service['spec']['ports'][0]['port']}`" in page
    secret = re.search(r"create secret generic (\S+) --from-literal=([\w-]+)=", page)
    assert variables_of(manifests)["BULKHEAD_MASTER_KEY"] == f"{secret[1]}/{secret[2]}"
    told = set(re.findall(r"`(bulkhead-[a-z-]+)`", page.partition("## On Kubernetes")[2].partition("\n| ")[0]))
    assert set(re.findall(r"'(bulkhead-[a-z-]+)'", str(pod_of(manifests)))) - {secret[1]} == told


def test_the_page_names_the_chart_s_own_values(render):
    page = (render.root / "docs/llm-gateway.md").read_text().partition("| value | effect |")[2].partition("\n\n")[0]
    own = yaml.safe_load((render.charts / "llm-gateway/values.yaml").read_text())
    leaves = {name: set(value) if isinstance(value, dict) else set() for name, value in own.items()}
    for name in ("modelPort", "files"):
        assert {key for key in leaves[name] if f"`{name}.{key}" not in page and f"`.{key}`" not in page} == set()
    assert "`modelServers`" in page


def test_every_method_of_the_service_has_a_route_of_its_own(render):
    values = yaml.safe_load((Path(render.charts) / "llm-gateway/values.yaml").read_text())
    named = [f"/{method}" for route in values["mesh"]["routes"].values() for method in route["methods"]]
    assert sorted(named) == sorted(path for path in METHODS if path.startswith("/bulkhead.llm."))
