"""Messages for hooks through a real gateway to a real orchestrator: limits, refusals and an absent store as a sender sees them."""

import aiohttp

from services.common import testing
from services.orchestrator.testing.harness import served, settings_for, write_config
from tests.integration.hook_sender import signed
from tests.integration.real_gateway import answered, gateway_before

OF_REQUEST = ("request_id", "trace_id")


async def send(http, hook, body, webhook_id="", **changed):
    """Status, answer and headers; `changed` are a secret or a url that are not the hook's."""
    found = {**hook, **changed}
    async with http.post(found["url"], data=body.encode(), headers=signed(found["secret"], body, webhook_id)) as response:
        return response.status, await response.json(content_type=None), response.headers


async def test_a_sender_sees_its_run_its_limit_and_nothing_of_what_is_not_its_own(identities, state_url, tmp_path, behind):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), hook_messages_per_minute=2)
    async with served(settings, identities) as client, gateway_before(identities, state_url, settings.grpc_port) as people:
        ana = await people.session()
        hook = await answered(ana.post("/v1/hooks", json={"agent": "quick"}), 201)
        async with aiohttp.ClientSession(ana._base_url) as outside:
            told = []
            for changed in (
                {"secret": "whsec_" + "A" * 32}, {"url": f"/v1/hooks/quick?hook_id=hk_{'0' * 32}"},
                {"url": hook["url"].replace("/quick?", "/asking?")}, {"url": "/v1/hooks/none?hook_id=none"},
            ):  # fmt: skip
                for _ in range(2):
                    status, problem, headers = await send(outside, hook, "x", **changed)
                    assert (status, "ratelimit" in headers) == (401, False)
                    told.append({name: value for name, value in problem.items() if name not in (*OF_REQUEST, "instance")})
            assert all(one == told[0] for one in told), told
            status, taken, headers = await send(outside, hook, "say hi", "msg_1")
            assert (status, taken["created"], headers["location"]) == (202, True, f"/v1/runs/{taken['run_id']}")
            assert (await client.wait(taken["run_id"])).thread_id == taken["thread_id"]
            run = await answered(ana.get(headers["location"]), 200)
            assert run["metadata"]["webhook_id"] == "msg_1"
            assert (await send(outside, hook, "say hi", "msg_1"))[1] == {**taken, "created": False}
            status, problem, headers = await send(outside, hook, "say hi", "msg_2")
            assert (status, problem["policy"], problem["limit"]) == (429, "hook_messages_per_minute", "2")
            assert 0 < int(headers["retry-after"]) <= 30
            assert headers["ratelimit"].startswith('"hook_messages_per_minute";r=0')


async def test_while_the_store_is_away_the_sender_is_told_to_come_back_and_then_has_its_run(identities, tmp_path, behind):
    with testing.valkey_server() as (url, server):
        settings = settings_for(identities, behind, url, write_config(tmp_path / "config"))
        async with served(settings, identities) as client, gateway_before(identities, url, settings.grpc_port) as people:
            ana = await people.session()
            hook = await answered(ana.post("/v1/hooks", json={"agent": "quick"}), 201)
            async with aiohttp.ClientSession(ana._base_url) as outside:
                with server.standing_still():
                    status, problem, headers = await send(outside, hook, "say hi", "msg_1")
                    assert (status, problem["reason"], problem["retryable"]) == (503, "STORE_UNAVAILABLE", True)
                    assert int(headers["retry-after"]) >= 1

                async def taken():
                    status, answer, _ = await send(outside, hook, "say hi", "msg_1")
                    assert status in (202, 503), answer
                    return answer if status == 202 else None

                answer = await testing.eventually_async(taken, "it is taken")
                assert (await client.wait(answer["run_id"])).output_text
                assert (await send(outside, hook, "say hi", "msg_1"))[1] == {**answer, "created": False}
