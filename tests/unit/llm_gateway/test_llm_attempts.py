"""The one attempt loop: what is asked, how often, in which order, and what the caller hears."""

import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import DeadlineExceeded, InvalidInput, Overloaded, UpstreamFailed
from services.llm_gateway.attempts import Course, Opened, Policy
from services.llm_gateway.failures import MOVES, NOBODY_ASKED, Failure, FailureClass, Move, UpstreamFault
from services.llm_gateway.ports import Load
from services.llm_gateway.registry import Deployment, Group, Registry
from services.llm_gateway.results import Notice
from services.llm_gateway.testing import OpenGate

# Waits that no test has to sit through.
QUICK = Policy(retry_base_s=0.0001, retry_cap_s=0.001)


class Heard:
    """An observer that keeps what it hears."""

    def __init__(self):
        self.retries, self.switches, self.exhaustions = [], [], []

    def retrying(self, deployment, failure, wait_s, retry):
        self.retries.append((deployment.id, failure.failure_class, wait_s))

    def switching(self, start, target, failure):
        self.switches.append((start.index, target.index, target.name))

    def exhausted(self, tried):
        self.exhaustions.append(list(tried))


def registry(names="abc", deployments=1, mode="chat", **more) -> Registry:
    groups = {}
    for index, name in enumerate(names):
        members = tuple(Deployment(f"{name}{n}", name, "p", "openai", name, mode, order=n) for n in range(deployments))
        groups[name] = Group(name, index, members)
    return Registry(groups, **more)


def course(found: Registry, start="a", policy=QUICK, deadline_s=30.0, seed=1) -> tuple[Course, Heard]:
    heard, chance = Heard(), random.Random(seed)
    load = Load("t", "free", 1, 0, time.monotonic() + deadline_s)
    return Course(found, found.groups[start], policy, OpenGate(chance), load, heard, chance, load.deadline), heard


async def walk(way: Course, outcomes) -> tuple[list[Notice], Opened | None, list[str]]:
    """Walks until it opens; `outcomes` answers a failure (or None for success) for the n-th attempt at a deployment."""
    asked: list[str] = []

    async def attempt(deployment, number):
        asked.append(deployment.id)
        assert number == len(asked)
        failure = outcomes(deployment, number)
        if failure is not None:
            raise UpstreamFault(failure)
        return number

    notices, opened = [], None
    try:
        while opened is None:
            step = await way.step(attempt)
            if isinstance(step, Opened):
                opened = step
            else:
                notices.append(step)
    except BaseException as error:
        error.asked = asked
        raise
    return notices, opened, asked


def always(failure_class, only="", **more):
    def outcome(deployment, number):
        return None if only and deployment.group not in only else Failure(FailureClass(failure_class), **more)

    return outcome


async def test_a_success_is_one_attempt_and_no_notice():
    way, heard = course(registry())
    notices, opened, asked = await walk(way, lambda *_: None)
    assert (notices, asked, way.attempts, way.fallbacks) == ([], ["a0"], 1, 0)
    assert opened.deployment.id == "a0"
    assert heard.switches == []


async def test_a_transient_failure_is_retried_three_times_then_the_next_model_is_asked():
    way, heard = course(registry())
    notices, opened, asked = await walk(way, always("transient", only="a"))
    assert asked == ["a0"] * 4 + ["b0"]
    assert [n.code for n in notices] == ["model_retry"] * 3 + ["model_fallback"]
    assert dict(notices[-1].attributes) == {"from_index": 0, "to_index": 1, "to_model": "b", "class": "transient"}
    assert heard.switches == [(0, 1, "b")]
    assert opened.deployment.group == "b"


async def test_the_ring_is_circular_and_ends_after_every_model():
    way, heard = course(registry("abc"), start="b", policy=Policy(num_retries=0))
    with pytest.raises(UpstreamFailed) as caught:
        await walk(way, always("transient"))
    assert caught.value.asked == ["b0", "c0", "a0"]
    assert heard.switches == [(1, 2, "c"), (2, 0, "a")]
    assert [d.group for d, _ in heard.exhaustions[0]] == ["b", "c", "a"]


async def test_configured_fallbacks_come_before_the_ring():
    found = registry("abcd", fallbacks={"a": ("c",)}, num_retries=0)
    way, _ = course(found)
    with pytest.raises(UpstreamFailed) as caught:
        await walk(way, always("transient"))
    assert caught.value.asked == ["a0", "c0", "b0", "d0"]


async def test_max_fallbacks_bounds_the_switches():
    way, _ = course(registry("abcd", max_fallbacks=1, num_retries=0))
    with pytest.raises(UpstreamFailed) as caught:
        await walk(way, always("transient"))
    assert caught.value.asked == ["a0", "b0"]


@pytest.mark.parametrize("failure_class", ["caller_fault", "context_window", "content_policy"])
async def test_a_callers_fault_is_never_repeated_anywhere(failure_class):
    way, _ = course(registry())
    with pytest.raises(InvalidInput) as caught:
        await walk(way, always(failure_class, message="bad", param="messages"))
    assert caught.value.asked == ["a0"]


async def test_a_context_overflow_goes_only_to_the_models_named_for_it():
    found = registry("abc", context_window_fallbacks={"a": ("c",)})
    _, opened, asked = await walk(course(found)[0], always("context_window", only="a"))
    assert asked == ["a0", "c0"]
    assert opened.deployment.group == "c"


async def test_a_model_that_was_tried_out_of_turn_is_not_entered_again_by_the_ring():
    script = {"a": Failure(FailureClass.CONTEXT_WINDOW), "b": Failure(FailureClass.MALFORMED), "c": Failure(FailureClass.MALFORMED)}
    way, _ = course(registry("abc", context_window_fallbacks={"a": ("c",)}))
    with pytest.raises(InvalidInput) as caught:
        await walk(way, lambda d, n: script[d.group])
    assert caught.value.asked == ["a0", "c0", "b0"]


def test_a_ring_holds_each_other_model_once_whatever_the_fallbacks_repeat():
    found = registry("abcd", fallbacks={"b": ("d", "b", "d", "alias")}, default_fallbacks=("d", "a"), aliases={"alias": "d"})
    assert [group.name for group in found.ring(found.groups["b"])] == ["d", "a", "c"]


async def test_content_policy_fallbacks_are_opt_in():
    found = registry("abc", content_policy_fallbacks={"a": ("b",)}, context_window_fallbacks={"a": ("c",)})
    _, _, asked = await walk(course(found)[0], always("content_policy", only="a"))
    assert asked == ["a0", "b0"]


async def test_a_fallback_that_cannot_take_the_request_is_skipped_and_the_first_error_is_told():
    def outcome(deployment, number):
        return {"a": Failure(FailureClass.TRANSIENT, status=503), "b": Failure(FailureClass.CALLER_FAULT)}.get(deployment.group)

    way, _ = course(registry("abc", num_retries=0))
    _, opened, asked = await walk(way, outcome)
    assert asked == ["a0", "b0", "c0"]
    way, _ = course(registry("ab", num_retries=0))
    with pytest.raises(UpstreamFailed) as caught:
        await walk(way, outcome)
    assert caught.value.metadata["failure_class"] == "transient"
    assert opened.deployment.group == "c"


@pytest.mark.parametrize(
    "failure_class", ["timeout_first_token", "timeout_connect", "stalled", "credential", "quota", "model_gone", "malformed"]
)
async def test_what_stayed_silent_or_has_no_key_is_not_asked_twice(failure_class):
    way, _ = course(registry("ab", deployments=2))
    _, _, asked = await walk(way, always(failure_class, only="a"))
    assert asked == ["a0", "a1", "b0"]


async def test_a_retry_prefers_a_deployment_that_was_not_asked_and_does_not_wait_for_it():
    way, heard = course(registry("a", deployments=2), policy=Policy(retry_base_s=50, retry_cap_s=50))
    _, opened, asked = await walk(way, lambda d, n: Failure(FailureClass.TRANSIENT) if n == 1 else None)
    assert asked == ["a0", "a1"]
    assert heard.retries == [("a0", FailureClass.TRANSIENT, 0.0)]
    assert opened.deployment.id == "a1"


async def test_a_short_retry_after_is_waited_out_and_a_long_one_is_not():
    way, heard = course(registry("ab"))
    started = time.monotonic()
    _, _, asked = await walk(way, lambda d, n: Failure(FailureClass.RATE_LIMITED, retry_after_s=0.0009) if n == 1 else None)
    assert asked == ["a0", "a0"]
    assert time.monotonic() - started >= 0.0009
    # Even where the deadline would allow for it: 10.5 s is above the cap of 10 s.
    way, heard = course(registry("ab"), policy=Policy(), deadline_s=1000.0)
    _, _, asked = await walk(way, always("rate_limited", only="a", retry_after_s=10.5))
    assert asked == ["a0", "b0"]
    assert heard.retries == []


async def test_a_rate_limit_without_way_out_says_when_to_come_back():
    way, _ = course(registry("a"))
    with pytest.raises(Overloaded) as caught:
        await walk(way, always("rate_limited", retry_after_s=60.0))
    assert (caught.value.reason, caught.value.retry_after_s) == ("UPSTREAM_RATE_LIMITED", 60.0)


async def test_a_wait_that_would_pass_the_deadline_is_not_begun():
    way, heard = course(registry("a"), policy=Policy(retry_cap_s=100), deadline_s=5.0)
    started = time.monotonic()
    with pytest.raises(Overloaded):
        await walk(way, always("rate_limited", retry_after_s=50.0))
    assert time.monotonic() - started < 5
    assert heard.retries == []


async def test_when_the_time_is_up_nobody_is_asked_any_more():
    way, _ = course(registry("abc"), deadline_s=0.0)
    with pytest.raises(DeadlineExceeded) as caught:
        await walk(way, lambda *_: None)
    assert caught.value.asked == []


async def test_full_jitter_stays_between_zero_and_the_doubling_cap():
    policy, waits = Policy(retry_base_s=0.001, retry_cap_s=0.003), Counter()
    for seed in range(40):
        way, heard = course(registry("a"), policy=policy, seed=seed)
        with pytest.raises(UpstreamFailed):
            await walk(way, always("transient"))
        for number, (_, _, wait_s) in enumerate(heard.retries):
            assert 0 <= wait_s <= min(0.003, 0.001 * 2**number)
            waits[number] += wait_s > 0.001 * 2**number / 2
    assert 5 < waits[0] < 35  # spread over the whole range, not one half of it


async def test_a_broken_stream_goes_on_from_where_it_was():
    way, _ = course(registry("ab"))
    await walk(way, lambda *_: None)
    error = way.interrupted(way.group.deployments[0], Failure(FailureClass.STALLED))
    assert isinstance(error, UpstreamFailed)
    assert error.metadata["failure_class"] == "stalled"
    notices, _, asked = await walk_on(way)
    assert asked == ["b0"]
    assert [n.code for n in notices] == ["model_fallback"]


async def walk_on(way):
    asked = []

    async def attempt(deployment, number):
        asked.append(deployment.id)
        return number

    steps = []
    while not steps or not isinstance(steps[-1], Opened):
        steps.append(await way.step(attempt))
    return steps[:-1], steps[-1], asked


async def test_embeddings_never_leave_their_model_unless_told_to():
    way, _ = course(registry("abc", mode="embedding", num_retries=0))
    with pytest.raises(UpstreamFailed) as caught:
        await walk(way, always("transient"))
    assert caught.value.asked == ["a0"]
    way, _ = course(registry("abc", mode="embedding", num_retries=0, fallbacks={"a": ("c",)}))
    _, opened, _ = await walk(way, always("transient", only="a"))
    assert opened.deployment.group == "c"


async def test_a_hop_leaves_a_share_of_the_deadline_to_the_next():
    seen = []

    async def attempt(deployment, number):
        seen.append(way.limits(deployment, time.monotonic()))
        if number == 1:
            raise UpstreamFault(Failure(FailureClass.TIMEOUT_FIRST_TOKEN))

    way, _ = course(registry("ab"), deadline_s=5.0)
    while not isinstance(await way.step(attempt), Opened):
        pass
    assert seen[0].silent_s == pytest.approx(3.0, abs=0.2)
    assert seen[0].first_token_s == pytest.approx(3.0, abs=0.2)
    assert seen[1].silent_s == pytest.approx(5.0, abs=0.5)  # the last hop may use all that is left


# Those of NOBODY_ASKED are no attempts and have tests of their own.
FAILURES = st.sampled_from([c for c in FailureClass if c is not FailureClass.RATE_LIMITED and c not in NOBODY_ASKED])


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(0, 5),
    st.integers(1, 10),
    st.lists(FAILURES | st.none(), min_size=40, max_size=40),
    st.integers(0, 99),
)
async def test_attempts_are_bounded_and_each_model_is_entered_once(models, deployments, retries, most, script, seed):
    policy = Policy(num_retries=retries, max_attempts=most, retry_base_s=1e-6, retry_cap_s=1e-6)
    way, heard = course(registry("abcdef"[:models], deployments), policy=policy, seed=seed)
    try:
        _, opened, asked = await walk(way, lambda d, n: None if script[n - 1] is None else Failure(script[n - 1]))
    except (UpstreamFailed, InvalidInput) as error:
        opened, asked = None, error.asked
        assert len(heard.exhaustions) == 1
    assert 1 <= len(asked) <= most
    groups = [name[0] for name in asked]
    entered = [group for number, group in enumerate(groups) if number == 0 or groups[number - 1] != group]
    assert len(entered) == len(set(entered)), "a model was entered twice"
    assert all(groups.count(group) <= retries + 1 for group in entered)
    if opened is None:
        first_stop = next((n for n, c in enumerate(script[: len(asked)]) if c is not None and MOVES[c] is Move.STOP), None)
        assert first_stop != 0 or len(asked) == 1
    else:
        assert script[len(asked) - 1] is None
        assert all(c is not None for c in script[: len(asked) - 1])
