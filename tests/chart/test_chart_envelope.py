"""Root keys of personal data: mounted where such is kept, and nowhere else."""

import pytest

FILE = "BULKHEAD_ENVELOPE_KEYS_FILE"


def mounted(manifests):
    """Names of the deployments that have the keys, as (variable or volume)."""
    variables = {m["metadata"]["name"] for m in manifests if m["kind"] == "ConfigMap" and FILE in (m.get("data") or {})}
    volumes = {
        m["metadata"]["name"]: volume["secret"]
        for m in manifests
        if m["kind"] == "Deployment"
        for volume in m["spec"]["template"]["spec"].get("volumes", [])
        if volume["name"] == "envelope"
    }
    return variables, volumes


def test_without_a_secret_nothing_is_mounted(render):
    assert mounted(render()) == (set(), {})


@pytest.mark.parametrize("key", ["keys.json", "roots"])
def test_the_two_services_that_keep_personal_data_get_the_same_keys(render, key):
    variables, volumes = mounted(render(values={"global": {"envelope": {"existingSecret": "roots", "key": key}}}))
    assert len(variables) == 2
    assert set(volumes) == {"bulkhead-orchestrator", "bulkhead-memory"}
    assert {(secret["secretName"], secret["items"][0]["key"], secret["items"][0]["path"]) for secret in volumes.values()} == {
        ("roots", key, "keys.json")
    }
