"""Idempotency-Key on every native route that changes something: the same key and body are the same answer, another body is refused."""

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from services.common import testing
from services.common.errors import Overloaded
from services.common.idempotency import IdempotencyStore
from services.common.valkey import connect
from services.gateway import fakes
from services.gateway.edge import keyed
from services.orchestrator.testing.fakes import obedient
from services.orchestrator.testing.harness import shown_text
from services.orchestrator.testing.receivers import receiver
from tests.integration.real_gateway import answered
from tests.integration.test_orchestrator_plans import planned
from tests.integration.whole_gateway import MUTATING, native_routes, whole_gateway

# These answer a POST and change nothing.
SEARCHES = {"POST /v1/documents/search", "POST /v1/memories/search"}
HOURLY = {"timing": {"interval_ms": 3_600_000}, "input": "hi", "agent": "quick"}
STEPS = [{"title": "look", "status": "done"}, {"title": "tell", "status": "pending"}]
MISMATCH, IN_FLIGHT = "IDEMPOTENCY_MISMATCH", "IDEMPOTENCY_IN_FLIGHT"


@dataclass(frozen=True)
class Row:
    """What is sent to a route; `other` is another body under the same key, `{}` in a path is filled from what was prepared, and `same`
    names the members that the second answer has as the first had them. `elsewhere` is another path under the key, where there is no body
    that could differ."""

    body: Any = None
    other: Any = None
    path: str = ""
    elsewhere: str = ""
    same: tuple[str, ...] = ()


# In the order in which they are sent: what needs a model that is held comes last.
ROWS: Mapping[str, Row] = {
    "POST /v1/threads": Row({"metadata": {"n": "1"}}, {"metadata": {"n": "2"}}, same=("thread_id", "created_at", "metadata")),
    "POST /v1/threads/{thread_id}/runs": Row(
        {"input": "say hi", "agent": "quick"}, {"input": "say ho", "agent": "quick"}, "/v1/threads/t-runs/runs", same=("run_id",)
    ),
    "POST /v1/threads/{thread_id}/fork": Row({}, {"metadata": {"n": "2"}}, "/v1/threads/mine/fork", same=("thread.thread_id",)),
    "POST /v1/threads/{thread_id}/rollback": Row(
        {"to": {"run_id": "back"}}, {"to": {"beginning": True}}, "/v1/threads/back/rollback", same=("seq",)
    ),
    "POST /v1/agents/{agent}/chat": Row(
        {"user_input": "say hi"}, {"user_input": "say ho"}, "/v1/agents/quick/chat", same=("run_id", "session_id", "result")
    ),
    "POST /v1/feedback": Row({"run_id": "done", "rating": 4}, {"run_id": "done", "rating": 1}, same=("feedback_id", "seq")),
    "POST /v1/schedules": Row(HOURLY, {**HOURLY, "input": "ho"}, same=("schedule_id",)),
    "PATCH /v1/schedules/{schedule_id}": Row({"name": "a"}, {"name": "b"}, "/v1/schedules/{schedule}", same=("version", "name")),
    "POST /v1/schedules/{schedule_id}/pause": Row(
        path="/v1/schedules/{schedule}/pause", elsewhere="/v1/schedules/{spare}/pause", same=("version", "state")
    ),
    "POST /v1/schedules/{schedule_id}/resume": Row(
        path="/v1/schedules/{schedule}/resume", elsewhere="/v1/schedules/{spare}/resume", same=("version", "state")
    ),
    "DELETE /v1/schedules/{schedule_id}": Row(path="/v1/schedules/{schedule}", elsewhere="/v1/schedules/{spare}"),
    "POST /v1/webhooks": Row(
        {"url": "{hook}", "event_types": ["run.finished"]}, {"url": "{hook}", "event_types": ["run.failed"]},
        same=("webhook_id", "secret"),
    ),
    "POST /v1/webhooks/{webhook_id}/rotate": Row({}, {"overlap_ms": 60_000}, "/v1/webhooks/{webhook}/rotate", same=("secret",)),
    "POST /v1/deliveries/{delivery_id}/redeliver": Row(
        path="/v1/deliveries/{delivery}/redeliver", elsewhere="/v1/deliveries/{later}/redeliver", same=("delivery_id",)
    ),
    "DELETE /v1/webhooks/{webhook_id}": Row(path="/v1/webhooks/{webhook}", elsewhere="/v1/webhooks/wh_none"),
    "POST /v1/hooks": Row({"agent": "quick"}, {"agent": "quick", "description": "other"}, same=("hook_id", "secret")),
    "POST /v1/hooks/{hook}/secret": Row({}, {"overlap_ms": 60_000}, "/v1/hooks/{inbound}/secret", same=("secret",)),
    "DELETE /v1/hooks/{hook}": Row(path="/v1/hooks/{inbound}", elsewhere="/v1/hooks/hk_none"),
    "POST /v1/memories": Row({"text": "likes tea"}, {"text": "likes rain"}, same=("memory_id",)),
    "DELETE /v1/memories/{memory_id}": Row(path="/v1/memories/{memory}", elsewhere="/v1/memories/mem_none"),
    "POST /v1/documents": Row(
        {"title": "T", "text": "some words"}, {"title": "T", "text": "other words"}, same=("document_id", "version")
    ),
    "DELETE /v1/documents/{document_id}": Row(path="/v1/documents/{document}", elsewhere="/v1/documents/none"),
    "POST /v1/approvals/{approval_id}/decision": Row(
        {"verb": "reject", "reason": "no"}, {"verb": "reject", "reason": "never"}, "/v1/approvals/{approval}/decision",
        same=("approval_id", "state"),
    ),
    "POST /v1/runs/cancel": Row({"filter": {"thread_id": "mine"}}, {"filter": {"thread_id": "back"}}, same=("matched_count", "done")),
    "PUT /v1/runs/{run_id}/plan": Row(
        {"version": 1, "steps": STEPS}, {"version": 1, "steps": STEPS[:1]}, "/v1/runs/{planned}/plan", same=("number",)
    ),
    "POST /v1/runs/{run_id}/tool-calls/{call_id}/cancel": Row(
        {"continuation": "substitute", "result": 1}, {"continuation": "skip"}, "/v1/runs/{planned}/tool-calls/c1/cancel", same=("number",)
    ),
    "POST /v1/runs/{run_id}/steer": Row({"text": "say so"}, {"text": "say no"}, "/v1/runs/{held}/steer", same=("number",)),
    # There is nothing to be said about a stop, and keys of commands are those of their run.
    "POST /v1/runs/{run_id}/stop": Row({}, path="/v1/runs/{held}/stop", same=("number",)),
    "POST /v1/runs/{run_id}/cancel": Row({"reason": "a"}, {"reason": "b"}, "/v1/runs/{held}/cancel", same=("run_id",)),
    # A secret is told once: who asks again has the key, and null for it.
    "POST /v1/keys": Row({"scopes": ["keys:write"], "name": "a"}, {"scopes": ["keys:write"], "name": "b"}, same=("key_id", "hint")),
    "PATCH /v1/keys/{key_id}": Row({"name": "c"}, {"name": "d"}, "/v1/keys/{key}", same=("name", "key_id")),
    "POST /v1/keys/{key_id}/rotate": Row({}, {"overlap_ms": 60_000}, "/v1/keys/{key}/rotate", same=("key_id", "hint")),
    "DELETE /v1/keys/{key_id}": Row(path="/v1/keys/{key}", elsewhere="/v1/keys/key_none"),
    # Whatever is sent is a content: here one of JSON.
    "POST /v1/blobs": Row({"n": 1}, {"n": 2}, "/v1/blobs?name=n.json", same=("blob_id", "sha256", "created_at")),
    "POST /v1/blobs/{blob_id}/links": Row({"lifetime_s": 60}, {"lifetime_s": 90}, "/v1/blobs/{blob}/links"),
    "DELETE /v1/blobs/{blob_id}": Row(path="/v1/blobs/{blob}", elsewhere="/v1/blobs/blob_none"),
    "POST /v1/erasures": Row({"user": "zoe"}, {"user": "yan"}, same=("erasure_id",)),
    "DELETE /v1/threads/{thread_id}": Row(path="/v1/threads/back", elsewhere="/v1/threads/mine"),
}  # fmt: skip

# Of these two at once would make two.
MAKING = {
    "POST /v1/threads", "POST /v1/threads/{thread_id}/runs", "POST /v1/threads/{thread_id}/fork", "POST /v1/agents/{agent}/chat",
    "POST /v1/feedback", "POST /v1/schedules", "POST /v1/webhooks", "POST /v1/memories", "POST /v1/documents", "POST /v1/erasures",
    "POST /v1/runs/{run_id}/steer", "POST /v1/hooks", "POST /v1/keys", "POST /v1/keys/{key_id}/rotate", "POST /v1/blobs",
}  # fmt: skip


@pytest.fixture
async def whole(identities, behind, state_url, milvus_uri, tmp_path):
    async with whole_gateway(identities, behind, state_url, milvus_uri, tmp_path) as made:
        yield made


async def prepared(whole, ana, hooked):
    """Names of what the rows are about."""
    client, names = whole.client, {"hook": hooked.url()}
    made = await answered(ana.post("/v1/webhooks", json={"url": hooked.url(), "event_types": ["run.finished"]}), 201)
    names["webhook"] = made["webhook_id"]
    names["inbound"] = (await answered(ana.post("/v1/hooks", json={"agent": "quick"}), 201))["hook_id"]
    for name, run_id in (("mine", "done"), ("back", "back")):
        await client.wait((await client.start("say hi", thread_id=name, run_id=run_id)).run_id)
    for name in ("schedule", "spare"):
        names[name] = (await answered(ana.post("/v1/schedules", json=HOURLY), 201))["schedule_id"]
    names["memory"] = (await answered(ana.post("/v1/memories", json={"text": "sails a boat"}), 201))["memory_id"]
    names["document"] = (await answered(ana.post("/v1/documents", json={"title": "D", "text": "to be gone"}), 201))["document_id"]
    names["key"] = (await answered(ana.post("/v1/keys", json={"scopes": ["keys:write"]}), 201))["key_id"]
    names["blob"] = (await answered(ana.post("/v1/blobs", json={"n": 0}), 201))["blob_id"]
    asking = await client.start('tool send_mail {"to":"ana"}', agent="careful", thread_id="asking", run_id="asking")
    (question,) = await testing.eventually_async(lambda: client.asked(asking.run_id), "it asks")
    names["approval"] = question.approval_id

    async def delivered():
        found = await answered(ana.get(f"/v1/webhooks/{names['webhook']}/deliveries"), 200)
        ended = [one["delivery_id"] for one in found["data"] if one["status"] != "pending"]
        return ended if len(ended) > 1 else None

    names["delivery"], names["later"] = (await testing.eventually_async(delivered, "two were delivered"))[:2]
    return names


async def hold(whole, names):
    """A run that has a plan and a tool call at work, and one whose model is held midway."""
    names["planned"] = (await planned(whole.client, whole.behind))[0].run_id
    whole.behind.models.reply = obedient
    whole.behind.models.gate.close()
    run = await whole.client.start("say one two three four", thread_id="held")
    names["held"] = run.run_id

    async def shown():
        return shown_text(await whole.client.log(run.run_id)) == "one two"

    await testing.eventually_async(shown, "two words are shown")


def filled(value, names):
    if isinstance(value, dict):
        return {name: filled(inner, names) for name, inner in value.items()}
    return value.format(**names) if isinstance(value, str) and value.startswith(("{", "/")) else value


def member(answer, path):
    for name in path.split("."):
        answer = answer[name]
    return answer


async def send(http, route, path, body, key):
    options = {} if body is None else {"json": body}
    async with http.request(route.partition(" ")[0], path, headers={"idempotency-key": key}, **options) as response:
        return response.status, await response.json(content_type=None) if response.status != 204 else {}


async def broken(http, route, row, names):
    """What the route does otherwise than contracts.md says; '' where nothing."""
    path = filled(row.path or route.partition(" ")[2], names)
    body, key = filled(row.body, names), f"key of {route}"
    status, first = await send(http, route, path, body, key)
    if status >= 300:
        return f"the first: {status} {first.get('detail')}"
    status, again = await send(http, route, path, body, key)
    if status >= 300:
        return f"the same again: {status} {again.get('detail')}"
    if changed := [name for name in row.same if member(first, name) != member(again, name)]:
        return f"the same again has another {changed}: {again}"
    if row.other is not None or row.elsewhere:
        status, other = await send(http, route, filled(row.elsewhere, names) or path, filled(row.other, names), key)
        if (status, other.get("reason")) != (422, MISMATCH):
            return f"another body: {status} {other.get('detail')}"
    return ""


async def raced(http, route, row, names):
    """What is wrong with the answers to the same request sent four times at once; '' where nothing."""
    path, body = filled(row.path or route.partition(" ")[2], names), filled(row.body, names)
    found = await asyncio.gather(*(send(http, route, path, body, f"race of {route}") for _ in range(4)))
    if odd := [told for status, told in found if status >= 300 and (status, told.get("reason")) != (409, IN_FLIGHT)]:
        return f"of four at once: {odd}"
    if len(made := {str([member(told, name) for name in row.same]) for status, told in found if status < 300}) != 1:
        return f"four at once made {made}"
    return ""


@pytest.mark.system
async def test_every_route_that_changes_something_keeps_its_key(whole):
    http = await whole.people.session()
    found = {}
    async with receiver() as hooked:
        names = await prepared(whole, http, hooked)
        for route, row in ROWS.items():
            if "{planned}" in row.path and "held" not in names:
                await hold(whole, names)
            if problem := await broken(http, route, row, names) or (route in MAKING and await raced(http, route, row, names)):
                found[route] = problem
    assert found == {}


# --- keys that the gateway keeps itself ---

MODULE = pytest.mark.asyncio(loop_scope="module")


async def post(http, path, key, body=None, status=None):
    async with http.post(path, json=body, headers={"idempotency-key": key}) as response:
        told = await response.json()
        assert status in (None, response.status), told
        return response.status, told, response.headers


@MODULE
async def test_each_route_that_changes_something_has_its_row(front):
    routes = {route for route in await native_routes(front.url) if route.split(" ")[0].lower() in MUTATING}
    assert routes - SEARCHES == set(ROWS)


@MODULE
async def test_of_many_at_once_one_makes_it_and_the_others_get_the_same_or_wait(ana, front):
    body = {"metadata": {"n": "once"}}
    found = await asyncio.gather(*(post(ana, "/v1/threads", "at-once", body) for _ in range(8)))
    assert {status for status, _, _ in found} <= {201, 409}
    made = {told["thread_id"] for status, told, _ in found if status == 201}
    assert len(made) == 1
    for status, told, headers in found:
        if status == 409:
            assert (told["reason"], 1 <= int(headers["retry-after"]) <= keyed.LEASE_S) == (IN_FLIGHT, True)
    _, again, headers = await post(ana, "/v1/threads", "at-once", body, 201)
    assert ({again["thread_id"]}, headers["idempotent-replayed"]) == (made, "true")


@MODULE
async def test_after_a_death_between_the_work_and_its_record_the_same_is_answered(ana, front, monkeypatch):
    finish, deaths = IdempotencyStore.finish, [Overloaded("the process is gone")]

    async def dying(self, *args, **options):
        if deaths:
            raise deaths.pop()
        return await finish(self, *args, **options)

    monkeypatch.setattr(IdempotencyStore, "finish", dying)
    monkeypatch.setattr(keyed, "LEASE_S", 1.0)
    before = set(front.log.threads)
    await post(ana, "/v1/threads", "dead", {"metadata": {"n": "1"}}, 503)
    status, told, _ = await post(ana, "/v1/threads", "dead", {"metadata": {"n": "1"}})
    assert (status, told["reason"]) == (409, IN_FLIGHT)
    await post(ana, "/v1/threads", "dead", {"metadata": {"n": "2"}}, 422)

    async def made():
        status, told, _ = await post(ana, "/v1/threads", "dead", {"metadata": {"n": "1"}})
        return told["thread_id"] if status == 201 else None

    found = await testing.eventually_async(made, "the lease of the dead has ended")
    assert {thread for _, thread in set(front.log.threads) - before} == {found}


@MODULE
async def test_a_request_that_is_repeated_late_does_not_undo_what_came_after_it(ana, front):
    schedule = (await answered(ana.post("/v1/schedules", json=HOURLY), 201))["schedule_id"]
    path = f"/v1/schedules/{schedule}"
    await post(ana, f"{path}/pause", "p", status=200)
    await post(ana, f"{path}/resume", "r", status=200)
    _, told, headers = await post(ana, f"{path}/pause", "p", status=200)
    assert (told["state"], headers["idempotent-replayed"]) == ("active", "true")
    assert (await answered(ana.get(path), 200))["state"] == "active"
    # Whoever may not look at it is told so, and it is not done again either.
    writer = {"authorization": f"Bearer {await front.issue(scopes=('schedules:write', 'runs:write'))}", "idempotency-key": "p"}
    refused = await answered(ana.post(f"{path}/pause", headers=writer), 403)
    assert refused["missing_scopes"] == "schedules:read"
    assert (await answered(ana.get(path), 200))["state"] == "active"


@MODULE
async def test_what_was_refused_has_used_no_key(ana, front):
    schedule = (await answered(ana.post("/v1/schedules", json=HOURLY), 201))["schedule_id"]
    await post(ana, "/v1/schedules/sched_none/pause", "free", status=404)
    await post(ana, f"/v1/schedules/{schedule}/pause", "free", status=200)


@MODULE
async def test_the_same_key_of_others_is_another_key(ana, front):
    body = {"metadata": {"n": "mine"}}
    _, mine, _ = await post(ana, "/v1/threads", "shared", body, 201)
    for who in ({"user": "bo"}, {"tenant": "globex"}):
        headers = {"authorization": f"Bearer {await front.issue(**who)}", "idempotency-key": "shared"}
        theirs = await answered(ana.post("/v1/threads", json={"metadata": {"n": "theirs"}}, headers=headers), 201)
        assert theirs["thread_id"] != mine["thread_id"]


@MODULE
async def test_a_body_is_the_same_however_its_json_is_written(ana, front):
    key = {"idempotency-key": "spaced", "content-type": "application/json"}
    texts = (b'{"metadata":{"a":"1","b":"2"}}', b'{ "metadata" : {"b": "2", "a": "\\u0031"} }')
    made = {(await answered(ana.post("/v1/threads", data=text, headers=key), 201))["thread_id"] for text in texts}
    assert len(made) == 1


@MODULE
async def test_a_record_holds_nothing_of_what_was_asked_or_answered(ana, front, _state_server):
    await post(ana, "/v1/threads", "discreet", {"metadata": {"n": "plainquest"}}, 201)
    client = connect(_state_server)
    records = [await client.hgetall(name) async for name in client.scan_iter("idem:{acme}:POST /v1/threads*")]
    await client.aclose()
    assert b"201" in {record[b"answer"] for record in records}
    assert b"plainquest" not in b"".join(value for record in records for value in record.values())


@pytest.mark.system
async def test_a_gateway_that_is_killed_after_the_work_leaves_it_to_another_one(identities, state_url, tmp_path, monkeypatch):
    made, create = asyncio.Event(), fakes.FakeOrchestrator.CreateThread

    async def unheard(self, request, context):
        answer = await create(self, request, context)
        if not made.is_set():
            made.set()
            await asyncio.Event().wait()
        return answer

    monkeypatch.setattr(fakes.FakeOrchestrator, "CreateThread", unheard)
    async with fakes.gateway(identities, state_url) as served:
        port = testing.free_port()
        env = {
            "BULKHEAD_ENV": "test", "BULKHEAD_HTTP_PORT": str(port), "BULKHEAD_METRICS_PORT": "0", "BULKHEAD_STATE_URL": state_url,
            "BULKHEAD_ADDRESS_FILE": str(served.settings.address_file), "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file),
            "BULKHEAD_IDENTITY_SIGNING_KEY_FILE": str(identities.signing_key("gateway")),
        }  # fmt: skip
        process = testing.Process(testing.python("-m", "services.gateway"), env=env, log=tmp_path / "gateway.log")
        async with aiohttp.ClientSession(headers=served.headers()) as http:
            try:
                await asyncio.to_thread(testing.wait_for_port, port, process)
                asking = asyncio.create_task(post(http, f"http://127.0.0.1:{port}/v1/threads", "killed", {"metadata": {"n": "1"}}))
                await asyncio.wait_for(made.wait(), testing.PATIENCE_S)
                process.signal(signal.SIGKILL)
                with pytest.raises(aiohttp.ClientError):
                    await asking
            finally:
                process.stop()

            async def answered_by_another():
                status, told, _ = await post(http, f"{served.url}/v1/threads", "killed", {"metadata": {"n": "1"}})
                assert status == 201 or told["reason"] == IN_FLIGHT, told
                return told.get("thread_id")

            found = await testing.eventually_async(answered_by_another, "the lease of the killed has ended")
        assert {thread for _, thread in served.log.threads} == {found}
