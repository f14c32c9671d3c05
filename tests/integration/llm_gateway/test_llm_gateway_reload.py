"""models.yaml changes while calls are under way."""

import structlog
from bulkhead.llm.v1 import llm_pb2

from services.common import testing


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
