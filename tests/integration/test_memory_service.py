"""The memory service over real gRPC, Valkey and Milvus Lite; embeddings come from a fake llm_gateway."""

import asyncio
import time

import pytest
from bulkhead.memory.v1 import memory_pb2

from services.common import testing
from services.common.errors import IdempotencyMismatch, InvalidInput, NotFound, PermissionDenied
from services.memory import fakes

GUIDE = """# Lanterns

Lanterns are lit at dusk by the harbour master.

## Oil

Each lantern burns whale oil, about two litres a night.

| lantern | litres |
|---|---|
| north | 2 |
| south | 3 |

## 数据库

灯塔的记录保存在数据库里。
"""


@pytest.fixture
async def llm(identities):
    async with fakes.fake_llm(identities) as (fake, address):
        fake.address = address
        yield fake


@pytest.fixture
async def memory(identities, state_url, milvus_uri, llm):
    async with fakes.memory_service(identities, state_url, milvus_uri, llm.address) as running:
        yield running


def ingest(document_id="guide", text=GUIDE, title="Guide", content_type="text/markdown", key=""):
    return memory_pb2.IngestDocumentRequest(document_id=document_id, title=title, content_type=content_type, text=text, idempotency_key=key)


def turn(run_id, user="hello", assistant="hi", tools=b""):
    return memory_pb2.Turn(run_id=run_id, user_text=user, assistant_text=assistant, tool_calls_json=tools)


async def test_recall_brings_turns_memories_and_cited_passages_together(memory, identities):
    with testing.calling(identities, testing.principal_of("recall-a")):
        await memory.documents.IngestDocument(ingest())
        await memory.memories.AddMemories(
            memory_pb2.AddMemoriesRequest(memories=[memory_pb2.NewMemory(text="The user sails a boat named Lantern Rose")])
        )
        await memory.sessions.AppendTurns(memory_pb2.AppendTurnsRequest(session_id="s", turns=[turn("r1", "my lantern is north", "noted")]))
        found = await memory.sessions.Recall(
            memory_pb2.RecallRequest(
                session_id="s", query="how much oil burns a lantern", include_documents=True, include_memories=True, token_budget=2000
            )
        )
    kinds = [part.kind for part in found.parts]
    assert kinds[0] == memory_pb2.RECALL_KIND_RECENT_TURN
    assert found.parts[0].text == "my lantern is north"
    assert found.parts[0].source_id == "r1"
    assert memory_pb2.RECALL_KIND_MEMORY in kinds
    documents = [part for part in found.parts if part.kind == memory_pb2.RECALL_KIND_DOCUMENT]
    assert [part.citation.citation_id for part in documents] == [f"c{n}" for n in range(1, len(documents) + 1)]
    best = documents[0]
    assert "whale oil" in best.text
    assert best.citation.heading == "Lanterns > Oil"
    assert best.citation.title == "Guide"
    assert GUIDE[best.citation.char_start : best.citation.char_end] == best.text
    scores = [part.score for part in found.parts[1:]]
    assert scores == sorted(scores, reverse=True)
    assert not found.warnings
    assert found.token_count > 0


async def test_han_text_is_found_by_keyword_alone(memory, identities, llm):
    with testing.calling(identities, testing.principal_of("han")):
        await memory.documents.IngestDocument(ingest())
        llm.down = True
        found = await memory.documents.SearchDocuments(memory_pb2.SearchDocumentsRequest(query="数据库"))
    assert found.passages[0].citation.heading == "Lanterns > 数据库"
    assert found.passages[0].keyword_rank == 1
    assert found.passages[0].dense_rank == 0
    assert [warning.code for warning in found.warnings] == ["embeddings_unavailable"]


async def append(memory, session, *turns, key=""):
    request = memory_pb2.AppendTurnsRequest(session_id=session, turns=turns, idempotency_key=key)
    return (await memory.sessions.AppendTurns(request)).window_turns


async def recalled(memory, session, budget=0):
    found = await memory.sessions.Recall(memory_pb2.RecallRequest(session_id=session, query="q", token_budget=budget))
    return [part.source_id for part in found.parts]


async def test_the_window_keeps_the_last_turns_each_run_once(memory, identities):
    with testing.calling(identities):
        assert await append(memory, "s", *(turn(f"r{n}") for n in range(4))) == 4
        assert await append(memory, "s", turn("r3", user="again"), turn("r4"), turn("r5")) == 5
        assert await recalled(memory, "s") == ["r1", "r2", "r3", "r4", "r5"]
        # A run that has left the window does not come back when it is delivered again.
        assert await append(memory, "s", turn("r0")) == 5
        assert await recalled(memory, "s") == ["r1", "r2", "r3", "r4", "r5"]


async def test_turns_are_ordered_by_when_they_ended(memory, identities):
    early, late = turn("early"), turn("late")
    early.ended_at.FromSeconds(1_000)
    late.ended_at.FromSeconds(2_000)
    with testing.calling(identities):
        await append(memory, "s", late)
        await append(memory, "s", early)
        assert await recalled(memory, "s") == ["early", "late"]


async def test_the_same_key_appends_once_and_another_body_is_refused(memory, identities):
    with testing.calling(identities):
        assert await append(memory, "s", turn("a"), key="k") == 1
        assert await append(memory, "s", turn("a"), key="k") == 1
        with pytest.raises(IdempotencyMismatch):
            await append(memory, "s", turn("b"), key="k")


async def test_a_session_is_its_user_s_own(memory, identities):
    token = {"timeout": 10, "metadata": [("authorization", f"Bearer {identities.token(testing.principal_of(user='ana'))}")]}
    with testing.calling(identities, testing.principal_of(user="ana")):
        await append(memory, "s", turn("mine", "my secret", "kept", b'[{"name":"t","output":"o"}]'))
    for other in (testing.principal_of(user="bob"), testing.principal_of("globex", "ana")):
        with testing.calling(identities, other):
            assert await recalled(memory, "s") == []
            with pytest.raises(NotFound):
                await memory.sessions.ResetSession(memory_pb2.ResetSessionRequest(session_id="s"))
    with testing.calling(identities, testing.principal_of(user="bob")), pytest.raises(NotFound):
        await append(memory, "s", turn("hers"))
    async with fakes.raw_sessions(memory.address) as raw:
        found = await raw.GetSession(memory_pb2.GetSessionRequest(session_id="s"), **token)
    assert [(t.user_text, t.assistant_text, t.tool_calls_json) for t in found.turns] == [
        ("my secret", "kept", b'[{"name":"t","output":"o"}]')
    ]


async def test_reset_forgets_the_window_and_a_late_append_stays_away(memory, identities):
    with testing.calling(identities):
        await append(memory, "s", turn("a"), turn("b"))
        answer = await memory.sessions.ResetSession(memory_pb2.ResetSessionRequest(session_id="s", idempotency_key="k"))
        assert answer.forgotten_turns == 2
        again = await memory.sessions.ResetSession(memory_pb2.ResetSessionRequest(session_id="s", idempotency_key="k"))
        assert again == answer
        assert await append(memory, "s", turn("a")) == 0
        assert await recalled(memory, "s") == []


async def test_a_reset_with_a_time_forgets_what_ended_before_it_late_arrivals_included(memory, identities):
    def ended(run_id, at_s):
        return memory_pb2.Turn(run_id=run_id, user_text="hello", assistant_text="hi", ended_at={"seconds": at_s})

    with testing.calling(identities):
        await append(memory, "s", ended("old", 1), ended("at", 2), ended("new", 3))
        request = memory_pb2.ResetSessionRequest(session_id="s", ended_before={"seconds": 2})
        assert (await memory.sessions.ResetSession(request)).forgotten_turns == 1
        assert await append(memory, "s", ended("late", 1)) == 2
        assert await append(memory, "s", ended("newer", 4)) == 3
        assert await recalled(memory, "s") == ["at", "new", "newer"]
        request.ended_before.FromMilliseconds(0)
        with pytest.raises(InvalidInput):
            await memory.sessions.ResetSession(request)


async def test_a_session_is_forgotten_after_its_time(identities, state_url, milvus_uri, llm):
    async with fakes.memory_service(identities, state_url, milvus_uri, llm.address, session_ttl_s=0.3) as memory:
        with testing.calling(identities):
            await append(memory, "s", turn("a"))

            async def forgotten():
                return await recalled(memory, "s") == []

            await testing.eventually_async(forgotten, "the session ends")


async def test_recall_stays_within_its_budget_and_keeps_the_newest_turn(memory, identities):
    with testing.calling(identities, testing.principal_of("budget")):
        await memory.documents.IngestDocument(ingest())
        await append(memory, "s", turn("old", "x " * 400, "y " * 400), turn("new", "the newest question", "its answer"))
        for budget in (20, 60, 300):
            request = memory_pb2.RecallRequest(session_id="s", query="lantern oil", token_budget=budget, include_documents=True)
            found = await memory.sessions.Recall(request)
            assert found.token_count <= budget
            assert found.parts[0].source_id == "new" or budget == 300
        assert any(part.citation.document_id for part in found.parts)


async def test_without_anything_stored_recall_asks_no_model(memory, identities, llm):
    with testing.calling(identities, testing.principal_of("nothing")):
        request = memory_pb2.RecallRequest(session_id="s", query="hello", include_documents=True, include_memories=True)
        found = await memory.sessions.Recall(request)
    assert (list(found.parts), list(found.warnings), llm.seen) == ([], [], [])


async def test_a_missing_scope_leaves_its_kind_out_with_a_warning(memory, identities):
    with testing.calling(identities, testing.principal_of("scoped")):
        await memory.documents.IngestDocument(ingest())
    narrow = testing.principal_of("scoped", scopes=["runs:write", "memories:read"])
    with testing.calling(identities, narrow):
        request = memory_pb2.RecallRequest(session_id="s", query="oil", include_documents=True, include_memories=True)
        found = await memory.sessions.Recall(request)
        assert list(found.parts) == []
        assert [(w.code, w.capability_lost) for w in found.warnings] == [("scope_missing", "documents")]
        for call, request in (
            (memory.documents.SearchDocuments, memory_pb2.SearchDocumentsRequest(query="oil")),
            (memory.documents.IngestDocument, ingest()),
            (memory.documents.DeleteDocument, memory_pb2.DeleteDocumentRequest(document_id="guide")),
            (memory.documents.ListDocuments, memory_pb2.ListDocumentsRequest()),
            (memory.memories.AddMemories, memory_pb2.AddMemoriesRequest(memories=[memory_pb2.NewMemory(text="x")])),
            (memory.memories.DeleteMemory, memory_pb2.DeleteMemoryRequest(memory_id="mem_1")),
        ):
            with pytest.raises(PermissionDenied):
                await call(request)


async def test_embedding_calls_carry_the_caller_s_identity_and_queries_are_remembered(memory, identities, llm):
    with testing.calling(identities, testing.principal_of("carry", run_id="run-7"), canary=True):
        await memory.documents.IngestDocument(ingest())
        for _ in range(3):
            await memory.documents.SearchDocuments(memory_pb2.SearchDocumentsRequest(query="whale"))
    assert [texts for texts, _ in llm.seen[1:]] == [["whale"]]
    assert {(call.principal.tenant, call.principal.run_id, call.canary) for _, call in llm.seen} == {("carry", "run-7", True)}


async def test_the_same_content_is_a_no_op_and_new_content_replaces_all_passages(memory, identities, llm):
    with testing.calling(identities, testing.principal_of("versions")):
        first = await memory.documents.IngestDocument(ingest())
        assert (first.changed, first.document.version, first.document.chunk_count > 1) == (True, 1, True)
        embedded = len(llm.seen)
        same = await memory.documents.IngestDocument(ingest(title="Harbour guide"))
        assert (same.changed, same.document.version, same.document.title, len(llm.seen)) == (False, 1, "Harbour guide", embedded)
        second = await memory.documents.IngestDocument(ingest(text="# New\n\nOnly candles are used now."))
        assert (second.changed, second.document.version, second.document.chunk_count) == (True, 2, 1)
        found = await memory.documents.SearchDocuments(memory_pb2.SearchDocumentsRequest(query="whale oil candles", page_size=50))
        assert {(p.citation.document_version, p.text) for p in found.passages} == {(2, "# New\n\nOnly candles are used now.")}
        listed = await memory.documents.ListDocuments(memory_pb2.ListDocumentsRequest())
        assert list(listed.documents) == [second.document]


async def test_readers_see_one_whole_version_while_documents_are_replaced(memory, identities):
    with testing.calling(identities, testing.principal_of("replaced"), timeout_s=60):
        await memory.documents.IngestDocument(ingest("doc", "anchor version 0", "doc", "text/plain"))
        seen, done = [], asyncio.Event()

        async def read():
            while not done.is_set():
                answer = await memory.documents.SearchDocuments(memory_pb2.SearchDocumentsRequest(query="anchor version"))
                seen.append([(p.citation.document_version, p.text) for p in answer.passages])

        readers = [asyncio.create_task(read()) for _ in range(2)]
        for version in range(1, 12):
            await memory.documents.IngestDocument(ingest("doc", f"anchor version {version}", "doc", "text/plain"))
        done.set()
        await asyncio.gather(*readers)
    assert len(seen) > 10
    assert all(len(passages) == 1 for passages in seen), [p for p in seen if len(p) != 1]
    assert all(text == f"anchor version {version - 1}" for [(version, text)] in seen)


async def test_a_deleted_document_is_gone_and_comes_back_with_a_higher_version(memory, identities):
    with testing.calling(identities, testing.principal_of("deleted")):
        stored = await memory.documents.IngestDocument(ingest())
        request = memory_pb2.DeleteDocumentRequest(document_id="guide", idempotency_key="d")
        assert (await memory.documents.DeleteDocument(request)).deleted_chunks == stored.document.chunk_count
        assert (await memory.documents.DeleteDocument(request)).deleted_chunks == stored.document.chunk_count
        assert not (await memory.documents.SearchDocuments(memory_pb2.SearchDocumentsRequest(query="whale oil"))).passages
        with pytest.raises(NotFound):
            await memory.documents.DeleteDocument(memory_pb2.DeleteDocumentRequest(document_id="guide"))
        again = await memory.documents.IngestDocument(ingest())
        assert (again.changed, again.document.version) == (True, 2)


async def test_a_search_may_name_its_documents_and_ids_come_from_titles(memory, identities):
    with testing.calling(identities, testing.principal_of("named")):
        one = (await memory.documents.IngestDocument(ingest("", title="README.md"))).document
        two = (await memory.documents.IngestDocument(ingest("", title="Wie geht's? 数据"))).document
        assert one.document_id == "README.md"
        assert two.title == "Wie geht's? 数据"
        found = await memory.documents.SearchDocuments(
            memory_pb2.SearchDocumentsRequest(query="whale oil", document_ids=[two.document_id], page_size=2)
        )
        assert {p.citation.document_id for p in found.passages} == {two.document_id}
        assert len({p.citation.citation_id for p in found.passages}) == len(found.passages) == 2


async def test_lists_page_newest_first(memory, identities):
    with testing.calling(identities, testing.principal_of("pages")):
        texts = [f"memory number {n}" for n in range(7)]
        for text in texts[:3]:
            await memory.memories.AddMemories(memory_pb2.AddMemoriesRequest(memories=[memory_pb2.NewMemory(text=text)]))
        batch = [memory_pb2.NewMemory(text=text) for text in texts[3:]]
        await memory.memories.AddMemories(memory_pb2.AddMemoriesRequest(memories=batch))
        listed, token, pages = [], "", 0
        while pages == 0 or token:
            answer = await memory.memories.ListMemories(memory_pb2.ListMemoriesRequest(page_size=2, page_token=token))
            listed += [m.text for m in answer.memories]
            token, pages = answer.next_page_token, pages + 1
    assert sorted(listed) == texts
    assert set(listed[:4]) == set(texts[3:])
    assert listed[4:] == texts[2::-1]
    assert pages == 4


async def test_memories_are_found_by_meaning_and_keyword_and_duplicates_are_not_stored_twice(memory, identities):
    def new(text, **fields):
        return memory_pb2.NewMemory(text=text, **fields)

    with testing.calling(identities, testing.principal_of("mem")):
        request = memory_pb2.AddMemoriesRequest(
            memories=[new("The user likes green tea", importance=0.9, kind="episode", session_id="s"), new("The door code is 1234")],
            idempotency_key="k",
        )
        stored = (await memory.memories.AddMemories(request)).memories
        assert [(m.importance, m.kind, m.session_id) for m in stored] == [(0.9, "episode", "s"), (0.5, "fact", "")]
        assert (await memory.memories.AddMemories(request)).memories == stored
        near = memory_pb2.AddMemoriesRequest(
            memories=[new("the user likes GREEN tea!"), new("The door code is 1235"), new("Same"), new("same.")]
        )
        again = (await memory.memories.AddMemories(near)).memories
        assert again[0] == stored[0]
        assert again[1].memory_id != stored[1].memory_id
        assert again[2] == again[3]
        found = (await memory.memories.SearchMemories(memory_pb2.SearchMemoriesRequest(query="green tea"))).memories
        assert found[0].memory_id == stored[0].memory_id
        assert found[0].score > 0
        assert (await memory.memories.GetMemory(memory_pb2.GetMemoryRequest(memory_id=stored[0].memory_id))).memory == stored[0]
        with pytest.raises(IdempotencyMismatch):
            await memory.memories.AddMemories(memory_pb2.AddMemoriesRequest(memories=[new("other")], idempotency_key="k"))
        await memory.memories.DeleteMemory(memory_pb2.DeleteMemoryRequest(memory_id=stored[0].memory_id))
        found = (await memory.memories.SearchMemories(memory_pb2.SearchMemoriesRequest(query="green tea"))).memories
        assert stored[0].memory_id not in {m.memory_id for m in found}
        with pytest.raises(NotFound):
            await memory.memories.GetMemory(memory_pb2.GetMemoryRequest(memory_id=stored[0].memory_id))


async def test_another_user_neither_finds_nor_reads_nor_deletes_a_memory(memory, identities):
    with testing.calling(identities, testing.principal_of("own", "ana")):
        added = await memory.memories.AddMemories(
            memory_pb2.AddMemoriesRequest(memories=[memory_pb2.NewMemory(text="ana's secret garden")])
        )
        memory_id = added.memories[0].memory_id
    for other in (testing.principal_of("own", "bob"), testing.principal_of("foreign", "ana")):
        with testing.calling(identities, other):
            assert not (await memory.memories.SearchMemories(memory_pb2.SearchMemoriesRequest(query="secret garden"))).memories
            assert not (await memory.memories.ListMemories(memory_pb2.ListMemoriesRequest())).memories
            for call, request in (
                (memory.memories.GetMemory, memory_pb2.GetMemoryRequest(memory_id=memory_id)),
                (memory.memories.DeleteMemory, memory_pb2.DeleteMemoryRequest(memory_id=memory_id)),
            ):
                with pytest.raises(NotFound):
                    await call(request)


async def test_an_expired_memory_is_nowhere(memory, identities, valkey):
    new = memory_pb2.NewMemory(text="a fleeting thought")
    new.expires_at.FromMilliseconds(int(time.time() * 1000) + 400)
    with testing.calling(identities, testing.principal_of("fleeting"), timeout_s=60):
        stored = (await memory.memories.AddMemories(memory_pb2.AddMemoriesRequest(memories=[new]))).memories[0]
        assert stored.HasField("expires_at")

        async def gone():
            found = await memory.memories.SearchMemories(memory_pb2.SearchMemoriesRequest(query="fleeting thought"))
            listed = await memory.memories.ListMemories(memory_pb2.ListMemoriesRequest())
            return not found.memories and not listed.memories

        await testing.eventually_async(gone, "the memory expires")

        async def purged():
            return not await valkey.zcard("memory:work") and not [key async for key in valkey.scan_iter("memory:memories:*")]

        await testing.eventually_async(purged, "upkeep removes its record")


async def test_two_services_share_a_store(memory, identities, state_url, milvus_uri, llm):
    async with fakes.memory_service(identities, state_url, milvus_uri, llm.address) as other:
        with testing.calling(identities, testing.principal_of("shared"), timeout_s=60):
            texts = {f"d{n}": f"document number {n} tells of lighthouse {n}" for n in range(8)}
            services = [memory, other]
            await asyncio.gather(
                *(
                    services[n % 2].documents.IngestDocument(ingest(name, text, name, "text/plain"))
                    for n, (name, text) in enumerate(texts.items())
                )
            )
            for service in services:
                found = await service.documents.SearchDocuments(memory_pb2.SearchDocumentsRequest(query="lighthouse", page_size=50))
                assert {p.citation.document_id: p.text for p in found.passages} == texts
