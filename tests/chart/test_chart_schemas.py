"""Every rendered object is valid to the letter, and every wrong value is refused before anything is applied."""

import copy
import importlib.util
import json
import re

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml

SUPPORTED = kubernetes_validate.utils.all_versions()


def minor(version: str) -> tuple[int, int]:
    major, second = version.split(".")[:2]
    return int(major), int(second)


@pytest.fixture(scope="session")
def oldest(render) -> str:
    """The oldest version that Chart.yaml claims to support."""
    claimed = yaml.safe_load((render.charts / "bulkhead/Chart.yaml").read_text())["kubeVersion"]
    return re.fullmatch(r">=(\d+\.\d+)\.0-0", claimed)[1]


def test_objects_match_the_oldest_and_the_newest_kubernetes(shape, oldest):
    newest = max(SUPPORTED, key=minor)
    assert minor(newest) > minor(oldest)
    checked = 0
    for manifest in shape:
        if manifest["apiVersion"].startswith("networking.istio.io/"):
            continue
        for version in (oldest, newest):
            kubernetes_validate.validate(manifest, version, strict=True)
        checked += 1
    assert checked >= 39


def test_the_check_is_strict(render, oldest):
    deployment = copy.deepcopy(next(m for m in render("simulator") if m["kind"] == "Deployment"))
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, oldest, strict=True)


@pytest.fixture(scope="session")
def istio(render) -> dict:
    return json.loads((render.root / "tests/chart/schemas/istio-networking-v1.json").read_text())


def istio_problems(istio: dict, manifest: dict) -> list[str]:
    schema = {"$ref": f"#/$defs/{manifest['kind']}", "$defs": istio["$defs"]}
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{manifest['metadata']['name']}{error.json_path[1:]}: {error.message}" for error in found]


def test_mesh_objects_match_strictly(render, istio, full_values):
    for manifests in (render(values=full_values), render.environment("staging"), render.environment("prod")):
        mesh = [m for m in manifests if m["apiVersion"].startswith("networking.istio.io/")]
        assert len(mesh) >= 10
        assert [problem for m in mesh for problem in istio_problems(istio, m)] == []


def test_a_misspelt_mesh_field_would_be_found(render, istio):
    virtual = copy.deepcopy(next(m for m in render.environment("prod") if m["kind"] == "VirtualService"))
    virtual["spec"]["http"][0]["retires"] = virtual["spec"]["http"][0].pop("retries")
    problems = " ".join(istio_problems(istio, virtual))
    assert "retires" in problems
    assert "'retries' is a required property" in problems


def test_value_schemas_are_up_to_date(render):
    spec = importlib.util.spec_from_file_location("gen_chart_schemas", render.root / "scripts/gen_chart_schemas.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    for chart, text in generator.schemas().items():
        assert (render.charts / chart / "values.schema.json").read_text() == text, f"{chart}: run scripts/gen_chart_schemas.py"


def uncommented(text: str) -> list[str]:
    """Keys with neither a comment of their own nor one at a key that holds them."""
    missing, holders, commented = [], [], False
    for line in text.splitlines():
        words = line.strip()
        if words.startswith("#"):
            commented = True
        elif (key := re.match(r"( *)([\w.-]+):", line)) is not None:
            depth = len(key[1])
            holders = [holder for holder in holders if holder[0] < depth]
            if not commented and not any(explained for _, explained in holders) and words != f"{key[2]}:":
                missing.append(key[2])
            holders.append((depth, commented))
            commented = False
    return missing


@pytest.mark.parametrize("chart", ["bulkhead-lib", "bulkhead", "devstores"])
def test_every_default_has_a_comment(render, chart):
    text = (render.charts / chart / "values.yaml").read_text()
    # The file's own heading explains no key.
    body = text.split("exports:")[1] if chart == "bulkhead-lib" else re.sub(r"^(#.*\n)+", "", text)
    assert uncommented(body) == []


def test_a_default_without_a_comment_would_be_found():
    assert uncommented("# why\na: 1\nb: 2\nc:\n  # why\n  d: 3\n  e: 4\n") == ["b", "e"]


MISSPELT = {
    "a key of a service": ({"gateway": {"replica": 3}}, "replica"),
    "a key deep inside": ({"orchestrator": {"canary": {"image": {"tagg": "1"}}}}, "tagg"),
    "a service": ({"gatway": {"replicas": 3}}, "gatway"),
    "a global key": ({"global": {"mesh": {"enabeld": True}}}, "enabeld"),
    "a key of the stores": ({"devstores": {"state": {"sise": "1Gi"}}}, "sise"),
    "a key of another service": ({"gateway": {"modelPort": {"enabled": True}}}, "modelPort"),
    "a type": ({"gateway": {"replicas": "three"}}, "replicas"),
    "an environment": ({"global": {"env": "production"}}, "env"),
    "a variable of another prefix": ({"gateway": {"env": {"LOG_LEVEL": "DEBUG"}}}, "LOG_LEVEL"),
    "a number as a variable": ({"gateway": {"env": {"BULKHEAD_X": 1000000}}}, "BULKHEAD_X"),
    "zero replicas": ({"gateway": {"replicas": 0}}, "replicas"),
    "a weight over 100": ({"gateway": {"canary": {"weight": 101}}}, "weight"),
    "retries without a bound": ({"memory": {"mesh": {"otherwise": {"timeout": "1s", "retries": {"attempts": 3}}}}}, "retries"),
    "a route without retries": ({"memory": {"mesh": {"otherwise": {"timeout": "1s", "retries": None}}}}, "retries"),
}


@pytest.mark.parametrize("case", MISSPELT)
def test_a_wrong_value_is_refused_by_its_path(render, case):
    values, key = MISSPELT[case]
    with pytest.raises(helm_python.HelmValuesError, match=key):
        render(values=values)


def volumes(size: object) -> dict:
    """Values with two volumes of this size."""
    return {
        "orchestrator": {"segments": {"volume": {"enabled": True, "size": size}}},
        "llm-gateway": {"files": {"enabled": True, "size": size}, "modelPort": {"enabled": True}},
    }


@pytest.mark.parametrize("size", ["512Mi", "50Gi", "2Ti", "1Pi", "1.5Ti", "0.5Ti", "500G", "2T", "1P", "53687091200"])
def test_the_size_of_a_volume_is_any_that_a_disk_has(render, size):
    manifests = render(values=volumes(size))
    asked = [str(m["spec"]["resources"]["requests"]["storage"]) for m in manifests if m["kind"] == "PersistentVolumeClaim"]
    assert asked.count(size) == 2


@pytest.mark.parametrize("size", ["50m", "0.5", "50", 50, 1.5, "0Gi", "0.0Gi", "Gi", "", "5GB", "50 Gi", "1k"])
def test_the_size_of_a_volume_is_none_that_no_disk_has(render, size):
    for service, values in volumes(size).items():
        with pytest.raises(helm_python.HelmValuesError, match="size"):
            render(values={service: values})


CONTRADICTORY = {
    "a canary without a version": ({"gateway": {"canary": {"enabled": True}}}, "gateway.canary.enabled.*canary.image.tag"),
    "a weight without a canary": ({"memory": {"canary": {"weight": 10}}}, "memory.canary.weight.*canary.enabled"),
    "a weight without a mesh": (
        {"memory": {"canary": {"enabled": True, "image": {"tag": "2"}, "weight": 10}}},
        "memory.canary.weight.*global.mesh.enabled",
    ),
    "a drain that does not fit": ({"gateway": {"drain": {"terminationSeconds": 20}}}, "gateway.drain.terminationSeconds.*graceSeconds"),
    "bounds the wrong way round": (
        {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 4}}},
        "gateway.autoscaling.minReplicas 5 is above maxReplicas 4",
    ),
    "a simulator where none may be": ({"global": {"allowDevelopmentParts": False}}, "allowDevelopmentParts"),
    "no store": ({"global": {"devstores": {"enabled": False}}}, "global.(state|vectors).existingSecret"),
    "no model": ({"global": {"simulator": {"enabled": False}}}, "global.config.models"),
    "no identity": ({"global": {"identity": {"existingSecret": ""}}}, "global.identity.existingSecret"),
}


@pytest.mark.parametrize("case", CONTRADICTORY)
def test_a_contradiction_is_refused_with_the_way_out(render, case):
    values, message = CONTRADICTORY[case]
    with pytest.raises(helm_python.HelmRenderError, match=message):
        render(values=values)
