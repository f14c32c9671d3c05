"""docs/cli.md says what the command does."""

import re

import typer

from services.cli.commands import app
from services.cli.up.ports import LISTENERS
from services.common.testing import ROOT

PAGE = (ROOT / "docs/cli.md").read_text(encoding="utf-8")


def test_every_command_and_option_is_documented():
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert re.search(rf"`bulkhead {name}\b", PAGE), name
        commands = [command, *getattr(command, "commands", {}).values()]
        options = {option for c in commands for parameter in c.params for option in parameter.opts if option.startswith("--")}
        assert {option for option in options - {"--help", "--data-dir"} if f"{option}" not in PAGE} - {"--tenant"} == set()


def test_every_fixed_port_is_documented():
    rows = "\n".join(line for line in PAGE.splitlines() if line.startswith("| "))
    ranges = [range(int(a), int(b) + 1) for a, b in re.findall(r"(\d{4,5})–(\d{4,5})", rows)]
    numbers = {int(n) for n in re.findall(r"\b\d{4,5}\b", rows)}
    assert not [li.default for li in LISTENERS if li.default not in numbers and not any(li.default in r for r in ranges)]
