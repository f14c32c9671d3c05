"""What callers get from the orchestrator's RPCs: accepting, reading, listing, refusing."""

import asyncio
import base64

import orjson
import pytest
import yaml
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from services.common import testing
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound, PermissionDenied, QuotaExceeded
from services.orchestrator.testing.harness import AGENTS, Client, served, settings_for, write_config

OK, QUEUED = pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_QUEUED


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "config")


@pytest.fixture
def settings(identities, behind, state_url, config):
    return settings_for(identities, behind, state_url, config, watch_heartbeat_s=0.2)


@pytest.fixture
async def client(identities, settings):
    async with served(settings, identities) as client:
        yield client


def as_user(client, **fields):
    """The same replica, another caller."""
    other = Client.__new__(Client)
    other.__dict__.update(client.__dict__)
    other.principal = testing.principal_of(**fields)
    return other


def request(**fields):
    fields.setdefault("input", [pb.InputMessage(role="user", text="say hi")])
    fields.setdefault("agent", "quick")
    return pb.CreateRunRequest(**fields)


async def test_the_same_key_and_body_is_the_same_run(client, behind):
    with client.calling():
        first = await client.runs.CreateRun(request(idempotency_key="k"))
        again = await client.runs.CreateRun(request(idempotency_key="k"))
        assert (first.created, again.created) == (True, False)
        assert (again.run.run_id, again.run.thread_id) == (first.run.run_id, first.run.thread_id)
        with pytest.raises(IdempotencyMismatch):
            await client.runs.CreateRun(request(idempotency_key="k", thread_id="other"))
    other = as_user(client, tenant="globex")
    with other.calling():
        foreign = await other.runs.CreateRun(request(idempotency_key="k"))
        assert foreign.created
    await client.wait(first.run.run_id)
    await other.wait(foreign.run.run_id)
    assert len(behind.models.calls) == 2


async def test_concurrent_accepts_with_one_key_make_one_run(client):
    with client.calling():
        answers = await asyncio.gather(*(client.runs.CreateRun(request(idempotency_key="k", thread_id="t")) for _ in range(10)))
    assert len({a.run.run_id for a in answers}) == 1
    assert sum(a.created for a in answers) == 1


async def test_a_run_id_is_taken_once(client):
    await client.start("say hi", run_id="mine")
    with client.calling(), pytest.raises(Conflict) as caught:
        await client.runs.CreateRun(request(run_id="mine"))
    assert caught.value.reason == "RUN_EXISTS"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"thread_id": "a/b"}, "thread_id"),
        ({"thread_id": "x" * 129}, "thread_id"),
        ({"run_id": "a b"}, "run_id"),
        ({"input": []}, "input"),
        ({"input": [pb.InputMessage(role="assistant", text="x")]}, "input"),
        ({"input": [pb.InputMessage(role="user", text="  ")]}, "input"),
        ({"input": [pb.InputMessage(role="poet", text="x"), pb.InputMessage(role="user", text="x")]}, "input[0].role"),
        ({"input": [pb.InputMessage(role="user", text="x" * 600_000)]}, "input"),
        ({"temperature": 3.0}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"limits": pb.RunLimits(max_steps=-1)}, "limits.max_steps"),
        ({"limits": pb.RunLimits(max_tool_calls=-1)}, "limits.max_tool_calls"),
        ({"limits": pb.RunLimits(max_cost_microusd=-1)}, "limits.max_cost_microusd"),
        ({"limits": pb.RunLimits(max_total_tokens=-1)}, "limits.max_total_tokens"),
        ({"limits": pb.RunLimits(max_steps=0)}, "limits.max_steps"),
        ({"limits": pb.RunLimits(max_tool_calls=0)}, "limits.max_tool_calls"),
        ({"limits": pb.RunLimits(max_cost_microusd=0)}, "limits.max_cost_microusd"),
        ({"limits": pb.RunLimits(max_total_tokens=0)}, "limits.max_total_tokens"),
        ({"limits": pb.RunLimits(deadline=Duration())}, "limits.deadline"),
        ({"limits": pb.RunLimits(deadline=Duration(seconds=-1))}, "limits.deadline"),
        ({"idempotency_key": "k" * 300}, "idempotency_key"),
        ({"metadata": {"a": "x" * 600}}, "metadata"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
    ],
)
async def test_a_wrong_request_names_the_field(client, fields, field):
    with client.calling(), pytest.raises(InvalidInput) as caught:
        await client.runs.CreateRun(request(**fields))
    assert [v.field for v in caught.value.violations] == [field]
    with client.calling():
        assert not (await client.runs.ListRuns(pb.ListRunsRequest())).runs
        assert not (await client.threads.ListThreads(pb.ListThreadsRequest())).threads


async def test_several_violations_come_at_once(client):
    with client.calling(), pytest.raises(InvalidInput) as caught:
        await client.runs.CreateRun(request(thread_id="/", run_id="/", temperature=-1.0))
    assert {v.field for v in caught.value.violations} == {"thread_id", "run_id", "temperature"}


async def test_unknown_agents_and_scopes(client):
    with client.calling(), pytest.raises(NotFound) as caught:
        await client.runs.CreateRun(request(agent="nobody"))
    assert caught.value.reason == "AGENT_NOT_FOUND"
    weak = as_user(client, scopes=["runs:read"])
    with weak.calling():
        with pytest.raises(PermissionDenied):
            await weak.runs.CreateRun(request())
        with pytest.raises(PermissionDenied):
            await weak.threads.ListThreads(pb.ListThreadsRequest())


async def test_others_see_nothing(client):
    run = await client.start("say hi", thread_id="t")
    await client.wait(run.run_id)
    for other in (as_user(client, tenant="globex"), as_user(client, user="bob")):
        with other.calling():
            for call in (
                other.runs.GetRun(pb.GetRunRequest(run_id=run.run_id)),
                other.runs.WaitRun(pb.WaitRunRequest(run_id=run.run_id)),
                other.threads.GetThread(pb.GetThreadRequest(thread_id="t")),
                other.runs.ListRuns(pb.ListRunsRequest(thread_id="t")),
                anext(other.runs.StreamEvents(pb.StreamEventsRequest(run_id=run.run_id))),
                anext(other.runs.StreamEvents(pb.StreamEventsRequest(thread_id="t"))),
            ):
                with pytest.raises(NotFound):
                    await call
            assert not (await other.threads.ListThreads(pb.ListThreadsRequest())).threads
            assert not (await other.runs.ListRuns(pb.ListRunsRequest())).runs
    same_tenant = as_user(client, user="bob")
    with same_tenant.calling(), pytest.raises(NotFound):
        await same_tenant.runs.CreateRun(request(thread_id="t"))
    with same_tenant.calling(), pytest.raises(NotFound):
        await same_tenant.runs.CancelRun(pb.CancelRunRequest(run_id=run.run_id))
    # Another tenant may use the same names without meeting.
    namesake = as_user(client, tenant="globex")
    other_run = await namesake.start("say ho", thread_id="t", run_id=run.run_id)
    assert (await namesake.wait(other_run.run_id)).output_text == "ho"
    assert (await client.get(run.run_id)).output_text == "hi"


async def test_concurrent_runs_are_bounded_by_the_tier(identities, behind, state_url, config):
    settings = settings_for(identities, behind, state_url, config, policy_set="prod")
    async with served(settings, identities, testing.principal_of(tier="free")) as client:
        behind.models.gate.close()
        first = await client.start("say one two three")
        await client.start("say one two three")
        with pytest.raises(QuotaExceeded) as caught:
            await client.start("say one two three")
        assert caught.value.metadata["policy"] == "concurrent_runs"
        assert caught.value.retry_after_s is not None
        other = as_user(client, tenant="globex", tier="free")
        await other.start("say one two three")
        behind.models.gate.open()
        await client.wait(first.run_id)

        async def accepted():
            try:
                return await client.start("say hi")
            except QuotaExceeded:
                return None

        await testing.eventually_async(accepted, "the slot is free again")


async def test_of_the_limits_of_run_agent_and_tier_the_smallest_holds(client, valkey):
    limits = pb.RunLimits(max_steps=1000, max_tool_calls=3)
    limits.deadline.FromSeconds(10_000)
    run = await client.start("say hi", agent="helper", thread_id="t", limits=limits)
    spec = orjson.loads(await valkey.hget(f"t:{{acme/t}}:run:{run.run_id}", "spec"))
    assert spec["limits"] == [300.0, 10, 3, 0]
    plain = await client.start("say hi", agent="helper", thread_id="t")
    spec = orjson.loads(await valkey.hget(f"t:{{acme/t}}:run:{plain.run_id}", "spec"))
    assert spec["limits"] == [300.0, 10, 10, 0]


async def test_lists_are_newest_first_and_page_through_everything(client):
    runs = [(await client.start(f"say {i}", thread_id="t")).run_id for i in range(5)]
    others = [(await client.start("say x")).run_id for _ in range(2)]
    for run_id in (*runs, *others):
        await client.wait(run_id)

    async def pages(call, request, field):
        found = []
        while True:
            with client.calling():
                answer = await call(request)
            page = list(getattr(answer, field))
            assert len(page) <= 2
            found += page
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    of_thread = await pages(client.runs.ListRuns, pb.ListRunsRequest(thread_id="t", page_size=2), "runs")
    assert [r.run_id for r in of_thread] == runs[::-1]
    of_user = await pages(client.runs.ListRuns, pb.ListRunsRequest(page_size=2), "runs")
    assert [r.run_id for r in of_user] == [*others[::-1], *runs[::-1]]
    # Filtered, a page may be short and not the last.
    done, others_than_done = [pb.RUN_STATUS_SUCCEEDED], [pb.RUN_STATUS_FAILED, pb.RUN_STATUS_RUNNING]
    for asked, expected in (
        ({"statuses": done, "agent": "quick"}, [*others[::-1], *runs[::-1]]), ({"statuses": done, "thread_id": "t"}, runs[::-1]),
        ({"statuses": others_than_done}, []), ({"agent": "helper"}, []),
    ):  # fmt: skip
        found = await pages(client.runs.ListRuns, pb.ListRunsRequest(page_size=2, **asked), "runs")
        assert [r.run_id for r in found] == expected, asked
    with client.calling(), pytest.raises(InvalidInput):
        await client.runs.ListRuns(pb.ListRunsRequest(statuses=[pb.RUN_STATUS_UNSPECIFIED]))
    threads = await pages(client.threads.ListThreads, pb.ListThreadsRequest(page_size=2), "threads")
    assert len(threads) == 3
    assert threads[-1].thread_id == "t"
    for token in ("nonsense", "ÿ", base64.urlsafe_b64encode(b"before:-4").decode()):
        with client.calling(), pytest.raises(InvalidInput):
            await client.runs.ListRuns(pb.ListRunsRequest(page_token=token))
    with client.calling(), pytest.raises(InvalidInput):
        await client.threads.ListThreads(pb.ListThreadsRequest(page_size=1001))


async def test_threads_are_made_once_and_keep_their_labels(client):
    with client.calling():
        made = (await client.threads.CreateThread(pb.CreateThreadRequest(thread_id="t", metadata={"a": "b"}))).thread
        again = (await client.threads.CreateThread(pb.CreateThreadRequest(thread_id="t", metadata={"a": "c"}))).thread
        assert (made, made.metadata["a"]) == (again, "b")
        assert (await client.threads.GetThread(pb.GetThreadRequest(thread_id="t"))).thread == made
        assert (await client.threads.CreateThread(pb.CreateThreadRequest())).thread.thread_id
        with pytest.raises(NotFound):
            await client.threads.GetThread(pb.GetThreadRequest(thread_id="none"))
        with pytest.raises(InvalidInput):
            await client.threads.GetThread(pb.GetThreadRequest(thread_id=""))
    run = await client.start("say hi", thread_id="t")
    await client.wait(run.run_id)
    with client.calling():
        thread = (await client.threads.GetThread(pb.GetThreadRequest(thread_id="t"))).thread
    assert thread.last_seq == (await client.get(run.run_id)).terminal_seq


async def test_agents_are_listed_in_order_with_their_current_version(client):
    with client.calling():
        agents = (await client.agents.ListAgents(pb.ListAgentsRequest())).agents
        configured = yaml.safe_load(AGENTS)["agents"]
        assert [(a.name, a.version) for a in agents] == [(name, agent["current"]) for name, agent in configured.items()]
        assert list((await client.agents.GetAgent(pb.GetAgentRequest(name="helper"))).agent.tools) == ["calculator", "send_mail"]
        first = await client.agents.ListAgents(pb.ListAgentsRequest(page_size=2))
        rest = await client.agents.ListAgents(pb.ListAgentsRequest(page_size=100, page_token=first.next_page_token))
        assert len(first.agents) == 2
        assert [a.name for a in (*first.agents, *rest.agents)] == list(configured)
        with pytest.raises(NotFound):
            await client.agents.GetAgent(pb.GetAgentRequest(name="nobody"))
    # Without a name the first agent serves.
    assert (await client.start("say hi", agent="")).agent == "helper"


async def test_a_run_keeps_the_definition_it_was_accepted_with(client, behind, config):
    behind.models.gate.close()
    first = await client.start("say one two three", thread_id="t")
    waiting = await client.start("say hi", thread_id="t")
    (config / "prompts/helper.md").write_text("You are somebody else.")
    text = (config / "agents.yaml").read_text()
    (config / "agents.yaml").write_text(text.replace("goes-on", "went-on"))

    async def reloaded():
        with client.calling():
            return "went-on" in [a.name for a in (await client.agents.ListAgents(pb.ListAgentsRequest())).agents]

    await testing.eventually_async(reloaded, "the new configuration holds")
    behind.models.gate.open()
    await client.wait(first.run_id)
    await client.wait(waiting.run_id)
    assert behind.models.calls[-1].request.messages[0].text == "You are a helper."
    fresh = await client.start("say hi")
    await client.wait(fresh.run_id)
    assert behind.models.calls[-1].request.messages[0].text == "You are somebody else."
