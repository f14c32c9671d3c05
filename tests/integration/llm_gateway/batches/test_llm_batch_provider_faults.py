"""Batches at a provider that cannot be reached, loses what it had, or is asked by a process that goes: one bill, and an end."""

import asyncio

from services.common import testing
from services.llm_gateway.adapters.anthropic_batch import AnthropicBatches
from services.llm_gateway.adapters.openai_batch import OpenAiBatches
from services.llm_gateway.batches.provider_port import ProviderFailed


def lines_for(line, model: str, count: int) -> list[dict]:
    """Requests whose answers tell their number."""
    return [line(f"c{n}", f"say exactly: number {n}", model=model) for n in range(count)]


async def whole(g, batch, count: int) -> None:
    answers, errors = await g.outputs(batch)
    told = [(a["custom_id"], a["response"]["body"]["choices"][0]["message"]["content"]) for a in answers]
    assert (told, errors) == ([(f"c{n}", f"number {n}") for n in range(count)], [])


async def billed(sim) -> int:
    return sum(entry["billed_nanousd"] for entry in await sim.log())


async def test_a_process_that_goes_while_a_batch_is_cancelled_leaves_bill_and_end_to_the_next(gateway, line, sim, monkeypatch):
    asked = asyncio.Event()

    async def away(self, deployment, batch_id):
        asked.set()
        raise ProviderFailed("status 503")

    await sim.order("batch_line_delay=50", endpoint="batch", times=1)
    async with gateway() as g:
        with monkeypatch.context() as patched:
            patched.setattr(OpenAiBatches, "cancel", away)
            batch = await g.begun(lines_for(line, "cheap", 100))
            await sim.logged(3)
            await g.client.batches.cancel(batch.id)
            await asked.wait()
            await g.parts.drain()
            assert (await g.client.batches.retrieve(batch.id)).status == "cancelling"
    async with gateway() as g:
        done = await g.ended(batch)
        assert done.status == "cancelled"
        answers, _ = await g.outputs(done)
        (entry,) = await g.lines()
        assert (entry["operation"], entry["cost_nanousd"], entry["metadata"]["lines"]) == ("batch", await billed(sim), len(answers))
        assert await g.store.hlen("llm:{acme}:open") == 0


async def test_a_cancellation_that_did_not_arrive_is_sent_again(gateway, line, sim, monkeypatch):
    real, tries = OpenAiBatches.cancel, []

    async def lost_at_first(self, deployment, batch_id):
        tries.append(batch_id)
        if len(tries) < 3:
            raise ProviderFailed("status 503")
        await real(self, deployment, batch_id)

    monkeypatch.setattr(OpenAiBatches, "cancel", lost_at_first)
    await sim.order("batch_line_delay=60", endpoint="batch", times=1)
    async with gateway() as g:
        batch = await g.begun(lines_for(line, "cheap", 100))
        await sim.logged(3)
        await g.client.batches.cancel(batch.id)
        done = await g.ended(batch)
        assert (done.status, len(tries)) == ("cancelled", 3)
        assert done.request_counts.completed == len(await sim.log()) < 100


async def test_a_cancellation_that_the_provider_refuses_for_good_is_asked_for_once(gateway, line, sim, monkeypatch):
    tries = []

    async def refused(self, deployment, batch_id):
        tries.append(batch_id)
        raise ProviderFailed("it has ended already", permanent=True)

    monkeypatch.setattr(OpenAiBatches, "cancel", refused)
    await sim.order("batch_line_delay=20", endpoint="batch")
    async with gateway() as g:
        batch = await g.begun(lines_for(line, "cheap", 20))
        await sim.logged(1)
        await g.client.batches.cancel(batch.id)
        done = await g.ended(batch)
        assert (done.status, len(tries)) == ("cancelled", 1)
        assert done.request_counts.completed == 20


async def test_a_provider_that_is_away_behind_a_beginning_that_nobody_heard_of_is_looked_at_again(gateway, line, sim, http, monkeypatch):
    """Given up, the batch would be done and paid twice: there, where it was begun, and here."""
    begin, find, looks = OpenAiBatches.begin, OpenAiBatches.find, []

    async def unheard(self, *arguments):
        await begin(self, *arguments)
        raise ProviderFailed("the answer was lost")

    async def away(self, *arguments):
        looks.append(arguments)
        if len(looks) < 8:
            raise ProviderFailed("status 503")
        return await find(self, *arguments)

    monkeypatch.setattr(OpenAiBatches, "begin", unheard)
    monkeypatch.setattr(OpenAiBatches, "find", away)
    async with gateway({"again_s": 0.005}) as g:
        done = await g.ended(await g.begun(lines_for(line, "cheap", 6)))
        await whole(g, done, 6)
        assert len(await sim.log()) == 6
        assert [(entry["operation"], entry["cost_nanousd"]) for entry in await g.lines()] == [("batch", await billed(sim))]


async def test_what_is_unknown_for_too_long_is_paid_at_its_bound_and_done_here(gateway, line, sim, monkeypatch):
    async def away(self, *arguments):
        raise ProviderFailed("status 503")

    monkeypatch.setattr(OpenAiBatches, "begin", away)
    monkeypatch.setattr(OpenAiBatches, "find", away)
    async with gateway({"again_s": 0.005, "ending_s": 0.2}) as g:
        await whole(g, await g.ended(await g.begun(lines_for(line, "cheap", 3))), 3)
        ledger = {entry["operation"]: entry for entry in await g.lines()}
        assert (ledger["batch"]["status"], ledger["batch"]["cost_nanousd"]) == ("lost", ledger["batch"]["reserved_nanousd"])
        assert await g.store.hlen("llm:{acme}:open") == 0


async def test_a_provider_where_nobody_listens_leaves_the_batch_to_the_gateway_for_nothing(gateway, line, sim, monkeypatch):
    begin = OpenAiBatches.begin

    async def nowhere(self, deployment, submission, staged):
        monkeypatch.setattr(type(self), "_address", lambda *_: (f"http://127.0.0.1:{testing.free_port()}/v1/batches", {}))
        return await begin(self, deployment, submission, staged)

    monkeypatch.setattr(OpenAiBatches, "begin", nowhere)
    async with gateway({"again_s": 0.005}) as g:
        await whole(g, await g.ended(await g.begun(lines_for(line, "cheap", 3))), 3)
        assert {entry["operation"] for entry in await g.lines()} == {"chat"}


async def test_results_that_are_gone_end_the_batch_and_are_paid_at_their_bound(gateway, line, sim, monkeypatch):
    async def gone(self, deployment, label, found):
        raise ProviderFailed("status 404", permanent=True, missing=True)
        yield

    monkeypatch.setattr(OpenAiBatches, "results", gone)
    async with gateway() as g:
        await whole(g, await g.ended(await g.begun(lines_for(line, "cheap", 3))), 3)
        ledger = {entry["operation"]: entry for entry in await g.lines()}
        assert (ledger["batch"]["status"], ledger["batch"]["cost_nanousd"]) == ("lost", ledger["batch"]["reserved_nanousd"])


async def test_a_batch_that_does_not_end_and_counts_nothing_before_is_paid_at_its_bound(gateway, line, sim, monkeypatch):
    async def unmoved(self, deployment, batch_id):
        return None

    monkeypatch.setattr(AnthropicBatches, "cancel", unmoved)
    await sim.order("batch_line_delay=300", endpoint="batch", times=1)
    async with gateway({"ending_s": 0.2}) as g:
        batch = await g.begun(lines_for(line, "claude", 100))
        await sim.logged(2)
        await g.client.batches.cancel(batch.id)
        assert (await g.ended(batch)).status == "cancelled"
        (entry,) = await g.lines()
        assert (entry["status"], entry["cost_nanousd"]) == ("lost", entry["reserved_nanousd"])
