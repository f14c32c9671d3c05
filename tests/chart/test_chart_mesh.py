"""Routes of the mesh: every call has an explicit timeout and retries, and the canary is reached by header and weight only."""

import re
from itertools import pairwise

import pytest

from services.common.edges import EDGES, METHODS

# By package: a service of it may be none that another calls yet.
CALLEES = {edge.grpc_service.rpartition(".")[0]: edge.callee for edge in EDGES}
CANARY = {"canary": {"enabled": True, "image": {"tag": "0.2.0"}}}
HEADER = {"x-canary": {"exact": "true"}}


def seconds(duration: str) -> float:
    units = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sum(float(amount) * units[unit] for amount, unit in re.findall(r"([0-9.]+)(ms|s|m|h)", duration))


def routes(manifests, name):
    (service,) = [m for m in manifests if m["kind"] == "VirtualService" and m["metadata"]["name"] == name]
    return service["spec"]["http"]


def serving(rules, path, headers=None):
    """The first rule that Envoy would take for a call, as Istio orders and matches them."""
    for rule in rules:
        for match in rule.get("match", [{}]):
            uri = match.get("uri", {}).get("exact", path) == path
            if uri and all((headers or {}).get(key) == wanted["exact"] for key, wanted in match.get("headers", {}).items()):
                return rule
    raise AssertionError(f"no rule serves {path}")


@pytest.fixture(scope="module")
def meshed(render):
    return render(values={"global": {"mesh": {"enabled": True}}})


@pytest.fixture(scope="module")
def with_canaries(render, full_values):
    return render(values=full_values)


def owner(path: str) -> str:
    return CALLEES[path.split("/")[1].rpartition(".")[0]].replace("_", "-")


def test_no_mesh_objects_without_a_mesh(render):
    assert [m for m in render() if "istio" in m["apiVersion"]] == []


def test_every_route_names_its_timeout_and_retries(with_canaries):
    rules = [rule for m in with_canaries if m["kind"] == "VirtualService" for rule in m["spec"]["http"]]
    assert len(rules) > 30
    for rule in rules:
        assert {"timeout", "retries"} <= set(rule), rule["name"]
        if rule["retries"]["attempts"]:
            assert seconds(rule["retries"]["perTryTimeout"]) < seconds(rule["timeout"]), rule["name"]


def test_the_last_rule_serves_everything_else_without_a_retry(with_canaries):
    for service in (m for m in with_canaries if m["kind"] == "VirtualService"):
        last = service["spec"]["http"][-1]
        assert "match" not in last
        assert last["retries"] == {"attempts": 0}
        assert last["timeout"] == "0s"


@pytest.mark.parametrize("path", sorted(METHODS))
def test_the_mesh_repeats_only_what_the_channels_may_repeat(meshed, path):
    rule = serving(routes(meshed, f"bulkhead-{owner(path)}"), path)
    if METHODS[path].resend == 0:
        assert rule["retries"]["attempts"] == 0, f"{path} would run again"


@pytest.mark.parametrize("path", sorted(METHODS))
def test_no_route_cuts_a_call_before_its_own_deadline(meshed, path):
    timeout = seconds(serving(routes(meshed, f"bulkhead-{owner(path)}"), path)["timeout"])
    allowed = METHODS[path].timeout
    if allowed is None:
        assert timeout == 0, f"{path} is a stream: a timeout cuts it midway"
    else:
        assert timeout == 0 or timeout >= allowed.total_seconds()


def test_side_effects_and_streams_are_never_retried(with_canaries):
    for path in (
        "/bulkhead.tools.v1.ToolService/ExecuteTool",
        "/bulkhead.orchestrator.v1.RunService/CreateRun",
        "/bulkhead.orchestrator.v1.RunService/StreamEvents",
        "/bulkhead.llm.v1.LlmService/Complete",
        "/bulkhead.llm.v1.LlmService/StreamComplete",
    ):
        rules = routes(with_canaries, f"bulkhead-{owner(path)}")
        for headers in ({}, {"x-canary": "true"}):
            assert serving(rules, path, headers)["retries"] == {"attempts": 0}, path


def test_routes_name_methods_that_exist_and_name_each_once(meshed):
    named = [
        match["uri"]["exact"]
        for service in (m for m in meshed if m["kind"] == "VirtualService")
        for rule in service["spec"]["http"]
        for match in rule.get("match", [])
    ]
    assert len(named) == len(set(named))
    assert set(named) <= set(METHODS)


def test_reads_may_be_retried(meshed):
    rule = serving(routes(meshed, "bulkhead-orchestrator"), "/bulkhead.orchestrator.v1.RunService/GetRun")
    assert rule["retries"]["attempts"] == 1
    assert "perTryTimeout" in rule["retries"]


def test_without_a_canary_nothing_routes_by_header_and_no_subset_is_empty(meshed, of_kind):
    for service in of_kind(meshed, "VirtualService"):
        assert "x-canary" not in str(service)
        assert "canary" not in str(service["spec"])
    for rule in of_kind(meshed, "DestinationRule"):
        assert [subset["name"] for subset in rule["spec"]["subsets"]] == ["stable"]


def test_a_canary_is_one_service_s_own_affair(render, of_kind):
    manifests = render(values={"global": {"mesh": {"enabled": True}}, "memory": CANARY})
    with_header = [s["metadata"]["name"] for s in of_kind(manifests, "VirtualService") if "x-canary" in str(s)]
    assert with_header == ["bulkhead-memory"]
    deployed = [d["metadata"]["name"] for d in of_kind(manifests, "Deployment") if d["metadata"]["labels"]["track"] == "canary"]
    assert deployed == ["bulkhead-memory-canary"]


@pytest.mark.parametrize("path", sorted(METHODS))
def test_the_header_reaches_the_canary_on_every_call(with_canaries, path):
    rules = routes(with_canaries, f"bulkhead-{owner(path)}")
    marked = serving(rules, path, {"x-canary": "true"})
    assert [route["destination"]["subset"] for route in marked["route"]] == ["canary"]
    for other in ({}, {"x-canary": "True"}, {"x-canary": "1"}):
        shares = {route["destination"]["subset"]: route["weight"] for route in serving(rules, path, other)["route"]}
        assert shares == {"stable": 90, "canary": 10}


def test_a_header_rule_comes_before_its_plain_twin(with_canaries):
    for service in (m for m in with_canaries if m["kind"] == "VirtualService"):
        names = [rule["name"] for rule in service["spec"]["http"]]
        assert len(names) % 2 == 0
        for first, second in list(pairwise(names))[::2]:
            assert first == f"{second}-canary"


def test_a_new_canary_gets_no_share_until_it_is_given_one(render):
    manifests = render(values={"global": {"mesh": {"enabled": True}}, "gateway": CANARY})
    shares = {route["destination"]["subset"]: route["weight"] for route in routes(manifests, "bulkhead-gateway")[-1]["route"]}
    assert shares == {"stable": 100, "canary": 0}


def test_every_subset_selects_pods_that_exist(with_canaries, of_kind):
    for rule in of_kind(with_canaries, "DestinationRule"):
        app = rule["metadata"]["labels"]["app.kubernetes.io/name"]
        tracks = {d["spec"]["template"]["metadata"]["labels"]["track"] for d in of_kind(with_canaries, "Deployment", app)}
        assert {subset["labels"]["track"] for subset in rule["spec"]["subsets"]} == tracks
        assert tracks == {"stable", "canary"}


def test_every_destination_is_a_service(with_canaries, of_kind):
    hosts = {service["metadata"]["name"] for service in of_kind(with_canaries, "Service")}
    virtual = of_kind(with_canaries, "VirtualService")
    destinations = {route["destination"]["host"] for s in virtual for rule in s["spec"]["http"] for route in rule["route"]}
    assert destinations <= hosts
    assert destinations == {rule["spec"]["host"] for rule in of_kind(with_canaries, "DestinationRule")}


def test_outliers_and_pools_are_those_of_the_defaults(meshed, of_kind):
    for rule in of_kind(meshed, "DestinationRule"):
        policy = rule["spec"]["trafficPolicy"]
        ejection = {"interval": "30s", "baseEjectionTime": "30s", "maxEjectionPercent": 50}
        assert policy["outlierDetection"] == {"consecutive5xxErrors": 5, "consecutiveGatewayErrors": 5} | ejection
        http = {"http1MaxPendingRequests": 50}
        if rule["metadata"]["name"] == "bulkhead-gateway":
            # On a gRPC service it would close a channel every ten calls.
            http["maxRequestsPerConnection"] = 10
        assert policy["connectionPool"] == {"tcp": {"maxConnections": 100}, "http": http}


def test_the_canary_differs_in_version_and_track_only(with_canaries, of_kind):
    for app in {d["metadata"]["labels"]["app.kubernetes.io/name"] for d in of_kind(with_canaries, "Deployment")} - {"simulator"}:
        by_track = {d["metadata"]["labels"]["track"]: d for d in of_kind(with_canaries, "Deployment", app)}
        stable, canary = (by_track[track]["spec"]["template"]["spec"]["containers"][0] for track in ("stable", "canary"))
        assert canary["image"].endswith(":0.2.0")
        same = ("command", "envFrom", "ports", "resources", "livenessProbe", "readinessProbe", "volumeMounts", "securityContext")
        assert {key: stable[key] for key in same} == {key: canary[key] for key in same}
        env = {variable["name"]: variable.get("value") for variable in canary["env"]}
        assert (env["BULKHEAD_TRACK"], env["BULKHEAD_VERSION"]) == ("canary", "0.2.0")


def test_products_reach_the_gateway_through_the_ingress_only(render, of_kind):
    prod = of_kind(render.environment("prod"), "VirtualService")
    bound = {s["metadata"]["name"]: s["spec"].get("gateways") for s in prod}
    assert bound.pop("bulkhead-gateway") == ["mesh", "istio-ingress/public"]
    assert set(bound.values()) == {None}
