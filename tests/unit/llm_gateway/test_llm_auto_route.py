"""`auto` models: the rule as it is documented, the estimate with its reasons, the classifier, and how well all that does."""

import asyncio
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Overloaded
from services.common.testing import ROOT
from services.llm_gateway import auto_route
from services.llm_gateway.auto_evaluation import evaluate, parse_prompts
from services.llm_gateway.auto_route import AutoRoute, classifier_request, estimate, route_of

ROUTE = AutoRoute("small", "medium-sized", "large")
PRICES = {"cheap": (0.15, 0.6), "balanced": (1.0, 4.0), "best": (5.0, 15.0)}


def said(text, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], **more}


def prompts(name: str):
    return parse_prompts((ROOT / "tests/fixtures" / name).read_text(encoding="utf-8"))


def test_the_defaults_are_those_that_are_documented():
    assert (ROUTE.name, ROUTE.simple, ROUTE.budget, ROUTE.standard, ROUTE.classifier) == ("auto", 0.3, 0.5, 0.7, "")
    assert (auto_route.CLASSIFIER_MAX_TOKENS, auto_route.CLASSIFIER_DEFAULT) == (10, "medium")


@pytest.mark.parametrize(
    ("complexity", "budget_left", "tier"),
    [
        (0.0, 0.49, "cheap"), (0.29, 0.0, "cheap"), (0.29, 0.5, "balanced"), (0.0, 1.0, "balanced"), (0.3, 0.1, "balanced"),
        (0.69, 0.1, "balanced"), (0.7, 0.1, "best"), (1.0, 1.0, "best"),
    ],
)  # fmt: skip
def test_the_rule_is_the_documented_one(complexity, budget_left, tier):
    assert ROUTE.tier(complexity, budget_left) == tier


def test_a_budget_threshold_of_one_means_whatever_is_left():
    assert AutoRoute("a", "b", "c", budget=1.0).tier(0.1, 1.0) == "cheap"


async def test_the_metadata_says_where_and_why():
    cheap = await route_of(ROUTE, said("What is the capital of Peru?"), 0.2)
    assert cheap.metadata() == {"complexity": 0.1, "tier": "cheap", "reasons": ["question+0.10", "budget_left:0.20"], "model": "small"}
    best = await route_of(ROUTE, said("Prove that the sum converges, compare two proofs and analyze their assumptions."), 0.2)
    assert best.model == "large"
    assert any(reason.startswith("reasoning_words+") for reason in best.reasons)


def test_each_thing_that_is_seen_makes_it_more_complex():
    base = estimate(said("Tell me something about the town where you would like to live.")).complexity
    tool = {"type": "function", "function": {"name": "f"}}
    messages = [{"role": "user", "content": "Tell me something about the town where you would like to live."}]
    for more in (
        {"tools": [tool]}, {"response_format": {"type": "json_schema"}}, {"reasoning_effort": "high"}, {"max_tokens": 9000},
        {"messages": messages * 6}, {"messages": [{"role": "system", "content": "x" * 5000}, *messages]},
    ):  # fmt: skip
        assert estimate({**said(messages[0]["content"]), **more}).complexity > base, more
    many = estimate(said(messages[0]["content"], tools=[tool] * 9)).complexity
    assert many > estimate(said(messages[0]["content"], tools=[tool])).complexity


@pytest.mark.parametrize("word", ["simple", "medium", "complex"])
async def test_a_classifier_decides_by_one_word(word):
    asked = []

    async def ask(model, body):
        asked.append((model, body["max_tokens"], body["messages"][-1]["content"]))
        return f" {word.title()}.\n"

    route = AutoRoute("small", "medium-sized", "large", classifier="tiny")
    routed = await route_of(route, said("Hm?"), 0.1, ask)
    assert asked == [("tiny", 10, "Hm?")]
    assert routed.tier == {"simple": "cheap", "medium": "balanced", "complex": "best"}[word]
    assert routed.reasons[0] == f"classifier:{word}"
    assert (await route_of(ROUTE, said("Hm?"), 0.1, ask)).reasons[0] != f"classifier:{word}"


@pytest.mark.parametrize("how", ["nonsense", "error", "silence"])
async def test_a_classifier_that_does_not_say_means_medium(how, monkeypatch):
    monkeypatch.setattr(auto_route, "CLASSIFIER_TIMEOUT_S", 0.05)

    async def ask(model, body):
        if how == "error":
            raise Overloaded("away")
        await asyncio.sleep(30 if how == "silence" else 0)
        return "I would be glad to help!"

    route = AutoRoute("small", "medium-sized", "large", classifier="tiny")
    assert (await route_of(route, said("Prove it."), 0.1, ask)).tier == "balanced"


def test_the_classifier_sees_no_more_than_a_page():
    assert len(classifier_request(said("x" * 100_000))["messages"][1]["content"]) <= auto_route.HEAD


parts = st.one_of(st.just({"type": "image_url", "image_url": {"url": "x"}}), st.builds(lambda t: {"type": "text", "text": t}, st.text()))
contents = st.one_of(st.text(), st.none(), st.lists(parts))
messages = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": contents}))


@given(messages)
def test_any_request_has_a_complexity_and_always_the_same(given_messages):
    body = {"messages": given_messages}
    found = estimate(body)
    assert 0 <= found.complexity <= 1
    assert estimate(body) == found


@pytest.mark.parametrize(("name", "least", "count"), [("auto_route.tsv", 0.93, 244), ("auto_route_unseen.tsv", 0.72, 48)])
def test_it_goes_where_a_person_would_have_gone(name, least, count):
    found = evaluate(prompts(name), ROUTE, 0.4, PRICES)
    assert sum(found.confusion.values()) == count
    assert found.agreement >= least
    assert found.saved >= 0.15
    # Nothing simple is sent to the most expensive model, and nothing hard to the cheapest.
    assert found.confusion["cheap", "best"] == found.confusion["best", "cheap"] == 0


def test_it_does_so_in_every_language():
    by_language: dict[str, list[bool]] = {}
    for prompt in prompts("auto_route.tsv"):
        right = ROUTE.tier(estimate(prompt.body).complexity, 0.4) == prompt.tier
        by_language.setdefault(prompt.language, []).append(right)
    assert len(by_language) >= 12
    assert not {language: found for language, found in by_language.items() if sum(found) < 0.8 * len(found)}


def test_thresholds_and_the_budget_move_money():
    found = prompts("auto_route.tsv")
    usual, tight = evaluate(found, ROUTE, 1.0, PRICES), evaluate(found, ROUTE, 0.4, PRICES)
    assert tight.cost_usd < usual.cost_usd < usual.always_best_usd
    bold = evaluate(found, AutoRoute("a", "b", "c", simple=0.5, standard=0.95), 0.4, PRICES)
    timid = evaluate(found, AutoRoute("a", "b", "c", simple=0.05, standard=0.2), 0.4, PRICES)
    assert bold.cost_usd < tight.cost_usd < timid.cost_usd
    assert bold.agreement < tight.agreement
    assert timid.agreement < tight.agreement


def test_the_script_prints_what_is_saved():
    command = [sys.executable, "scripts/eval_auto_route.py", "--prices", "best=10,30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "saved" in done.stdout
    assert "auto_route_unseen.tsv: 48 prompts" in done.stdout
    refused = subprocess.run([*command, "huge=1,2"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2


def test_estimating_costs_little():
    """A loose bound: an ordinary question is to take tens of microseconds, the longest text a few milliseconds."""
    for text, most_s in (
        ("Explain the difference between a list and a tuple in Python. " * 3, 2e-3),
        ("Prove lemma 7, then design. " * 10**5, 0.1),
    ):
        started = time.perf_counter()
        for _ in range(20):
            estimate(said(text))
        took = (time.perf_counter() - started) / 20
        print(round(took * 1e6), "µs")
        assert took < most_s
