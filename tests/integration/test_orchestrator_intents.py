"""What the log of a real orchestrator tells of calls before they are made."""

import hashlib

from services.orchestrator.testing.harness import data_of, served, settings_for, write_config


async def test_calls_are_told_with_their_keys_and_digests(identities, behind, state_url, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
    async with served(settings, identities) as client:
        run = await client.start('tool calculator {"expression": "1+2"}\ntool send_mail {"to": "bob"}')
        await client.wait(run.run_id)
        events = await client.log(run.run_id)
    look, mail = (data_of(e) for e in events if e.type == "tool_call_started")
    assert look == {
        "call_id": "c0", "tool": "calculator", "version": "1.0.0", "arguments": {"expression": "1+2"},
        "arguments_digest": hashlib.sha256(b'{"expression":"1+2"}').hexdigest(), "idempotency_key": f"{run.run_id}/1/0",
        "side_effects": "none", "timeout_ms": 30_000,
    }  # fmt: skip
    assert mail["side_effects"] == "once"
    assert [call["idempotency_key"] for call in (look, mail)] == list(behind.tools.calls)
    steps = [data_of(e) for e in events if e.type == "step_started"]
    assert [step["idempotency_key"] for step in steps] == [f"{run.run_id}/{number}" for number in (1, 2, 3)]
    assert len({step["request_digest"] for step in steps}) == 3
