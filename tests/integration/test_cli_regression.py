"""`bulkhead replay --as-test` and `bulkhead test` at a gateway over fakes: a thread becomes a test, which passes and fails as it should."""

import asyncio
import json
import signal

import pytest
import yaml
from bulkhead.orchestrator.v1 import approvals_pb2 as pb

from services.common import testing
from services.gateway import fake_scripts
from services.gateway.fake_scripts import SCRIPTS, USAGE
from tests.unit.cli.command_line import command

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def _connected(front, monkeypatch):
    monkeypatch.setenv("BULKHEAD_URL", front.url)
    monkeypatch.setenv("BULKHEAD_API_KEY", front.key)


async def had(ana, thread, *turns):
    """A thread in which agents were asked; its run ids."""
    ids = []
    for agent, said in turns:
        body = {"input": said, "agent": agent}
        async with ana.post(f"/v1/threads/{thread}/runs", json=body, headers={"prefer": "wait=30"}) as answer:
            ids.append((await answer.json())["run_id"])
    return ids


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "a.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return str(path)

    return write


async def test_a_thread_becomes_a_test_that_passes_and_leaves_nothing(ana, front, file):
    await had(ana, "t-weeks", ("assistant", "Hello — ¡dos líneas!\nyes: [no]"), ("tools", "What is 6 * 7?"), ("fail", "UPSTREAM_FAILED"))
    made = (await command("replay", "t-weeks", "--as-test")).out
    test = yaml.safe_load(made)
    assert [turn["input"] for turn in test["turns"]] == ["Hello — ¡dos líneas!\nyes: [no]", "What is 6 * 7?", "UPSTREAM_FAILED"]
    assert test["turns"][1] == {
        "agent": "tools",
        "input": "What is 6 * 7?",
        "expect": {"tools": ["calculator"], "says": ["42"], "cites": ["README.md"]},
        "recorded": "It is 42 [c1].",
    }
    assert test["turns"][2]["expect"] == {"status": "failed", "error": "UPSTREAM_FAILED", "tools": []}
    before = set(front.log.threads)
    told = (await command("test", file(made))).out
    assert told.splitlines()[-1] == "1 of 1 test passed"
    assert told.count("✓") == 3
    assert set(front.log.threads) == before


async def test_what_differs_is_named_and_the_status_says_so(ana, file):
    await had(ana, "t-differs", ("tools", "What is 6 * 7?"))
    path = file((await command("replay", "t-differs", "--as-test")).out)
    other = await command("test", path, "--agent", "assistant", status=1)
    for told in ("it called no tool and must call calculator", "it does not say '42'", "it does not cite README.md", "0 of 1 test passed"):
        assert told in other.out
    (turn,) = (await command("test", path, "--agent", "fail", "--json", status=1)).json()
    assert (turn["passed"], turn["turn"], turn["file"]) == (False, 1, path)
    assert turn["differences"][0].startswith("it failed (What is 6 * 7?) and must have succeeded")


@pytest.mark.parametrize(
    ("expect", "difference"),
    [
        ({"tools": [{"tool": "calculator", "arguments": {"expression": "6*7"}}], "answer": "It is 42 [c1]."}, ""),
        ({"tools": [{"tool": "calculator", "arguments": {"expression": "7*6"}}]}, 'with {"expression": "6*7"} and must with'),
        ({"answer": "It is 42."}, "and must answer 'It is 42.'"),
        ({"uses": ["calculator"], "never": ["wipe"], "says": ["IT  is 42"], "says_not": ["43"]}, ""),
        ({"uses": ["search"]}, "did not call search"),
        ({"never": ["calculator"]}, "which it must never"),
        ({"says_not": ["it is"]}, "which it must not"),
        ({"at_most": {"model_calls": 1, "cost_microusd": 12}}, ""),
        ({"at_most": {"cost_microusd": 11}}, "cost_microusd is 12 and must be at most 11"),
        ({"status": "failed"}, "it succeeded and must have failed"),
    ],
)
async def test_each_thing_that_can_be_expected_is_looked_at(file, expect, difference):
    path = file({"version": 1, "name": "n", "turns": [{"agent": "tools", "input": "What is 6 * 7?", "expect": expect}]})
    done = await command("test", path, status=1 if difference else 0)
    assert (difference in done.out, "✗" in done.out) == (True, bool(difference))


async def test_exact_compares_arguments_and_answers(ana, file):
    await had(ana, "t-exact", ("tools", "What is 6 * 7?"), ("assistant", "Hi"))
    made = yaml.safe_load((await command("replay", "t-exact", "--as-test", "--exact")).out)
    assert made["turns"][0]["expect"]["tools"] == [{"tool": "calculator", "arguments": {"expression": "6*7"}}]
    assert made["turns"][1]["expect"]["answer"] == "You said: Hi"
    await command("test", file(made))
    made["turns"][1]["input"] = "Ho"
    assert "it answered 'You said: Ho' and must answer 'You said: Hi'" in (await command("test", file(made), status=1)).out


async def test_what_is_no_longer_part_of_the_thread_is_left_out_and_said(ana, front, file):
    _, back = await had(ana, "t-left", ("assistant", "one"), ("assistant", "two"))
    front.log.append("acme", "t-left", "", "thread_rolled_back", {"to_seq": 1, "run_ids": [back]})
    async with ana.post("/v1/threads/t-left/runs", json={"input": "three", "agent": "hang"}) as answer:
        hanging = (await answer.json())["run_id"]
    done = await command("replay", "t-left", "--as-test", "--json")
    assert [turn["input"] for turn in done.json()[0]["turns"]] == ["one"]
    assert f"{back}: was rolled back" in done.err
    assert f"{hanging}: has not ended" in done.err
    await command("test", file(done.out))
    await command("runs", "cancel", hanging, "--wait")
    assert f"{hanging}: was cancelled" in (await command("replay", "t-left", "--as-test")).err
    await had(ana, "t-none", ("assistant", "one"))
    front.log.append("acme", "t-none", "", "thread_rolled_back", {"run_ids": [front.log.newest().run.run_id]})
    assert "nothing in it can become a test" in (await command("replay", "t-none", "--as-test", status=1)).err


@pytest.fixture
def asking(front, monkeypatch):
    """An agent that asks whether it may wipe 1, or what the user says; and what was decided about it."""
    decided = []

    async def asks(run):
        """Asks before it wipes."""
        n = int(run.said) if run.said.isdigit() else 1
        approval_id = f"{run.run.run_id}/1/0"
        arguments = {"n": n}
        approval = pb.Approval(
            approval_id=approval_id, kind=pb.APPROVAL_KIND_TOOL_CALL, state=pb.APPROVAL_STATE_OPEN, run_id=run.run.run_id,
            arguments_json=json.dumps(arguments).encode(), arguments_digest="0" * 64, decidable=True,
        )  # fmt: skip
        front.log.desk.raise_approval("acme", approval)
        about = {"interrupt_id": approval_id, "kind": "tool_call", "tool": "wipe", "arguments": arguments, "arguments_digest": "0" * 64}
        yield "interrupt_raised", about, False
        while approval.state == pb.APPROVAL_STATE_OPEN and not run.cancelled.is_set():
            await asyncio.sleep(0.005)
        if run.cancelled.is_set():
            yield "run_cancelled", {"output_text": "", "usage": {}}, False
            return
        verb = approval.decisions[0].verb
        decided.append((n, verb))
        yield "interrupt_resolved", {**about, "outcome": "approved", "verb": verb, "by": "ana", "reason": "fine"}, False
        yield "run_finished", {"output_text": verb, "finish_reason": "stop", "usage": USAGE, "citations": []}, False

    monkeypatch.setitem(SCRIPTS, "asks", asks)
    return decided


async def test_approvals_are_answered_as_recorded_if_that_is_wanted_and_only_for_the_very_same_call(ana, front, asking, file):
    async with ana.post("/v1/threads/t-asks/runs", json={"input": "go", "agent": "asks"}) as answer:
        run_id = (await answer.json())["run_id"]

    async def asked():
        return (await command("approvals", "list", "--run", run_id, "--json")).json()

    (one,) = await testing.eventually_async(asked, "it asks")
    assert (await command("approvals", "approve", one["approval_id"], "--reason", "fine")).out == f"{one['approval_id']}: approved\n"
    await command("runs", "watch", run_id)
    made = yaml.safe_load((await command("replay", "t-asks", "--as-test")).out)
    assert made["turns"][0]["approvals"] == [{"tool": "wipe", "arguments": {"n": 1}, "verb": "approve", "reason": "fine"}]
    refused = await command("test", file(made), status=1)
    assert "`--decide` answers as the test says (approve)" in refused.out
    assert front.log.newest().run.status == fake_scripts.pb.RUN_STATUS_CANCELLED
    assert asking == [(1, "approve")]
    await command("test", file(made), "--decide")
    assert asking == [(1, "approve")] * 2
    made["turns"][0]["input"] = "1000"
    other = await command("test", file(made), "--decide", status=1)
    assert 'an approval that the test does not name: wipe {"n": 1000}' in other.out
    assert asking == [(1, "approve")] * 2


async def test_a_turn_that_takes_too_long_is_cancelled(file, front, monkeypatch):
    path = file({"version": 1, "name": "n", "turns": [{"agent": "hang", "input": "wait"}]})
    assert "did not end within 1 s" in (await command("test", path, "--timeout", "1", status=1)).out
    assert front.log.newest().run.status == fake_scripts.pb.RUN_STATUS_CANCELLED


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("turns: [", "is no YAML"),
        ("", "the file: Input should be"),
        ("[1]", "the file"),
        ("version: 2\nname: n\nturns: [{input: hi}]", "version"),
        ("version: 1\nname: n\nturns: []", "turns"),
        ("version: 1\nname: n\nturns: [{input: 5}]", "turns.0.input"),
        ("version: 1\nname: n\nturns: [{input: hi, expect: {sayz: [a]}}]", "turns.0.expect.sayz"),
        ("version: 1\nname: n\nturns: [{input: hi, expect: {at_most: {model_calls: -1}}}]", "model_calls"),
        ("a: !!python/object:os.system {}", "is no YAML"),
    ],
)
async def test_a_file_that_is_no_test_is_refused_before_anything_runs(front, file, content, told):
    before = len(front.log.runs)
    done = await command("test", file(content), status=2)
    assert (told in done.err, done.err.count("\n"), done.out, len(front.log.runs)) == (True, 1, "", before)


async def test_files_and_options_that_do_not_fit_are_refused(ana):
    assert "No such file" in (await command("test", "/nowhere.yaml", status=2)).err
    assert "--exact goes with --as-test" in (await command("replay", "t", "--exact", status=2)).err
    assert "no such thread" in (await command("replay", "nowhere", "--as-test", status=1)).err


@pytest.mark.system
async def test_ctrl_c_ends_the_run_that_a_test_has_at_work_also_where_its_thread_is_kept(front, file):
    path = file({"version": 1, "name": "slow", "turns": [{"agent": "hang", "input": "take your time"}]})
    before = set(front.log.runs)
    process = await asyncio.create_subprocess_exec(
        *testing.python("-m", "services.cli", "test", "--keep", path), stdout=asyncio.subprocess.PIPE
    )

    async def at_work():
        return [run for name, run in front.log.runs.items() if name not in before]

    await testing.eventually_async(at_work, "its run is at work")
    (run,) = await at_work()
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert (process.returncode, run.cancelled.is_set()) == (130, True)
