"""Calls leave nothing behind that only the garbage collector can free: it took a ninth of the CPU when they did."""

import gc

import pytest


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_leave_no_cycles(serve, sim, models, stream):
    async with serve(models(sim.url)) as stack:

        async def ask(number: int) -> None:
            body = {"model": "main", "stream": stream, "messages": [{"role": "user", "content": f"Tell me about ships, {number}."}]}
            async with stack.http.post(
                f"{stack.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {stack.key}"}
            ) as answer:
                assert answer.status == 200
                await answer.read()

        await ask(0)
        gc.collect()
        gc.disable()
        try:
            for number in range(1, 21):
                await ask(number)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = [type(thing).__qualname__ for thing in gc.garbage if type(thing).__module__.startswith("services.llm_gateway")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert len(left) < 20, sorted(set(left))
