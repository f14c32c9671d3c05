"""The charts render, from a fresh clone as from this tree, to the objects that an installation needs."""

import os
import subprocess
from collections import Counter
from pathlib import Path

import helm_python
import pytest
import yaml

CHARTS = ("gateway", "orchestrator", "llm-gateway", "tool-executor", "memory", "simulator", "devstores", "bulkhead")
# A chart whose dependencies are missing renders to next to nothing, without an error: so the number is asserted.
LEAST = {"local": 40, "dev": 42, "staging": 49, "prod": 54}


@pytest.mark.parametrize("environment", LEAST)
def test_every_environment_renders_its_objects(render, environment):
    manifests = render.environment(environment)
    assert len(manifests) >= LEAST[environment]
    deployed = {m["metadata"]["labels"]["app.kubernetes.io/name"] for m in manifests if m["kind"] == "Deployment"}
    assert set(render.applications) <= deployed


def test_the_defaults_render_a_whole_development_installation(render):
    kinds = Counter(m["kind"] for m in render())
    assert kinds["Deployment"] == 6
    assert kinds["StatefulSet"] == 3
    assert kinds["ServiceAccount"] == 6


@pytest.mark.parametrize("chart", [c for c in CHARTS if c != "bulkhead"])
def test_each_chart_renders_alone(render, chart):
    values = {
        "state": {"existingSecret": "bulkhead-state"},
        "vectors": {"existingSecret": "bulkhead-vectors"},
        "simulator": {"enabled": True},
    }
    manifests = render(chart, {"global": values})
    assert len(manifests) >= 5


def test_no_two_objects_share_a_name(shape):
    names = Counter((m["apiVersion"], m["kind"], m["metadata"]["name"]) for m in shape)
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("chart", CHARTS)
def test_helm_lint_finds_nothing(render, chart):
    values = {
        "global": {
            "state": {"existingSecret": "bulkhead-state"},
            "vectors": {"existingSecret": "bulkhead-vectors"},
            "simulator": {"enabled": True},
        }
    }
    report = helm_python.lint(str(render.charts / chart), values, strict=True, namespace="bulkhead")
    assert report["errors"] == []
    # Severity 1 is Helm's wish for an icon.
    assert [m for m in report["messages"] if m["severity"] > 1] == []


def test_dependencies_are_links_within_the_charts(render):
    for chart in render.charts.iterdir():
        declared = yaml.safe_load((chart / "Chart.yaml").read_text()).get("dependencies", [])
        linked = {link.name for link in (chart / "charts").iterdir()} if (chart / "charts").is_dir() else set()
        assert linked == {dependency["name"] for dependency in declared}, chart.name
        for name in linked:
            link = chart / "charts" / name
            assert link.is_symlink(), link
            assert os.readlink(link) == f"../../{name}"


def test_a_fresh_clone_renders_the_same(render, tmp_path: Path):
    """Of what is committed or staged, and nothing else: an ignored file or a broken link would show here."""
    listed = subprocess.run(["git", "ls-files", "-z", "charts", "k8s"], cwd=render.root, capture_output=True, check=True).stdout
    subprocess.run(["git", "checkout-index", "-z", "--stdin", f"--prefix={tmp_path}/"], cwd=render.root, input=listed, check=True)
    values = render.values("prod")
    with helm_python.Chart.load(str(tmp_path / "charts/bulkhead")) as fresh:
        cloned = fresh.render(values, name="bulkhead", namespace="bulkhead")
    with helm_python.Chart.load(str(render.charts / "bulkhead")) as here:
        expected = here.render(values, name="bulkhead", namespace="bulkhead")
    assert cloned == expected


def test_the_umbrella_can_be_packaged_with_all_its_parts(render, tmp_path: Path):
    """`helm package` follows the links, so that the archive installs where there is no tree."""
    archive = helm_python.package(str(render.charts / "bulkhead"), destination=str(tmp_path))
    with helm_python.Chart.load(archive) as packed:
        rendered = packed.render({}, name="bulkhead", namespace="bulkhead")
    assert sum("kind: Deployment" in text for text in rendered.values()) == 6


def test_a_release_of_another_name_shares_no_object(render):
    first = {(m["kind"], m["metadata"]["name"]) for m in render()}
    second = {(m["kind"], m["metadata"]["name"]) for m in render(release="other")}
    assert first.isdisjoint(second)


def test_a_release_name_too_long_for_service_names_is_refused(render):
    with pytest.raises(helm_python.HelmError, match="longer than 40"):
        render(release="b" * 41)


def test_the_notes_say_how_to_go_on(render):
    notes = render.notes()
    assert "port-forward service/bulkhead-gateway" in notes
    assert "SIMULATOR" in notes
    prod = render.notes(render.values("prod"))
    assert "https://agents.example.com/" in prod
    assert "SIMULATOR" not in prod
    assert "x-canary" in prod
    assert "sent to http://otel-collector.observability:4317" in prod
