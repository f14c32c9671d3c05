"""Rendering for the chart tests: Helm's own engine in the process, no cluster, no `helm` binary."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

Manifest = dict[str, Any]


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, maps key by key, as Helm merges values files."""
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(value, dict) and isinstance(known, dict) else value
    return result


@cache
def _manifests(chart: str, values: str, release: str) -> str:
    with helm_python.Chart.load(chart) as loaded:
        rendered = loaded.render(json.loads(values), name=release, namespace="bulkhead")
    # NOTES.txt is rendered too, and is no manifest.
    documents = [document for path, text in rendered.items() if path.endswith(".yaml") for document in yaml.safe_load_all(text)]
    return json.dumps([document for document in documents if document])


class Renderer:
    """`render("gateway", {...})` and `render.environment("prod", {...})` give the manifests as parsed YAML."""

    root = ROOT
    charts = ROOT / "charts"
    environments = ("local", "dev", "staging", "prod")
    applications = ("gateway", "orchestrator", "llm-gateway", "tool-executor", "memory")

    def __call__(self, chart: str = "bulkhead", values: dict[str, Any] | None = None, release: str = "bulkhead") -> list[Manifest]:
        found: list[Manifest] = json.loads(_manifests(str(self.charts / chart), json.dumps(values or {}, sort_keys=True), release))
        return found

    def environment(self, name: str, over: dict[str, Any] | None = None) -> list[Manifest]:
        return self(values=merged(self.values(name), over or {}))

    def values(self, name: str) -> dict[str, Any]:
        """The values file of an environment."""
        values: dict[str, Any] = yaml.safe_load((ROOT / "k8s/environments" / name / "values.yaml").read_text())
        return values

    def values_with_bucket(self, name: str, bucket: str) -> dict[str, Any]:
        """The values file of an environment, with the bucket that it has in a comment, under this name."""
        text = (ROOT / "k8s/environments" / name / "values.yaml").read_text()
        switched_on = text.replace("  # segments:", "  segments:").replace("YOUR-BUCKET", bucket)
        assert switched_on != text
        values: dict[str, Any] = yaml.safe_load(switched_on)
        return values

    def notes(self, values: dict[str, Any] | None = None) -> str:
        with helm_python.Chart.load(str(self.charts / "bulkhead")) as loaded:
            return loaded.render(values or {}, name="bulkhead", namespace="bulkhead")["bulkhead/templates/NOTES.txt"]


@pytest.fixture(scope="session")
def render() -> Renderer:
    return Renderer()


@pytest.fixture(scope="session")
def of_kind() -> Callable[..., list[Manifest]]:
    """`of_kind(manifests, "Deployment", app="gateway")`: those of a kind, and of one service if it is named."""

    def pick(manifests: list[Manifest], kind: str, app: str = "") -> list[Manifest]:
        found = [manifest for manifest in manifests if manifest["kind"] == kind]
        return [m for m in found if not app or m["metadata"]["labels"]["app.kubernetes.io/name"] == app]

    return pick


def everything_on() -> dict[str, Any]:
    """Values that render all there is at once, for tests of what must hold in every shape."""
    scaled_with_canary = {"autoscaling": {"enabled": True}, "canary": {"enabled": True, "image": {"tag": "0.2.0"}, "weight": 10}}
    switches = {"mesh": {"enabled": True}, "networkPolicy": {"enabled": True}, "otlpEndpoint": "http://collector.observability:4317"}
    values: dict[str, Any] = {"global": switches} | dict.fromkeys(Renderer.applications, scaled_with_canary)
    bucket = {"url": "s3://logs/bulkhead", "existingSecret": "bulkhead-segments"}
    return merged(values, {"llm-gateway": {"modelPort": {"enabled": True}}, "orchestrator": {"segments": {"bucket": bucket}}})


@pytest.fixture(scope="session", params=[*Renderer.environments, "full"])
def shape(request: pytest.FixtureRequest, render: Renderer) -> list[Manifest]:
    """The manifests of each environment, and of the defaults with everything on."""
    return render(values=everything_on()) if request.param == "full" else render.environment(request.param)


@pytest.fixture(scope="session")
def full_values() -> dict[str, Any]:
    return everything_on()
