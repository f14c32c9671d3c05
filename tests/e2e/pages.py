"""What the Markdown pages tell a reader to run, taken out of them so that a changed page is what is tested."""

import re
from pathlib import Path

from services.common.testing import ROOT

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
_ANY_FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def every_page() -> list[Path]:
    """The README and all of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in their order."""
    return [text for name, text in _FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def commands(block: str) -> list[str]:
    """The commands of a shell block, one each; continued lines are joined and comments left out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#\s.*$", "", line).strip() for line in lines) if line]


def shell(page: Path) -> list[str]:
    """All shell commands of a page."""
    return [command for block in blocks(page, "sh") for command in commands(block)]


def code_spans(page: Path) -> list[str]:
    """What stands between backticks in running text."""
    return re.findall(r"`([^`\n]+)`", _ANY_FENCE.sub("", page.read_text(encoding="utf-8")))


def links(page: Path) -> list[str]:
    """Targets of the links in running text."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", _ANY_FENCE.sub("", page.read_text(encoding="utf-8"))))


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives the headings."""
    headings = re.findall(r"^#+\s+(.*)$", _ANY_FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
