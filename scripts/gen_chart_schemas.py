"""Write values.schema.json of every chart, so that a misspelt or mistyped value fails with its path.

The application charts share nearly all their values (charts/bulkhead-lib/values.yaml), and Helm has no way to share a schema
between charts; so the shared part is stated once here. Run it after a change of values; a test compares the result.
"""

import json
import sys
from pathlib import Path
from typing import Any

CHARTS = Path(__file__).resolve().parent.parent / "charts"
APPLICATIONS = ("gateway", "orchestrator", "llm-gateway", "tool-executor", "memory", "simulator")
# Environments in which personal data is not stored in plain text, and the charts that have services which keep such.
ENCRYPTED, ENCRYPTING = ("staging", "prod"), ("orchestrator", "memory", "bulkhead")
CONFIG_FILES = ("models", "tools", "agents", "policies", "prices", "oidc")

Schema = dict[str, Any]


def closed(**properties: Schema) -> Schema:
    """An object that has these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def switches(pattern: str) -> Schema:
    """A map of names to true or false: a later values file can switch off what an earlier one switched on."""
    return {"type": "object", "propertyNames": {"pattern": pattern}, "additionalProperties": {"type": "boolean"}}


def whole(minimum: int, maximum: int | None = None) -> Schema:
    return {"type": "integer", "minimum": minimum} | ({} if maximum is None else {"maximum": maximum})


STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}
NAME = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"
SECRET: Schema = {"type": "string", "pattern": NAME}
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"}
QUANTITY: Schema = {"type": ["string", "integer", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|Ki|Mi|Gi)?$"}
# Of a disk. `50m`, which Kubernetes takes, is a twentieth of a byte. Digits alone are bytes, at least a million.
SIZE: Schema = {
    "type": "string",
    "pattern": r"^(([1-9][0-9]*(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)(M|G|T|P|Mi|Gi|Ti|Pi)|[1-9][0-9]{6,})$",
}
TAG: Schema = {"type": "string", "pattern": r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"}
DIGEST: Schema = {"type": "string", "pattern": r"^(sha256:[0-9a-f]{64})?$"}
GATEWAYS: Schema = {"type": "array", "items": {"type": "string", "pattern": r"^([a-z0-9-]+/)?[a-z0-9-]+$"}}
HOSTS: Schema = {"type": "array", "items": {"type": "string", "pattern": r"^(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"}}
AMOUNTS: Schema = closed(cpu=QUANTITY, memory=QUANTITY) | {"required": ["cpu", "memory"]}
AMOUNTS["properties"] |= {"ephemeral-storage": QUANTITY}
RESOURCES: Schema = closed(requests=AMOUNTS, limits=AMOUNTS) | {"required": ["requests", "limits"]}
# Strings only: Helm reads 1000000 as a float and would print 1e+06.
ENV: Schema = {
    "type": "object",
    "propertyNames": {"pattern": "^BULKHEAD_[A-Z0-9_]+$"},
    "additionalProperties": STRING,
}
RETRIES: Schema = {
    "oneOf": [
        closed(attempts={"const": 0}) | {"required": ["attempts"]},
        closed(attempts=whole(1, 5), perTryTimeout=DURATION, retryOn=STRING) | {"required": ["attempts", "perTryTimeout", "retryOn"]},
    ]
}


def route(*, methods: bool) -> Schema:
    paths: Schema = {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "pattern": r"^bulkhead(\.[a-z0-9]+)+\.[A-Za-z]+/[A-Za-z]+$"},
    }
    fields = ({"methods": paths} if methods else {}) | {"timeout": DURATION, "retries": RETRIES}
    return closed(**fields) | {"required": list(fields)}


def mesh() -> Schema:
    return closed(
        routes={"type": "object", "propertyNames": {"pattern": "^[a-z][a-z0-9]*$"}, "additionalProperties": route(methods=True)},
        otherwise=route(methods=False),
        hosts=HOSTS,
        gateways=GATEWAYS,
        outlierDetection=closed(
            consecutive5xxErrors=whole(0),
            consecutiveGatewayErrors=whole(0),
            interval=DURATION,
            baseEjectionTime=DURATION,
            maxEjectionPercent=whole(0, 100),
        ),
        connectionPool=closed(
            tcp=closed(maxConnections=whole(1), connectTimeout=DURATION, idleTimeout=DURATION),
            http=closed(
                http1MaxPendingRequests=whole(1), http2MaxRequests=whole(1), maxRequestsPerConnection=whole(0), idleTimeout=DURATION
            ),
        ),
    )


def encrypted(shared_values: Schema) -> Schema:
    """`global` of who keeps personal data: staging and prod name the Secret with the keys that it is encrypted with."""
    named = {"properties": {"existingSecret": {"minLength": 1}}, "required": ["existingSecret"]}
    return shared_values | {
        "if": {"properties": {"env": {"enum": list(ENCRYPTED)}}, "required": ["env"]},
        "then": {"properties": {"envelope": named}, "required": ["envelope"]},
    }


def secret_reference(*keys: str) -> Schema:
    return closed(existingSecret=SECRET, **dict.fromkeys(keys, STRING))


def shared() -> Schema:
    """`global`: open to keys of other charts only where Helm itself adds them, which is nowhere."""
    product_file = {"type": ["object", "string"]}
    prompts = {"type": "object", "propertyNames": {"pattern": r"^[A-Za-z0-9_.-]+\.md$"}, "additionalProperties": STRING}
    return closed(
        env={"enum": ["local", "dev", "test", "staging", "prod"]},
        image=closed(registry=STRING, tag=TAG, pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]}, pullSecrets=switches(NAME)),
        logFormat={"enum": ["json", "console"]},
        logLevel={"enum": ["", "DEBUG", "INFO", "WARNING", "ERROR"]},
        otlpEndpoint={"type": "string", "pattern": r"^(https?://.+)?$"},
        traceSampleRatio={"type": "number", "minimum": 0, "maximum": 1},
        identity=secret_reference("jwksKey"),
        envelope=secret_reference("key"),
        state=secret_reference("key"),
        cache=secret_reference("key"),
        vectors=secret_reference("uriKey", "tokenKey"),
        addresses=closed(
            **{
                service: {"type": "string", "pattern": r"^([a-z0-9.-]+:[0-9]+)?$"}
                for service in ("orchestrator", "llmGateway", "toolExecutor", "memory")
            }
        ),
        config=closed(**dict.fromkeys(CONFIG_FILES, product_file), prompts=prompts),
        mesh=closed(enabled=BOOLEAN),
        networkPolicy=closed(
            enabled=BOOLEAN,
            ingressNamespaces=switches(NAME),
            metricsNamespaces=switches(NAME),
            storeCidrs={"type": "array", "minItems": 1, "items": {"type": "string", "pattern": r"^[0-9a-f.:]+/[0-9]+$"}},
            storePorts={"type": "array", "minItems": 1, "items": whole(1, 65535)},
            collectorNamespace={"type": "string", "pattern": NAME},
        ),
        simulator=closed(enabled=BOOLEAN),
        devstores=closed(enabled=BOOLEAN),
        allowDevelopmentParts=BOOLEAN,
    )


def application(chart: str) -> Schema:
    """Values of one application chart: what all have, and what this one has of its own."""
    values = closed(
        image=closed(repository=STRING, tag=TAG, digest=DIGEST),
        replicas=whole(1),
        resources=RESOURCES,
        env=ENV,
        envFromSecrets=switches(NAME),
        autoscaling=closed(
            enabled=BOOLEAN, minReplicas=whole(1), maxReplicas=whole(1), cpuPercent=whole(1, 100), memoryPercent=whole(1, 100)
        ),
        podDisruptionBudget=closed(enabled=BOOLEAN),
        drain=closed(preStopSeconds=whole(0, 60), graceSeconds=whole(1), flushSeconds=whole(1), terminationSeconds=whole(1)),
        canary=closed(enabled=BOOLEAN, image=closed(tag=TAG, digest=DIGEST), replicas=whole(1), weight=whole(0, 100)),
        identity=closed(existingSecret=SECRET),
        serviceAccount=closed(annotations=STRINGS),
        podLabels=STRINGS,
        podAnnotations=STRINGS,
        nodeSelector=STRINGS,
        tolerations={"type": "array", "items": {"type": "object"}},
        priorityClassName=STRING,
        mesh=mesh(),
    )
    values["properties"]["global"] = shared()
    if chart == "gateway":
        values["properties"]["issuerServers"] = servers_by_name()
    if chart == "llm-gateway":
        values["properties"] |= model_gateway()
    if chart == "orchestrator":
        values["properties"] |= orchestrator()
    return values


def server(*empty: Schema) -> Schema:
    """A server at a private address, in the cluster or outside of it; `empty`: what else it may be."""
    cidr: Schema = {"type": "string", "pattern": r"^[0-9a-f.:]+/[0-9]+$"}
    places: list[Schema] = [{"required": ["namespace", "port"]}, {"required": ["cidr", "port"]}, *empty]
    return closed(namespace={"type": "string", "pattern": NAME, "minLength": 1}, cidr=cidr, port=whole(1, 65535)) | {"oneOf": places}


def orchestrator() -> dict[str, Schema]:
    """What the orchestrator has of its own."""
    bucket = closed(
        url={"type": "string", "pattern": r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()-]+)*/?)?$"},
        endpoint={"type": "string", "pattern": r"^(https?://[A-Za-z0-9.:\[\]-]+)?$"},
        region=STRING,
        pathStyle=BOOLEAN,
        existingSecret=SECRET,
        accessKeyIdKey=STRING,
        secretAccessKeyKey=STRING,
        caKey=STRING,
        server=server({"maxProperties": 0}),
    )
    return {
        "segments": closed(volume=closed(enabled=BOOLEAN, existingClaim=SECRET, size=SIZE, storageClass=STRING), bucket=bucket),
    }


def servers_by_name() -> Schema:
    """Servers at private addresses, by any name."""
    return {"type": "object", "propertyNames": {"pattern": r"^[a-z0-9-]+$"}, "additionalProperties": server()}


def model_gateway() -> dict[str, Schema]:
    """What the LLM gateway has of its own."""
    return {
        "modelPort": closed(enabled=BOOLEAN, workers=whole(1, 64), masterKey=secret_reference("key"), hosts=HOSTS, gateways=GATEWAYS),
        "files": closed(enabled=BOOLEAN, existingClaim=SECRET, size=SIZE, storageClass=STRING),
        "modelServers": servers_by_name(),
    }


def devstores() -> Schema:
    store = {"image": STRING, "storage": STRING, "storageClass": STRING, "resources": RESOURCES}
    cache = {"image": STRING, "maxMemory": STRING, "resources": RESOURCES}
    vectors = {key: store[key] for key in ("storage", "storageClass", "resources")}
    values = closed(
        image=closed(repository=STRING, tag=TAG, digest=DIGEST), state=closed(**store), cache=closed(**cache), vectors=closed(**vectors)
    )
    values["properties"]["global"] = shared()
    return values


def umbrella() -> Schema:
    """Only the names here: Helm checks each part against its own chart's schema, of parts that are switched off nothing."""
    values = closed(**{chart: {"type": "object"} for chart in (*APPLICATIONS, "devstores")})
    values["properties"]["global"] = shared()
    return values


def schemas() -> dict[str, str]:
    """File text by chart."""
    parts = {chart: application(chart) for chart in APPLICATIONS} | {"devstores": devstores(), "bulkhead": umbrella()}
    for chart in ENCRYPTING:
        parts[chart]["properties"]["global"] = encrypted(parts[chart]["properties"]["global"])
    for part in parts.values():
        # Helm itself adds the table of the library chart to the values it checks.
        part["properties"]["bulkhead-lib"] = {"type": "object"}
    return {
        chart: json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema"} | part, indent=1) + "\n"
        for chart, part in parts.items()
    }


def main() -> int:
    for chart, text in schemas().items():
        (CHARTS / chart / "values.schema.json").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
