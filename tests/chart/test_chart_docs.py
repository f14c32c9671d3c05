"""docs/kubernetes.md: what it tells to type is accepted by the charts, and what it names exists."""

import re

import helm_python
import pytest


@pytest.fixture(scope="module")
def page(render) -> str:
    return (render.root / "docs/kubernetes.md").read_text()


def commands(text: str) -> list[str]:
    """Lines of the shell blocks, continuation lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def settings(command: str) -> list[str]:
    return re.findall(r"--set(?:-string)? (\S+)", command)


def apply(values: dict, path: list[str], value: object) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
    values[path[-1]] = value


def leaves(values: dict, prefix: tuple[str, ...] = ()):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))
        else:
            yield [*prefix, key], value


def secrets_of(node):
    """Names of the Secrets that a manifest refers to, as a volume, a variable or a source of variables."""
    if isinstance(node, list):
        for item in node:
            yield from secrets_of(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "secretName":
                yield value
            elif key in ("secretKeyRef", "secretRef"):
                yield value["name"]
            else:
                yield from secrets_of(value)


def stable_of(manifests, kind: str) -> dict:
    (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == "bulkhead-orchestrator"]
    return found["spec"]


def test_every_path_it_names_exists(render, page):
    named = re.findall(r"(?:charts|k8s|scripts)/[A-Za-z0-9_./-]+", page)
    assert len(named) > 12
    assert [path for path in named if not (render.root / path.rstrip(".")).exists()] == []


def test_the_canary_steps_render_one_after_the_other(render, page):
    """Start, shift, promote, end: on production's values, each `helm upgrade --reuse-values` on what was before."""
    values = render.values("prod")
    steps = [settings(command) for command in commands(page.split("## Canary")[1].split("## What the mesh")[0]) if settings(command)]
    assert len(steps) == 5
    shares, tracks = [], []
    for step in steps:
        for given in step:
            for path, value in leaves(helm_python.parse_set_string(given)):
                apply(values, path, str(value) if path[-1] == "tag" else value)
        manifests = render(values=values)
        last = stable_of(manifests, "VirtualService")["http"][-1]
        shares.append({route["destination"]["subset"]: route.get("weight", 100) for route in last["route"]}.get("canary"))
        deployed = {m["metadata"]["name"] for m in manifests if m["kind"] == "Deployment"}
        tracks.append(len(deployed & {"bulkhead-orchestrator", "bulkhead-orchestrator-canary"}))
    assert shares == [0, 10, 50, 50, None]
    assert tracks == [2, 2, 2, 2, 1]
    stable = stable_of(manifests, "Deployment")["template"]["spec"]["containers"][0]
    assert stable["image"].endswith("bulkhead/orchestrator:0.2.0")


def test_the_other_settings_it_shows_are_accepted(render, page):
    shown = re.findall(r"`--set (\S+)`", page)
    assert shown
    for given in shown:
        assert render(values=helm_python.parse_set_string(given))


def test_the_secrets_it_makes_are_those_that_production_refers_to(render, page):
    made = set(re.findall(r"create secret generic (\S+)", page))
    manifests = [m for environment in ("staging", "prod") for m in render(values=render.values_with_bucket(environment, "of-mine"))]
    referred = {name for manifest in manifests if manifest["kind"] == "Deployment" for name in secrets_of(manifest)}
    assert referred == made


def test_the_install_commands_use_values_files_that_render(render, page):
    files = re.findall(r"-f k8s/environments/(\w+)/values\.yaml", page)
    assert set(files) == {"dev", "prod"}
    for environment in files:
        assert render.environment(environment)
