"""oidc.yaml: what it may not say, each with a reason."""

import re

import pytest
import yaml
from pydantic import ValidationError

from services.common.config import ConfigProblem
from services.common.testing import ROOT
from services.gateway.oidc import _config, parse_issuers

URL = "https://login.example.com"
GOOD = {"issuer": URL, "audiences": ["bulkhead"], "tenant": "acme"}


def refused(*issuers):
    with pytest.raises((ValidationError, ConfigProblem)) as caught:
        parse_issuers({"issuers": list(issuers)})
    return str(getattr(caught.value, "problems", caught.value))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": ["RS256", "HS256"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"audiences": []}, "audiences"),
        ({"clock_skew_s": 61}, "clock_skew_s"),
        ({"issuer": "http://login.example.com"}, "https://"),
        ({"issuer": "file:///etc/passwd"}, "a host"),
        ({"jwks_url": "http://keys.example.com"}, "https://"),
        ({"jwks_url": "https://user:word@keys.example.com"}, "login"),
        ({"jwks_url": "https://keys.example.com/a b"}, "ASCII"),
        ({"jwks_url": "https://keys.example.com/\r\nx: y"}, "ASCII"),
        ({"jwks_url": "https://keys.example.com:0/"}, "port"),
        ({"jwks_url": "https://keys.example.com:99999/"}, "Port"),
        ({"tenant": ""}, "either"),
        ({"tenants": {"a": "b"}}, "either"),
        ({"tenant": "", "tenants": {"a": "b"}}, "go together"),
        ({"claims": {"tenant": "org"}}, "go together"),
        ({"tiers": {"gold": "pro"}}, "go together"),
        ({"claims": {"tier": "plan"}}, "go together"),
        ({"audience": "bulkhead"}, "audience"),
    ],
)
def test_what_an_issuer_cannot_be(change, reason):
    assert reason in refused({**GOOD, **change})


def test_two_issuers_that_would_share_their_users():
    other = {**GOOD, "issuer": "https://other.example.com"}
    assert "user_prefix" in refused(GOOD, other)
    assert "twice" in refused(GOOD, {**GOOD, "user_prefix": "b|"})
    mapped = {**other, "tenant": "", "tenants": {"a": "acme"}, "claims": {"tenant": "org"}}
    assert "user_prefix" in refused(GOOD, mapped)
    # `b|mia` of the one would be `mia` of the other.
    for prefixes in (("", "b|"), ("b|", ""), ("b", "b|")):
        assert "user_prefix" in refused(*({**one, "user_prefix": prefix} for one, prefix in zip((GOOD, other), prefixes, strict=True)))
    parse_issuers({"issuers": [{**GOOD, "user_prefix": "good|"}, {**other, "user_prefix": "other|"}]})
    parse_issuers({"issuers": [GOOD, {**other, "tenant": "globex"}]})


def test_an_issuer_on_this_machine_needs_no_tls():
    assert parse_issuers({"issuers": [{**GOOD, "issuer": "http://127.0.0.1:9/x"}]}).of("http://127.0.0.1:9/x")


@pytest.mark.parametrize("text", [_config.__doc__, (ROOT / "docs/api.md").read_text()])
def test_the_examples_are_files_that_are_taken(text):
    example = re.search(r"(?m)^issuers:\n(?:  .*\n)+", text).group()
    (issuer,) = parse_issuers(yaml.safe_load(example)).issuers
    assert (issuer.tenant, issuer.clock_skew_s, issuer.scopes["chat"]) == ("acme", 30, ("runs:read", "runs:write"))
    assert issuer.tiers == {"gold": "enterprise"}
