"""Batches that Anthropic, Gemini and Azure execute: what goes out and comes back is OpenAI's shape, at half the price, each line once."""

import asyncio
import signal
from dataclasses import replace
from functools import partial

import pytest

from services.common import testing
from services.common.valkey import Library
from services.llm_gateway.adapters.anthropic_batch import AnthropicBatches
from services.llm_gateway.adapters.batch_store import ValkeyBatches
from services.llm_gateway.adapters.gemini_batch import GeminiBatches
from services.llm_gateway.adapters.openai_batch import OpenAiBatches
from services.llm_gateway.batches.provider_port import ProviderFailed

ADAPTERS = {"claude": AnthropicBatches, "gemini": GeminiBatches, "azure": OpenAiBatches}
each_api = pytest.mark.parametrize("model", ADAPTERS)
# The one of Anthropic differs most from OpenAI's; the others are left to longer runs.
slowly = partial(pytest.param, marks=pytest.mark.system)
slowly_each_api = pytest.mark.parametrize("model", ["claude", slowly("gemini"), slowly("azure")])


def numbered(line, model: str, count: int) -> list[dict]:
    return [line(f"c{n}", f"say exactly: number {n}", model=model) for n in range(count)]


def whole(answers: list[dict], count: int) -> None:
    assert [answer["custom_id"] for answer in answers] == [f"c{n}" for n in range(count)]
    for number, answer in enumerate(answers):
        body = answer["response"]["body"]
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"]["content"] == f"number {number}"
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"] > 0


async def left_behind(sim, http, model: str) -> list:
    """What is left at the provider of the tenant's: files, and batches where those can be removed."""
    paths = {"claude": ["/v1/messages/batches"], "gemini": ["/v1beta/batches", "/v1beta/files"], "azure": ["/v1/files"]}
    found = []
    for path in paths[model]:
        async with http.get(sim.url + path) as answer:
            body = await answer.json()
        found += body.get("data") or body.get("operations") or body.get("files") or []
    return found


async def same_bill(g, sim) -> list[dict]:
    """The ledger's lines of the batch, whose sum is what the simulator billed; nothing is held back."""
    lines = await g.lines()
    assert sum(entry["cost_nanousd"] for entry in lines) == sum(entry["billed_nanousd"] for entry in await sim.log())
    assert not any(entry["estimated"] for entry in lines)
    assert await g.store.hlen("llm:{acme}:open") == 0
    return lines


@each_api
async def test_a_batch_goes_to_the_api_of_its_model_and_costs_half(gateway, line, sim, http, model):
    async with gateway() as g:
        done = await g.ended(await g.begun(numbered(line, model, 12)))
        answers, errors = await g.outputs(done)
        whole(answers, 12)
        assert errors == []
        log = await sim.log()
        assert len(log) == 12
        assert len({entry["batch_id"] for entry in log} - {None}) == 1
        (entry,) = await same_bill(g, sim)
        assert entry["cost_nanousd"] == sum(s["prompt_tokens"] * 250 + s["completion_tokens"] * 750 for s in log)
        assert (entry["operation"], entry["metadata"]) == ("batch", {"lines": 12, "batch": done.id})
        assert done.usage.model_extra["cost_microusd"] == -(-entry["cost_nanousd"] // 1000)

        async def nothing_left():
            return not await left_behind(sim, http, model)

        await testing.eventually_async(nothing_left, "nothing of the tenant's stays there")


@slowly_each_api
async def test_what_is_the_request_s_own_fault_is_told_and_the_rest_done_here(gateway, line, sim, model):
    await sim.order("context_length", endpoint="batch", contains="number 1")
    await sim.order("status=500", endpoint="batch", contains="number 3")
    async with gateway() as g:
        lines = [*numbered(line, model, 5), line("c5", "x", model=model, max_tokens=-1)]
        answers, errors = await g.outputs(await g.ended(await g.begun(lines)))
        assert [answer["custom_id"] for answer in answers] == ["c0", "c2", "c3", "c4"]
        assert {error["custom_id"]: error["response"]["status_code"] for error in errors} == {"c1": 400, "c5": 400}
        assert errors[0]["response"]["body"]["error"]["code"] == "context_length_exceeded"
        ledger = {entry["operation"]: entry for entry in await same_bill(g, sim)}
        assert ledger["batch"]["metadata"]["lines"] == 4
        assert ledger.keys() == {"batch", "chat"}


@pytest.mark.system
@each_api
async def test_an_api_that_takes_no_batches_leaves_them_to_the_gateway(gateway, line, sim, model):
    await sim.order("status=404", endpoint="batch")
    async with gateway() as g:
        answers, _ = await g.outputs(await g.ended(await g.begun(numbered(line, model, 3))))
        whole(answers, 3)
        assert [entry["operation"] for entry in await same_bill(g, sim)] == ["chat"] * 3


@slowly_each_api
async def test_a_cancellation_reaches_the_api_and_what_was_done_is_paid_and_kept(gateway, line, sim, model):
    await sim.order("batch_line_delay=60", endpoint="batch", times=1)
    async with gateway() as g:
        batch = await g.begun(numbered(line, model, 60))
        await sim.logged(3)
        await g.client.batches.cancel(batch.id)
        done = await g.ended(batch)
        assert done.status == "cancelled"
        answers, errors = await g.outputs(done)
        assert errors == []
        assert 3 <= len(answers) == len(await sim.log()) < 60
        whole(answers, len(answers))
        (entry,) = await same_bill(g, sim)
        assert entry["metadata"]["lines"] == len(answers)


@pytest.mark.system
@each_api
async def test_what_the_api_let_expire_is_done_here(gateway, line, sim, model):
    await sim.order("batch_expires_after=2", endpoint="batch", times=1)
    async with gateway() as g:
        answers, _ = await g.outputs(await g.ended(await g.begun(numbered(line, model, 5))))
        whole(answers, 5)
        operations = sorted(entry["operation"] for entry in await same_bill(g, sim))
        assert operations == (["chat"] * 5 if model == "gemini" else ["batch", "chat", "chat", "chat"])


@pytest.mark.system
async def test_a_window_that_closes_ends_a_batch_of_messages_and_tells_the_rest_as_expired(gateway, line, sim):
    await sim.order("batch_line_delay=60", endpoint="batch", times=1)
    async with gateway() as g:
        done = await g.ended(await g.begun(numbered(line, "claude", 60), window="1s"))
        assert done.status == "expired"
        answers, errors = await g.outputs(done)
        assert answers
        assert [entry["custom_id"] for entry in answers + errors] == [f"c{n}" for n in range(60)]
        assert {error["error"]["code"] for error in errors} == {"batch_expired"}
        await same_bill(g, sim)


@pytest.mark.system
@each_api
async def test_an_answer_that_counts_nothing_is_paid_at_its_bound(gateway, line, sim, model):
    await sim.order("missing_usage", endpoint="batch", contains="number 1")
    async with gateway() as g:
        done = await g.ended(await g.begun(numbered(line, model, 3)))
        assert len((await g.outputs(done))[0]) == 3
        (entry,) = await g.lines()
        assert entry["estimated"]
        assert sum(served["billed_nanousd"] for served in await sim.log()) < entry["cost_nanousd"] <= entry["reserved_nanousd"]


async def test_cached_prompts_cost_half_of_what_they_cost_outside_of_a_batch(gateway, line, sim):
    text = [{"type": "text", "text": "a long beginning " * 50, "cache_control": {"type": "ephemeral"}}]
    more = {"model": "claude", "messages": [{"role": "system", "content": text}, {"role": "user", "content": "say exactly: yes"}]}
    async with gateway() as g:
        done = await g.ended(await g.begun([line(f"c{n}", "", **more) for n in range(3)]))
        answers, _ = await g.outputs(done)
        assert len(answers) == 3
        log = await sim.log()
        assert [bool(entry["cache_write_tokens"]) for entry in log] == [True, False, False]
        assert [bool(entry["cached_tokens"]) for entry in log] == [False, True, True]
        await same_bill(g, sim)


async def test_a_prompt_that_gemini_blocks_is_paid_and_told(gateway, line, sim):
    await sim.order("content_policy", endpoint="batch", contains="number 1")
    async with gateway() as g:
        answers, errors = await g.outputs(await g.ended(await g.begun(numbered(line, "gemini", 3))))
        assert [answer["custom_id"] for answer in answers] == ["c0", "c2"]
        assert errors[0]["response"]["body"]["error"]["code"] == "content_policy_violation"
        await same_bill(g, sim)


@pytest.mark.parametrize("model", ["cheap", "claude", slowly("gemini"), slowly("azure")])
async def test_a_batch_that_was_begun_and_never_heard_of_is_found_again(gateway, line, sim, monkeypatch, model):
    adapter = ADAPTERS.get(model, OpenAiBatches)
    real, begun = adapter.begin, asyncio.Event()

    async def unheard(self, *arguments):
        await real(self, *arguments)
        if begun.is_set():
            raise ProviderFailed("the answer was lost")
        begun.set()
        await asyncio.Event().wait()  # until the process ends

    monkeypatch.setattr(adapter, "begin", unheard)
    await sim.order("batch_line_delay=20", endpoint="batch")
    async with gateway({"lease_s": 0.6}) as g:
        batch = await g.begun(numbered(line, model, 8))
        await begun.wait()
        await g.parts.stop()
    async with gateway() as g:
        whole((await g.outputs(await g.ended(batch)))[0], 8)
        # An answer that is lost is the same to one process as a crash between two. Another batch of as many lines runs beside it.
        pair = [await g.begun(numbered(line, model, 8)) for _ in range(2)]
        for one in pair:
            whole((await g.outputs(await g.ended(one)))[0], 8)
        log = await sim.log()
        assert len(log) == 24
        assert len({entry["batch_id"] for entry in log}) == 3
        await same_bill(g, sim)


async def test_lines_that_were_done_and_are_not_handed_out_are_paid_at_their_bound(gateway, line, sim, monkeypatch):
    real = GeminiBatches.get

    async def kept_back(self, deployment, batch_id):
        found = await real(self, deployment, batch_id)
        return replace(found, status="expired", results=()) if found.status == "completed" else found

    monkeypatch.setattr(GeminiBatches, "get", kept_back)
    async with gateway() as g:
        whole((await g.outputs(await g.ended(await g.begun(numbered(line, "gemini", 3)))))[0], 3)
        ledger = {entry["operation"]: entry for entry in await g.lines()}
        assert (ledger["batch"]["status"], ledger["batch"]["cost_nanousd"]) == ("lost", ledger["batch"]["reserved_nanousd"])
        assert ledger.keys() == {"batch", "chat"}


async def test_money_is_in_the_store_before_the_record_says_that_it_is_paid(gateway, line, sim, monkeypatch):
    """A process that is killed right behind the record's word would else leave a reservation that nobody ends."""
    seen = []
    real = ValkeyBatches.renew

    async def watched(self, claim, lease_s, progress=None, **fields):
        if fields.get("provider", {}).get("done"):
            seen.append(await g.store.hlen("llm:{acme}:open"))
        return await real(self, claim, lease_s, progress, **fields)

    def slow(self, name, keys, args, submit=Library.submit):
        async def later():
            await asyncio.sleep(0.05)
            return await submit(self, name, keys, args)

        return asyncio.ensure_future(later()) if name == "purse_settle_v1" else submit(self, name, keys, args)

    monkeypatch.setattr(ValkeyBatches, "renew", watched)
    monkeypatch.setattr(Library, "submit", slow)
    async with gateway() as g:
        whole((await g.outputs(await g.ended(await g.begun(numbered(line, "claude", 2)))))[0], 2)
    assert seen == [0]


async def test_a_lookalike_that_runs_on_is_waited_for_no_longer_than_a_cancelled_batch_may_take(gateway, line, sim, http, monkeypatch):
    reached = asyncio.Event()

    async def refused(self, *arguments):
        reached.set()
        raise ProviderFailed("nobody knows whether it arrived")

    monkeypatch.setattr(AnthropicBatches, "begin", refused)
    params = {"model": "sim-1", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    other = {"requests": [{"custom_id": f"other-{n}", "params": params} for n in range(3)]}
    async with http.post(f"{sim.url}/v1/messages/batches", json=other, headers={"x-sim-fault": "batch_delay=60000"}) as answer:
        assert answer.status == 200
    async with gateway({"ending_s": 0.3}) as g:
        batch = await g.begun(numbered(line, "claude", 3))
        await reached.wait()
        await g.client.batches.cancel(batch.id)
        assert (await g.ended(batch)).status == "cancelled"
        # What nobody can know is paid for at its bound.
        (entry,) = await g.lines()
        assert (entry["status"], entry["estimated"], entry["cost_nanousd"]) == ("lost", True, entry["reserved_nanousd"])


async def test_a_refusal_that_passes_does_not_wait_for_lookalikes(gateway, line, sim, http):
    params = {"model": "sim-1", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    other = {"requests": [{"custom_id": f"other-{n}", "params": params} for n in range(3)]}
    async with http.post(f"{sim.url}/v1/messages/batches", json=other, headers={"x-sim-fault": "batch_delay=60000"}) as answer:
        assert answer.status == 200
    await sim.order("rate_limit", endpoint="batch", times=2)
    async with gateway() as g:
        whole((await g.outputs(await g.ended(await g.begun(numbered(line, "claude", 3)))))[0], 3)
        assert [entry["operation"] for entry in await same_bill(g, sim)] == ["batch"]


@pytest.mark.system
@each_api
async def test_a_gateway_killed_while_the_api_works_is_replaced_and_nothing_is_done_or_paid_twice(processes, line, sim, model):
    await sim.order("batch_line_delay=30", endpoint="batch", times=1)
    g, process = await processes(lease_s=0.6)
    batch = await g.begun(numbered(line, model, 120))
    await sim.logged(5)
    process.kill()
    _, again = await processes(lease_s=0.6)
    await sim.logged(50)
    again.signal(signal.SIGTERM)
    await asyncio.to_thread(again.wait)
    third, _ = await processes(lease_s=0.6)
    answers, errors = await third.outputs(await third.ended(batch))
    whole(answers, 120)
    assert errors == []
    assert len(await sim.log()) == 120
    assert len({entry["batch_id"] for entry in await sim.log()}) == 1
    (entry,) = await same_bill(third, sim)
    assert entry["metadata"]["lines"] == 120


@pytest.mark.system
@each_api
async def test_a_gateway_killed_at_any_step_of_handing_over_hands_over_once(processes, line, sim, model):
    g, process = await processes(lease_s=0.6)
    for number in range(4):
        batch = await g.begun(numbered(line, model, 6))
        await asyncio.sleep(0.02 * number)  # somewhere within the hand-over; where does not matter
        process.kill()
        g, process = await processes(lease_s=0.6)
        whole((await g.outputs(await g.ended(batch)))[0], 6)
    log = await sim.log()
    assert len(log) == 4 * 6
    assert len({entry["batch_id"] for entry in log} - {None}) == 4

    async def settled():
        return len([entry for entry in await g.lines() if entry["status"] == "ok"]) == 4

    await testing.eventually_async(settled, "every batch is paid")
    await same_bill(g, sim)
