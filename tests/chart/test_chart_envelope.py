"""Root keys of personal data: mounted where such is kept, and nowhere else."""

import helm_python
import pytest

FILE = "BULKHEAD_ENVELOPE_KEYS_FILE"
# What prod asks for as well.
REPLICATED = {"BULKHEAD_STATE_REPLICAS": "1"}


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


@pytest.mark.parametrize("environment", ["staging", "prod"])
def test_where_personal_data_is_not_stored_in_plain_text_the_secret_is_named_and_mounted(render, environment):
    variables, volumes = mounted(render.environment(environment))
    assert len(variables) == 2
    assert {secret["secretName"] for secret in volumes.values()} == {"bulkhead-envelope"}


@pytest.mark.parametrize("environment", ["staging", "prod"])
@pytest.mark.parametrize("chart", ["bulkhead", "orchestrator", "memory"])
def test_without_one_nothing_is_rendered_there(render, environment, chart):
    values = render.values(environment)
    if chart != "bulkhead":
        values = {"global": values["global"], "env": REPLICATED}
    assert render(chart, values)
    for without in ({}, {"envelope": {"existingSecret": ""}}):
        shared = {name: value for name, value in values["global"].items() if name != "envelope"}
        with pytest.raises(helm_python.HelmError, match="global/envelope/existingSecret"):
            render(chart, {**values, "global": {**shared, **without}})


@pytest.mark.parametrize("chart", ["gateway", "tool-executor"])
def test_who_keeps_none_is_asked_for_none(render, chart):
    shared = {name: value for name, value in render.values("prod")["global"].items() if name != "envelope"}
    assert render(chart, {"global": shared, "env": REPLICATED})


def test_the_notes_tell_that_nothing_is_encrypted_and_how_to_change_that(render):
    assert "create secret generic bulkhead-envelope --from-file=keys.json" in render.notes()
    assert "PLAIN TEXT" not in render.notes({"global": {"envelope": {"existingSecret": "bulkhead-envelope"}}})
