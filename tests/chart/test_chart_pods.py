"""What every pod must have, whatever the environment: security, probes, resources, an orderly end, selectors that agree."""

import itertools

import pytest

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
GRPC_PORTS = {"orchestrator": 50051, "llm-gateway": 50052, "tool-executor": 50053, "memory": 50054}
METRICS_PORTS = {"gateway": 9461, "orchestrator": 9462, "llm-gateway": 9463, "tool-executor": 9464, "memory": 9465, "simulator": 9466}
FORBIDDEN_POD_FIELDS = ("hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers")


def pods(manifests):
    """(name, pod template) of everything that makes pods."""
    found = [(m["metadata"]["name"], m["spec"]["template"]) for m in manifests if m["kind"] in ("Deployment", "StatefulSet")]
    assert len(found) >= 5
    return found


def only_container(template):
    (container,) = template["spec"]["containers"]
    return container


def test_pods_are_restricted_and_more(shape):
    """PodSecurity `restricted`, rule by rule, and a read-only root besides."""
    for name, template in pods(shape):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == 65532, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not [field for field in FORBIDDEN_POD_FIELDS if field in spec], name
        assert spec["automountServiceAccountToken"] is False, name
        assert {next(iter(volume.keys() - {"name"})) for volume in spec["volumes"]} <= {"emptyDir", "secret", "configMap"}, name
        security = only_container(template)["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["privileged"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert not [port for port in only_container(template)["ports"] if "hostPort" in port], name


def test_tmp_is_the_only_place_a_service_may_write(shape):
    for name, template in pods(shape):
        kinds = {v["name"]: next(iter(v.keys() - {"name"})) for v in template["spec"]["volumes"]}
        mounts = {m["mountPath"]: m for m in only_container(template)["volumeMounts"]}
        assert kinds[mounts["/tmp"]["name"]] == "emptyDir", name
        writable = {path for path, mount in mounts.items() if not mount.get("readOnly")}
        assert writable <= ({"/tmp", "/data"} if "devstores" in name else {"/tmp"}), name


def test_requests_and_limits_are_set_and_ordered(shape):
    for name, template in pods(shape):
        resources = only_container(template)["resources"]
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(resources[kind]), name
        assert quantity(resources["requests"]["cpu"]) <= quantity(resources["limits"]["cpu"]), name
        assert quantity(resources["requests"]["memory"]) <= quantity(resources["limits"]["memory"]), name


def quantity(text) -> float:
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    for unit, factor in units.items():
        if str(text).endswith(unit):
            return float(str(text).removesuffix(unit)) * factor
    return float(text)


def test_probes_ask_for_the_right_health_service(shape, of_kind):
    for deployment in of_kind(shape, "Deployment"):
        app = deployment["metadata"]["labels"]["app.kubernetes.io/name"]
        container = only_container(deployment["spec"]["template"])
        startup, readiness, liveness = (container[probe] for probe in PROBES)
        if app in GRPC_PORTS:
            assert readiness["grpc"] == {"port": GRPC_PORTS[app], "service": "readiness"}
            # On `readiness`, a dependency that is down would restart every pod.
            assert startup["grpc"] == liveness["grpc"] == {"port": GRPC_PORTS[app], "service": "liveness"}
        else:
            ready = "/ready" if app == "gateway" else "/health"
            assert readiness["httpGet"] == {"path": ready, "port": "http"}
            assert startup["httpGet"] == liveness["httpGet"] == {"path": "/health", "port": "http"}
        assert (liveness["initialDelaySeconds"], liveness["periodSeconds"]) == (30, 10)
        assert liveness["timeoutSeconds"] >= 3
        assert liveness["failureThreshold"] >= 3
        assert (readiness["initialDelaySeconds"], readiness["periodSeconds"]) == (5, 5)


def test_probe_and_service_ports_exist_in_the_container(shape, of_kind):
    containers = {}
    for deployment in of_kind(shape, "Deployment"):
        container = only_container(deployment["spec"]["template"])
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        containers[deployment["metadata"]["labels"]["app.kubernetes.io/name"]] = ports
        for probe in PROBES:
            asked = container[probe].get("grpc", container[probe].get("httpGet"))["port"]
            assert asked in (*ports, *ports.values())
    for app, ports in containers.items():
        assert ports["metrics"] == METRICS_PORTS[app]
        for service in of_kind(shape, "Service", app):
            for port in service["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"]
                assert port["targetPort"] != "metrics", "the metrics port is never routed"


def test_grpc_services_say_so_and_have_a_headless_twin(shape, of_kind):
    for app, number in GRPC_PORTS.items():
        services = {s["metadata"]["name"]: s["spec"] for s in of_kind(shape, "Service", app)}
        plain, headless = services[f"bulkhead-{app}"], services[f"bulkhead-{app}-headless"]
        assert headless["clusterIP"] == "None"
        assert "clusterIP" not in plain
        for spec in (plain, headless):
            (port,) = spec["ports"]
            assert (port["name"], port["appProtocol"], port["port"]) == ("grpc", "grpc", number)


def test_the_model_port_is_off_until_asked_for(render, of_kind):
    assert not [s for s in of_kind(render(), "Service", "llm-gateway") if s["metadata"]["name"].endswith("-models")]
    opened = render(values={"llm-gateway": {"modelPort": {"enabled": True}}})
    (service,) = [s for s in of_kind(opened, "Service", "llm-gateway") if s["metadata"]["name"].endswith("-models")]
    assert service["spec"]["ports"][0]["port"] == 8081
    assert settings_of(opened, "llm-gateway")["BULKHEAD_HTTP_PORT"] == "8081"
    assert "BULKHEAD_HTTP_PORT" not in settings_of(render(), "llm-gateway")


def settings_of(manifests, app):
    (found,) = [m["data"] for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == f"bulkhead-{app}-env"]
    return found


def test_a_pod_has_time_to_end(shape, of_kind):
    """preStop + grace + flush fit into the termination period, as rendered."""
    for deployment in of_kind(shape, "Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        settings = settings_of(shape, deployment["metadata"]["labels"]["app.kubernetes.io/name"])
        sleep = only_container(deployment["spec"]["template"]).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needs = sleep + float(settings["BULKHEAD_DRAIN_GRACE_S"]) + float(settings["BULKHEAD_DRAIN_FLUSH_S"])
        assert spec["terminationGracePeriodSeconds"] > needs


@pytest.mark.parametrize("environment", ["staging", "prod"])
def test_production_shapes_sleep_before_they_stop(render, of_kind, environment):
    """Without the sleep a rolling restart was measured to lose calls."""
    for deployment in of_kind(render.environment(environment), "Deployment"):
        assert only_container(deployment["spec"]["template"])["lifecycle"]["preStop"]["sleep"]["seconds"] >= 5


def test_rolling_updates_never_lower_the_capacity(shape, of_kind):
    for deployment in of_kind(shape, "Deployment"):
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        assert deployment["spec"]["strategy"] == strategy


def test_selectors_agree(shape, of_kind):
    """Deployment, budget, spread and Service mean the same pods, and no two Deployments share one."""
    selectors = []
    for deployment in of_kind(shape, "Deployment"):
        template = deployment["spec"]["template"]
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert set(selector) == {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component", "track"}
        assert selector.items() <= template["metadata"]["labels"].items()
        for spread in template["spec"]["topologySpreadConstraints"]:
            assert spread["labelSelector"]["matchLabels"] == selector
            assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
        app = selector["app.kubernetes.io/name"]
        for service in of_kind(shape, "Service", app):
            assert "track" not in service["spec"]["selector"], "a Service holds both tracks"
            assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        if selector["track"] == "stable":
            for budget in of_kind(shape, "PodDisruptionBudget", app):
                assert budget["spec"]["selector"]["matchLabels"] == selector
        selectors.append(tuple(sorted(selector.items())))
    assert len(set(selectors)) == len(selectors)


def test_selectors_do_not_change_with_the_version(render, of_kind):
    """They are immutable: an upgrade that changed one would be refused by the API server."""

    def selectors(tag):
        found = render(values={"global": {"image": {"tag": tag}}})
        return {m["metadata"]["name"]: m["spec"]["selector"] for m in found if m["kind"] in ("Deployment", "StatefulSet", "Service")}

    assert selectors("0.1.0") == selectors("9.9.9")


def test_replicas_are_left_to_the_autoscaler(shape, of_kind):
    scaled = {m["spec"]["scaleTargetRef"]["name"]: m["spec"] for m in of_kind(shape, "HorizontalPodAutoscaler")}
    for deployment in of_kind(shape, "Deployment"):
        name = deployment["metadata"]["name"]
        assert ("replicas" in deployment["spec"]) == (name not in scaled), name
        if name in scaled:
            metrics = [metric["containerResource"] for metric in scaled[name]["metrics"]]
            targets = {metric["name"]: metric["target"]["averageUtilization"] for metric in metrics}
            assert targets == {"cpu": 70, "memory": 80}
            assert {m["container"] for m in metrics} == {only_container(deployment["spec"]["template"])["name"]}
            assert scaled[name]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300


def test_production_scales_from_three_with_a_budget(render, of_kind):
    prod = render.environment("prod")
    for app in render.applications:
        (scaler,) = of_kind(prod, "HorizontalPodAutoscaler", app)
        assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (3, 20)
        (budget,) = of_kind(prod, "PodDisruptionBudget", app)
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_one_replica_has_no_budget(render, of_kind):
    """It would block every node drain."""
    assert of_kind(render(), "PodDisruptionBudget") == []
    assert len(of_kind(render(values={"memory": {"replicas": 2}}), "PodDisruptionBudget")) == 1


def test_a_changed_setting_rolls_the_pods_and_product_configuration_does_not(render, of_kind):
    def checksum(values):
        (deployment,) = of_kind(render(values=values), "Deployment", "orchestrator")
        return deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    before = checksum({})
    assert checksum({"orchestrator": {"env": {"BULKHEAD_LOG_LEVEL": "DEBUG"}}}) != before
    assert checksum({"global": {"config": {"agents": "agents: []"}}}) == before


def test_images_are_named_by_registry_tag_and_digest(render, of_kind):
    digest = "sha256:" + "a" * 64
    values = {
        "global": {"image": {"registry": "registry.example.com/team", "tag": "1.2.3"}},
        "memory": {"image": {"digest": digest}},
        "gateway": {"image": {"tag": "1.2.4"}},
    }
    deployed = of_kind(render(values=values), "Deployment")
    images = {d["metadata"]["name"]: only_container(d["spec"]["template"])["image"] for d in deployed}
    assert images["bulkhead-orchestrator"] == "registry.example.com/team/bulkhead/orchestrator:1.2.3"
    assert images["bulkhead-gateway"] == "registry.example.com/team/bulkhead/gateway:1.2.4"
    assert images["bulkhead-memory"] == f"registry.example.com/team/bulkhead/memory@{digest}"


def test_images_of_production_have_immutable_tags(render):
    for name, template in pods(render.environment("prod")):
        tag = only_container(template)["image"].rsplit(":", 1)[1]
        assert tag not in ("latest", "dev", ""), name


def test_a_service_mounts_no_private_key_but_its_own(shape, of_kind):
    issuers = {"gateway": "gateway.pem", "orchestrator": "orchestrator.pem", "llm-gateway": "llm_gateway.pem", "memory": "memory.pem"}
    for deployment in of_kind(shape, "Deployment"):
        app = deployment["metadata"]["labels"]["app.kubernetes.io/name"]
        volumes = deployment["spec"]["template"]["spec"]["volumes"]
        # Those of a bucket and of personal data sign no tokens.
        secrets = [v["secret"] for v in volumes if "secret" in v and v["name"] not in ("segments-credentials", "envelope")]
        keys = {item["key"] for secret in secrets for item in secret["items"]}
        expected = set() if app == "simulator" else {"jwks.json"} | ({issuers[app]} if app in issuers else set())
        assert keys == expected


def test_nothing_that_looks_like_a_secret_is_rendered(shape):
    """Secrets come by reference only: no Secret object, and no variable with a literal token, key or password."""
    assert [m for m in shape if m["kind"] == "Secret"] == []
    literal = [m["data"] for m in shape if m["kind"] == "ConfigMap" and m["metadata"]["name"].endswith("-env")]
    inline = [only_container(template).get("env", []) for _, template in pods(shape)]
    names = [*itertools.chain(*literal), *(variable["name"] for variable in itertools.chain(*inline) if "value" in variable)]
    assert len(names) > 50
    assert [name for name in names if name.endswith(("_TOKEN", "_KEY", "_PASSWORD", "_SECRET"))] == []


def test_production_has_no_development_parts(render):
    for environment in ("staging", "prod"):
        text = str(render.environment(environment))
        assert "simulator" not in text.lower()
        assert "devstores" not in text
