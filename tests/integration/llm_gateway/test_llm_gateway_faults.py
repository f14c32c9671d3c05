"""The fault matrix: what the provider does, what the caller gets, and what the simulator says that it served.

Each fault is made by the simulator, on calls with and without streaming. A caller gets the whole answer or an explicit
error, never a part of an answer as a success; the number of upstream calls is bounded.
"""

from dataclasses import dataclass, field

import pytest
from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.common.errors import BulkheadError, InvalidInput, Overloaded, UpstreamFailed

pytestmark = pytest.mark.asyncio(loop_scope="module")
QUESTION = "Tell me about ships and bulkheads, please."
MODES = ["unary", "stream"]


@dataclass
class Got:
    """What a caller saw."""

    text: str = ""
    finished: object = None
    warnings: list[str] = field(default_factory=list)
    error: BulkheadError | None = None


async def call(stack, ask, mode: str, model: str = "main") -> Got:
    got = Got()
    try:
        with testing.calling(stack.identities, timeout_s=40):
            if mode == "unary":
                answer = await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask(QUESTION, model)))
                got.text, got.finished = answer.message.text, answer.outcome
                got.warnings = [w.code for w in answer.outcome.warnings]
            else:
                async for event in stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask(QUESTION, model))):
                    kind = event.WhichOneof("event")
                    if kind == "text_delta":
                        got.text += event.text_delta.text
                    elif kind == "warning":
                        got.warnings.append(event.warning.code)
                    elif kind == "finished":
                        assert event.finished.message.text == got.text
                        got.finished = event.finished.outcome
    except BulkheadError as error:
        got.error = error
    return got


async def truth(stack, ask) -> str:
    """The answer without any fault; both models of the simulator give the same."""
    got = await call(stack, ask, "unary", "backup")
    assert got.error is None
    return got.text


RETRIED = ["model_retry"] * 3 + ["model_fallback"]
SWITCHED = ["model_fallback"]

# fault of sim-1 -> what the caller is warned of, and how often sim-1 is asked, before sim-2 gives the answer
SURVIVED = [
    ("status=500", RETRIED, 4),
    ("status=502", RETRIED, 4),
    ("status=503", RETRIED, 4),
    ("status=408", RETRIED, 4),
    ("status=401", SWITCHED, 1),
    ("status=403", SWITCHED, 1),
    ("status=404", SWITCHED, 1),
    ("rate_limit=ms:30", RETRIED, 4),
    ("rate_limit=seconds:0.02", RETRIED, 4),
    ("rate_limit=x-ms:20", RETRIED, 4),
    ("rate_limit=reset:0.02", RETRIED, 4),
    ("rate_limit=none", RETRIED, 4),
    ("rate_limit=seconds:600", SWITCHED, 1),
    ("rate_limit=date:600", SWITCHED, 1),
    ("insufficient_quota", SWITCHED, 1),
    ("redirect", SWITCHED, 1),
    ("reset", RETRIED, 4),
    ("error_body", RETRIED, 4),
    ("error_event_after=0", RETRIED, 4),
    ("empty_choices", None, None),  # malformed or cut, by the mode: only the answer counts
    ("hang", SWITCHED, 1),
    ("cut_after=0", RETRIED, 4),
    ("cut_after=2", RETRIED, 4),
    ("end_after=2", None, None),
    ("stall_after=2", SWITCHED, 1),
    ("error_event_after=2", RETRIED, 4),
    ("missing_finish", None, None),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fault", "warnings", "asked"), SURVIVED)
async def test_a_fault_of_one_model_does_not_reach_the_caller(stack, ask, mode, fault, warnings, asked):
    whole = await truth(stack, ask)
    await stack.sim.order(fault, model="sim-1")
    got = await call(stack, ask, mode)
    assert got.error is None, got.error
    assert got.text == whole
    assert (got.finished.finish_reason, got.finished.model) == ("stop", "backup")
    lines = (await stack.sim.logged(got.finished.attempts + 1))[1:]
    assert len(lines) == got.finished.attempts <= 8
    assert lines[-1]["model"] == "sim-2"
    if warnings is not None:
        assert got.warnings == warnings
        assert [line["model"] for line in lines] == ["sim-1"] * asked + ["sim-2"]


# fault that every model has -> class that the caller is told, upstream calls at most
HOPELESS = [
    ("status=500", UpstreamFailed, "transient", 8),
    ("status=401", UpstreamFailed, "credential", 2),
    ("status=404", UpstreamFailed, "model_gone", 2),
    ("insufficient_quota", UpstreamFailed, "quota", 2),
    ("rate_limit=seconds:600", Overloaded, "rate_limited", 2),
    ("reset", UpstreamFailed, "transient", 8),
    ("error_body", UpstreamFailed, "transient", 8),
    ("cut_after=2", UpstreamFailed, "cut", 8),
    ("end_after=2", UpstreamFailed, None, 8),
    ("error_event_after=2", UpstreamFailed, "transient", 8),
    ("missing_finish", UpstreamFailed, None, 8),
    ("empty_choices", UpstreamFailed, None, 8),
    # The caller's own faults: one call, nowhere else.
    ("status=400", InvalidInput, "caller_fault", 1),
    ("status=422", InvalidInput, "caller_fault", 1),
    ("context_length", InvalidInput, "context_window", 1),
    ("content_policy", InvalidInput, "content_policy", 1),
]


# Seconds of nothing but waiting; over HTTP the fault matrix has it too.
HOPELESS_SLOW = [
    ("hang", BulkheadError, None, 2),
    ("stall_after=2", UpstreamFailed, "stalled", 2),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("fault", "error", "failure_class", "most"), [*HOPELESS, *(pytest.param(*one, marks=pytest.mark.system) for one in HOPELESS_SLOW)]
)
async def test_when_every_model_fails_the_caller_gets_the_error_and_no_success(stack, ask, mode, fault, error, failure_class, most):
    await stack.sim.order(fault)
    got = await call(stack, ask, mode)
    assert got.finished is None
    assert isinstance(got.error, error), got.error
    if failure_class is not None:
        assert got.error.metadata["failure_class"] == failure_class
    lines = await stack.sim.logged(1)
    assert 1 <= len(lines) <= most


# fault that leaves the answer whole -> what the caller is warned of
HARMLESS = [
    ("missing_done", []),
    ("keepalive", []),
    ("crlf", []),
    ("huge_event=300000", []),
    ("wrong_content_type", []),
    ("first_token_delay=200", []),
    ("tokens_per_s=200", []),
    ("missing_usage", []),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fault", "warnings"), HARMLESS)
async def test_oddities_of_a_whole_answer_are_taken(stack, ask, mode, fault, warnings):
    whole = await truth(stack, ask)
    await stack.sim.order(fault, model="sim-1")
    got = await call(stack, ask, mode)
    assert got.error is None
    assert (got.text, got.warnings, got.finished.model, got.finished.attempts) == (whole, warnings, "main", 1)
    billed = (await stack.sim.logged(2))[-1]
    usage = got.finished.usage
    if fault == "missing_usage":
        assert usage.estimated
        assert usage.input_tokens >= billed["prompt_tokens"]
        assert usage.output_tokens >= billed["completion_tokens"]
        assert usage.cost_microusd * 1000 >= billed["billed_nanousd"]
    else:
        assert not usage.estimated
        assert (usage.input_tokens, usage.output_tokens) == (billed["prompt_tokens"], billed["completion_tokens"])
        assert usage.cost_microusd == -(-billed["billed_nanousd"] // 1000)


async def test_one_malformed_event_is_skipped_with_a_warning(stack, ask):
    whole = await truth(stack, ask)
    await stack.sim.order("malformed_json=2", model="sim-1")
    got = await call(stack, ask, "stream")
    assert (got.text, got.warnings, got.finished.model) == (whole, ["event_skipped"], "main")


async def test_a_malformed_body_goes_elsewhere(stack, ask):
    whole = await truth(stack, ask)
    await stack.sim.order("malformed_json", model="sim-1")
    got = await call(stack, ask, "unary")
    assert (got.text, got.warnings, got.finished.model) == (whole, ["model_fallback"], "backup")


@pytest.mark.parametrize("mode", MODES)
async def test_a_failure_that_passes_is_over_with_one_retry(stack, ask, mode):
    whole = await truth(stack, ask)
    await stack.sim.order("status=503", times=1)
    got = await call(stack, ask, mode)
    assert (got.text, got.warnings, got.finished.model, got.finished.attempts) == (whole, ["model_retry"], "main", 2)


async def test_a_stream_that_is_cut_once_is_joined_by_the_same_model_and_both_parts_are_paid(stack, ask):
    whole = await truth(stack, ask)
    await stack.sim.order("cut_after=4", times=1)
    got = await call(stack, ask, "stream")
    assert (got.text, got.warnings, got.finished.model, got.finished.attempts) == (whole, ["model_retry"], "main", 2)
    billed = (await stack.sim.logged(3))[1:]
    usage = got.finished.usage
    assert usage.estimated  # the cut part came without usage
    assert usage.cost_microusd * 1000 >= sum(line["billed_nanousd"] for line in billed)


@pytest.mark.parametrize("mode", MODES)
async def test_a_filtered_answer_says_so(stack, ask, mode):
    await stack.sim.order("content_filter=3", model="sim-1")
    got = await call(stack, ask, mode)
    assert got.error is None
    assert got.finished.finish_reason == "content_filter"


@pytest.mark.parametrize("mode", MODES)
async def test_a_deadline_bounds_all_attempts_together(stack, ask, mode):
    await stack.sim.order("status=500")
    with testing.calling(stack.identities, timeout_s=0.4), pytest.raises(BulkheadError):
        if mode == "unary":
            await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask()))
        else:
            async for _ in stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask())):
                pass
    assert 1 <= len(await stack.sim.logged(1)) <= 8
    assert await stack.sim.in_flight() == 0
