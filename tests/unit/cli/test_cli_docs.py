"""docs/cli.md says what the command does."""

import re

import typer

from services.cli import failure
from services.cli.commands import app
from services.cli.regression.form import AtMost, Expected, read, written
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


def test_every_exit_status_is_documented():
    rows = re.findall(r"^\| (\d+) \| ", PAGE, re.MULTILINE)
    known = {value for name, value in vars(failure).items() if name.isupper()}
    assert [int(row) for row in rows] == sorted(known | {0})


def test_every_thing_that_a_test_file_may_expect_is_documented():
    table = PAGE.partition("| `expect` |")[2].partition("\n\n")[0]
    assert [name for name in (*Expected.model_fields, *AtMost.model_fields) if f"`{name}`" not in table] == []


def test_the_test_file_of_the_page_is_one(tmp_path):
    path = tmp_path / "page.yaml"
    path.write_text(PAGE.partition("```yaml\n")[2].partition("```")[0])
    test = read(path)
    path.write_text(written(test))
    assert read(path) == test


def test_every_fixed_port_is_documented():
    rows = "\n".join(line for line in PAGE.splitlines() if line.startswith("| "))
    ranges = [range(int(a), int(b) + 1) for a, b in re.findall(r"(\d{4,5})–(\d{4,5})", rows)]
    numbers = {int(n) for n in re.findall(r"\b\d{4,5}\b", rows)}
    assert not [li.default for li in LISTENERS if li.default not in numbers and not any(li.default in r for r in ranges)]
