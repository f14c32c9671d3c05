"""Production keeps what no loss of a primary may take: a chart is not rendered for pods that would refuse to start."""

import importlib

import helm_python
import pytest

from services.common.settings import ReplicatedSettings

KEY, LEAST = "BULKHEAD_STATE_REPLICAS", "BULKHEAD_LEAST_STATE_REPLICAS"
SERVICES = ("gateway", "orchestrator", "llm-gateway", "tool-executor", "memory")


def asks(chart):
    """Whether the service of a chart refuses to start in prod without replicas."""
    module = importlib.import_module(f"services.{chart.replace('-', '_')}.settings")
    return issubclass(module.Settings, ReplicatedSettings)


@pytest.mark.parametrize("env", [{}, {KEY: "0"}, {KEY: ""}, {KEY: "1", LEAST: "2"}])
@pytest.mark.parametrize("chart", SERVICES)
def test_who_would_not_start_is_not_rendered(render, chart, env):
    values = {"global": render.values("prod")["global"], "env": env}
    if not asks(chart):
        assert render(chart, values)
        return
    with pytest.raises(helm_python.HelmError, match=f"{chart}.env.{KEY} is below"):
        render(chart, values)


@pytest.mark.parametrize("env", [{KEY: "1"}, {KEY: "2", LEAST: "2"}, {LEAST: "0"}])
@pytest.mark.parametrize("chart", SERVICES)
def test_who_would_start_is_rendered(render, chart, env):
    assert render(chart, {"global": render.values("prod")["global"], "env": env})


@pytest.mark.parametrize("chart", SERVICES)
def test_elsewhere_nobody_is_asked(render, chart):
    assert render(chart, {"global": render.values("staging")["global"]})


def test_the_whole_platform_names_the_one_that_lacks_it(render):
    values = render.values("prod")
    values["memory"] = {name: value for name, value in values["memory"].items() if name != "env"}
    with pytest.raises(helm_python.HelmError, match=f"memory.env.{KEY} is below 1"):
        render(values=values)
