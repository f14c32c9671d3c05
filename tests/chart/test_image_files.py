"""Dockerfile, compose.yaml and skaffold.yaml: valid, and about the same services, images and settings as the charts."""

import importlib.resources
import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from threading import Thread

import grpc
import jsonschema
import pytest
import redis
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.common import embedded
from services.common.accounts import Accounts
from services.common.valkey import connect

SERVICES = ("gateway", "orchestrator", "llm-gateway", "tool-executor", "memory", "simulator")
IMAGES = (*SERVICES, "devstores")


@pytest.fixture(scope="module")
def dockerfile(render) -> str:
    return (render.root / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def compose(render) -> dict:
    return yaml.safe_load((render.root / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def skaffold(render) -> dict:
    return yaml.safe_load((render.root / "skaffold.yaml").read_text())


def stages(text: str) -> dict[str, str]:
    """Instructions by stage name."""
    parts = re.split(r"(?m)^FROM ", text)[1:]
    return {(re.search(r"AS (\S+)", part.splitlines()[0]) or ["", "final"])[1]: part for part in parts}


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_has_a_stage_with_an_exec_form_entry(dockerfile, service):
    stage = stages(dockerfile)[f"service-{service}"]
    (entry,) = re.findall(r"(?m)^ENTRYPOINT (.+)$", stage)
    assert json.loads(entry) == ["python", "-m", f"services.{service.replace('-', '_')}"]
    assert len(re.findall(r"(?m)^HEALTHCHECK --interval=30s --timeout=10s --start-period=5s --retries=3 CMD \[", stage)) == 1


@pytest.mark.parametrize("image", IMAGES)
def test_each_image_has_its_hashed_lock(render, image):
    lock = (render.root / f"requirements/{image}.txt").read_text()
    pinned = re.findall(r"(?m)^[a-z0-9][a-z0-9._-]*(?:\[[^\]]*\])?==", lock, re.IGNORECASE)
    assert len(pinned) > 10
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "index-url" not in lock


def test_the_stores_image_can_serve_milvus(render):
    """Milvus Lite's server imports pymilvus, which it does not declare."""
    assert re.search(r"(?m)^pymilvus==", (render.root / "requirements/devstores.txt").read_text())


def test_images_are_built_from_the_lock_alone_and_run_unprivileged(dockerfile):
    parts = stages(dockerfile)
    assert "--require-hashes" in parts["builder"]
    assert parts["builder"].startswith("${BASE} ")
    assert parts["runtime"].startswith("${BASE} ")
    assert "ARG BASE=python:3.11-slim" in dockerfile
    assert "USER 65532:65532" in parts["runtime"]
    assert "pip" not in parts["runtime"]
    assert "apt-get" not in dockerfile
    assert parts["final"].startswith("service-${SERVICE}")
    assert not [s for name, s in parts.items() if name.startswith("service-") and not s.startswith("runtime")]


def test_what_the_build_copies_is_in_its_context(render, dockerfile):
    """.dockerignore excludes everything and lets back in only what the Dockerfile names."""
    ignored = (render.root / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    # What stands in for other services in tests; the last line that fits decides.
    assert ignored.index("services/*/testing") > ignored.index("!services")
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    copied = [source for sources in re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", dockerfile) for source in sources.split()]
    for source in copied:
        sample = source.replace("${SERVICE}", "gateway")
        assert (render.root / sample).exists(), sample
        assert any(sample == entry or sample.startswith(f"{entry}/") or entry == "requirements/*.txt" for entry in allowed), sample
    assert len(copied) == 5


def test_compose_matches_the_specification(render, compose):
    carried = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(carried.read_text())
    assert [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(compose)] == []
    broken = {"services": {"gateway": {"image": "x", "enviroment": {}}}}
    assert not jsonschema.Draft202012Validator(schema).is_valid(broken)


def test_compose_runs_every_service_from_its_image(compose):
    services = compose["services"]
    assert set(services) == {*SERVICES, "identity", "state", "cache", "vectors"}
    for service in SERVICES:
        assert services[service]["image"] == f"bulkhead/{service}:dev"
        assert services[service]["build"]["args"] == {"SERVICE": service}
    for store in ("state", "cache", "vectors"):
        assert services[store]["image"] == "bulkhead/devstores:dev"


def test_compose_is_as_strict_with_containers_as_the_charts(compose):
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} would be open to the network"


@pytest.mark.parametrize("service", [s for s in SERVICES if s != "simulator"])
def test_compose_gives_a_service_the_same_variables_as_the_chart(render, of_kind, compose, service):
    """Names, not values: hosts and folders differ. Defaults of the image and of the settings may be left out."""
    manifests = render(values={"llm-gateway": {"modelPort": {"enabled": True}}})
    (charted,) = [m["data"] for m in of_kind(manifests, "ConfigMap", service) if m["metadata"]["name"].endswith("-env")]
    optional = {"BULKHEAD_GRPC_PORT", "BULKHEAD_METRICS_PORT", "BULKHEAD_LOG_SINK", "BULKHEAD_TRACE_SAMPLE_RATIO",
                "BULKHEAD_DRAIN_GRACE_S", "BULKHEAD_DRAIN_FLUSH_S", "BULKHEAD_OTLP_ENDPOINT"}  # fmt: skip
    if service == "gateway":
        optional.add("BULKHEAD_HTTP_PORT")
    given = {name for name in compose["services"][service]["environment"] if name.startswith("BULKHEAD_")}
    assert set(charted) - given <= optional
    assert given - set(charted) <= {"BULKHEAD_OTLP_ENDPOINT"}


def test_compose_mounts_the_local_product_configuration(render, compose):
    for service in ("gateway", "orchestrator", "tool-executor"):
        (bind,) = [v for v in compose["services"][service]["volumes"] if v["type"] == "bind"]
        assert (render.root / bind["source"]).is_dir()
        assert bind["read_only"] is True


def flags(command: list[str]) -> dict[str, str]:
    """`--name value` pairs of a command line."""
    return {name: value for name, value in pairwise(command) if name.startswith("--")}


SAFETY = ("--appendonly", "--appendfsync", "--maxmemory-policy", "--save")


@pytest.mark.parametrize("store", ["state", "cache"])
def test_stores_are_as_safe_as_those_of_make_run(render, of_kind, compose, store, tmp_path):
    local = flags({"state": embedded.valkey_state_command, "cache": embedded.valkey_cache_command}[store](6379, tmp_path))
    (stateful,) = [m for m in of_kind(render(), "StatefulSet") if m["metadata"]["name"] == f"bulkhead-devstores-{store}"]
    charted = flags(stateful["spec"]["template"]["spec"]["containers"][0]["command"])
    composed = compose["services"][store]["command"].replace('""', "<empty>").split()
    for flag in SAFETY:
        assert charted.get(flag) == local.get(flag), flag
        assert flags(composed).get(flag) == ("<empty>" if local.get(flag) == "" else local.get(flag)), flag


def test_skaffold_builds_all_images_and_deploys_them(render, skaffold):
    schema = json.loads((render.root / "tests/chart/schemas/skaffold-v4beta14.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(skaffold)
    built = {a["image"]: a["docker"]["buildArgs"]["SERVICE"] for a in skaffold["build"]["artifacts"]}
    assert built == {f"bulkhead/{image}": image for image in IMAGES}
    (release,) = skaffold["deploy"]["helm"]["releases"]
    assert (render.root / release["chartPath"] / "Chart.yaml").is_file()
    assert release["valuesFiles"] == ["k8s/environments/dev/values.yaml"]
    for image in IMAGES:
        name = re.sub(r"[/.-]", "_", f"bulkhead/{image}")
        assert release["setValueTemplates"][f"{image}.image.repository"] == "{{.IMAGE_REPO_" + name + "}}"
        assert release["setValueTemplates"][f"{image}.image.tag"] == "{{.IMAGE_TAG_" + name + "}}"


def test_skaffold_sets_values_that_the_charts_accept(render, skaffold):
    values = render.values("dev")
    for path in skaffold["deploy"]["helm"]["releases"][0]["setValueTemplates"]:
        service, *keys = path.split(".")
        place = values.setdefault(service, {})
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = "a1b2c3d"
    assert "a1b2c3d:a1b2c3d" in str(render(values=values))


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def healthy(render, target: str) -> bool:
    return subprocess.run([sys.executable, render.root / "scripts/image_health.py", target], timeout=60, check=False).returncode == 0


def test_the_images_health_check_asks_over_http(render):
    server = HTTPServer(("127.0.0.1", 0), Health)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert healthy(render, f"{address}/health")
        assert not healthy(render, f"{address}/down")
    finally:
        server.shutdown()
        server.server_close()
    assert not healthy(render, f"{address}/health")


def test_the_images_health_check_asks_for_liveness_over_grpc(render):
    servicer = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        servicer.set("readiness", health_pb2.HealthCheckResponse.NOT_SERVING)
        servicer.set("liveness", health_pb2.HealthCheckResponse.SERVING)
        assert healthy(render, f"grpc://127.0.0.1:{port}"), "a dependency that is down must not fail it"
        servicer.set("liveness", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert not healthy(render, f"grpc://127.0.0.1:{port}")
    finally:
        server.stop(None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def state(tmp_path):
    """URL of a real Valkey."""
    port = free_port()
    process = subprocess.Popen(embedded.valkey_state_command(port, tmp_path))
    url = f"redis://127.0.0.1:{port}/0"
    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=1)
        deadline = time.monotonic() + 20
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "Valkey did not start"
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def create_key(render, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(render.root)} | variables
    command = [sys.executable, str(render.root / "scripts/create_key.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def test_a_key_made_in_the_container_is_known_to_the_services(render, state):
    made = create_key(render, "--tenant", "acme", "--user", "ana", "--tier", "enterprise", BULKHEAD_STATE_URL=state)
    assert made.returncode == 0, made.stderr
    client = connect(state)
    principal = await Accounts(client).resolve(made.stdout.strip())
    await client.aclose()
    assert (principal.tenant, principal.user, principal.tier) == ("acme", "ana", "enterprise")
    assert "runs:write" in principal.scopes
    assert "admin" not in principal.scopes


def test_without_a_store_no_key_is_printed(render):
    asked = ("--tenant", "acme", "--user", "ana")
    nowhere = create_key(render, *asked)
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "BULKHEAD_STATE_URL" in nowhere.stderr
    away = create_key(render, *asked, BULKHEAD_STATE_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert (away.returncode, away.stdout) == (1, "")
    assert "Traceback" not in away.stderr
