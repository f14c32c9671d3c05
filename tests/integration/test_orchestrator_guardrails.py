"""Guardrails of a real orchestrator: given to it when it is made, told in the log, and kept with the audit record."""

import asyncio
import json

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from services.common import testing
from services.common.audit import AuditStream
from services.common.valkey import connect
from services.orchestrator import app
from services.orchestrator.testing.harness import data_of, served, settings_for, types, write_config
from services.orchestrator.testing.whole_threads import fork
from services.orchestrator.turn.guardrails import ALLOWED, ARGUMENTS, INPUT, OUTPUT, RESULT, Verdict
from services.orchestrator.turn.state import Turn

BAD = "s3cret"


class Strict:
    """Refuses what holds the word, or leaves nothing of it, in the stages that it is told to look at."""

    fails_open = frozenset()
    timeout_s = 5.0

    def __init__(self):
        self.stages, self.action = frozenset(), "refuse"

    async def check(self, what):
        """As Guardrails.check."""
        return Verdict(self.action, "secret", detector="words", version="1", score=1.0) if BAD in what.text else ALLOWED


@pytest.fixture
def strict(monkeypatch):
    made = Strict()
    monkeypatch.setattr(app, "AllowAll", lambda: made)
    return made


@pytest.fixture
async def client(identities, behind, state_url, tmp_path, strict):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), audit_days=30)
    async with served(settings, identities) as client:
        yield client


async def audited(state_url, run_id):
    """The audit record of a run."""
    store = connect(state_url)

    async def found():
        records = [json.loads(entry.record) for entry in await AuditStream(store, app.timedelta(days=1)).read("acme")]
        return next((record for record in records if record["run_id"] == run_id), None)

    try:
        return await testing.eventually_async(found, "the audit record")
    finally:
        await store.aclose()


@pytest.mark.parametrize("stage", [INPUT, OUTPUT])
async def test_a_refused_run_fails_with_a_reason_and_its_record_says_why(client, behind, strict, state_url, stage):
    strict.stages = frozenset({stage})
    run = await client.wait((await client.start(f"say the word is {BAD}")).run_id)
    assert (run.status, run.error.reason, run.output_text) == (pb.RUN_STATUS_FAILED, "GUARD_REFUSED", "")
    events = await client.log(run.run_id)
    assert "message_delta" not in types(events)
    assert len(behind.models.calls) == run.usage.model_calls == (stage == OUTPUT)
    (told,) = (data_of(e) for e in events if e.type == "guard_triggered")
    assert (told["stage"], told["action"], told["detector"], told["score"]) == (stage, "refuse", "words", 1.0)
    record = await audited(state_url, run.run_id)
    assert record["guard_verdicts"] == [
        {"stage": stage, "action": "refuse", "reason": "secret", "detector": "words", "version": "1", "score_milli": 1000, "step": 0}
    ]


async def test_refused_calls_reach_neither_the_executor_nor_another_agent(client, behind, strict, state_url):
    strict.stages = frozenset({ARGUMENTS})
    task = json.dumps({"task": f"say {BAD}"})
    asks = {"quick": 'tool send_mail {"to": "s3cret"}', "lead": f"tool delegate_to_quick {task}"}
    for agent, text in asks.items():
        run = await client.wait((await client.start(text, agent=agent)).run_id)
        assert (run.status, run.usage.tool_calls) == (pb.RUN_STATUS_SUCCEEDED, 0)
        events = await client.log(run.run_id)
        (failed,) = (data_of(e) for e in events if e.type == "tool_call_failed")
        assert failed["error"]["code"] == "guard.secret"
        assert "child_run_started" not in types(events)
    assert behind.tools.calls == {}


async def test_the_end_of_a_cancelled_run_shows_no_result_that_was_not_looked_at(client, behind, strict):
    strict.stages = frozenset({RESULT})
    behind.tools.gate.close()
    run = await client.start(f'tool send_mail {{"to": "{BAD}"}}')
    await testing.eventually_async(lambda: behind.tools.gate.waiting, "the tool is at work")
    (seen,) = behind.tools.calls.values()
    # It ends by itself just before it would be cancelled.
    seen.output, seen.outcome = json.dumps({"sent": BAD}).encode(), 1
    await client.cancel(run.run_id)
    ended = await client.wait(run.run_id)
    assert ended.status == pb.RUN_STATUS_CANCELLED
    assert BAD not in str([data_of(e) for e in await client.log(run.run_id) if e.type.startswith("tool_call_") and "output" in data_of(e)])
    (failed,) = (data_of(e) for e in await client.log(run.run_id) if e.type == "tool_call_failed")
    assert failed["error"]["code"] == "guard.secret"


async def test_a_cancelled_run_ends_so_where_its_time_passes_while_its_results_are_looked_at(client, behind, strict, monkeypatch):
    strict.stages, strict.timeout_s = frozenset({RESULT}), testing.PATIENCE_S
    begun, together = [], asyncio.Event()

    async def fails(what):
        begun.append(what.text)
        if len(begun) == 3:
            together.set()
        await together.wait()
        raise RuntimeError("no detector")

    monkeypatch.setattr(strict, "check", fails)
    monkeypatch.setattr(Turn, "remaining_s", lambda turn: 0.0 if together.is_set() else 60.0)
    behind.tools.gate.close()
    asks = "\n".join(["tools", *(f'tool calculator {{"expression": "{n}+{n}"}}' for n in (1, 2, 3))])
    run = await client.start(asks, limits=pb.RunLimits(deadline=Duration(seconds=60)))
    await testing.eventually_async(lambda: behind.tools.gate.waiting == 3, "the tools are at work")
    for number, seen in enumerate(behind.tools.calls.values()):
        seen.output, seen.outcome = json.dumps({"value": number}).encode(), 1
    await client.cancel(run.run_id)
    ended = await client.wait(run.run_id)
    events = await client.log(run.run_id)
    assert (ended.status, ended.error.reason, events[-1].attempt) == (pb.RUN_STATUS_CANCELLED, "", 1)
    assert "tool_call_completed" not in types(events)
    assert [data_of(e)["error"]["code"] for e in events if e.type == "tool_call_failed"] == ["guard.guard_failed"] * 3


async def test_memory_of_a_fork_has_nothing_that_a_guardrail_took_away(client, behind, strict):
    strict.stages, strict.action = frozenset({INPUT}), "replace"
    asks = f'tool calculator {{"expression": "1+1"}} {BAD}'
    run = await client.wait((await client.start(asks, agent="helper", thread_id="t")).run_id)
    assert run.status == pb.RUN_STATUS_SUCCEEDED
    whole = (await fork(client, "t")).thread.thread_id
    cut = (await fork(client, "t", pb.Checkpoint(run_id=run.run_id, step=1))).thread.thread_id
    for name in (whole, cut):
        assert (await client.wait((await client.start("hi", agent="helper", thread_id=name)).run_id)).status == pb.RUN_STATUS_SUCCEEDED
    await testing.eventually_async(lambda: all(behind.sessions.turns["acme", name] for name in ("t", whole, cut)), "memory has them")
    assert BAD not in str([list(window.values()) for window in behind.sessions.turns.values()])
