"""`bulkhead runs` and `bulkhead threads` at a gateway over fakes, as a user types them."""

import json

import pytest

from services.common import testing
from tests.unit.cli.command_line import command

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def _connected(front, monkeypatch):
    monkeypatch.setenv("BULKHEAD_URL", front.url)
    monkeypatch.setenv("BULKHEAD_API_KEY", front.key)


async def start(ana, thread, agent="assistant", said="hi"):
    """A run; its id. It has ended, but for those of agents that work until they are cancelled."""
    headers = {} if agent in ("hang", "silent") else {"prefer": "wait=30"}
    async with ana.post(f"/v1/threads/{thread}/runs", json={"input": said, "agent": agent}, headers=headers) as answer:
        return (await answer.json())["run_id"]


async def test_runs_are_listed_over_pages_and_one_is_shown(ana):
    ids = [await start(ana, "t-list") for _ in range(5)]
    told = await command("runs", "list", "--thread", "t-list", "--json", constants={"client.MOST_A_PAGE": 2})
    assert [run["run_id"] for run in told.json()] == ids[::-1]
    assert [run["run_id"] for run in (await command("runs", "--thread", "t-list", "--limit", "3", "--json")).json()] == ids[:1:-1]
    table = (await command("runs", "list")).out
    assert table.splitlines()[0].split() == ["RUN", "STATUS", "STARTED", "AGENT", "THREAD", "COST", "ANSWER"]
    assert all(run_id in table for run_id in ids)
    assert json.loads((await command("runs", "show", ids[0])).out)["thread_id"] == "t-list"
    assert [run["run_id"] for run in (await command("runs", "show", ids[0], "--json")).json()] == [ids[0]]


async def test_runs_that_stand_so_and_those_of_an_agent_are_listed(ana):
    ended, at_work = await start(ana, "t-filter"), await start(ana, "t-filter", "hang")
    try:
        for options, expected in (
            (("--status", "succeeded"), [ended]), (("--agent", "hang"), [at_work]), (("--status", "failed"), []),
            (("--status", "running", "--status", "queued"), [at_work]), (("--status", "succeeded", "--agent", "hang"), []),
        ):  # fmt: skip
            found = (await command("runs", "list", "--thread", "t-filter", *options, "--json")).json()
            assert [run["run_id"] for run in found] == expected, options
        assert "no such runs" in (await command("runs", "list", "--thread", "t-filter", "--status", "failed")).out
        assert "is not one of 'queued'" in (await command("runs", "list", "--status", "asleep", status=2)).err
    finally:
        await command("runs", "cancel", at_work, "--wait")


async def test_a_run_is_cancelled_and_its_end_waited_for(ana):
    run_id = await start(ana, "t-cancel", "hang")
    assert (await command("runs", "cancel", run_id, "--wait", "--reason", "enough")).out == f"{run_id}: cancelled\n"
    (answer,) = (await command("runs", "cancel", run_id, "--json")).json()
    assert (answer["run_id"], answer["run"]["status"]) == (run_id, "cancelled")
    assert "cancelled when it comes" in (await command("runs", "cancel", "run-of-tomorrow")).out


async def test_a_run_and_a_thread_are_forked_and_the_new_id_can_be_piped(ana, front):
    run_id = await start(ana, "t-fork")
    done = await command("runs", "fork", run_id, "--step", "2", "--name", "t-forked", "--continue")
    assert (done.out, "goes on as run_" in done.err) == ("t-forked\n", True)
    asked = front.log.records.asked[-1]
    assert (asked.thread_id, asked.at.run_id, asked.at.step, asked.continue_run) == ("t-fork", run_id, 2, True)
    assert asked.idempotency_key.startswith("cli-")
    copy = (await command("threads", "fork", "t-fork")).out.strip()
    assert json.loads((await command("threads", "show", copy)).out)["parent_thread_id"] == "t-fork"
    assert not front.log.records.asked[-1].at.run_id
    await command("threads", "fork", "t-fork", "--beginning", "--json")
    assert front.log.records.asked[-1].at.beginning


async def test_threads_are_made_listed_rolled_back_and_deleted(ana, front):
    made = await command("threads", "create", "--name", "t-made", "--label", "ticket=4711", "--days", "2")
    assert made.out == "t-made\n"
    (thread,) = [one for one in (await command("threads", "list", "--json")).json() if one["thread_id"] == "t-made"]
    assert (thread["metadata"], thread["expires_at"][:10] > thread["created_at"][:10]) == ({"ticket": "4711"}, True)
    assert "ticket=4711" in (await command("threads", "list")).out
    await start(ana, "t-made")
    assert (await command("threads", "snapshot", "t-made", "--json")).json()[0]["thread"]["thread_id"] == "t-made"
    assert "rolled back, told by event" in (await command("threads", "rollback", "t-made", "--seq", "1")).out
    assert front.log.records.asked[-1].to.seq == 1
    refused = await command("threads", "delete", "t-made", status=2)
    assert "--yes" in refused.err
    assert (await command("threads", "delete", "t-made", "--yes")).out == "t-made: deleted\n"
    await command("threads", "create", "--name", "t-slow")
    assert (await command("threads", "delete", "t-slow", "--yes", "--json")).json() == [{"thread_id": "t-slow", "completed": False}]


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("runs", "show", "run-nowhere"), 1, "`bulkhead runs list`"),
        (("runs", "show", "a b"), 2, "run_id"),
        (("runs", "show", ".."), 2, "is no id"),
        (("threads", "delete", ".", "--yes"), 2, "is no id"),
        (("runs", "watch", "run-nowhere"), 1, "no such run"),
        (("runs", "watch"), 2, "only a terminal can show all runs"),
        (("runs", "watch", "--json"), 2, "need the id of a run"),
        (("runs", "fork", "run-nowhere"), 1, "no such run"),
        (("runs", "list", "--limit", "0"), 2, "--limit"),
        (("runs", "list", "--thread", "nowhere"), 1, "no such thread"),
        (("threads", "show", "nowhere"), 1, "`bulkhead threads list`"),
        (("threads", "watch", "nowhere"), 1, "no such thread"),
        (("threads", "fork", "t", "--seq", "1", "--beginning"), 2, "one of --seq, --run and --beginning"),
        (("threads", "fork", "t", "--step", "1"), 2, "--step needs --run"),
        (("threads", "rollback", "t"), 2, "name the checkpoint"),
        (("threads", "create", "--label", "nothing"), 2, "NAME=VALUE"),
        (("threads", "create", "--name", "a/b"), 2, "thread_id"),
        (("threads", "delete", "t-explodes", "--yes"), 1, "in the gateway's log"),
        (("webhooks", "list", "--bogus"), 2, "No such option"),
        (("runz",), 2, "Did you mean"),
    ],
)
async def test_what_goes_wrong_is_one_line_with_the_way_out_and_a_status(arguments, status, told):
    done = await command(*arguments, status=status)
    assert done.out == ""
    assert done.err.startswith("bulkhead: ")
    assert done.err.count("\n") == 1
    assert told in done.err


async def test_a_key_without_the_scope_is_told_which_one_is_missing(front, monkeypatch):
    key = await front.issue(scopes=("runs:read",))
    monkeypatch.setenv("BULKHEAD_API_KEY", key)
    assert (await command("runs", "list", "--json")).err == ""
    done = await command("runs", "cancel", "run-x", status=4)
    assert "bulkhead keys create --user NAME --scope runs:write" in done.err
    assert key not in done.err


async def test_another_tenants_runs_and_threads_are_not_there(ana, front, monkeypatch):
    run_id = await start(ana, "t-mine")
    monkeypatch.setenv("BULKHEAD_API_KEY", await front.issue("globex"))
    for arguments in (("runs", "show", run_id), ("runs", "watch", run_id), ("threads", "show", "t-mine"), ("replay", "t-mine")):
        assert "no such" in (await command(*arguments, status=1)).err
    assert run_id not in (await command("runs", "list")).out


async def test_a_gateway_that_is_none_is_said_to_be_none(front, monkeypatch):
    monkeypatch.setenv("BULKHEAD_URL", f"http://127.0.0.1:{testing.free_port()}")
    assert "does not answer" in (await command("threads", "list", status=3)).err
    monkeypatch.setenv("BULKHEAD_URL", "not a url")
    assert "is no URL" in (await command("threads", "list", status=2)).err
    monkeypatch.setenv("BULKHEAD_URL", f"{front.url}/docs#")
    assert "is no JSON" in (await command("threads", "list", status=1)).err


async def test_files_that_were_ingested_or_refused_are_told_as_json(tmp_path):
    (tmp_path / "good.md").write_text("# Good\n\nText.")
    (tmp_path / "bad.md").write_bytes(b"\xff\xfe")
    told = {one["path"]: one for one in (await command("ingest", str(tmp_path), "--json", status=1)).json()}
    good, bad = told[str(tmp_path / "good.md")], told[str(tmp_path / "bad.md")]
    assert (good["refused"], bad["refused"], bad["passages"]) == (None, "is not UTF-8", 0)
    assert good["document_id"] == "good.md"
    (tmp_path / "bad.md").rename(tmp_path / "b\x1b[2Jad.md")
    done = await command("ingest", str(tmp_path), status=1)
    assert "1 of 2 documents ingested" in done.out
    assert done.err == f"{tmp_path / 'b[2Jad.md'}: is not UTF-8\n"
    gone = await command("ingest", "\x1b[2Jgone.md", status=1)
    assert gone.err == "bulkhead: [2Jgone.md: no such file or folder\n"
