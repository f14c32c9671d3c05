"""Write docs/configuration.md from the settings classes of all services. `--check` fails when the file is out of date."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from services.common.settings import PREFIX, PRESETS, ServiceSettings

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "configuration.md"
SERVICES = ["gateway", "orchestrator", "llm_gateway", "tool_executor", "memory", "simulator"]
HEAD = """# Configuration reference

Generated from the settings classes by `scripts/gen_config_reference.py`; do not edit.

Process settings are environment variables. They are read once at the start, checked all at once, and then frozen; a
process that finds something wrong lists every problem and does not start. Outside Kubernetes a file `.env.<environment>`
is read as well. Product configuration (models, tools, agents, tier policies) stands in YAML files in
`BULKHEAD_CONFIG_DIR`; a valid change takes effect within 2 s, an invalid one is refused whole and the last good file stays.
"""


def shown_type(field: FieldInfo) -> str:
    """A type for readers."""
    annotation: Any = field.annotation
    text = getattr(annotation, "__name__", None) if not hasattr(annotation, "__args__") else None
    text = text or str(annotation).replace("typing.", "").replace("pathlib.", "").replace("datetime.", "")
    return text.replace("|", "\\|")


def shown_default(field: FieldInfo) -> str:
    """The default for readers."""
    if field.default_factory is not None:
        return "*computed*"
    if field.default is PydanticUndefined:
        return "*required*"
    if field.default in ("", None):
        return "*unset*"
    return f"`{field.default}`"


def table(fields: dict[str, FieldInfo]) -> list[str]:
    """A Markdown table of settings."""
    lines = ["| variable | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        if not field.description:
            raise SystemExit(f"the setting {name} has no description")
        lines.append(f"| `{PREFIX}{name.upper()}` | {shown_type(field)} | {shown_default(field)} | {field.description} |")
    return lines


def render() -> str:
    """The whole page."""
    lines = [HEAD, "## Every service", "", *table(ServiceSettings.model_fields), "", "### Presets", ""]
    lines += [
        "`BULKHEAD_ENV` picks these values; a variable of its own beats its preset.",
        "",
        "| environment | values |",
        "|---|---|",
    ]
    for name, values in PRESETS.items():
        lines.append(f"| `{name}` | {', '.join(f'{PREFIX}{k.upper()}={v}' for k, v in values.items())} |")
    for service in SERVICES:
        cls = importlib.import_module(f"services.{service}.settings").Settings
        own = {
            name: field
            for name, field in cls.model_fields.items()
            if name not in ServiceSettings.model_fields
            or (field.default, field.description)
            != (ServiceSettings.model_fields[name].default, ServiceSettings.model_fields[name].description)
        }
        lines += ["", f"## {service}", "", *table(own)]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the page is out of date")
    text = render()
    if parser.parse_args().check:
        if not TARGET.exists() or TARGET.read_text() != text:
            print("docs/configuration.md is out of date: run scripts/gen_config_reference.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
