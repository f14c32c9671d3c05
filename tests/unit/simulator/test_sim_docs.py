"""The simulator's page tells the truth: every fault, script, setting and field, and the prices."""

import re
from pathlib import Path

from services.common.settings import ServiceSettings
from services.simulator import scenarios
from services.simulator.app import SHIPPED_SCENARIOS
from services.simulator.faults import KINDS
from services.simulator.prices import MODELS
from services.simulator.settings import Settings

PAGE = (Path(__file__).parents[3] / "docs" / "simulator.md").read_text(encoding="utf-8")
FAULTS = PAGE[PAGE.index("| fault |") : PAGE.index("## The log")]
NAMED = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)))


def test_every_fault_is_described_and_its_default_is_right():
    for name, kind in KINDS.items():
        rows = [line for line in FAULTS.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
        assert len(rows) == 1, name
        if kind.unit and kind.default and name not in ("redirect", "batch_delay", "batch_line_delay"):
            assert rows[0].split("|")[2].strip().endswith(kind.default), name


def test_every_script_and_setting_is_named():
    assert set(scenarios.load([SHIPPED_SCENARIOS]).names()) <= NAMED
    own = Settings.model_fields.keys() - ServiceSettings.model_fields.keys()
    assert {f"BULKHEAD_{name.upper()}" for name in own} <= NAMED


def test_prices_are_those_of_the_table():
    for model in MODELS.values():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{model.name}`") and "e-" in line)
        assert [cell.strip() for cell in row.split("|")[2:4]] == [str(model.input_nanousd), str(model.output_nanousd)]
        further = (model.cached_nanousd, model.cache_write_nanousd, model.reasoning_nanousd)
        assert [cell.strip() for cell in row.split("|")[4:7]] == [str(price) for price in further]
        costs = [float(cost) for cost in re.findall(r"[\d.]+e-\d+", row)]
        assert [round(cost * 1e9) for cost in costs] == [price for price in (model.input_nanousd, model.output_nanousd) if price]


async def test_every_field_of_a_line_is_described(sim):
    await sim.chat()
    for name in await sim.last_line():
        assert name in NAMED, name
