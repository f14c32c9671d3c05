"""The fault matrix with providers that speak Anthropic's and Gemini's APIs, before a client that speaks OpenAI's."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.llm_gateway.matrix import (
    CASES_OF_ALL,
    FINE,
    LIMITED,
    MODES,
    ONCE,
    SUM,
    Bench,
    Case,
    bench_of,
    check_alone,
    check_leaving,
    check_with_a_spare,
    label,
    lonely,
    spared,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["anthropic", "gemini"])
async def module_bench(request, identities, _state_server, tmp_path_factory) -> AsyncIterator[Bench]:
    async with bench_of(identities, _state_server, tmp_path_factory.mktemp(request.param), request.param) as made:
        yield made


CASES = [*CASES_OF_ALL, Case("rate_limit=600", ONCE, ONCE, LIMITED), Case("huge_event=300000", FINE, FINE)]


@pytest.mark.parametrize(("case", "mode"), spared(CASES), ids=label)
async def test_a_fault_of_one_model_never_reaches_the_client(bench, case, mode):
    await check_with_a_spare(bench, case, mode)


@pytest.mark.parametrize(("case", "mode"), lonely(CASES, elsewhere=True), ids=label)
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
@pytest.mark.parametrize(
    "form", ["0.3", "anthropic-reset:1", "retry-info:0.3", "seconds:0.3", pytest.param("date:1", marks=pytest.mark.system)]
)
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
    await check_leaving(bench, fault, mode)
