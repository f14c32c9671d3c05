"""The turn that uses everything: a cited passage, a calculation and something said before, over every surface."""

import os
import subprocess
import uuid
from pathlib import Path

import openai
import pytest

from services.common import testing
from services.common.testing import ROOT
from tests.e2e.api import Api, answer_of


@pytest.fixture(scope="module")
def api(platform):
    with Api(platform.url, platform.key) as client:
        yield client


@pytest.fixture(scope="module")
def ingested(api):
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        made = api.post("/v1/documents", {"title": path.name, "content_type": "text/markdown", "text": Path(path).read_text()})
        assert made
    text = "# Harbour rules\n\n"
    text += "The harbour master of Bulkhead opens the lock gate at 06:40 every morning.\n\n## Night\n\nNo ship leaves after dark.\n"
    api.post("/v1/documents", {"title": "harbour.md", "content_type": "text/markdown", "text": text})
    return "When does the harbour master open the lock gate? Also what is 17 * 23, and what is the code name of my project?"


def thread_with_history(api) -> str:
    thread = f"heron-{uuid.uuid4().hex[:8]}"
    answer_of(api.turn(thread, "My project has the code name Heron.", agent="assistant"))
    return thread


def assert_all_three(answer: str) -> None:
    assert "06:40" in answer, answer
    assert "391" in answer, answer
    assert "Heron" in answer, answer


def test_native_stream(api, ingested):
    thread = thread_with_history(api)
    events = api.turn(thread, ingested, agent="assistant")
    answer = answer_of(events)
    assert_all_three(answer)
    types = [event["type"] for event in events]
    assert "memory_recalled" in types
    calls = [e for e in events if e["type"] == "tool_call_completed"]
    assert any(e["data"]["tool"] == "calculator" for e in calls)
    citations = [e["data"] for e in events if e["type"] == "citation"]
    assert any(c["title"] == "harbour.md" and f"[{c['citation_id']}]" in answer for c in citations), (answer, citations)
    seqs = [event["seq"] for event in events]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    text = "".join(e["data"]["text"] for e in events if e["type"] == "message_delta")
    assert answer in text
    # The log replays as what was seen live.
    replayed = api.get(f"/replay/{thread}?after={seqs[0] - 1}")
    listed = replayed["events"] if isinstance(replayed, dict) else replayed
    assert [(e["seq"], e["type"]) for e in listed] == [(e["seq"], e["type"]) for e in events]
    run = api.run(events[0]["run_id"])
    assert run["output_text"] == answer
    assert run["usage"]["input_tokens"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_openai_sdk_unmodified(platform, api, ingested, stream):
    thread = thread_with_history(api)
    client = openai.OpenAI(base_url=f"{platform.url}/v1", api_key=platform.key, max_retries=0)
    answer = client.chat.completions.create(
        model="assistant", messages=[{"role": "user", "content": ingested}], stream=stream, metadata={"thread_id": thread}
    )
    if stream:
        chunks = list(answer)
        assert chunks[-1].choices == [] or chunks[-1].choices[0].finish_reason == "stop"
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert any(c.choices and c.choices[0].finish_reason == "stop" for c in chunks)
    else:
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.total_tokens > 0
        text = answer.choices[0].message.content
    assert_all_three(text)


def test_models_are_the_agents(platform):
    client = openai.OpenAI(base_url=f"{platform.url}/v1", api_key=platform.key, max_retries=0)
    assert "assistant" in [model.id for model in client.models.list()]


def test_the_simplest_chat(api):
    answer = api.post("/v1/agents/assistant/chat", {"user_input": "What is 6 * 7?", "session_id": f"s-{uuid.uuid4().hex[:8]}"})
    assert "42" in answer["result"]
    assert answer["status"] == "succeeded"
    assert answer["latency_ms"] > 0


def test_the_simulator_is_labelled_wherever_a_user_sees_it(platform, api):
    assert "simulator" in platform.process.output().lower()
    events = api.turn(f"label-{uuid.uuid4().hex[:8]}", "Say hello", agent="plain")
    assert [e["data"]["provider"] for e in events if e["type"] == "usage"] == ["simulator"]
    env = {**os.environ, "BULKHEAD_URL": platform.url, "BULKHEAD_API_KEY": platform.key}
    chat = subprocess.run(testing.python("-m", "services.cli", "chat", "Say hello"), env=env, capture_output=True, text=True, check=True)
    assert "SIMULATOR" in chat.stderr
