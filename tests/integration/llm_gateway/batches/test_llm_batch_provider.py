"""Batches that the provider executes, at half the price: each line once, one bill, whatever breaks on the way."""

import asyncio
import signal
from dataclasses import replace

import pytest

from services.common import testing
from services.common.accounts import LimitSet
from services.llm_gateway.adapters.purse import ValkeyPurse


def cheap(line, count: int, text: str = "say exactly: number {}") -> list[dict]:
    """Requests for the model that has batch prices."""
    return [line(f"c{n}", text.format(n), model="cheap") for n in range(count)]


def whole(answers: list[dict], count: int) -> None:
    assert [answer["custom_id"] for answer in answers] == [f"c{n}" for n in range(count)]
    for number, answer in enumerate(answers):
        assert answer["response"]["body"]["choices"][0]["message"]["content"] == f"number {number}"


async def provider_state(sim, http) -> tuple[list[dict], list[dict]]:
    """Batches and files at the provider."""
    found = []
    for path in ("batches", "files"):
        async with http.get(f"{sim.url}/v1/{path}?limit=100") as answer:
            found.append((await answer.json())["data"])
    return found[0], found[1]


async def same_bill(g, sim) -> dict:
    """The one line of the ledger, which says what the simulator billed."""
    log = [entry for entry in await sim.log() if entry["status"] == 200]
    (entry,) = await g.lines()
    assert entry["cost_nanousd"] == sum(served["billed_nanousd"] for served in log)
    assert (entry["operation"], entry["status"], entry["estimated"]) == ("batch", "ok", False)
    return entry


async def test_a_batch_of_one_model_with_batch_prices_goes_to_its_provider_and_costs_half(gateway, line, sim, http):
    async with gateway() as g:
        done = await g.ended(await g.begun(cheap(line, 20)))
        assert done.status == "completed"
        answers, errors = await g.outputs(done)
        whole(answers, 20)
        assert errors == []
        log = await sim.log()
        assert len(log) == 20
        assert len({entry["batch_id"] for entry in log}) == 1
        assert log[0]["batch_id"]
        entry = await same_bill(g, sim)
        assert entry["metadata"] == {"lines": 20, "batch": done.id}
        # sim-2 costs 500 and 1500 nano-USD a token, a batch half of it.
        assert entry["cost_nanousd"] == sum(s["prompt_tokens"] * 250 + s["completion_tokens"] * 750 for s in log)
        assert done.usage.model_extra["cost_microusd"] == -(-entry["cost_nanousd"] // 1000)
        assert await g.store.hlen("llm:{acme}:open") == 0
        batches, files = await provider_state(sim, http)
        assert len(batches) == 1
        assert files == []  # nothing of the tenant's stays there


async def test_a_batch_of_several_models_stays_here(gateway, line, sim):
    async with gateway() as g:
        mixed = [*cheap(line, 2), line("c2", "say exactly: number 2")]
        answers, _ = await g.outputs(await g.ended(await g.begun(mixed)))
        whole(answers, 3)
        assert [entry["batch_id"] for entry in await sim.log()] == [None] * 3


async def test_embeddings_go_there_too(gateway, sim):
    url = "/v1/embeddings"
    async with gateway() as g:
        lines = [
            {"custom_id": str(n), "method": "POST", "url": url, "body": {"model": "cheap-vectors", "input": f"t {n}"}} for n in range(3)
        ]
        answers, _ = await g.outputs(await g.ended(await g.begun(lines, endpoint=url)))
        assert [len(answer["response"]["body"]["data"][0]["embedding"]) for answer in answers] == [256] * 3
        assert all(entry["batch_id"] for entry in await sim.log())
        await same_bill(g, sim)


async def test_what_the_provider_refuses_fails_and_what_it_could_not_do_is_done_here(gateway, line, sim):
    await sim.order("context_length", endpoint="batch", contains="number 2")
    await sim.order("status=500", endpoint="batch", contains="number 4")
    async with gateway() as g:
        lines = [*cheap(line, 6), line("c6", "x", model="cheap", max_tokens=-1)]
        done = await g.ended(await g.begun(lines))
        answers, errors = await g.outputs(done)
        assert [answer["custom_id"] for answer in answers] == ["c0", "c1", "c3", "c4", "c5"]
        assert {error["custom_id"]: error["response"]["status_code"] for error in errors} == {"c2": 400, "c6": 400}
        assert errors[0]["response"]["body"]["error"]["code"] == "context_length_exceeded"
        # Line 4 was done here at the full price, the others there at half of it.
        ledger = {entry["operation"]: entry for entry in await g.lines()}
        assert ledger["batch"]["metadata"]["lines"] == 5
        billed = sum(entry["billed_nanousd"] for entry in await sim.log())
        assert ledger["batch"]["cost_nanousd"] + ledger["chat"]["cost_nanousd"] == billed


async def test_a_provider_that_takes_no_batches_leaves_them_to_the_gateway(gateway, line, sim):
    await sim.order("status=400", endpoint="batch")
    async with gateway() as g:
        done = await g.ended(await g.begun(cheap(line, 5)))
        answers, _ = await g.outputs(done)
        whole(answers, 5)
        assert [entry["batch_id"] for entry in await sim.log() if entry["endpoint"] == "chat"] == [None] * 5
        assert [entry["operation"] for entry in await g.lines()] == ["chat"] * 5
        assert await g.store.hlen("llm:{acme}:open") == 0


async def test_a_submission_that_fails_for_a_while_is_made_once(gateway, line, sim, http):
    await sim.order("status=503", endpoint="batch", times=2)
    async with gateway() as g:
        done = await g.ended(await g.begun(cheap(line, 5)))
        answers, _ = await g.outputs(done)
        whole(answers, 5)
        await same_bill(g, sim)
        batches, _ = await provider_state(sim, http)
        assert len(batches) == 1


async def test_a_budget_too_small_for_the_whole_is_spent_line_by_line(gateway, line, sim):
    async with gateway({"concurrency": 1}) as g:
        limits = LimitSet(max_budget_microusd=200)
        await g.accounts.keys.update(g.key_id, "acme", lambda record: replace(record, limits=limits))
        done = await g.ended(await g.begun(cheap(line, 40)))
        answers, errors = await g.outputs(done)
        assert answers
        assert {error["response"]["status_code"] for error in errors} == {429}
        assert {entry["operation"] for entry in await g.lines()} == {"chat"}


async def test_a_cancellation_passes_through_and_what_was_done_is_paid_and_kept(gateway, line, sim):
    await sim.order("batch_line_delay=60", endpoint="batch", times=1)
    async with gateway() as g:
        batch = await g.begun(cheap(line, 100))
        await sim.logged(3)
        assert (await g.client.batches.cancel(batch.id)).status == "cancelling"
        done = await g.ended(batch)
        assert done.status == "cancelled"
        answers, errors = await g.outputs(done)
        assert errors == []
        assert 3 <= len(answers) < 100
        whole(answers, len(answers))
        entry = await same_bill(g, sim)
        assert entry["metadata"]["lines"] == len(answers) == len(await sim.log())


async def test_a_window_that_closes_ends_it_there_and_the_rest_is_told_as_expired(gateway, line, sim):
    await sim.order("batch_line_delay=60", endpoint="batch", times=1)
    async with gateway() as g:
        done = await g.ended(await g.begun(cheap(line, 100), window="1s"))
        assert done.status == "expired"
        answers, errors = await g.outputs(done)
        assert answers
        assert [entry["custom_id"] for entry in answers + errors] == [f"c{n}" for n in range(100)]
        assert {error["error"]["code"] for error in errors} == {"batch_expired"}
        assert (await same_bill(g, sim))["metadata"]["lines"] == len(answers)


async def test_lines_that_a_provider_let_expire_are_done_here(gateway, line, sim):
    await sim.order("batch_expires_after=3", endpoint="batch", times=1)
    async with gateway() as g:
        done = await g.ended(await g.begun(cheap(line, 6)))
        answers, _ = await g.outputs(done)
        whole(answers, 6)
        assert sorted(entry["operation"] for entry in await g.lines()) == ["batch", "chat", "chat", "chat"]
        billed = sum(entry["billed_nanousd"] for entry in await sim.log())
        assert sum(entry["cost_nanousd"] for entry in await g.lines()) == billed


async def test_an_answer_without_usage_is_paid_at_its_bound_and_flagged(gateway, line, sim):
    await sim.order("missing_usage", endpoint="batch", contains="number 1")
    async with gateway() as g:
        done = await g.ended(await g.begun(cheap(line, 3)))
        answers, _ = await g.outputs(done)
        whole(answers, 3)
        (entry,) = await g.lines()
        billed = sum(served["billed_nanousd"] for served in await sim.log())
        assert entry["estimated"]
        assert billed < entry["cost_nanousd"] <= entry["reserved_nanousd"]


@pytest.mark.system
async def test_a_gateway_killed_while_the_provider_works_is_replaced_and_nothing_is_done_or_paid_twice(processes, line, sim, http):
    await sim.order("batch_line_delay=30", endpoint="batch", times=1)
    g, process = await processes(lease_s=0.6)
    batch = await g.begun(cheap(line, 150))
    await sim.logged(5)
    process.kill()
    second, again = await processes(lease_s=0.6)
    await sim.logged(60)
    again.signal(signal.SIGTERM)
    await asyncio.to_thread(again.wait)
    third, _ = await processes(lease_s=0.6)
    done = await third.ended(batch)
    answers, errors = await third.outputs(done)
    whole(answers, 150)
    assert errors == []
    entry = await same_bill(third, sim)
    assert entry["metadata"]["lines"] == 150
    assert len(await sim.log()) == 150
    batches, _ = await provider_state(sim, http)
    assert len(batches) == 1
    assert await third.store.hlen("llm:{acme}:open") == 0
    assert second is not third


async def test_a_gateway_killed_at_any_step_of_the_submission_submits_once(processes, line, sim, http):
    """Each step is held up by the store, and the process killed there."""
    g, process = await processes(lease_s=0.6)
    for number in range(3):
        batch = await g.begun(cheap(line, 8, text="say exactly: number {}"))
        await asyncio.sleep(0.02 * number)  # somewhere within the hand-over; where does not matter
        process.kill()
        g, process = await processes(lease_s=0.6)
        done = await g.ended(batch)
        answers, _ = await g.outputs(done)
        whole(answers, 8)
    log = await sim.log()
    batches, _ = await provider_state(sim, http)
    # One batch each, and every request was made once.
    assert len(batches) == 3
    assert len(log) == 3 * 8

    async def settled():
        return len([entry for entry in await g.lines() if entry["status"] == "ok"]) == 3

    await testing.eventually_async(settled, "every batch is paid")
    assert sum(e["cost_nanousd"] for e in await g.lines() if e["status"] == "ok") == sum(entry["billed_nanousd"] for entry in log)


async def test_a_crash_on_either_side_of_the_reservation_holds_no_money_back(gateway, line, sim, monkeypatch):
    real = ValkeyPurse.reserve
    reached = asyncio.Event()

    async def stuck(self, ask, *, ticket_id=""):
        if not ticket_id:
            return await real(self, ask)
        if before.is_set():
            await real(self, ask, ticket_id=ticket_id)
        reached.set()
        await asyncio.Event().wait()  # until the process ends
        raise AssertionError

    for number in range(2):
        before = asyncio.Event()
        if number:
            before.set()
        reached.clear()
        with monkeypatch.context() as patched:
            patched.setattr(ValkeyPurse, "reserve", stuck)
            async with gateway({"lease_s": 0.6}) as g:
                batch = await g.begun(cheap(line, 5))
                await reached.wait()
                await g.parts.stop()
        async with gateway() as g:
            done = await g.ended(batch)
            whole((await g.outputs(done))[0], 5)

            async def nothing_held(store=g.store):
                return not await store.hlen("llm:{acme}:open")

            await testing.eventually_async(nothing_held, "every reservation has ended")
            assert [entry["operation"] for entry in await g.lines()] == ["batch"] * (number + 1)
