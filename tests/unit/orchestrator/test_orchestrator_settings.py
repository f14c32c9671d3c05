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


def segment_problems(**settings):
    return [problem for problem in Settings(**settings).problems() if "SEGMENTS" in problem]


BUCKET = {"segments_url": "s3://logs/bulkhead/prod"}


@pytest.mark.parametrize("settings", [
    {}, {"segments_dir": "/data"}, BUCKET, {"segments_url": "s3://logs"}, {"segments_url": "s3://logs.of-us/a/"},
    BUCKET | {"segments_endpoint": "http://minio:9000"}, BUCKET | {"segments_endpoint": "https://[::1]:9000/"},
])  # fmt: skip
def test_a_folder_or_a_bucket_or_neither_is_right(settings):
    assert segment_problems(**settings) == []


@pytest.mark.parametrize(("settings", "told"), [
    (BUCKET | {"segments_dir": "/data"}, "set one of them"),
    ({"segments_url": "logs/bulkhead"}, "must be s3://bucket"),
    ({"segments_url": "https://logs.s3.amazonaws.com/a"}, "must be s3://bucket"),
    ({"segments_url": "s3://Logs"}, "must be s3://bucket"),
    ({"segments_url": "s3://logs/a?versionId=1"}, "must be s3://bucket"),
    (BUCKET | {"segments_endpoint": "minio:9000"}, "must be http://host:port"),
    (BUCKET | {"segments_endpoint": "http://minio:9000/logs"}, "must be http://host:port"),
    ({"segments_endpoint": "http://minio:9000"}, "BULKHEAD_SEGMENTS_URL, which is not set"),
    ({"segments_credentials_dir": "/nowhere"}, "BULKHEAD_SEGMENTS_URL, which is not set"),
    ({"segments_ca_file": "/nowhere"}, "BULKHEAD_SEGMENTS_URL, which is not set"),
    (BUCKET | {"segments_ca_file": "/nowhere"}, "BULKHEAD_SEGMENTS_CA_FILE: /nowhere does not exist"),
])  # fmt: skip
def test_one_problem_tells_what_is_wrong_with_the_place_of_segments(settings, told):
    (problem,) = segment_problems(**settings)
    assert told in problem


def test_credentials_that_are_named_must_be_there(tmp_path):
    (tmp_path / "access_key_id").write_text("key")
    (problem,) = segment_problems(**BUCKET, segments_credentials_dir=tmp_path)
    assert problem == f"BULKHEAD_SEGMENTS_CREDENTIALS_DIR: {tmp_path / 'secret_access_key'} cannot be read"
