"""Tokens of outside issuers: taken only where they are asked for, by the gateway, which then and only then may go out for their keys."""

import re

import pytest
import yaml

from services.gateway.oidc import parse_issuers
from tests.chart.test_chart_settings import config_map, mounted

ISSUERS = {"issuers": [{"issuer": "https://login.example.com", "audiences": ["bulkhead"], "tenant": "acme"}]}
TAKEN = {"global": {"config": {"oidc": ISSUERS}, "networkPolicy": {"enabled": True}}}
PUBLIC = "0.0.0.0/0"


def egress(manifests) -> dict[str, list]:
    return {m["metadata"]["name"]: m["spec"]["egress"] for m in manifests if m["kind"] == "NetworkPolicy"}


@pytest.fixture
def before(render) -> dict[str, list]:
    return egress(render(values={"global": {"networkPolicy": {"enabled": True}}}))


def test_without_issuers_there_is_no_file_of_them_and_no_way_out(render, before):
    assert "oidc.yaml" not in config_map(render(), "bulkhead-gateway-config")
    assert PUBLIC not in str(before["bulkhead-gateway"])


def test_the_file_is_the_gateways_alone_and_is_read_where_it_is_mounted(render, tmp_path):
    manifests = render(values=TAKEN)
    assert [m["metadata"]["name"] for m in manifests if m["kind"] == "ConfigMap" and "oidc.yaml" in m["data"]] == [
        "bulkhead-gateway-config"
    ]
    mounted(manifests, "gateway", tmp_path)
    (issuer,) = parse_issuers(yaml.safe_load((tmp_path / "config/oidc.yaml").read_text())).issuers
    assert (issuer.issuer, issuer.tenant) == ("https://login.example.com", "acme")
    text = render(values={"global": {"config": {"oidc": "issuers: []  # none yet\n"}}})
    assert config_map(text, "bulkhead-gateway-config")["oidc.yaml"] == "issuers: []  # none yet\n"


def test_with_issuers_the_gateway_goes_out_to_public_addresses_and_nobody_else_further_than_before(render, before):
    after = egress(render(values=TAKEN))
    assert {name for name in after if after[name] != before[name]} == {"bulkhead-gateway"}
    (added,) = [rule for rule in after["bulkhead-gateway"] if rule not in before["bulkhead-gateway"]]
    assert (added["to"][0]["ipBlock"]["cidr"], added["ports"]) == (PUBLIC, [{"port": 443, "protocol": "TCP"}])
    # 169.254.169.254 hands out a node's cloud credentials.
    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(added["to"][0]["ipBlock"]["except"])


def test_issuers_at_private_addresses_are_let_through_by_name(render, before):
    servers = {"keycloak": {"namespace": "login", "port": 8443}, "old": {"cidr": "10.1.2.3/32", "port": 443}}
    manifests = render(values=TAKEN | {"gateway": {"issuerServers": servers}})
    added = [rule for rule in egress(manifests)["bulkhead-gateway"] if rule not in egress(render(values=TAKEN))["bulkhead-gateway"]]
    assert added == [
        {
            "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "login"}}}],
            "ports": [{"port": 8443, "protocol": "TCP"}],
        },
        {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"port": 443, "protocol": "TCP"}]},
    ]
    # The page has the same ones.
    page = (render.root / "docs/kubernetes.md").read_text().partition("**Tokens of your issuers**")[2].partition("## Canary")[0]
    shown = [yaml.safe_load(one) for one in re.findall(r"`([{].*?[}]{2})`", page)]
    assert [render(values=TAKEN | {"gateway": {"issuerServers": one}}) for one in shown]
    assert {name for one in shown for name in one} == {"keycloak", "login"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (TAKEN | {"gateway": {"issuerServers": {"keycloak": {"port": 8443}}}}, "issuerServers"),
        (TAKEN | {"gateway": {"issuerServers": {"k": {"namespace": "a", "cidr": "10.0.0.0/8", "port": 1}}}}, "issuerServers"),
        ({"gateway": {"issuerServers": {"keycloak": {"namespace": "login", "port": 8443}}}}, "global.config.oidc is empty"),
        ({"global": {"config": {"oidc": 5}}}, "oidc"),
        ({"memory": {"issuerServers": {}}}, "issuerServers"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(render, values, told):
    with pytest.raises(Exception, match=told):
        render(values=values)
