"""The log of what was served and billed."""

import orjson

from services.simulator.served_log import KEPT_LINES, ServedLog, Visit


async def test_a_line_has_what_reconciliation_needs(sim):
    headers = {
        "x-canary": "true",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "x-request-id": "req-1",
        "idempotency-key": "run/1/0",
        "authorization": "Bearer secret-key",
    }
    _, _, answer = await sim.chat("Write 10 words.", headers=headers)
    line = await sim.last_line()
    assert line["id"] == answer["id"]
    assert line["endpoint"] == "chat"
    assert (line["model"], line["requested_model"], line["stream"]) == ("sim-1", "sim-1", False)
    assert line["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert line["completion_tokens"] == answer["usage"]["completion_tokens"] == 10
    assert line["billed_nanousd"] == line["prompt_tokens"] * 150 + 10 * 600
    assert line["usage_sent"] is True
    assert line["aborted"] is False
    assert line["status"] == 200
    assert line["finish_reason"] == "stop"
    assert line["received_monotonic_s"] <= line["first_byte_monotonic_s"] <= line["ended_monotonic_s"]
    assert {name: line["headers"][name] for name in headers if name != "authorization"} == {
        name: value for name, value in headers.items() if name != "authorization"
    }
    assert "secret-key" not in orjson.dumps(line).decode()


async def test_each_model_has_its_price(sim):
    for model, input_price, output_price in (("sim-1", 150, 600), ("sim-2", 500, 1500), ("anything-else", 150, 600)):
        await sim.chat("Write 10 words.", model=model)
        line = (await sim.log())[-1]
        assert line["billed_nanousd"] == line["prompt_tokens"] * input_price + line["completion_tokens"] * output_price


async def test_the_log_is_read_page_by_page_and_cleared(sim):
    for _ in range(5):
        await sim.chat()
    seqs = [line["seq"] for line in await sim.log()]
    assert seqs == list(range(seqs[0], seqs[0] + 5))
    _, page = await sim.call("GET", f"/sim/log?after={seqs[1]}&limit=2")
    assert [line["seq"] for line in page["lines"]] == seqs[2:4]
    assert (page["last_seq"], page["dropped"]) == (seqs[3], 0)
    assert page["totals"]["requests"] == 5
    assert (await sim.call("DELETE", "/sim/log"))[1] == {"deleted": 5}
    _, page = await sim.call("GET", "/sim/log")
    assert (page["lines"], page["dropped"]) == ([], 0)
    assert page["totals"]["requests"] == 0
    await sim.chat()
    assert [line["seq"] for line in await sim.log()] == [seqs[-1] + 1], "a number is never used twice"


async def test_totals_are_the_sum_of_the_lines(sim):
    await sim.chat("Write 10 words.")
    await sim.chat(model="sim-1+500")
    await sim.stream(model="sim-2")
    _, page = await sim.call("GET", "/sim/log")
    assert len(page["lines"]) == page["totals"]["requests"] == 3
    for name in ("prompt_tokens", "completion_tokens", "billed_nanousd"):
        assert page["totals"][name] == sum(line[name] for line in page["lines"]) > 0
    assert page["totals"]["errors"] == 1


async def test_the_file_has_every_line_at_once(sim):
    await sim.chat()
    await sim.stream()
    lines = await sim.log()
    written = [orjson.loads(line) for line in sim.log_file.read_bytes().splitlines()]
    assert written[-2:] == lines


async def test_refused_requests_are_logged_and_cost_nothing(sim):
    await sim.chat(messages=[])
    line = await sim.last_line()
    assert (line["status"], line["billed_nanousd"]) == (400, 0)


def test_memory_is_bounded_and_says_what_it_dropped():
    log = ServedLog()
    for number in range(KEPT_LINES + 10):
        log.end(Visit(str(number), "chat", {}, 0.0, 0.0))
    page = orjson.loads(log.page(0, 5))
    assert [line["seq"] for line in page["lines"]] == [11, 12, 13, 14, 15]
    assert page["dropped"] == 10
    assert page["totals"]["requests"] == KEPT_LINES + 10
    end = orjson.loads(log.page(KEPT_LINES + 10, 5))
    assert (end["lines"], end["last_seq"], end["dropped"]) == ([], KEPT_LINES + 10, 0)
