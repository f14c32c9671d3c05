"""Workers that are killed with calls under way: their purse is exact once what was open has expired."""

from services.common import testing
from services.llm_gateway.adapters.ledger import Ledger
from tests.integration.llm_gateway.test_llm_purse_faults import ANA, purse_on, spent_and_held

WORKER = """
import asyncio, sys
from services.common.valkey import connect
from services.llm_gateway.money import Usage
from tests.integration.llm_gateway.test_llm_purse_faults import ask, purse_on

async def main():
    purse = purse_on(connect(sys.argv[1]), 30.0)

    async def caller(number):
        while True:
            ticket = await purse.reserve(ask(expires_s=1.0, cost_nanousd=40_000))
            await asyncio.sleep(0.001 * number)
            purse.settle(ticket, Usage(cost_picousd=10**7), status="ok", latency_s=0.1)

    await asyncio.gather(*(caller(number) for number in range(8)))

asyncio.run(main())
"""


async def test_workers_that_are_killed_leave_an_exact_ledger(valkey, state_url, tmp_path):
    workers = [
        testing.Process(testing.python("-c", WORKER, state_url), log=tmp_path / f"{n}.log", env={"PYTHONPATH": str(testing.ROOT)})
        for n in range(2)
    ]
    purse = purse_on(valkey, 30.0)
    try:

        async def at_work():
            assert all(worker.running() for worker in workers), [worker.output() for worker in workers]
            return await valkey.xlen("llm:{acme}:ledger") > 200

        await testing.eventually_async(at_work, "the workers are at work")
    finally:
        for worker in workers:
            worker.kill()
    booked = 0

    async def all_ended():
        nonlocal booked
        booked += await purse.sweep()
        return not await valkey.exists("llm:{acme}:open")

    await testing.eventually_async(all_ended, "what was open has expired", every_s=0.1)
    ledger, lines, cursor = Ledger(valkey), [], ""
    while True:
        page = await ledger.lines("acme", limit=1000, cursor=cursor)
        lines, cursor = lines + page.lines, page.cursor
        if not cursor:
            break
    lost = [line for line in lines if line["status"] == "lost"]
    assert len(lost) == booked
    assert 0 < booked <= 16
    assert len({line["id"] for line in lines}) == len(lines)
    assert await spent_and_held(purse) == (sum(line["cost_nanousd"] for line in lines), 0)
    assert [limit.remaining for limit in (await purse.budgets(ANA)).limits] == [100]
    await purse.stop()
