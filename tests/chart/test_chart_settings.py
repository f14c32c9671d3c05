"""What the charts render is what the services read: variables, mounted files, product configuration."""

import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.identity import generate_keys
from services.common.limits import parse_policies
from services.common.settings import ServiceSettings, parse
from services.llm_gateway.registry_file import registry_parser
from services.orchestrator.agents import parse_agents

MODULES = {
    "gateway": "gateway", "orchestrator": "orchestrator", "llm-gateway": "llm_gateway", "tool-executor": "tool_executor",
    "memory": "memory", "simulator": "simulator",
}  # fmt: skip
ISSUERS = ["gateway", "orchestrator", "llm_gateway", "memory"]
SHAPES = ("local", "dev", "staging", "prod", "full")
PROVIDER_KEYS = {"OPENAI_API_KEY": "sk-test"}
# What a Secret of the installation would hold.
SECRET_VALUES = {
    "BULKHEAD_STATE_URL": "redis://state:6379/0",
    "BULKHEAD_CACHE_URL": "redis://cache:6379/0",
    "BULKHEAD_MILVUS_URI": "http://milvus:19530",
    "BULKHEAD_MILVUS_TOKEN": "token",
}


def settings_class(app: str) -> type[ServiceSettings]:
    """The one settings class of a service, from its settings.py."""
    module = importlib.import_module(f"services.{MODULES[app]}.settings")
    (found,) = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, ServiceSettings) and value.__module__ == module.__name__
    ]
    return found


def manifests_of(render, full_values, shape: str) -> list[dict[str, Any]]:
    return render(values=full_values) if shape == "full" else render.environment(shape)


def deployment_of(manifests, app: str) -> dict[str, Any]:
    (found,) = [m for m in manifests if m["kind"] == "Deployment" and m["metadata"]["name"] == f"bulkhead-{app}"]
    return found


def config_map(manifests, name: str) -> dict[str, str]:
    (found,) = [m["data"] for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == name]
    return found


def environment_of(manifests, app: str) -> dict[str, str]:
    """The variables as the container would see them, Secrets filled in."""
    (container,) = deployment_of(manifests, app)["spec"]["template"]["spec"]["containers"]
    variables: dict[str, str] = {}
    for source in container["envFrom"]:
        if "configMapRef" in source:
            variables |= config_map(manifests, source["configMapRef"]["name"])
    for variable in container["env"]:
        if "secretKeyRef" in variable.get("valueFrom", {}):
            variables[variable["name"]] = SECRET_VALUES[variable["name"]]
        else:
            variables[variable["name"]] = variable.get("value", "bulkhead-pod-0")
    return variables


def mounted(manifests, app: str, folder: Path) -> None:
    """The files under /etc/bulkhead as the kubelet would lay them out, into `folder`."""
    spec = deployment_of(manifests, app)["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    generate_keys(folder / "keys", ISSUERS)
    for name in ("access_key_id", "secret_access_key"):
        (folder / "keys" / name).write_text("of the bucket")
    (folder / "keys" / "keys.json").write_text("of personal data")
    for mount in spec["containers"][0]["volumeMounts"]:
        if not mount["mountPath"].startswith("/etc/bulkhead/"):
            continue
        target = folder / mount["mountPath"].removeprefix("/etc/bulkhead/")
        volume = volumes[mount["name"]]
        items = (volume.get("configMap") or volume["secret"])["items"]
        for item in items:
            path = target / item["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                path.write_text(config_map(manifests, volume["configMap"]["name"])[item["key"]])
            else:
                path.write_bytes((folder / "keys" / item["key"]).read_bytes())


def referenced_variables(manifests) -> set[str]:
    """Variables that product configuration names by os.environ/NAME: read by its loader, not by the settings."""
    texts = [str(m["data"]) for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"].endswith("-config")]
    return set(re.findall(r"os\.environ/([A-Z0-9_]+)", " ".join(texts)))


@pytest.mark.parametrize("app", MODULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_variable_rendered_is_a_setting(render, full_values, shape, app):
    if app == "simulator" and shape in ("staging", "prod"):
        assert not [m for m in manifests_of(render, full_values, shape) if m["metadata"]["name"] == "bulkhead-simulator"]
        return
    manifests = manifests_of(render, full_values, shape)
    known = {f"BULKHEAD_{name.upper()}" for name in settings_class(app).model_fields} | referenced_variables(manifests)
    if app == "gateway":
        # Of create_key.py, which is run in its pod.
        known.add("BULKHEAD_STATE_REPLICAS")
    assert set(environment_of(manifests, app)) - known == set()


@pytest.mark.parametrize("app", MODULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_service_accepts_what_is_rendered(render, full_values, shape, app, monkeypatch, tmp_path):
    """Its own settings, built from the rendered variables and files, have no problem to list."""
    manifests = manifests_of(render, full_values, shape)
    if not [m for m in manifests if m["metadata"]["name"] == f"bulkhead-{app}"]:
        assert (app, shape) in (("simulator", "staging"), ("simulator", "prod"))
        return
    mounted(manifests, app, tmp_path)
    for name in [key for key in os.environ if key.startswith("BULKHEAD_")]:
        monkeypatch.delenv(name)
    for name, value in environment_of(manifests, app).items():
        monkeypatch.setenv(name, value.replace("/etc/bulkhead/", f"{tmp_path}/"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    settings = parse(settings_class(app))
    assert settings.track == "stable"
    assert settings.host == "0.0.0.0"
    assert settings.metrics_port > 0
    if shape in ("staging", "prod"):
        assert (settings.env, settings.log_format) == (shape, "json")


@pytest.mark.parametrize("app", [app for app in MODULES if app != "simulator"])
def test_a_service_would_refuse_to_start_without_what_is_rendered(render, app, monkeypatch, tmp_path):
    """The counter-test: the store's address is asked for, so rendering it matters."""
    manifests = render()
    mounted(manifests, app, tmp_path)
    for name, value in environment_of(manifests, app).items():
        monkeypatch.setenv(name, value.replace("/etc/bulkhead/", f"{tmp_path}/"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("BULKHEAD_STATE_URL")
    with pytest.raises(Exception, match="BULKHEAD_STATE_URL"):
        parse(settings_class(app))


FILES = {"gateway": ["policies.yaml"], "orchestrator": ["agents.yaml", "policies.yaml"], "llm-gateway": ["models.yaml", "policies.yaml"],
         "tool-executor": ["policies.yaml", "tools.yaml"]}  # fmt: skip


@pytest.mark.parametrize("app", FILES)
def test_the_charts_ship_the_local_product_configuration_as_it_is(render, app):
    """`make run`, compose and a default installation read the very same files."""
    local = render.root / "k8s/environments/local/config"
    shipped = config_map(render(), f"bulkhead-{app}-config")
    assert sorted(key for key in shipped if not key.startswith("prompts.")) == FILES[app]
    for name in FILES[app]:
        assert shipped[name] == (local / name).read_text()
    prompts = {key.removeprefix("prompts."): text for key, text in shipped.items() if key.startswith("prompts.")}
    expected = {path.name: path.read_text() for path in (local / "prompts").glob("*.md")} if app == "orchestrator" else {}
    assert prompts == expected
    assert app != "orchestrator" or prompts


def test_product_configuration_is_mounted_as_the_folder_the_services_read(render, tmp_path):
    mounted(render(), "orchestrator", tmp_path)
    local = render.root / "k8s/environments/local/config"
    assert (tmp_path / "config/agents.yaml").read_text() == (local / "agents.yaml").read_text()
    assert {p.name for p in (tmp_path / "config/prompts").iterdir()} == {p.name for p in (local / "prompts").glob("*.md")}


def test_a_configuration_folder_is_never_mounted_by_sub_path(shape, of_kind):
    """A subPath mount never sees a change of its ConfigMap: reload without restart would be dead."""
    mounts = [
        mount
        for deployment in of_kind(shape, "Deployment")
        for container in deployment["spec"]["template"]["spec"]["containers"]
        for mount in container["volumeMounts"]
    ]
    assert len(mounts) > 10
    assert [mount for mount in mounts if "subPath" in mount] == []


def test_values_replace_a_file_as_map_or_as_text(render):
    as_map = config_map(render(values={"global": {"config": {"policies": {"tiers": {"free": {}}}}}}), "bulkhead-gateway-config")
    assert yaml.safe_load(as_map["policies.yaml"]) == {"tiers": {"free": {}}}
    text = "# as it is\ntiers: {}\n"
    assert config_map(render(values={"global": {"config": {"policies": text}}}), "bulkhead-gateway-config")["policies.yaml"] == text


def test_a_prompt_can_be_added_or_replaced(render):
    values = {"global": {"config": {"prompts": {"extra.md": "Say less.\n"}}}}
    shipped, changed = (config_map(render(values=v), "bulkhead-orchestrator-config") for v in ({}, values))
    assert changed == shipped | {"prompts.extra.md": "Say less.\n"}


@pytest.mark.parametrize("environment", ["local", "dev", "staging", "prod"])
def test_services_read_what_is_mounted_and_the_files_fit_together(render, environment, tmp_path):
    """Each file by the parser of the service that it is mounted for; every model and tool that an agent names exists."""
    manifests = render.environment(environment)
    parsed: dict[str, Any] = {}
    for app in FILES:
        mounted(manifests, app, tmp_path / app)
        parsed[app] = {name: yaml.safe_load((tmp_path / app / "config" / name).read_text()) for name in FILES[app]}
    registry = registry_parser(environment_of(manifests, "llm-gateway") | PROVIDER_KEYS)(parsed["llm-gateway"]["models.yaml"])
    agents = parse_agents(parsed["orchestrator"]["agents.yaml"], tmp_path / "orchestrator/config/prompts")
    for app in ("gateway", "orchestrator", "llm-gateway", "tool-executor"):
        assert parse_policies(parsed[app]["policies.yaml"])
    offered = {tool["name"] for tool in parsed["tool-executor"]["tools.yaml"]["tools"]}
    assert agents.by_digest
    for agent in agents.by_digest.values():
        assert agent.model in registry.groups, f"{agent.name} names a model that {environment} has not"
        assert {tool.partition("@")[0] for tool in agent.tools} <= offered, agent.name
    assert registry.groups["embedding-default"].deployments[0].mode == "embedding"
    assert not registry.unpriced
    assert not registry.unsupported


@pytest.mark.parametrize("environment", ["staging", "prod"])
def test_real_models_are_no_simulated_ones(render, environment):
    rendered = config_map(render.environment(environment), "bulkhead-llm-gateway-config")["models.yaml"]
    assert "simulat" not in rendered.lower()


def test_staging_tries_the_models_that_production_runs(render):
    staging, prod = (config_map(render.environment(name), "bulkhead-llm-gateway-config") for name in ("staging", "prod"))
    assert staging == prod


@pytest.mark.parametrize("environment", ["staging", "prod"])
def test_provider_keys_come_from_a_secret_only(render, environment):
    manifests = render.environment(environment)
    (container,) = deployment_of(manifests, "llm-gateway")["spec"]["template"]["spec"]["containers"]
    assert {"secretRef": {"name": "bulkhead-providers"}} in container["envFrom"]
    assert referenced_variables(manifests) == {"OPENAI_API_KEY"}
    assert not [name for name in environment_of(manifests, "llm-gateway") if name.startswith("OPENAI")]
