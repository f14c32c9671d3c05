"""One connected trace over all five services, the canary header on every hop, and deadlines that reach the leaf."""

import json
import secrets
import time
import uuid

import httpx2 as httpx
import pytest

from services.common import edges, testing
from services.common.testing import eventually
from tests.e2e.api import Api, answer_of

# Parent -> child: the span of the callee whose parent chain leads to the caller without a third service between.
REQUIRED_EDGES = [
    ("gateway", "orchestrator", "bulkhead.orchestrator.v1.RunService/CreateRun"),
    ("orchestrator", "memory", "bulkhead.memory.v1.SessionService/Recall"),
    ("orchestrator", "llm_gateway", "bulkhead.llm.v1.LlmService/StreamComplete"),
    ("orchestrator", "tool_executor", "bulkhead.tools.v1.ToolService/ExecuteTool"),
    ("memory", "llm_gateway", "bulkhead.llm.v1.LlmService/Embed"),
]
SERVICES = {"gateway", "orchestrator", "llm_gateway", "tool_executor", "memory"}
SERVER_KIND = 2


def name_of(span) -> str:
    return span.service.removeprefix("bulkhead-").replace("-", "_")


@pytest.fixture(scope="module")
def api(platform):
    with Api(platform.url, platform.key) as client:
        client.post(
            "/v1/documents",
            {"title": "tide.md", "content_type": "text/markdown", "text": "# Tide\n\nHigh tide comes at noon in Saltmarsh.\n"},
        )
        yield client


def traced_turn(platform, text: str, **headers: str):
    trace_id = secrets.token_hex(16)
    thread = f"trace-{uuid.uuid4().hex[:8]}"
    with Api(platform.url, platform.key, traceparent=f"00-{trace_id}-{secrets.token_hex(8)}-01", **headers) as client:
        events = client.turn(thread, text, agent="assistant")
    answer_of(events)
    return trace_id, thread, events


def ancestors(span, by_id):
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        yield span


def edge_exists(spans, caller, callee, method) -> bool:
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        if name_of(span) == callee and span.kind == SERVER_KIND and span.name == method:
            other = next((a for a in ancestors(span, by_id) if name_of(a) != callee), None)
            if other is not None and name_of(other) == caller:
                return True
    return False


def missing_edges(spans) -> list:
    return [edge for edge in REQUIRED_EDGES if not edge_exists(spans, *edge)]


def test_required_edges_are_edges_that_the_table_allows():
    for caller, callee, method in REQUIRED_EDGES:
        assert f"/{method}" in edges.allowed(caller, callee)


def roots(found):
    """Services of the spans whose parent is not there."""
    ids = {span.span_id for span in found}
    return {name_of(span) for span in found if span.parent_id not in ids}


def test_one_connected_trace_over_all_five_services(platform, api):
    trace_id, thread, events = traced_turn(platform, "When is high tide in Saltmarsh? And what is 12 * 12?")
    spans = lambda: platform.receiver.spans(trace_id)  # noqa: E731
    eventually(
        lambda: not missing_edges(spans()), f"the edges {missing_edges(spans())} in {sorted({name_of(s) for s in spans()})}", timeout_s=30
    )
    eventually(lambda: {name_of(s) for s in spans() if s.kind == SERVER_KIND} >= SERVICES, "a server span of every service", timeout_s=30)
    assert {event["trace_id"] for event in events if event["trace_id"]} == {trace_id}
    # Only what the client's own span started may have a parent that is not here; a caller's span comes after those that it called.
    eventually(lambda: roots(spans()) == {"gateway"}, f"a trace of one root, and not of {roots(spans())}", timeout_s=30)
    found = spans()
    run_id = events[0]["run_id"]
    searchable = {"bulkhead.run_id": run_id, "bulkhead.thread_id": thread, "bulkhead.tenant": None, "gen_ai.conversation.id": thread}
    for key, value in searchable.items():
        values = {span.attributes[key] for span in found if key in span.attributes}
        assert values, f"no span carries {key}"
        assert value is None or values == {value}, (key, values)
    assert any(span.name.startswith("chat ") and span.attributes.get("gen_ai.usage.input_tokens", 0) > 0 for span in found)
    assert any(span.attributes.get("gen_ai.tool.name") == "calculator" for span in found)


@pytest.mark.parametrize(("value", "forwarded"), [("true", True), ("True", False), ("1", False), ("true,true", False)])
def test_canary_is_seen_by_every_service_and_nothing_else_is_forwarded(platform, api, value, forwarded):
    trace_id, _, _ = traced_turn(
        platform, f"When is high tide in Saltmarsh, {uuid.uuid4().hex}? And what is 13 * 13?", **{"x-canary": value}
    )
    eventually(lambda: not missing_edges(platform.receiver.spans(trace_id)), "the whole trace", timeout_s=30)
    # A server span is exported when its request has ended, the gateway's last of all.
    servers = lambda: [s for s in platform.receiver.spans(trace_id) if s.kind == SERVER_KIND]  # noqa: E731
    eventually(lambda: {name_of(s) for s in servers()} >= SERVICES, "a server span of every service", timeout_s=30)
    seen = {(name_of(s), s.name, s.attributes.get("bulkhead.canary", False)) for s in servers()}
    assert {flag for _, _, flag in seen} == {forwarded}, seen
    # Work that goes on after the request: the turn that the outbox appends to memory.
    appended = lambda: [s for s in platform.receiver.spans(trace_id) if s.kind == SERVER_KIND and s.name.endswith("/AppendTurns")]  # noqa: E731
    eventually(appended, "the appended turn is in the trace", timeout_s=30)
    assert {s.attributes.get("bulkhead.canary", False) for s in appended()} == {forwarded}
    mine = [e for e in served(platform) if trace_id in json.dumps(e)]
    assert mine, "the simulator saw the trace"
    assert {line["headers"].get("x-canary") for line in mine} == {"true" if forwarded else None}


def test_a_run_limit_is_what_the_leaf_sees(platform, api):
    thread, before = f"slow-{uuid.uuid4().hex[:8]}", last_served(platform)
    fault = {"match": {"contains": thread}, "fault": {"first_token_delay": 20000}}
    httpx.post(f"{platform.simulator}/sim/faults", json=fault).raise_for_status()
    try:
        started = time.monotonic()
        events = api.turn(thread, f"Tell me about {thread}", agent="plain", limits={"deadline_ms": 1500})
        assert events[-1]["type"] == "run_failed"
        assert events[-1]["data"]["error"]["reason"] == "DEADLINE_EXCEEDED", events[-1]
        assert time.monotonic() - started < 15
        # The leaf was let go as well, long before its own twenty seconds.
        eventually(lambda: aborted(platform, before), "the simulator notices", timeout_s=10)
    finally:
        httpx.delete(f"{platform.simulator}/sim/faults")


def served(platform) -> list[dict]:
    """What the simulator says that it served, oldest first."""
    return httpx.get(f"{platform.simulator}/sim/log").json()["lines"]


def aborted(platform, after: int) -> bool:
    return any(line["aborted"] for line in served(platform) if line["seq"] > after)


def last_served(platform) -> int:
    return max((line["seq"] for line in served(platform)), default=0)


def test_closing_the_client_stream_reaches_the_simulator(platform, api):
    thread, before = f"gone-{uuid.uuid4().hex[:8]}", last_served(platform)
    httpx.post(f"{platform.simulator}/sim/faults", json={"match": {"contains": thread}, "fault": {"tokens_per_s": 2}}).raise_for_status()
    try:
        with api.stream(thread, f"Please write a long text about {thread} " * 10, agent="plain", on_disconnect="cancel") as events:
            for event in events:
                if event["type"] == "message_delta":
                    break
        eventually(lambda: aborted(platform, before), "the simulator sees the disconnect", timeout_s=10)
        run_id = event["run_id"]
        eventually(lambda: api.run(run_id)["status"] == "cancelled", "the run is cancelled", timeout_s=10)
    finally:
        httpx.delete(f"{platform.simulator}/sim/faults")


def test_closing_the_client_stream_otherwise_lets_the_run_go_on(platform, api):
    thread = f"stay-{uuid.uuid4().hex[:8]}"
    with api.stream(thread, "What is 5 * 5?", agent="assistant") as events:
        event = next(events)
    done = testing.eventually(lambda: (r := api.run(event["run_id"]))["status"] == "succeeded" and r, "the run ends")
    assert "25" in done["output_text"]
