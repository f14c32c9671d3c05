"""The pages lead to each other: no link goes nowhere, and no page can be found by its name alone."""

import re
from pathlib import Path

import pytest

from services.common.testing import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def prose(page: Path) -> str:
    """The text of a page without its examples, where brackets are code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    """What a page leads to of ours, as it writes it."""
    return [to for to in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not to.startswith(("http:", "https:"))]


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as they are made for links."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    wrong = []
    for to in links(page):
        name, _, anchor = to.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(to)
    assert wrong == []


def test_every_page_is_led_to_by_the_readme_and_every_decision_by_their_list():
    for start, pages in ((ROOT / "README.md", DOCS.glob("*.md")), (DOCS / "decisions/README.md", (DOCS / "decisions").glob("0*.md"))):
        led_to = {(start.parent / to.partition("#")[0]).resolve() for to in links(start)}
        assert [page.name for page in sorted(pages) if page not in led_to] == []
