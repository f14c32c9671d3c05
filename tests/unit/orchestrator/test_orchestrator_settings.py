"""Settings of the orchestrator that depend on each other."""

import pytest

from services.orchestrator.settings import Settings


def replica_problems(**settings):
    return [problem for problem in Settings(**settings).problems() if "STATE_REPLICAS" in problem]


@pytest.mark.parametrize(
    "settings", [{"env": "prod"}, {"env": "prod", "state_replicas": 0}, {"least_state_replicas": 2, "state_replicas": 1}]
)
def test_production_does_not_start_without_replicas_of_the_state_store(settings):
    assert len(replica_problems(**settings)) == 1


@pytest.mark.parametrize("settings", [
    {"env": "local"}, {"env": "staging"}, {"env": "prod", "state_replicas": 1}, {"env": "prod", "least_state_replicas": 0},
])  # fmt: skip
def test_replicas_that_are_asked_for_are_enough(settings):
    assert replica_problems(**settings) == []
