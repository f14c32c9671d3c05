"""What each native route asks of its caller, against what it is given: every scope on every route, and the ids of others."""

import re
from types import MappingProxyType

import aiohttp
import pytest

from services.orchestrator.testing.receivers import receiver
from tests.integration.real_gateway import answered
from tests.integration.test_gateway_idempotency import ROWS, SEARCHES, filled, hold, prepared
from tests.integration.whole_gateway import native_routes, whole_gateway

SCOPES = (
    "threads:read", "threads:write", "runs:read", "runs:write", "approvals:read", "approvals:write", "schedules:read", "schedules:write",
    "webhooks:read", "webhooks:write", "hooks:read", "hooks:write", "documents:read", "documents:write", "memories:read", "memories:write",
    "erasures:write", "keys:read", "keys:write", "blobs:read", "blobs:write", "admin",
)  # fmt: skip
# Each route and the scopes without any of which it refuses; a route that is not here is one that somebody forgot.
NEEDED = {
    "GET /v1/agents": (),
    "GET /v1/agents/{agent}": (),
    "GET /v1/tools": (),
    "POST /v1/agents/{agent}/chat": ("runs:read", "runs:write"),
    "GET /v1/threads": ("threads:read",),
    "POST /v1/threads": ("threads:write",),
    "GET /v1/threads/{thread_id}": ("threads:read",),
    "DELETE /v1/threads/{thread_id}": ("threads:write",),
    "POST /v1/threads/{thread_id}/fork": ("threads:write",),
    "POST /v1/threads/{thread_id}/rollback": ("threads:write",),
    "GET /v1/threads/{thread_id}/snapshot": ("runs:read",),
    "GET /v1/threads/{thread_id}/events": ("runs:read",),
    "GET /replay/{thread_id}": ("runs:read",),
    "GET /v1/threads/{thread_id}/runs": ("runs:read",),
    "POST /v1/threads/{thread_id}/runs": ("runs:write",),
    "GET /v1/runs": ("runs:read",),
    "GET /v1/runs/{run_id}": ("runs:read",),
    "GET /v1/runs/{run_id}/events": ("runs:read",),
    "POST /v1/runs/cancel": ("runs:write",),
    "POST /v1/runs/{run_id}/cancel": ("runs:write",),
    "POST /v1/runs/{run_id}/stop": ("runs:write",),
    "POST /v1/runs/{run_id}/steer": ("runs:write",),
    "PUT /v1/runs/{run_id}/plan": ("runs:write",),
    "POST /v1/runs/{run_id}/tool-calls/{call_id}/cancel": ("runs:write",),
    "GET /v1/approvals": ("approvals:read",),
    "GET /v1/approvals/{approval_id}": ("approvals:read",),
    "POST /v1/approvals/{approval_id}/decision": ("approvals:write",),
    "POST /v1/feedback": ("runs:write",),
    "GET /v1/feedback": ("admin",),
    "GET /v1/schedules": ("schedules:read",),
    "POST /v1/schedules": ("schedules:write", "runs:write"),
    "GET /v1/schedules/{schedule_id}": ("schedules:read",),
    "PATCH /v1/schedules/{schedule_id}": ("schedules:write", "runs:write"),
    "DELETE /v1/schedules/{schedule_id}": ("schedules:write",),
    "POST /v1/schedules/{schedule_id}/pause": ("schedules:write",),
    "POST /v1/schedules/{schedule_id}/resume": ("schedules:write", "runs:write"),
    "GET /v1/schedules/{schedule_id}/ticks": ("schedules:read",),
    "GET /v1/webhooks": ("webhooks:read",),
    "POST /v1/webhooks": ("webhooks:write",),
    "GET /v1/webhooks/{webhook_id}": ("webhooks:read",),
    "DELETE /v1/webhooks/{webhook_id}": ("webhooks:write",),
    "POST /v1/webhooks/{webhook_id}/rotate": ("webhooks:write",),
    "GET /v1/webhooks/{webhook_id}/deliveries": ("webhooks:read",),
    "POST /v1/deliveries/{delivery_id}/redeliver": ("webhooks:write",),
    "GET /v1/hooks": ("hooks:read",),
    "POST /v1/hooks": ("hooks:write", "runs:write"),
    "GET /v1/hooks/{hook}": ("hooks:read",),
    "DELETE /v1/hooks/{hook}": ("hooks:write",),
    "POST /v1/hooks/{hook}/secret": ("hooks:write",),
    "GET /v1/quota": ("runs:read",),
    "POST /v1/erasures": ("admin",),
    "GET /v1/keys": ("keys:read",),
    "POST /v1/keys": ("keys:write",),
    "GET /v1/keys/{key_id}": ("keys:read",),
    "PATCH /v1/keys/{key_id}": ("keys:write",),
    "DELETE /v1/keys/{key_id}": ("keys:write",),
    "POST /v1/keys/{key_id}/rotate": ("keys:write",),
    "POST /v1/blobs": ("blobs:write",),
    "GET /v1/blobs/{blob_id}": ("blobs:read",),
    "GET /v1/blobs/{blob_id}/content": ("blobs:read",),
    "POST /v1/blobs/{blob_id}/links": ("blobs:read",),
    "DELETE /v1/blobs/{blob_id}": ("blobs:write",),
    "GET /v1/documents": ("documents:read",),
    "POST /v1/documents": ("documents:write",),
    "POST /v1/documents/search": ("documents:read",),
    "DELETE /v1/documents/{document_id}": ("documents:write",),
    "GET /v1/memories": ("memories:read",),
    "POST /v1/memories": ("memories:write",),
    "POST /v1/memories/search": ("memories:read",),
    "GET /v1/memories/{memory_id}": ("memories:read",),
    "DELETE /v1/memories/{memory_id}": ("memories:write",),
}
# Of another user it is not there for whoever has no `admin`, and of oneself it takes no scope.
ORCHESTRATOR_ASKS = {"POST /v1/erasures"}
HIDDEN = {"GET /v1/erasures/{erasure_id}"}
IDS = {
    "thread_id": "mine", "run_id": "done", "call_id": "c1", "approval_id": "{approval}", "schedule_id": "{schedule}",
    "webhook_id": "{webhook}", "delivery_id": "{delivery}", "document_id": "{document}", "memory_id": "{memory}", "agent": "quick",
    "erasure_id": "{erasure}", "key_id": "{key}", "blob_id": "{blob}", "hook": "{inbound}",
}  # fmt: skip
EMPTY = MappingProxyType({})
# Of the tenant: whoever of it has the scope has them all; keys whoever has `admin`.
SHARED = ("/v1/webhooks", "/v1/hooks", "/v1/deliveries", "/v1/documents", "/v1/keys")
# What is not there is deleted as well as what is; that of others stays.
HARMLESS = {"DELETE /v1/blobs/{blob_id}"}
# Nothing is there under the id for the caller, and these make it: a thread, and a wish for a run that may come.
OWN = {"POST /v1/threads/{thread_id}/runs", "POST /v1/runs/{run_id}/cancel"}


def asked(route, names, ids):
    """(method, path, options) of a request that is good but for its caller."""
    method, path = route.split(" ")
    path = path.format(**{name: filled("/" + value, names)[1:] for name, value in {**IDS, **ids}.items()})
    if path.endswith("/events"):
        path += "?after=0"
    row = ROWS.get(route)
    body = filled(row.body, names) if row else ({"query": "words"} if route in SEARCHES else None)
    headers = {"idempotency-key": "k"} if route == "POST /v1/runs/cancel" else {}
    return method, path, {"headers": headers, **({} if body is None else {"json": body})}


async def send(http, route, names, ids=EMPTY):
    """Status and problem; of a stream, whose end nobody waits for, no more than the status."""
    method, path, options = asked(route, names, ids)
    async with http.request(method, path, **options) as response:
        if response.status == 204 or "event-stream" in response.headers.get("content-type", ""):
            return response.status, {}
        return response.status, await response.json(content_type=None)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_gateway_asks_for_the_scopes_of_each_route_before_anything_else(front):
    assert set(await native_routes(front.url)) - HIDDEN == set(NEEDED)
    key, found = await front.issue(scopes=()), {}
    before = len(front.log.seen)
    async with aiohttp.ClientSession(front.url, headers={"x-api-key": key}) as http:
        for route, needed in NEEDED.items():
            if not needed or route in ORCHESTRATOR_ASKS:
                continue
            method, path = route.split(" ")
            async with http.request(method, re.sub("[{][a-z_]+[}]", "x", path)) as response:
                told = await response.json()
            if (response.status, told.get("missing_scopes")) != (403, ", ".join(sorted(needed))):
                found[route] = (response.status, told)
    assert found == {}
    assert len(front.log.seen) == before


@pytest.fixture
async def set_up(identities, behind, state_url, milvus_uri, tmp_path):
    """The gateway, and what acme's ana has, each with its name."""
    async with whole_gateway(identities, behind, state_url, milvus_uri, tmp_path) as whole, receiver() as hooked:
        ana = await whole.people.session()
        names = await prepared(whole, ana, hooked)
        names["erasure"] = (await answered(ana.post("/v1/erasures", json={"user": "gone"}), 202))["erasure_id"]
        yield whole, ana, names


@pytest.mark.system
async def test_every_route_refuses_whoever_lacks_a_scope_and_nobody_who_has_them(set_up):
    whole, _, names = set_up
    without = {scope: await whole.people.session("eve", tuple(s for s in SCOPES if s != scope)) for scope in SCOPES}
    nothing = await whole.people.session("eve", ())
    found = {}
    for route, needed in NEEDED.items():
        if needed:
            status, told = await send(nothing, route, names)
            if status != 403:
                found[route, "nothing"] = (status, told)
        for scope in SCOPES:
            status, told = await send(without[scope], route, names)
            refused = status == 403 and told.get("reason") in ("SCOPE_MISSING", "PERMISSION_DENIED")
            if refused != (scope in needed):
                found[route, scope] = (status, told.get("reason"), told.get("missing_scopes"))
        exactly = await whole.people.session("ana", needed)
        status, told = await send(exactly, route, names)
        if status in (401, 403) or status >= 500:
            found[route, "exactly"] = (status, told.get("reason"), told.get("missing_scopes"))
    assert not found, "\n".join(f"{about}: {told}" for about, told in found.items())


# What starts runs and shows what comes of them takes both scopes before it starts any.
SHOWING = [
    ("/v1/threads/fresh/runs", {"json": {"input": "say hi", "agent": "quick", "stream": True}}),
    ("/v1/threads/fresh/runs", {"json": {"input": "say hi", "agent": "quick"}, "headers": {"accept": "text/event-stream"}}),
    ("/v1/threads/fresh/runs", {"json": {"input": "say hi", "agent": "quick"}, "headers": {"prefer": "wait=5"}}),
    ("/v1/agents/quick/chat", {"json": {"user_input": "say hi", "session_id": "fresh"}}),
    ("/v1/chat/completions", {"json": {"model": "quick", "messages": [{"role": "user", "content": "say hi"}]}}),
    ("/v1/runs/done/cancel?wait=true", {}),
    ("/v1/runs/done/stop?wait=true", {}),
]


@pytest.mark.system
async def test_whoever_may_not_see_what_comes_of_a_run_has_started_none(set_up):
    whole, ana, _ = set_up
    before = await answered(ana.get("/v1/runs"), 200)
    writer = await whole.people.session("ana", ("runs:write",))
    for path, options in SHOWING:
        async with writer.post(path, **options) as response:
            assert (path, response.status) == (path, 403)
    await answered(ana.get("/v1/threads/fresh"), 404)
    assert await answered(ana.get("/v1/runs"), 200) == before


async def kept(ana, names):
    """All that ana sees of what is hers."""
    seen = {}
    for route in sorted(NEEDED):
        if route.startswith("GET") and not route.endswith(("/events", "/quota", "/snapshot")):
            seen[route] = await send(ana, route, names)
    return seen


@pytest.mark.system
@pytest.mark.parametrize("who", [{"tenant": "globex"}, {"user": "eve"}])
async def test_the_ids_of_others_lead_nowhere_on_any_route(set_up, who):
    whole, ana, names = set_up
    await hold(whole, names)
    other = await whole.people.session(**{"user": "ana", "scopes": ("*",), **who})
    before = await kept(ana, names)
    found = {}
    for route in NEEDED:
        path = route.partition(" ")[2]
        if "{" not in path.replace("{agent}", "") or (whole_tenant(path) and "user" in who):
            continue
        for ids in ({}, {"run_id": "{held}"}, {"run_id": "{planned}"}) if "{run_id}" in path else ({},):
            status, told = await send(other, route, names, ids)
            # A thread or run of the name is the tenant's own; a user of the tenant is told that it is not there. Of approvals, which
            # users of a tenant decide for each other, that it is none of theirs.
            fine = 202 if route in OWN and "tenant" in who else 204 if route in HARMLESS else 404
            if status != fine and not ("user" in who and told.get("reason") == "NOT_AN_APPROVER"):
                found[route, str(ids)] = (status, told)
    feedback = await send(other, "POST /v1/feedback", names)
    if feedback[0] != 404:
        found["feedback"] = feedback
    assert not found, "\n".join(f"{about}: {told}" for about, told in found.items())
    assert await kept(ana, names) == before


def whole_tenant(path):
    return path.startswith(SHARED)
