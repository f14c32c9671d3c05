"""The degradation ladder: its table, and turns of which some parts fail, at random and together."""

import re

from services.common import testing
from services.orchestrator.turn.degradation import CODES, MESSAGES, RUNGS

PAGE = testing.ROOT / "docs/degradation.md"


def test_the_documented_codes_are_those_of_the_code():
    table = PAGE.read_text().split("## Codes")[1]
    documented = {
        name: tuple(cell.strip(" `") for cell in cells.split("|")) for name, cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", table, re.M)
    }
    assert documented == {name: (code.rung, code.capability_lost, code.fallback) for name, code in CODES.items()}


def test_every_rung_and_every_last_word_is_documented():
    text = PAGE.read_text()
    rungs = {code.rung for code in CODES.values()} | {rung for rungs in RUNGS.values() for rung in rungs}
    assert not [rung for rung in rungs if f"`{rung}`" not in text]
    assert not [message for message in MESSAGES.values() if message not in text]
    assert RUNGS.keys() == MESSAGES.keys()
