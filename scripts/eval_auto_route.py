"""Shows what an `auto` model saves on labelled prompts, and how often it goes where a person would have gone. Makes no model call.

python scripts/eval_auto_route.py [FILE…] [--simple 0.3] [--budget 0.5] [--standard 0.7] [--prices cheap=0.15,0.6 …]
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from services.llm_gateway.auto_evaluation import Evaluation, evaluate, parse_prompts  # noqa: E402
from services.llm_gateway.auto_route import TIERS, AutoRoute  # noqa: E402

FILES = [ROOT / "tests/fixtures/auto_route.tsv", ROOT / "tests/fixtures/auto_route_unseen.tsv"]
# US dollars a million tokens, in and out: orders of magnitude of three sizes of model.
PRICES = {"cheap": (0.15, 0.6), "balanced": (1.0, 4.0), "best": (5.0, 15.0)}


def main() -> None:
    """Prints one report for each file and each state of the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=FILES)
    defaults = AutoRoute("cheap", "balanced", "best")
    for name in ("simple", "budget", "standard"):
        parser.add_argument(f"--{name}", type=float, default=getattr(defaults, name))
    parser.add_argument("--prices", nargs="*", default=[], metavar="TIER=IN,OUT", help="US dollars a million tokens")
    given = parser.parse_args()
    route = AutoRoute("cheap", "balanced", "best", simple=given.simple, budget=given.budget, standard=given.standard)
    prices = {**PRICES, **dict(_price(text, parser) for text in given.prices)}
    for file in given.files:
        prompts = parse_prompts(file.read_text(encoding="utf-8"))
        for budget_left in (1.0, 0.4):
            print(f"\n{file.name}: {len(prompts)} prompts, {budget_left:.0%} of the budget left")
            print(_report(evaluate(prompts, route, budget_left, prices)))


def _price(text: str, parser: argparse.ArgumentParser) -> tuple[str, tuple[float, float]]:
    tier, _, pair = text.partition("=")
    try:
        price_in, price_out = (float(part) for part in pair.split(","))
    except ValueError:
        parser.error(f"{text!r} is not TIER=IN,OUT")
    if tier not in TIERS:
        parser.error(f"{tier!r} is none of {', '.join(TIERS)}")
    return tier, (price_in, price_out)


def _report(found: Evaluation) -> str:
    lines = [
        f"  cost ${found.cost_usd:.4f}, always the best model ${found.always_best_usd:.4f}: {found.saved:.0%} saved",
        f"  agreement with the labels {found.agreement:.0%}, sent to a lower tier than the label {found.underserved:.0%}",
        f"  {'label':>10} | " + " ".join(f"{tier:>9}" for tier in TIERS),
    ]
    lines += [f"  {label:>10} | " + " ".join(f"{found.confusion[label, chosen]:>9}" for chosen in TIERS) for label in TIERS]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
