"""The fault matrix with providers that speak Anthropic's and Gemini's APIs, before a client that speaks OpenAI's."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.common import testing
from tests.integration.llm_gateway.matrix import (
    AGAIN,
    CUT,
    FINE,
    MALFORMED,
    MODES,
    ONCE,
    SHIPS,
    SKIPPED,
    SUM,
    TRANSIENT,
    Bench,
    Case,
    bench_of,
    check_alone,
    check_with_a_spare,
    label,
    lonely,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMITED, CREDENTIAL, QUOTA = (503, "rate_limited"), (502, "credential"), (502, "quota")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["anthropic", "gemini"])
async def module_bench(request, identities, _state_server, tmp_path_factory) -> AsyncIterator[Bench]:
    async with bench_of(identities, _state_server, tmp_path_factory.mktemp(request.param), request.param) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def bench(module_bench) -> Bench:
    await module_bench.books.mark()
    return module_bench


CASES = [
    *(Case(f"status={status}", AGAIN, AGAIN, TRANSIENT) for status in (500, 503, 529)),
    *(Case(f"status={status}", ONCE, ONCE, CREDENTIAL) for status in (401, 403)),
    Case("status=404", ONCE, ONCE, (502, "model_gone")),
    Case("unauthorized", ONCE, ONCE, CREDENTIAL),
    Case("forbidden", ONCE, ONCE, CREDENTIAL),
    Case("insufficient_quota", ONCE, ONCE, QUOTA),
    Case("redirect", ONCE, ONCE, (502, "unknown")),
    Case("rate_limit=none", AGAIN, AGAIN, LIMITED),
    Case("rate_limit=600", ONCE, ONCE, LIMITED),
    Case("reset", AGAIN, AGAIN, TRANSIENT),
    Case("close_before_body", AGAIN, AGAIN, TRANSIENT),
    Case("hang", ONCE, ONCE, (504, ""), (502, "timeout_first_token")),
    Case("bad_chunked", AGAIN, AGAIN, CUT),
    Case("error_body", AGAIN, AGAIN, TRANSIENT),
    Case("empty_body", ONCE, ONCE, MALFORMED),
    Case("html_body", ONCE, ONCE, MALFORMED),
    Case("malformed_json", ONCE, SKIPPED, MALFORMED),
    Case("invalid_utf8", ONCE, SKIPPED, MALFORMED),
    Case("nul_bytes", ONCE, SKIPPED, MALFORMED),
    Case("cut_after=0", AGAIN, AGAIN, CUT),
    Case("cut_after=3", AGAIN, AGAIN, CUT),
    Case("end_after=3", ONCE, AGAIN, MALFORMED, CUT),
    Case("missing_finish", ONCE, AGAIN, MALFORMED, CUT),
    Case("stall_after=3", ONCE, ONCE, (502, "stalled")),
    Case("error_event_after=0", AGAIN, AGAIN, TRANSIENT),
    Case("error_event_after=1", AGAIN, AGAIN, TRANSIENT),
    Case("error_event_after=4", AGAIN, AGAIN, TRANSIENT),
    *(
        Case(fault, FINE, FINE)
        for fault in (
            "missing_done", "missing_usage", "usage_zero", "keepalive", "crlf", "bom", "gzip", "trickle=7", "huge_event=300000",
            "wrong_content_type", "role_chunks=5", "first_token_delay=200", "slow_headers=200", "reasoning_tokens=20",
            "reasoning_tokens=20; show_reasoning", "cached_prefix=4", "unknown_event=2",
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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fault", "code"), [("context_length", "context_length_exceeded"), ("content_policy", "content_policy_violation")])
async def test_the_callers_own_fault_is_told_and_never_repeated(bench, mode, fault, code):
    await bench.sim.order(fault, model="sim-1")
    seen, account = await bench.ask(mode)
    assert (seen.status, seen.error["type"], seen.error["code"]) == (400, "invalid_request_error", code)
    assert len(account.served) == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["0.3", "anthropic-reset:1", "retry-info:0.3", "seconds:0.3", "date:1"])
async def test_a_told_wait_is_waited_out(bench, mode, form):
    await bench.sim.order(f"rate_limit={form}", times=1, model="sim-1")
    seen, account = await bench.ask(mode)
    assert seen.message() == bench.truth["ships"]
    first, second = account.served
    assert (first["status"], second["model"]) == (429, "sim-1")
    if form in ("0.3", "seconds:0.3"):
        assert second["received_monotonic_s"] - first["received_monotonic_s"] >= 0.3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["cut_in_arguments=before", "cut_in_arguments=inside", "cut_in_arguments=after", "malformed_json=1"])
@pytest.mark.parametrize("everywhere", [False, True])
async def test_a_tool_call_is_whole_or_an_error(bench, mode, fault, everywhere):
    await bench.sim.order(fault, **({} if everywhere else {"model": "sim-1"}))
    seen, _ = await bench.ask(mode, SUM)
    if seen.succeeded:
        assert seen.message() == bench.truth["sum"]
        assert not everywhere or seen.warnings == ["event_skipped"]
    else:
        # A part of the call is out, and another answer has another id: nobody can join them.
        assert everywhere or (mode == "stream" and seen.calls)
        assert seen.error["failure_class"] in ("cut", "malformed")


@pytest.mark.parametrize("mode", MODES)
async def test_a_filtered_answer_says_so(bench, mode):
    await bench.sim.order("content_filter=3", model="sim-1")
    seen, account = await bench.ask(mode)
    assert (seen.succeeded, seen.finish, len(account.served)) == (True, "content_filter", 1)
    assert bench.truth["ships"][0].startswith(seen.text)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["first_token_delay=60000", "tokens_per_s=5", "stall_after=2"])
async def test_a_client_that_leaves_ends_the_work_upstream_and_its_money(bench, mode, fault):
    await bench.sim.order(fault)
    task = asyncio.create_task(bench.client.chat({"model": "main", **SHIPS}, stream=mode == "stream"))
    await testing.eventually_async(bench.sim.in_flight, "the call is upstream")
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    account = await bench.books.close_case()
    assert [line["aborted"] for line in account.served] == [True]
    assert [line["status"] for line in account.booked] == ["cancelled"]
