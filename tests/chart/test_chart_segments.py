"""Where the orchestrator's segments go: nowhere, to a volume that all pods share, or to a bucket."""

import helm_python
import kubernetes_validate
import pytest
import yaml

from services.common.limits import parse_policies
from services.common.settings import parse
from services.orchestrator.settings import Settings
from tests.chart.test_chart_settings import environment_of, mounted

BUCKET = {"url": "s3://logs/bulkhead", "existingSecret": "of-the-bucket", "accessKeyIdKey": "AWS_ACCESS_KEY_ID"}
CANARY = {"enabled": True, "image": {"tag": "0.2.0"}}


@pytest.fixture
def with_segments(render):
    """Renders the umbrella with these values of `orchestrator.segments`."""

    def rendered(segments: dict, **more) -> list[dict]:
        return render(values={"orchestrator": {"segments": segments, "canary": CANARY}, **more})

    return rendered


def pods_of(manifests) -> list[dict]:
    return [m["spec"]["template"]["spec"] for m in manifests if m["kind"] == "Deployment" and "-orchestrator" in m["metadata"]["name"]]


def segment_variables(manifests) -> dict[str, str]:
    return {name: value for name, value in environment_of(manifests, "orchestrator").items() if "SEGMENTS" in name}


def test_nothing_moves_until_it_is_asked_for(render):
    manifests = render()
    assert segment_variables(manifests) == {}
    assert "segments" not in str(pods_of(manifests))
    assert not [m for m in manifests if m["kind"] == "PersistentVolumeClaim" and "segments" in m["metadata"]["name"]]


def test_a_volume_is_one_folder_that_all_pods_share_and_outlives_the_release(with_segments):
    manifests = with_segments({"volume": {"enabled": True, "storageClass": "shared", "size": "5Gi"}})
    (claim,) = [m for m in manifests if m["kind"] == "PersistentVolumeClaim" and "segments" in m["metadata"]["name"]]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"], "storageClassName": "shared", "resources": {"requests": {"storage": "5Gi"}},
    }  # fmt: skip
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    kubernetes_validate.validate(claim, "1.30", strict=True)
    assert segment_variables(manifests) == {"BULKHEAD_SEGMENTS_DIR": "/data/segments"}
    pods = pods_of(manifests)
    assert len(pods) == 2
    for pod in pods:
        assert {"name": "segments", "mountPath": "/data/segments"} in pod["containers"][0]["volumeMounts"]
        assert {"name": "segments", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in pod["volumes"]
        assert pod["securityContext"]["fsGroup"] == 65532


def test_a_claim_of_ones_own_is_used_as_it_is(with_segments):
    manifests = with_segments({"volume": {"enabled": True, "existingClaim": "logs"}})
    assert not [m for m in manifests if m["kind"] == "PersistentVolumeClaim" and "segments" in m["metadata"]["name"]]
    assert {"name": "segments", "persistentVolumeClaim": {"claimName": "logs"}} in pods_of(manifests)[0]["volumes"]


def test_a_bucket_is_named_by_variables_and_its_credentials_are_files_of_a_secret(with_segments, tmp_path, monkeypatch):
    manifests = with_segments({"bucket": BUCKET | {"endpoint": "https://minio.example.com", "pathStyle": False}})
    assert segment_variables(manifests) == {
        "BULKHEAD_SEGMENTS_URL": "s3://logs/bulkhead", "BULKHEAD_SEGMENTS_ENDPOINT": "https://minio.example.com",
        "BULKHEAD_SEGMENTS_REGION": "us-east-1", "BULKHEAD_SEGMENTS_PATH_STYLE": "false",
        "BULKHEAD_SEGMENTS_CREDENTIALS_DIR": "/etc/bulkhead/segments",
    }  # fmt: skip
    for pod in pods_of(manifests):
        (volume,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "segments-credentials"]
        assert volume["secretName"] == "of-the-bucket"
        assert {item["path"]: item["key"] for item in volume["items"]} == {
            "access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "secret_access_key",
        }  # fmt: skip
    manifests = with_segments({"bucket": BUCKET | {"accessKeyIdKey": "access_key_id"}})
    mounted(manifests, "orchestrator", tmp_path)
    for name, value in environment_of(manifests, "orchestrator").items():
        monkeypatch.setenv(name, value.replace("/etc/bulkhead/", f"{tmp_path}/"))
    settings = parse(Settings)
    assert (settings.segments_url, settings.segments_path_style) == ("s3://logs/bulkhead", True)


def test_a_private_server_is_known_by_a_certificate_of_the_same_secret(with_segments):
    manifests = with_segments({"bucket": BUCKET | {"caKey": "ca.crt"}})
    assert segment_variables(manifests)["BULKHEAD_SEGMENTS_CA_FILE"] == "/etc/bulkhead/segments/ca.pem"
    for pod in pods_of(manifests):
        (volume,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "segments-credentials"]
        assert {"key": "ca.crt", "path": "ca.pem"} in volume["items"]


def test_without_a_secret_the_pod_has_the_identity_that_its_cloud_gives_it(with_segments):
    manifests = with_segments({"bucket": {"url": "s3://logs"}})
    assert "BULKHEAD_SEGMENTS_CREDENTIALS_DIR" not in segment_variables(manifests)
    assert "segments-credentials" not in str(pods_of(manifests))


@pytest.mark.parametrize(
    ("server", "to"),
    [
        ({"namespace": "minio", "port": 9000}, {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "minio"}}}),
        ({"cidr": "10.1.2.3/32", "port": 9000}, {"ipBlock": {"cidr": "10.1.2.3/32"}}),
    ],
)
def test_a_server_at_a_private_address_is_let_through_the_policy_for_the_orchestrator_alone(with_segments, server, to):
    policies = {"networkPolicy": {"enabled": True}}

    def egress(bucket: dict) -> dict[str, list]:
        manifests = with_segments({"bucket": bucket}, **{"global": policies})
        return {m["metadata"]["name"]: m["spec"]["egress"] for m in manifests if m["kind"] == "NetworkPolicy"}

    before, after = egress(BUCKET), egress(BUCKET | {"server": server})
    assert {name for name in after if after[name] != before[name]} == {"bulkhead-orchestrator"}
    added = [rule for rule in after["bulkhead-orchestrator"] if rule not in before["bulkhead-orchestrator"]]
    assert added == [{"to": [to], "ports": [{"port": 9000, "protocol": "TCP"}]}]


@pytest.mark.parametrize("environment", ["staging", "prod"])
def test_no_environment_names_a_bucket_that_anybody_may_own(render, environment):
    assert segment_variables(render.environment(environment)) == {}
    with pytest.raises(helm_python.HelmError, match="url"):
        render(values=render.values_with_bucket(environment, "YOUR-BUCKET"))
    found = segment_variables(render(values=render.values_with_bucket(environment, "of-mine")))
    assert found["BULKHEAD_SEGMENTS_URL"] == f"s3://of-mine/{environment}", "environments do not share a prefix"
    assert found["BULKHEAD_SEGMENTS_CREDENTIALS_DIR"]


@pytest.mark.parametrize(
    ("segments", "told"),
    [
        ({"volume": {"enabled": True}, "bucket": BUCKET}, "logs move to one place"),
        ({"volume": {"existingClaim": "logs"}}, "segments.volume.existingClaim is set but"),
        ({"bucket": {"existingSecret": "logs"}}, "segments.bucket.url is empty"),
        ({"bucket": {"server": {"namespace": "minio", "port": 9000}}}, "segments.bucket.url is empty"),
        ({"bucket": {"url": "s3://logs", "caKey": "ca.crt"}}, "name the Secret that has it"),
        ({"bucket": {"url": "https://logs"}}, "url"),
        ({"bucket": BUCKET | {"endpoint": "minio:9000"}}, "endpoint"),
        ({"bucket": BUCKET | {"server": {"namespace": "minio"}}}, "server"),
        ({"folder": {}}, "folder"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(with_segments, segments, told):
    with pytest.raises(helm_python.HelmError, match=told):
        with_segments(segments)


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_the_shipped_tiers_keep_runs_and_threads_for_as_long_as_the_docs_say(render, name):
    shipped = render.root / "k8s/environments/local/config/policies.yaml"
    tiers = parse_policies(yaml.safe_load(shipped.read_text())).sets[name]
    kept = {tier: (tiers[tier].retention_days, tiers[tier].thread_ttl_days) for tier in ("free", "pro", "enterprise")}
    # As docs/orchestrator.md has it. A thread goes no sooner than the last of its runs.
    assert kept == {"free": (30, 30), "pro": (180, 180), "enterprise": (730, 730)}
