"""The fault matrix over the model port: what the provider does, what the client sees, what was served, billed and booked.

Each fault is made by the simulator, for calls with and without streaming, at one model (another one is healthy) and at all of
them. A client gets the whole answer word for word or an honest error; calls upstream and time are bounded; the money is settled.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.llm_gateway.matrix import (
    AGAIN,
    BOUND_S,
    CASES_OF_ALL,
    CUT,
    FINE,
    LIMITED,
    MALFORMED,
    MODES,
    ONCE,
    SHIPS,
    SUM,
    TRANSIENT,
    Bench,
    Case,
    bench_of,
    check_alone,
    check_leaving,
    check_with_a_spare,
    label,
    lonely,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_bench(identities, _state_server, tmp_path_factory) -> AsyncIterator[Bench]:
    async with bench_of(identities, _state_server, tmp_path_factory.mktemp("matrix")) as made:
        yield made


CASES = [
    *CASES_OF_ALL,
    # Statuses.
    *(Case(f"status={status}", AGAIN, AGAIN, TRANSIENT) for status in (408, 409, 425, 502, 504, 520)),
    *(Case(f"status={status}", ONCE, ONCE, (502, "unknown")) for status in (302, 407, 501)),
    Case("status=410", ONCE, ONCE, (502, "model_gone")),
    Case("status=402", ONCE, ONCE, (502, "quota")),
    Case("status=451", ONCE, ONCE, (502, "region")),
    Case("html_body; status=502", AGAIN, AGAIN, TRANSIENT),
    # Rate limits: a short wait is waited out, a long one is not.
    Case("rate_limit=junk", AGAIN, AGAIN, LIMITED),
    *(Case(f"rate_limit={wait}:600", ONCE, ONCE, LIMITED) for wait in ("seconds", "date", "reset-epoch")),
    # Bodies.
    Case("content_length=10", AGAIN, FINE, CUT),
    Case("content_length=-10", ONCE, FINE, MALFORMED),
    Case("empty_choices", ONCE, AGAIN, MALFORMED, CUT),
    # Streams that end before their end.
    Case("end_after=0", ONCE, ONCE, MALFORMED),
    Case("stall_after=0", ONCE, ONCE, (502, "stalled"), (502, "timeout_first_token")),
    # Oddities of whole answers.
    *(
        Case(fault, FINE, FINE)
        for fault in (
            "usage_with_finish", "usage_in_extra_chunk", "huge_event=400000", "wrong_content_type=application/octet-stream",
            "delay_after_headers=200", "tokens_per_s=150",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=label)
async def test_a_fault_of_one_model_never_reaches_the_client(bench, case, mode):
    await check_with_a_spare(bench, case, mode)


@pytest.mark.parametrize(("case", "mode"), lonely(CASES), ids=label)
async def test_a_fault_of_every_model_is_an_honest_error(bench, case, mode):
    await check_alone(bench, case, mode)


# The caller's own faults: asked once, no matter who else could be asked. Status, code, class.
REFUSED = [
    ("status=400", 400, None, "caller_fault"),
    ("status=422", 400, None, "caller_fault"),
    ("context_length", 400, "context_length_exceeded", "context_window"),
    ("content_policy", 400, "content_policy_violation", "content_policy"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fault", "status", "code", "failure_class"), REFUSED)
async def test_the_callers_own_fault_is_told_and_never_repeated(bench, mode, fault, status, code, failure_class):
    await bench.sim.order(fault, model="sim-1")
    seen, account = await bench.ask(mode)
    assert (seen.status, seen.error["type"]) == (status, "invalid_request_error")
    assert seen.error["failure_class"] == failure_class
    assert code is None or seen.error["code"] == code
    assert len(account.served) == 1
    assert not account.booked


# A wait that is told is waited, whatever its form; HTTP dates and epochs are whole seconds.
WAITS = [
    ("0.2", 0.2),
    ("seconds:0.2", 0.2),
    ("ms:200", 0.2),
    ("x-ms:200", 0.2),
    ("reset:0.2", 0.2),
    ("date:1", 0.0),
    ("reset-epoch:1", 0.0),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("form", "wait_s"), WAITS)
async def test_a_told_wait_is_waited_out_in_every_form(bench, mode, form, wait_s):
    await bench.sim.order(f"rate_limit={form}", times=1, model="sim-1")
    seen, account = await bench.ask(mode)
    assert seen.message() == bench.truth["ships"]
    first, second = account.served
    assert second["received_monotonic_s"] - first["received_monotonic_s"] >= wait_s
    assert (first["status"], second["model"]) == (429, "sim-1")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["status=503", "reset", "error_body", "cut_after=2", "error_event_after=2", "bad_chunked"])
async def test_what_passes_is_over_after_one_repeat(bench, mode, fault):
    await bench.sim.order(fault, times=1)
    seen, account = await bench.ask(mode)
    assert seen.message() == bench.truth["ships"]
    assert (len(account.of("sim-1")), seen.warnings) == (2, ["model_retry"])


# Where a tool call is cut, and in which form it is damaged.
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["cut_in_arguments=before", "cut_in_arguments=inside", "cut_in_arguments=after", "cut_after=1"])
@pytest.mark.parametrize("everywhere", [False, True])
async def test_a_tool_call_is_whole_or_an_error(bench, mode, fault, everywhere):
    await bench.sim.order(fault, **({} if everywhere else {"model": "sim-1"}))
    seen, account = await bench.ask(mode, SUM)
    if everywhere:
        assert not seen.succeeded
        assert seen.error["failure_class"] == "cut"
    elif mode == "unary" or seen.succeeded:
        assert seen.message() == bench.truth["sum"]
        assert account.served[-1]["model"] == "sim-2"
    else:
        # A part of the call is out, and another answer has another id: nobody can join them.
        assert seen.calls
        assert seen.error["failure_class"] == "cut"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fault", "finish"), [("content_filter=3", "content_filter"), ("finish_without_content", "stop")])
async def test_an_answer_that_the_provider_ends_early_says_so(bench, mode, fault, finish):
    await bench.sim.order(fault, model="sim-1")
    seen, account = await bench.ask(mode)
    assert (seen.succeeded, seen.finish) == (True, finish)
    assert bench.truth["ships"][0].startswith(seen.text)
    assert len(account.served) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_a_doubled_event_is_relayed_as_it_came_and_paid_once(bench, mode):
    """Nobody can tell a doubled event from a word said twice; what is metered is the provider's own count."""
    await bench.sim.order("duplicate_chunk=2", model="sim-1")
    seen, account = await bench.ask(mode)
    text, _, finish = bench.truth["ships"]
    assert seen.finish == finish
    assert set(seen.text.split()) == set(text.split()) or seen.text == text
    assert not account.booked[0]["estimated"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["missing_usage", "usage_zero", "cut_after=3", "error_event_after=3", "stall_after=3"])
async def test_what_a_model_thinks_unseen_is_never_left_out_of_an_estimate(bench, mode, fault):
    await bench.sim.order(f"reasoning_tokens=300; {fault}", times=1)
    # What the bill says, and that an estimate covers it, is checked with every call.
    seen, account = await bench.ask(mode, {**SHIPS, "max_tokens": 500}, "thinker")
    assert seen.succeeded
    if account.served[0]["billed_nanousd"]:
        assert account.booked[0]["estimated"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["hang", "stall_after=2", "first_token_delay=60000", "tokens_per_s=1", "status=500"])
async def test_the_clients_deadline_bounds_everything(bench, mode, fault):
    await bench.sim.order(fault)
    seen, account = await bench.ask(mode, x_request_timeout_ms="400")
    assert not seen.succeeded
    assert seen.took_s < BOUND_S / 2
    assert seen.error["failure_class"]
    assert 1 <= len(account.served) <= 8


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["first_token_delay=60000", "tokens_per_s=5", "stall_after=2"])
async def test_a_client_that_leaves_ends_the_work_upstream_and_its_money(bench, mode, fault):
    await check_leaving(bench, fault, mode)


async def test_the_simulator_answers_what_the_table_takes_for_the_truth(bench):
    text, calls, finish = bench.truth["ships"]
    assert (len(text) > 20, calls, finish) == (True, [], "stop")
    _, calls, finish = bench.truth["sum"]
    assert (calls[0][0], finish) == ("calculator", "tool_calls")
    assert len({case.fault for case in CASES}) >= 60
