"""What every request passes: identity of the call, canary, trace, limits, metrics, logs, start and end of the process."""

import asyncio
import os
import signal

import aiohttp
import pytest
import structlog
import yaml
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import testing
from services.common.settings import StartRefused
from services.gateway import fakes
from services.gateway.app import build
from services.gateway.edge import asgi
from services.gateway.fake_log import EXPLODES
from services.gateway.fakes import frames_of
from services.gateway.settings import Settings

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.fixture
async def served(identities, state_url):
    async with fakes.gateway(identities, state_url) as gateway:
        yield gateway


@pytest.fixture
async def http(served):
    async with aiohttp.ClientSession(served.url, headers=served.headers()) as session:
        yield session


@pytest.mark.parametrize(("sent", "seen"), [("true", True), ("True", False), ("1", False), ("true,true", False), (None, False)])
async def test_only_the_exact_canary_goes_on_with_every_call(served, http, sent, seen):
    headers = {"x-canary": sent} if sent is not None else {}
    async with http.post("/v1/threads/t/runs", json={"input": "x", "stream": True}, headers=headers) as response:
        await frames_of(response)
    assert {name for name, _ in served.log.seen} == {"CreateRun", "StreamEvents"}
    assert {context.canary for _, context in served.log.seen} == {seen}


async def test_request_ids_are_kept_or_made_and_go_on(served, http):
    async with http.get("/v1/threads", headers={"x-request-id": "mine-1"}) as response:
        assert response.headers["x-request-id"] == "mine-1"
    assert served.calls("ListThreads")[0].request_id == "mine-1"
    async with http.get("/v1/threads") as response:
        made = response.headers["x-request-id"]
    assert served.calls("ListThreads")[1].request_id == made != "mine-1"


async def test_calls_carry_the_principal_of_the_key(served):
    key = await served.issue("globex", user="bo", tier="pro", scopes=("threads:read",))
    async with aiohttp.ClientSession(served.url, headers={"x-api-key": key}) as other:
        async with other.get("/v1/threads") as response:
            assert response.status == 200
    who = served.calls("ListThreads")[0].principal
    assert (who.tenant, who.user, who.tier, who.scopes) == ("globex", "bo", "pro", ("threads:read",))


async def test_the_given_time_is_the_deadline_of_the_calls(served, http):
    loop = asyncio.get_running_loop()
    async with http.get("/v1/threads", headers={"x-request-timeout-ms": "3000"}):
        assert 0 < served.calls("ListThreads")[0].deadline - loop.time() <= 3


@pytest.fixture
def spans(monkeypatch):
    """Finished spans of the gateway's HTTP layer."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(asgi, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


async def test_a_request_is_one_span_that_can_be_searched_for(served, http, spans):
    headers = {"traceparent": TRACEPARENT, "x-canary": "true", "x-request-id": "r-1"}
    async with http.post("/v1/threads/t/runs", json={"input": "x"}, headers=headers) as response:
        run = await response.json()
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("POST /v1/threads/{thread_id}/runs", trace.SpanKind.SERVER)
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert span.parent.span_id == 0xB7AD6B7169203331
    wanted = {
        "http.request.method": "POST", "http.route": "/v1/threads/{thread_id}/runs", "http.response.status_code": 202,
        "bulkhead.tenant": "acme", "bulkhead.thread_id": "t", "bulkhead.run_id": run["run_id"], "bulkhead.canary": True,
        "bulkhead.request_id": "r-1",
    }  # fmt: skip
    assert wanted.items() <= dict(span.attributes).items()


async def test_errors_carry_the_trace_and_mark_the_span(served, http, spans):
    async with http.get(f"/v1/threads/{EXPLODES}", headers={"traceparent": TRACEPARENT}) as response:
        assert (await response.json())["trace_id"] == TRACE_ID
    (span,) = spans.get_finished_spans()
    assert (span.status.status_code, span.attributes["error.type"]) == (trace.StatusCode.ERROR, "INTERNAL")


@pytest.fixture
def strict(tmp_path):
    """Configuration with small limits for the free tier."""
    sets = {"test": {"free": {"requests_per_minute": 3, "requests_per_day": 100}, "enterprise": {}}}
    (tmp_path / "policies.yaml").write_text(yaml.safe_dump({"sets": sets}))
    return tmp_path


async def test_requests_of_a_tier_are_counted_per_user_and_refused(identities, state_url, strict):
    async with fakes.gateway(identities, state_url, config_dir=strict) as served:
        free = {"x-api-key": await served.issue(tier="free")}
        neighbour = {"x-api-key": await served.issue(tier="free", user="bo")}
        async with aiohttp.ClientSession(served.url) as http:
            left = []
            for _ in range(3):
                async with http.get("/v1/agents", headers=free) as response:
                    assert response.status == 200
                    assert response.headers["ratelimit-policy"] == '"requests_per_minute";q=3;w=60, "requests_per_day";q=100;w=86400'
                    left.append(response.headers["ratelimit"].partition(";t=")[0])
            assert left == [f'"requests_per_minute";r={n}' for n in (2, 1, 0)]
            for path in ("/v1/agents", "/v1/models"):
                async with http.get(path, headers=free) as response:
                    assert response.status == 429
                    assert 1 <= int(response.headers["retry-after"]) <= 20
                    assert response.headers["ratelimit"].startswith('"requests_per_minute";r=0;t=')
                    body = await response.json()
            assert body["error"]["code"] == "rate_limit_exceeded"
            async with http.get("/v1/agents", headers=neighbour) as response:
                assert response.status == 200
            async with http.get("/v1/agents", headers=served.headers()) as response:
                assert response.status == 200
                assert "ratelimit-policy" not in response.headers


async def test_limits_follow_the_file_and_a_bad_file_changes_nothing(identities, state_url, strict):
    async with fakes.gateway(identities, state_url, config_dir=strict) as served:
        async with aiohttp.ClientSession(served.url, headers={"x-api-key": await served.issue(tier="free")}) as http:

            async def policy():
                async with http.get("/v1/agents") as response:
                    return response.headers.get("ratelimit-policy", "")

            assert "q=3" in await policy()
            (strict / "policies.yaml").write_text("sets: {test: {free: {requests_per_minute: many}}}")
            await asyncio.sleep(1.2)  # longer than it takes to look: what must not happen needs time not to happen
            assert "q=3" in await policy()
            (strict / "policies.yaml").write_text("sets: {test: {free: {requests_per_minute: 9}}}")

            async def nine():
                return "q=9" in await policy()

            await testing.eventually_async(nine, "the new limit")


async def test_a_revoked_key_is_refused(served, http):
    record = (await served.accounts.list_keys("acme"))[0]
    async with http.get("/v1/agents") as response:
        assert response.status == 200
    await served.accounts.revoke("acme", record.key_id)

    async def refused():
        async with http.get("/v1/agents") as response:
            return response.status == 401

    await testing.eventually_async(refused, "refused", 8)


async def test_one_line_a_request_without_the_key(served, http):
    with structlog.testing.capture_logs() as lines:
        async with http.get("/v1/runs/r-none", headers={"x-request-id": "r-9"}) as response:
            assert response.status == 404
        async with http.get("/health"):
            pass
    (line,) = [entry for entry in lines if entry["event"] == "http_request" and entry["log_level"] == "info"]
    assert (line["route"], line["status"], line["tenant"], line["error"]) == ("/v1/runs/{run_id}", 404, "acme", "NOT_FOUND")
    assert served.key not in str(lines)


def test_what_is_missing_refuses_the_start(tmp_path, identities):
    settings = Settings(state_url="", **identities.settings())
    problems = settings.problems()
    assert {p.split(" ")[0].rstrip(":") for p in problems} == {
        "BULKHEAD_STATE_URL", "BULKHEAD_IDENTITY_SIGNING_KEY_FILE", "BULKHEAD_ORCHESTRATOR_ADDRESS", "BULKHEAD_MEMORY_ADDRESS",
        "BULKHEAD_TOOL_EXECUTOR_ADDRESS",
    }  # fmt: skip
    (tmp_path / "policies.yaml").write_text("sets: {dev: {free: {requests_per_minute: 0, speed: 5}}}")
    with pytest.raises(StartRefused) as refused:
        build(Settings(state_url="redis://127.0.0.1:1/0", config_dir=tmp_path, **identities.settings("gateway")))
    assert len(refused.value.problems) == 2


def test_the_process_serves_with_its_dependencies_away_and_ends_in_good_order(identities, tmp_path):
    port, metrics = testing.free_port(), testing.free_port()
    nowhere = f"127.0.0.1:{testing.free_port()}"
    env = {
        "BULKHEAD_ENV": "test", "BULKHEAD_HTTP_PORT": str(port), "BULKHEAD_METRICS_PORT": str(metrics),
        "BULKHEAD_STATE_URL": f"redis://{nowhere}/0", "BULKHEAD_ORCHESTRATOR_ADDRESS": nowhere, "BULKHEAD_MEMORY_ADDRESS": nowhere,
        "BULKHEAD_TOOL_EXECUTOR_ADDRESS": nowhere, "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file),
        "BULKHEAD_IDENTITY_SIGNING_KEY_FILE": str(identities.signing_key("gateway")),
    }  # fmt: skip
    process = testing.Process(testing.python("-m", "services.gateway"), env=env, log=tmp_path / "gateway.log")

    async def look():
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            async with http.get("/health") as response:
                assert response.status == 200
            async with http.get("/ready") as response:
                assert response.status == 503
                assert set((await response.json())["failing"]) == {"state", "orchestrator"}
            async with http.get("/v1/agents", headers={"x-api-key": "bh_" + "x" * 43}) as response:
                assert response.status == 503
                assert (await response.json())["reason"] == "STORE_UNAVAILABLE"
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{metrics}/metrics") as response:
            return await response.text()

    try:
        testing.wait_for_port(port, process)
        text = asyncio.run(look())
        assert 'http_requests_total{method="GET"' in text
        assert 'route="/v1/agents",status="503"' in text
        assert "http_request_duration_seconds_bucket{" in text
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait() == 0
    finally:
        process.stop()
