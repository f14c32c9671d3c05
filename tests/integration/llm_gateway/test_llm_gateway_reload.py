"""models.yaml changes while calls are under way."""

from contextlib import asynccontextmanager

import pytest
import structlog
import yaml
from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.common.config import _file as config_file

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    """Files are looked at every second, which is what these tests would otherwise spend their time with."""
    monkeypatch.setattr(config_file, "LOOK_EVERY_S", 0.1)


def body(text="Tell me about ships.", model="main"):
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 20}


@asynccontextmanager
async def streaming(own, ask):
    """A stream that goes on while the files change, and that ends well."""
    await own.sim.order("tokens_per_s=30", times=1)
    with testing.calling(own.identities):
        stream = own.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask()))
        await anext(stream)
        yield
        rest = [event async for event in stream]
    assert rest[-1].finished.outcome.finish_reason == "stop"


async def test_a_reload_takes_effect_without_breaking_a_stream_and_a_bad_file_changes_nothing(serve, sim, models, ask):
    async with serve(models(sim.url)) as own:
        await sim.order("tokens_per_s=15", times=1)
        with testing.calling(own.identities):
            stream = own.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask()))
            await anext(stream)
            file = models(sim.url)
            file["model_list"][0]["model_name"] = "renamed"
            own.write_models(file)

            async def names():
                return [m.name for m in (await own.reader.ListModels(llm_pb2.ListModelsRequest())).models]

            async def renamed():
                return (await names())[0] == "renamed"

            await testing.eventually_async(renamed, "the new file is read", 10)
            rest = [event async for event in stream]
            assert rest[-1].finished.outcome.finish_reason == "stop"
            file["router_settings"] = {"fallbacks": [{"renamed": ["nobody"]}]}
            with structlog.testing.capture_logs() as lines:
                own.write_models(file)
                await testing.eventually_async(
                    lambda: any(line["event"] == "config_refused" for line in lines), "the bad file is refused", 10
                )
            assert (await names())[0] == "renamed"
            await own.llm.Complete(llm_pb2.CompleteRequest(input=ask(model="renamed")))


async def test_a_master_key_is_changed_without_a_restart(serve, sim, models, ask):
    file = models(sim.url)
    file["general_settings"] = {"master_key": "sk-master-1"}
    async with serve(file) as own:

        async def status(key):
            async with own.http.get(f"{own.url}/tenant/info?tenant=acme", headers={"authorization": f"Bearer {key}"}) as answer:
                return answer.status

        assert [await status("sk-master-1"), await status("sk-master-2")] == [200, 401]
        async with streaming(own, ask):
            file["general_settings"] = {"master_key": "sk-master-2"}
            own.write_models(file)

            async def changed():
                return await status("sk-master-2") == 200

            await testing.eventually_async(changed, "the new master key holds")
            assert await status("sk-master-1") == 401
        file["general_settings"] = {}
        own.write_models(file)

        async def none():
            return await status("sk-master-2") == 401

        await testing.eventually_async(none, "there is no master key any more")


async def test_a_master_key_of_the_environment_wins_over_every_file(serve, sim, models):
    file = models(sim.url)
    async with serve(file, master_key="sk-environment") as own:
        file["general_settings"] = {"master_key": "sk-file"}
        file["model_list"][0]["model_name"] = "renamed"
        own.write_models(file)

        async def renamed():
            headers = {"authorization": "Bearer sk-environment"}
            async with own.http.get(f"{own.url}/v1/models/renamed", headers=headers) as answer:
                return answer.status == 200

        await testing.eventually_async(renamed, "the file is read")
        async with own.http.get(f"{own.url}/v1/models", headers={"authorization": "Bearer sk-file"}) as answer:
            assert answer.status == 401


@pytest.fixture(scope="module")
def cache_valkey():
    with testing.valkey_server("cache") as (url, _):
        yield url


async def test_a_semantic_cache_is_switched_on_tuned_and_off_while_the_gateway_runs(serve, sim, models, ask, cache_valkey):
    file = models(sim.url)
    async with serve(file, cache_url=cache_valkey, cache_semantic_static=True) as own:

        async def similar():
            """Whether a question gets the answer of a similar one; neither is answered as the very same one later."""
            for text, control in (("How do I reset my password?", "no-cache"), ("Please tell me how to reset my password", "no-store")):
                # Only an answer that ended by itself is given to another question.
                asked = body(text) | {"max_tokens": 2000}
                _, _, headers = await own.post(CHAT, asked, x_bulkhead_semantic_cache="0.9", x_bulkhead_cache_control=control)
            return headers.get("x-bulkhead-cache", "") == "semantic"

        async def changed(params, expected, what):
            file["litellm_settings"] = {"cache_params": {"mode": "default_off", **params}}
            own.write_models(file)

            async def seen():
                return await similar() is expected

            await testing.eventually_async(seen, what, every_s=0.1)

        assert not await similar()
        vectors = {"redis_semantic_cache_embedding_model": "vectors"}
        async with streaming(own, ask):
            await changed({**vectors, "similarity_threshold": 0.5}, True, "similar questions are found")
        await changed({**vectors, "similarity_threshold": 1.0}, False, "similar is not similar enough")
        await changed({**vectors, "similarity_threshold": 0.5}, True, "similar questions are found again")
        await changed({}, False, "it is switched off")


async def test_a_semantic_cache_without_a_store_is_said_to_be_off(serve, sim, models):
    file = models(sim.url)
    async with serve(file) as own:
        file["litellm_settings"] = {"cache_params": {"redis_semantic_cache_embedding_model": "vectors"}}
        with structlog.testing.capture_logs() as lines:
            own.write_models(file)
            told = await testing.eventually_async(
                lambda: [line for line in lines if line["event"] == "semantic_cache_off"], "the log says so"
            )
        assert told[0]["reason"] == "BULKHEAD_CACHE_URL is not set"


async def test_policies_and_prices_that_appear_later_are_followed(serve, sim, models, ask):
    file = models(sim.url)
    for entry in file["model_list"][:2]:
        entry["model_info"] = {"mode": "chat", "simulated": True}
    async with serve(file) as own:
        _, _, headers = await own.post(CHAT, body())
        assert float(headers["x-litellm-response-cost"]) == 0
        async with streaming(own, ask):
            prices = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.001}
            (own.folder / "prices.yaml").write_text(yaml.safe_dump({"openai/sim-1": prices, "openai/sim-2": prices}))

            async def priced():
                _, _, headers = await own.post(CHAT, body())
                return float(headers["x-litellm-response-cost"]) > 0

            await testing.eventually_async(priced, "the price table is in force")
            free = {"requests_per_minute": 1, "tokens_per_day": 1}
            (own.folder / "policies.yaml").write_text(yaml.safe_dump({"sets": {"test": {"free": free}}}))

            async def limited():
                return (await own.post(CHAT, body()))[0] == 429

            await testing.eventually_async(limited, "the limits of the tier are in force")
        # Limits do not vanish with their file.
        with structlog.testing.capture_logs() as lines:
            (own.folder / "policies.yaml").unlink()
            await testing.eventually_async(lambda: [line for line in lines if line["event"] == "config_refused"], "the file is missed")
        assert await limited()


async def test_a_variable_that_a_change_names_is_one_for_the_next_start(serve, sim, models):
    file = models(sim.url)
    async with serve(file) as own:
        file["model_list"][0]["litellm_params"]["api_key"] = "os.environ/NOT_SET_HERE"
        with structlog.testing.capture_logs() as lines:
            own.write_models(file)
            refused = await testing.eventually_async(
                lambda: [line for line in lines if line["event"] == "config_refused"], "the file is refused"
            )
        assert "NOT_SET_HERE is not set; variables are read at the start" in refused[0]["problems"][0]
