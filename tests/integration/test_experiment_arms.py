"""The arm of an experiment: declared by an agent version, fixed when a run is accepted, and told wherever the run is."""

import pytest
from bulkhead.orchestrator.v1 import admin_pb2, admin_pb2_grpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from opentelemetry import baggage
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import testing
from services.orchestrator import driving
from services.orchestrator.testing.fakes import obedient
from services.orchestrator.testing.harness import data_of, served, settings_for, write_config
from services.orchestrator.testing.whole_threads import fork

AGENTS = """
agents:
  toned:
    current: "{current}"
    versions:
      "1": {{prompt: helper.md, model: m, tools: [calculator], experiment: {{name: tone, arm: plain}}}}
      "2": {{prompt: helper.md, model: m, tools: [calculator], experiment: {{name: tone, arm: warm}}}}
  bare:
    current: "1"
    versions:
      "1": {{prompt: helper.md, model: m}}
  lead:
    current: "1"
    versions:
      "1":
        {{prompt: helper.md, model: m, strategy: supervisor, agents: [{{name: bare}}, {{name: toned}}],
         experiment: {{name: delegation, arm: two}}}}
"""


@pytest.fixture
def config(tmp_path):
    folder = write_config(tmp_path / "config")
    current(folder, "1")
    return folder


def current(folder, version):
    (folder / "agents.yaml").write_text(AGENTS.format(current=version))


def arm(run):
    return (run.experiment, run.arm)


async def test_a_run_keeps_the_arm_that_it_was_accepted_with(identities, behind, state_url, config, monkeypatch):
    heard, spans = [], InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))

    def reply(request):
        heard.append(dict(baggage.get_all()))
        return obedient(request)

    behind.models.reply = reply
    settings = settings_for(identities, behind, state_url, config, drain_grace_s=0.5)
    behind.models.gate.close()
    async with served(settings, identities) as client:
        run = await client.start("say one two three", agent="toned", thread_id="t")
        assert arm(run) == ("tone", "plain")
        await testing.eventually_async(lambda: behind.models.gate.waiting == 1, "the model is at work")
    # Whoever takes it over finds other arms in the file.
    current(config, "2")
    behind.models.gate.open()
    monkeypatch.setattr(driving, "_tracer", provider.get_tracer("test"))
    async with served(settings, identities) as client:
        ended = await client.wait(run.run_id)
        assert (ended.attempt, *arm(ended)) == (2, "tone", "plain")
        queued = data_of((await client.log(run.run_id))[0])
        assert (queued["experiment"], queued["arm"], queued["agent_version"]) == ("tone", "plain", "1")
        after = await client.wait((await client.start("say x", agent="toned")).run_id)
        assert arm(after) == ("tone", "warm")
        await client.wait((await client.start("say y", agent="bare")).run_id)
        assert arm(await judged(client, settings, run.run_id)) == ("tone", "plain")
    plain, warm = ({"bulkhead.experiment": "tone", "bulkhead.arm": arm} for arm in ("plain", "warm"))
    assert heard == [plain, plain, warm, {}]
    on_spans = [{k: v for k, v in span.attributes.items() if k in plain} for span in spans.get_finished_spans()]
    assert on_spans == [plain, warm, {}]


async def judged(client, settings, run_id):
    with testing.calling(client.identities):
        await client.runs.RecordFeedback(pb.RecordFeedbackRequest(run_id=run_id, rating=5))
    told = [data_of(event) for event in await client.log(thread_id="t") if event.type == "feedback"]
    assert (told[0]["experiment"], told[0]["arm"]) == ("tone", "plain")
    async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}) as dialer:
        stub = admin_pb2_grpc.AdminServiceStub(dialer.channel("orchestrator"))
        with testing.calling(client.identities, testing.principal_of(user="root", scopes=["admin"])):
            return (await stub.ListFeedback(admin_pb2.ListFeedbackRequest())).feedback[0]


async def test_a_run_without_an_experiment_says_nothing_of_one(identities, behind, state_url, config):
    async with served(settings_for(identities, behind, state_url, config), identities) as client:
        run = await client.start("say x", agent="bare")
        assert arm(run) == ("", "")
        assert "arm" not in data_of((await client.log(run.run_id))[0])


async def test_a_child_run_has_its_own_arm_or_that_of_the_run_that_asked(identities, behind, state_url, config):
    async with served(settings_for(identities, behind, state_url, config), identities) as client:
        asks = 'tools\ntool delegate_to_bare {"task": "say a"}\ntool delegate_to_toned {"task": "say b"}'
        run = await client.wait((await client.start(asks, agent="lead")).run_id)
        assert arm(run) == ("delegation", "two")
        children = [data_of(e) for e in await client.log(run.run_id) if e.type == "child_run_started"]
        assert {made["agent"]: arm(await client.get(made["run_id"])) for made in children} == {
            "bare": ("delegation", "two"), "toned": ("tone", "plain"),
        }  # fmt: skip


async def test_a_fork_keeps_the_arms_of_its_runs_and_goes_on_in_that_of_the_version_that_works(identities, behind, state_url, config):
    settings = settings_for(identities, behind, state_url, config)
    async with served(settings, identities) as client:
        run = await client.wait((await client.start('tool calculator {"expression": "1+2"}', agent="toned", thread_id="t")).run_id)
        current(config, "2")

        async def reloaded():
            return (await client.agents.GetAgent(pb.GetAgentRequest(name="toned"))).agent.version == "2"

        with client.calling():
            await testing.eventually_async(reloaded, "the file is read again")
        made = await fork(client, "t", pb.Checkpoint(run_id=run.run_id, step=1), continue_run=True)
        assert arm(await client.get(made.run.run_id)) == ("tone", "warm")
        assert arm(await client.get(run.run_id)) == ("tone", "plain")
