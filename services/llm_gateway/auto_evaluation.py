"""What an `auto` model would save on labelled prompts, and how often it goes where a person would have gone. Makes no model call."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.llm_gateway.auto_route import TIERS, AutoRoute, estimate

# Tokens of an answer to a prompt of each tier; the same whoever answers.
ANSWER_TOKENS: Mapping[str, int] = {"cheap": 60, "balanced": 400, "best": 1_500}
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request and the tier that a person would send it to."""

    tier: str
    language: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`confusion` counts (labelled tier, chosen tier). Costs in US dollars; `always_best_usd` is what the best model alone costs."""

    confusion: Mapping[tuple[str, str], int]
    cost_usd: float
    always_best_usd: float

    @property
    def agreement(self) -> float:
        """Share of prompts that went to the tier of their label."""
        return sum(n for (label, chosen), n in self.confusion.items() if label == chosen) / sum(self.confusion.values())

    @property
    def saved(self) -> float:
        """Share of the cost of the best model that is saved."""
        return 1 - self.cost_usd / self.always_best_usd

    @property
    def underserved(self) -> float:
        """Share of prompts that went to a lower tier than their label: the errors that hurt."""
        worse = sum(n for (label, chosen), n in self.confusion.items() if TIERS.index(chosen) < TIERS.index(label))
        return worse / sum(self.confusion.values())


def parse_prompts(text: str) -> list[Prompt]:
    """Prompts of a file of lines `tier, language, text, more as JSON`, parted by tabs; lines that begin with # are comments."""
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            tier, language, said, *more = line.split("\t")
            found.append(Prompt(tier, language, _body(said.replace("\\n", "\n"), orjson.loads(more[0]) if more else {})))
    return found


def _body(said: str, more: Mapping[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": said}]}
    if more.get("tools"):
        body["tools"] = [{"type": "function", "function": {"name": f"tool_{n}"}} for n in range(more["tools"])]
    if more.get("schema"):
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    if more.get("effort"):
        body["reasoning_effort"] = more["effort"]
    return body


def evaluate(prompts: Sequence[Prompt], route: AutoRoute, budget_left: float, prices: Mapping[str, tuple[float, float]]) -> Evaluation:
    """Routes every prompt. `prices` are US dollars a million tokens, in and out, of each tier."""
    confusion: Counter[tuple[str, str]] = Counter()
    cost = best = 0.0
    for prompt in prompts:
        chosen = route.tier(estimate(prompt.body).complexity, budget_left)
        confusion[prompt.tier, chosen] += 1
        tokens_in = len(prompt.body["messages"][0]["content"]) / CHARACTERS_PER_TOKEN
        tokens_out = ANSWER_TOKENS[prompt.tier]
        cost += (tokens_in * prices[chosen][0] + tokens_out * prices[chosen][1]) / 1e6
        best += (tokens_in * prices["best"][0] + tokens_out * prices["best"][1]) / 1e6
    return Evaluation(confusion, cost, best)
