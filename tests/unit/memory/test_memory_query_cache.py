"""The cache of query embeddings: no text in it, and nothing for longer than it is of use."""

from types import SimpleNamespace

from services.memory.adapters import llm_embeddings
from services.memory.adapters.llm_embeddings import LlmEmbeddings


async def test_queries_are_cached_by_digest_for_a_time_and_until_they_are_forgotten(monkeypatch):
    asked, clock = [], [100.0]
    embeddings = LlmEmbeddings(None, "m", 2, 1.0)

    async def embed(texts, timeout_s):
        asked.extend(texts)
        return [[1.0]] * len(texts)

    monkeypatch.setattr(embeddings, "_embed", embed)
    monkeypatch.setattr(llm_embeddings, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for text in ("one", "one", "two", "one", "three", "one", "two", "three"):
        assert await embeddings.query(text) == [1.0]
    assert asked == ["one", "two", "three", "two", "three"]
    assert "three" not in repr(embeddings._cache)
    clock[0] += llm_embeddings.CACHED_S - 1
    await embeddings.query("three")
    clock[0] += 2
    asked.clear()
    await embeddings.query("three")
    assert not asked
    # What was not used for so long has left with the first query after it.
    assert len(embeddings._cache) == 1
    embeddings.forget_queries()
    await embeddings.query("three")
    assert asked == ["three"]
