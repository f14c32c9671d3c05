"""What the pages say without a running platform: links, make targets, ports, and Helm commands, rendered."""

import itertools
import re
import shlex
from pathlib import Path

import helm_python
import pytest
import yaml

from services.cli.up.ports import LISTENERS
from services.common.testing import ROOT
from tests.e2e import pages

README = ROOT / "README.md"
SERVICES = ["gateway", "orchestrator", "llm-gateway", "tool-executor", "memory"]


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", pages.every_page(), ids=label)
def test_links_lead_somewhere(page):
    broken = []
    for link in pages.links(page):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (fragment and fragment not in pages.anchors(target)):
            broken.append(link)
    assert not broken


def test_every_make_command_is_a_target():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        (label(page), target)
        for page in pages.every_page()
        for text in [*pages.shell(page), *pages.code_spans(page)]
        for target in re.findall(r"(?:^|\s)make(?: [A-Z]+=\S+)* ([a-z-]+)", text)
    }
    assert ("README.md", "run") in named
    assert ("README.md", "test") in named
    assert not {(page, target) for page, target in named if target not in targets}


def test_every_shell_command_of_the_readme_is_tested():
    assert {command.split()[0] for command in pages.shell(README)} == {"make", "bulkhead", "helm"}


def test_the_table_of_services_names_the_real_ports():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", README.read_text(), re.M)
    told = {name: {int(port) for port in re.findall(r"\d{4,5}", listens)} for name, listens in rows}
    names = list(told)
    assert names == ["gateway", "orchestrator", "llm_gateway", "tool_executor", "memory", "simulator"]
    assert told == {name: {li.default for li in LISTENERS if li.process == name and li.kind in ("http", "grpc")} for name in names}
    first, last = map(int, re.search(r"Metrics are on (\d+) to (\d+) in this order", README.read_text()).groups())
    metrics = {li.process: li.default for li in LISTENERS if li.kind == "metrics"}
    assert [metrics[name] for name in names] == list(range(first, last + 1))


def nested(dotted: str, value: object) -> dict:
    """`a.b.c` and a value as Helm's --set reads them."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def merged(base: dict, over: dict) -> dict:
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result


def values_of(words: list[str], released: dict) -> dict:
    """The values that a `helm install` or `helm upgrade` command line gives a release that has `released`."""
    values = released if "--reuse-values" in words else {}
    for option, argument in itertools.pairwise(words):
        if option == "-f":
            values = merged(values, yaml.safe_load((ROOT / argument).read_text()))
        elif option in ("--set", "--set-string"):
            for pair in argument.split(","):
                key, _, value = pair.partition("=")
                values = merged(values, nested(key, value if option == "--set-string" else yaml.safe_load(value)))
        elif option == "--set-file":
            key, _, file = argument.partition("=")
            values = merged(values, nested(key, content_of(file)))
    return values


def content_of(file: str) -> str:
    """What a user would have in such a file: that of the local environment, or of oidc.yaml, which it has not, the guide's example."""
    if file == "oidc.yaml":
        (content,) = [block for block in pages.blocks(ROOT / "docs/api.md", "yaml") if block.startswith("issuers:")]
        return content
    return (ROOT / "k8s/environments/local/config" / file).read_text()


@pytest.mark.parametrize("page", [README, ROOT / "docs/kubernetes.md"], ids=label)
def test_the_helm_commands_of_a_page_render_in_their_order(page):
    released: dict = {}
    canaries: set[str] = set()
    lines = [command for command in pages.shell(page) if re.match(r"helm (install|upgrade) ", command)]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(re.sub(r"<[^>]+>", "0.2.0", line))
        assert words[words.index("bulkhead") + 1] == "charts/bulkhead"
        released = values_of(words, released)
        with helm_python.Chart.load(str(ROOT / "charts/bulkhead")) as chart:
            rendered = chart.render(released, name="bulkhead", namespace="bulkhead")
        objects = [o for path, text in rendered.items() if path.endswith(".yaml") for o in yaml.safe_load_all(text) if o]
        tracks = {
            (o["metadata"]["labels"]["app.kubernetes.io/name"], o["metadata"]["labels"]["track"]): o
            for o in objects
            if o["kind"] == "Deployment" and o["metadata"]["labels"].get("track")
        }
        assert {(service, "stable") for service in SERVICES} <= set(tracks), line
        for service, switch in re.findall(r"([a-z-]+)\.canary\.enabled=(true|false)", line):
            assert ((service, "canary") in tracks) == (switch == "true"), line
            if switch == "true":
                canaries.add(service)
                image = tracks[service, "canary"]["spec"]["template"]["spec"]["containers"][0]["image"]
                assert image.endswith(":0.2.0"), line
    assert canaries
