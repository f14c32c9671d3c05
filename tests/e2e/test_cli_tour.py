"""The commands over the API at the real platform: a run is watched, forked and taken back, and its thread becomes a test."""

import datetime
import json

import aiohttp
import pytest
import yaml

from tests.unit.cli.command_line import command


@pytest.fixture(autouse=True)
def _connected(platform, monkeypatch):
    monkeypatch.setenv("BULKHEAD_URL", platform.url)
    monkeypatch.setenv("BULKHEAD_API_KEY", platform.key)


async def asked(platform, thread, text, agent="assistant"):
    """A run of its own, ended; its id."""
    headers = {"authorization": f"Bearer {platform.key}", "prefer": "wait=60"}
    async with aiohttp.ClientSession(platform.url, headers=headers) as http:
        async with http.post(f"/v1/threads/{thread}/runs", json={"input": text, "agent": agent}) as answer:
            run = await answer.json()
            assert (answer.status, run["status"]) == (200, "succeeded"), run
            return run["run_id"]


async def test_a_real_conversation_is_watched_forked_taken_back_and_becomes_a_test(platform, tmp_path):
    await asked(platform, "cli-tour", "My bicycle is called Ansgar.")
    run_id = await asked(platform, "cli-tour", "What is 21 * 24, and what is my bicycle called?")
    watched = (await command("runs", "watch", run_id, "--json")).json()
    assert (watched[0]["type"], watched[-1]["type"]) == ("run_queued", "run_finished")
    shown = await command("runs", "watch", run_id)
    assert ("504" in shown.out, "→ calculator" in shown.err) == (True, True)

    test = tmp_path / "tour.yaml"
    test.write_text((await command("replay", "cli-tour", "--as-test")).out)
    turns = yaml.safe_load(test.read_text())["turns"]
    assert (turns[1]["expect"]["tools"], turns[1]["expect"]["says"]) == (["calculator"], ["504"])
    told = await command("test", str(test))
    assert "1 of 1 test passed" in told.out
    other = await command("test", str(test), "--agent", "plain", status=1)
    assert "must call calculator" in other.out
    assert not [one for one in (await command("threads", "list", "--json")).json() if one["thread_id"].startswith("test-")]

    fork = (await command("runs", "fork", run_id, "--step", "1", "--name", "cli-tour-fork", "--continue", "--json")).json()[0]
    assert fork["run"]["thread_id"] == "cli-tour-fork"
    assert "504" in (await command("runs", "watch", fork["run"]["run_id"])).out
    first = (await command("runs", "list", "--thread", "cli-tour", "--json")).json()[-1]["run_id"]
    await command("threads", "rollback", "cli-tour", "--run", first)
    assert json.loads((await command("runs", "show", run_id)).out)["rolled_back_seq"]
    assert [t["input"] for t in yaml.safe_load((await command("replay", "cli-tour", "--as-test")).out)["turns"]] == [turns[0]["input"]]
    copy = (await command("threads", "fork", "cli-tour")).out.strip()
    for thread in ("cli-tour", "cli-tour-fork", copy):
        await command("threads", "delete", thread, "--yes")
    assert "no such" in (await command("threads", "show", "cli-tour", status=1)).err


async def test_what_limits_a_key_and_what_waits_are_shown(platform):
    quota = (await command("quota", "--json")).json()[0]
    assert quota["tier"] == "enterprise"
    assert "tier enterprise" in (await command("quota")).out
    assert (await command("approvals", "list", "--json")).err == ""
    refused = await command("webhooks", "create", "http://169.254.169.254/latest", status=2)
    assert "url" in refused.err
    made = (await command("webhooks", "create", "http://127.0.0.1:9/hook", "--json")).json()[0]
    rotated = (await command("webhooks", "rotate", made["webhook_id"])).out.strip()
    assert rotated not in ("", made["secret"])
    assert made["secret"] not in (await command("webhooks", "show", made["webhook_id"])).out
    assert (await command("webhooks", "deliveries", made["webhook_id"], "--json")).out == ""
    await command("webhooks", "delete", made["webhook_id"], "--yes")


async def test_schedules_memories_and_a_judgement_reach_the_services(platform):
    run_id = await asked(platform, "cli-judged", "Hello")
    (recorded,) = (await command("runs", "feedback", run_id, "--thumbs", "down", "--text", "too short", "--json")).json()
    logged = (await command("replay", "cli-judged", "--json")).json()
    (event,) = [one for one in logged if one["type"] == "feedback"]
    assert (event["seq"], event["data"]["text"]) == (recorded["seq"], "too short")
    assert "`bulkhead chat --thread cli-judged`" in (await command("runs", "steer", run_id, "more", status=6)).err
    await command("runs", "stop", run_id, status=6)

    schedule_id = (await command("schedules", "create", "What is new?", "--cron", "0 9 1 1 *", "--time-zone", "Europe/Lisbon")).out.strip()
    assert (await command("schedules", "pause", schedule_id)).out.startswith(f"{schedule_id}: paused")
    assert "active, next at" in (await command("schedules", "resume", schedule_id)).out
    assert schedule_id in [one["schedule_id"] for one in (await command("schedules", "list", "--json")).json()]
    assert schedule_id in (await command("schedules", "list")).out
    assert (await command("schedules", "ticks", schedule_id)).out == "no ticks yet\n"
    await command("schedules", "create", "x", "--cron", "0 0 31 2 *", status=2)
    await command("schedules", "delete", schedule_id, "--yes")
    await command("schedules", "show", schedule_id, status=1)

    memory_id = (await command("memories", "add", "The lighthouse keeper is called Ottokar.")).out.strip()
    found = (await command("memories", "search", "Who keeps the lighthouse?", "--json")).json()
    assert memory_id in [one["memory_id"] for one in found]
    assert "Ottokar" in (await command("memories", "list")).out
    await command("memories", "delete", memory_id, "--yes")
    assert memory_id not in [one["memory_id"] for one in (await command("memories", "list", "--json")).json()]
    await command("threads", "delete", "cli-judged", "--yes")


async def test_schedules_runs_files_and_users_are_changed_ended_kept_and_forgotten_at_the_services(platform, tmp_path, monkeypatch):
    schedule_id = (await command("schedules", "create", "What is new?", "--cron", "0 9 1 1 *", "--time-zone", "Europe/Lisbon")).out.strip()
    await command("schedules", "update", schedule_id, "--cron", "0 10 1 1 *", "--name", "late news", "--label", "team=news")
    changed = json.loads((await command("schedules", "show", schedule_id)).out)
    assert (changed["timing"]["cron"], changed["timing"]["time_zone"], changed["name"]) == ("0 10 1 1 *", "Europe/Lisbon", "late news")
    lost = await command("schedules", "update", schedule_id, "--name", "x", "--version", "1", status=6)
    assert "`bulkhead schedules show ID`" in lost.err
    await command("schedules", "delete", schedule_id, "--yes")

    headers = {"authorization": f"Bearer {platform.key}"}
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    async with aiohttp.ClientSession(platform.url, headers=headers) as http:
        for number in range(3):
            body = {"input": "Hello", "agent": "plain", "metadata": {"team": "blue"}, "start_at": tomorrow.isoformat()}
            async with http.post(f"/v1/threads/cli-late-{number}/runs", json=body) as answer:
                assert answer.status == 202, await answer.text()
    (told,) = (await command("runs", "cancel", "--all", "--label", "team=blue", "--key", "cli-tour-cancel", "--json")).json()
    assert (told["matched_count"], told["requested_count"], told["done"]) == (3, 3, True)
    # The same operation again is done, and does nothing more.
    assert (await command("runs", "cancel", "--all", "--label", "team=blue", "--key", "cli-tour-cancel", "--json")).json() == [told]

    run_id = await asked(platform, "cli-judged-too", "Hello")
    await command("runs", "feedback", run_id, "--rating", "4")
    (judged,) = (await command("feedback", "list", "--run", run_id, "--json")).json()
    assert (judged["rating"], judged["run_id"]) == (4, run_id)
    assert "has no plan" in (await command("runs", "plan", run_id, status=1)).err
    await command("runs", "cancel-tool", run_id, "call_1", "skip", status=6)

    monkeypatch.chdir(tmp_path)
    content = b"a;b\n1;2\n" * 200_000
    (tmp_path / "table.csv").write_bytes(content)
    blob_id = (await command("blobs", "upload", "table.csv")).out.strip()
    await command("blobs", "download", blob_id, "-o", "back.csv")
    assert (tmp_path / "back.csv").read_bytes() == content
    link = (await command("blobs", "link", blob_id)).out.strip()
    async with aiohttp.ClientSession() as stranger, stranger.get(link) as answer:
        assert (answer.status, await answer.read()) == (200, content)
    await command("blobs", "delete", blob_id, "--yes")
    async with aiohttp.ClientSession() as stranger, stranger.get(link) as answer:
        assert answer.status == 404

    erasure_id = (await command("erasures", "create", "nobody-known", "--confirm", "nobody-known")).out.strip()
    told = (await command("erasures", "watch", erasure_id)).out
    assert all(f"{service}: done" in told for service in ("memory", "llm_gateway", "tool_executor", "orchestrator")), told
    assert json.loads((await command("erasures", "show", erasure_id)).out)["state"] == "done"
