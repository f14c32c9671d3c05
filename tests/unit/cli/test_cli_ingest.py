"""Which files `bulkhead ingest` takes, and under which names."""

import re

import pytest

from services.cli.failure import CommandFailure
from services.cli.ingest import Source, find_sources


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("README.md", "docs/guide.md", "docs/notes.txt", "docs/deep/er/more.MD", "docs/picture.png", "docs/.hidden/secret.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_are_taken_with_all_texts_below_but_hidden_ones(tree):
    titles = [source.title for source in find_sources([tree / "docs"])]
    assert titles == ["docs/deep/er/more.MD", "docs/guide.md", "docs/notes.txt"]


def test_a_file_named_twice_is_sent_once(tree):
    assert [s.title for s in find_sources([tree / "README.md", tree])].count("README.md") == 1


@pytest.mark.parametrize("name", ["nowhere.md", "docs/picture.png", "docs/.hidden/.."])
def test_what_cannot_be_ingested_is_refused_by_name(tree, name):
    if name.endswith(".."):
        (tree / "empty").mkdir()
        name = "empty"
    with pytest.raises(CommandFailure, match=re.escape(name)):
        find_sources([tree / name])


def test_ids_are_stable_valid_and_different_for_different_paths(tree):
    titles = ["README.md", "docs/guide.md", "docs-guide.md", "ä.md", "..", "x" * 300 + ".md", "x" * 301 + ".md"]
    ids = [Source(tree, title).document_id for title in titles]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,128}", found) and set(found) != {"."} for found in ids)
    assert len(set(ids)) == len(titles)
    assert Source(tree, "README.md").document_id == "README.md"
