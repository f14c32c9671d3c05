"""A response whose gateway is left and whose orchestrator is killed in mid-text goes on at others; one that takes long is still ended with
its client."""

import openai
import pytest

from services.common import testing
from services.common.accounts import Accounts
from services.common.valkey import connect
from services.gateway.app import build
from services.gateway.settings import Settings
from services.orchestrator.testing.harness import process, served, settings_for, write_config
from tests.integration import short_tokens

pytestmark = pytest.mark.system
TEXT = " ".join(f"w{number}" for number in range(30))


def gateway_settings(identities, state_url, orchestrator):
    """A gateway that knows one orchestrator."""
    return Settings(
        env="test", http_port=testing.free_port(), metrics_port=0, state_url=state_url, memory_address="127.0.0.1:1",
        orchestrator_address=f"127.0.0.1:{orchestrator.grpc_port}", tool_executor_address="127.0.0.1:1", drain_grace_s=1,
        **identities.settings("gateway"),
    )  # fmt: skip


@pytest.mark.parametrize("held_after", [2, 10, 25])
async def test_after_a_kill_the_rest_comes_from_another(identities, state_url, behind, tmp_path, held_after):
    config = write_config(tmp_path / "config")
    owner, other = (settings_for(identities, behind, state_url, config) for _ in range(2))
    here, there = (gateway_settings(identities, state_url, each) for each in (owner, other))
    state = connect(state_url)
    key = (await Accounts(state).create_key(tenant="acme", user="ana", tier="enterprise", scopes=("*",))).secret
    await state.aclose()
    behind.models.hold_after = held_after
    behind.models.gate.close()
    with process(owner, tmp_path) as killed, process(other, tmp_path):
        for each in (owner, other):
            await testing.wait_ready(f"127.0.0.1:{each.grpc_port}")
        async with testing.running(here, build), testing.running(there, build):
            first, second = (
                openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{each.http_port}/v1", api_key=key, max_retries=0) for each in (here, there)
            )
            async with first, second:
                seen, shown = [], ""
                stream = await first.responses.create(model="quick", input=f"say {TEXT}", stream=True)
                async for event in stream:
                    seen.append(event)
                    shown += event.delta if event.type == "response.output_text.delta" else ""
                    if len(shown.split()) == held_after:
                        break
                await stream.close()
                killed.kill()
                behind.models.gate.open()
                tail = await second.responses.retrieve(seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number)
                seen += [event async for event in tail]
                whole = [event async for event in await second.responses.retrieve(seen[0].response.id, stream=True)]
    assert seen[-1].type == "response.completed"
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == TEXT
    assert [item.content[0].text for item in seen[-1].response.output] == [TEXT]
    assert [event.sequence_number for event in seen] == [event.sequence_number for event in whole]


async def test_a_client_that_leaves_long_after_its_request_still_ends_the_run(identities, state_url, behind, tmp_path, monkeypatch):
    short_tokens.shorten(monkeypatch, identities)
    owner = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
    here = gateway_settings(identities, state_url, owner)
    state = connect(state_url)
    key = (await Accounts(state).create_key(tenant="acme", user="ana", tier="enterprise", scopes=("*",))).secret
    await state.aclose()
    behind.models.gate.close()
    async with served(owner, identities) as client, testing.running(here, build):
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{here.http_port}/v1", api_key=key, max_retries=0) as sdk:
            leaving = {"x-bulkhead-on-disconnect": "cancel"}
            stream = await sdk.responses.create(model="quick", input=f"say {TEXT}", stream=True, extra_headers=leaving)
            started = await anext(aiter(stream))
            await short_tokens.ended(identities)
            await stream.close()

            async def cancelled():
                return (await client.get(started.response.id.removeprefix("resp_"))).cancel_requested

            await testing.eventually_async(cancelled, "the run is asked to end")
        behind.models.gate.open()
