"""NetworkPolicies say the call graph, and nothing else: checked against its one table, services/common/edges.py."""

import pytest

from services.common.edges import EDGES

GRAPH = {(edge.caller.replace("_", "-"), edge.callee.replace("_", "-")) for edge in EDGES}
NAME = "app.kubernetes.io/name"


def peers(rule, side):
    return {peer["podSelector"]["matchLabels"][NAME] for peer in rule.get(side, []) if "podSelector" in peer}


@pytest.fixture(scope="module")
def policies(render, full_values):
    found = [m for m in render(values=full_values) if m["kind"] == "NetworkPolicy"]
    return {m["metadata"]["labels"][NAME]: m["spec"] for m in found}


def test_every_service_denies_by_default_in_and_out(render, policies):
    assert set(policies) == {*render.applications, "simulator", "devstores"}
    for app, spec in policies.items():
        assert spec["policyTypes"] == ["Ingress", "Egress"], app
        assert spec["podSelector"]["matchLabels"][NAME] == app


def test_no_policies_unless_asked_for(render):
    assert [m for m in render() if m["kind"] == "NetworkPolicy"] == []


def test_egress_is_the_call_graph(policies):
    services = {app for edge in GRAPH for app in edge}
    seen = {(app, callee) for app in services for rule in policies[app]["egress"] for callee in peers(rule, "to")}
    assert {edge for edge in seen if edge[1] in services} == GRAPH


def test_ingress_is_the_call_graph(policies):
    services = {app for edge in GRAPH for app in edge}
    seen = {(caller, app) for app in services for rule in policies[app].get("ingress", []) for caller in peers(rule, "from")}
    assert seen == GRAPH


def test_addresses_are_given_for_callees_and_no_others(render, of_kind):
    manifests = render()
    for app in render.applications:
        (settings,) = [m["data"] for m in of_kind(manifests, "ConfigMap", app) if m["metadata"]["name"].endswith("-env")]
        given = {key.removeprefix("BULKHEAD_").removesuffix("_ADDRESS").lower() for key in settings if key.endswith("_ADDRESS")}
        assert given == {callee.replace("-", "_") for caller, callee in GRAPH if caller == app}


def test_addresses_are_those_of_services_in_this_release(render, of_kind):
    """With a mesh the Service's own address, which sidecars balance; without one the headless twin, which the client does."""
    for values, suffix in (({}, "-headless"), ({"global": {"mesh": {"enabled": True}}}, "")):
        manifests = render(values=values)
        names = {s["metadata"]["name"]: s["spec"]["ports"][0]["port"] for s in of_kind(manifests, "Service")}
        settings = [m["data"] for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"].endswith("-env")]
        addresses = [value for data in settings for key, value in data.items() if key.endswith("_ADDRESS")]
        assert len(addresses) == len(GRAPH)
        for address in addresses:
            host, port = address.rsplit(":", 1)
            assert names[host] == int(port)
            assert host.endswith("-headless") == bool(suffix)


def test_an_address_can_be_of_another_release(render):
    values = {"global": {"addresses": {"llmGateway": "models.shared.svc:50052"}}}
    settings = next(m["data"] for m in render(values=values) if m["metadata"]["name"] == "bulkhead-orchestrator-env")
    assert settings["BULKHEAD_LLM_GATEWAY_ADDRESS"] == "models.shared.svc:50052"


def test_only_those_who_need_it_reach_the_internet_and_never_a_private_range(policies):
    open_to_world = {}
    for app, spec in policies.items():
        for rule in spec["egress"]:
            for peer in rule["to"]:
                if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                    open_to_world[app] = (peer["ipBlock"]["except"], rule["ports"])
    assert set(open_to_world) == {"llm-gateway", "tool-executor", "orchestrator"}
    for excepted, ports in open_to_world.values():
        # 169.254.169.254 hands out a node's cloud credentials.
        assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(excepted)
        assert ports == [{"port": 443, "protocol": "TCP"}]


def test_metrics_are_scraped_from_the_named_namespace_only(policies):
    for app in {app for edge in GRAPH for app in edge}:
        rules = [rule for rule in policies[app]["ingress"] if {"port": "metrics", "protocol": "TCP"} in rule["ports"]]
        assert [rule["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"] for rule in rules] == [["monitoring"]], app


def test_stores_are_reached_by_those_who_use_them(policies):
    users = {app for app, spec in policies.items() for rule in spec["egress"] if "devstores" in peers(rule, "to")}
    assert users == {"gateway", "orchestrator", "llm-gateway", "tool-executor", "memory"}
