"""No row, record or turn of one tenant or user ever reaches another, over random calls."""

import random
from contextlib import suppress

import pytest
from bulkhead.memory.v1 import memory_pb2

from services.common import testing
from services.common.errors import Internal, NotFound
from services.memory import fakes
from services.memory.adapters.milvus_index import _hit
from services.memory.ports import Among

CALLS = 150
WORDS = ["lantern", "harbour", "tea", "数据库", "anchor", "1234", "garden"]
# Names that would end a literal of a filter, match everything, or run together with another when joined.
TENANTS = ["acme", "acm", 'acme" or 1 == 1 or tenant_id == "x', "%", "acme\0", "{acme}", "ACME"]
USERS = ["ana", "a", '" or subject_id != "', "ana\0x"]


@pytest.fixture
async def memory(identities, state_url, milvus_uri):
    async with fakes.fake_llm(identities) as (_, address):
        async with fakes.memory_service(identities, state_url, milvus_uri, address, window_turns=3) as running:
            yield running


class Caller:
    """One user of one tenant, whose every text carries a mark that nobody else's has."""

    def __init__(self, memory, rng, tenant, user):
        self.memory, self.rng = memory, rng
        self.principal = testing.principal_of(tenant, user)
        self.tenant_mark, self.user_mark = f"T{TENANTS.index(tenant)}T", f"U{TENANTS.index(tenant)}{USERS.index(user)}U"
        self.seen = 0

    def text(self, mark):
        return " ".join([mark, *self.rng.choices(WORDS, k=4), str(self.rng.randrange(10**6))])

    def check(self, texts, mark):
        for text in texts:
            self.seen += 1
            assert mark in text, f"{self.principal.tenant}/{self.principal.user} was given {text!r}"

    async def act(self):
        query = " ".join(self.rng.choices(WORDS, k=2))
        pick = self.rng.choice(["add", "ingest", "append", "recall", "recall", "memories", "documents", "list", "foreign"])
        match pick:
            case "add":
                new = [memory_pb2.NewMemory(text=self.text(self.user_mark)) for _ in range(self.rng.randint(1, 3))]
                answer = await self.memory.memories.AddMemories(memory_pb2.AddMemoriesRequest(memories=new))
                self.check((m.text for m in answer.memories), self.user_mark)
            case "ingest":
                name = f"doc{self.rng.randrange(3)}"
                text = "\n\n".join(self.text(self.tenant_mark) for _ in range(3))
                await self.memory.documents.IngestDocument(
                    memory_pb2.IngestDocumentRequest(document_id=name, title=self.tenant_mark, content_type="text/plain", text=text)
                )
            case "append":
                # Everybody uses the same session id: within a tenant it belongs to who came first.
                turn = memory_pb2.Turn(run_id=str(self.rng.random()), user_text=self.user_mark, assistant_text=self.user_mark)
                with suppress(NotFound):
                    await self.memory.sessions.AppendTurns(memory_pb2.AppendTurnsRequest(session_id="shared", turns=[turn]))
            case "recall":
                answer = await self.memory.sessions.Recall(
                    memory_pb2.RecallRequest(session_id="shared", query=query, include_documents=True, include_memories=True)
                )
                assert not answer.warnings
                for part in answer.parts:
                    is_document = part.kind == memory_pb2.RECALL_KIND_DOCUMENT
                    self.check([part.text], self.tenant_mark if is_document else self.user_mark)
                    assert not is_document or part.citation.title == self.tenant_mark
            case "memories":
                answer = await self.memory.memories.SearchMemories(memory_pb2.SearchMemoriesRequest(query=query, page_size=100))
                self.check((m.text for m in answer.memories), self.user_mark)
            case "documents":
                answer = await self.memory.documents.SearchDocuments(memory_pb2.SearchDocumentsRequest(query=query, page_size=50))
                self.check((p.text for p in answer.passages), self.tenant_mark)
            case "list":
                answer = await self.memory.memories.ListMemories(memory_pb2.ListMemoriesRequest())
                self.check((m.text for m in answer.memories), self.user_mark)
                documents = await self.memory.documents.ListDocuments(memory_pb2.ListDocumentsRequest())
                self.check((d.title for d in documents.documents), self.tenant_mark)
            case "foreign":
                with pytest.raises(NotFound):
                    await self.memory.memories.GetMemory(memory_pb2.GetMemoryRequest(memory_id="mem_" + "0" * 24))


@pytest.mark.parametrize("calls", [CALLS, pytest.param(4 * CALLS, marks=pytest.mark.system)])
async def test_no_row_crosses_tenants_or_users_over_random_calls(memory, identities, calls):
    rng = random.Random(20260101)
    callers = [Caller(memory, rng, tenant, user) for tenant in TENANTS for user in USERS]
    for _ in range(calls):
        caller = rng.choice(callers)
        with testing.calling(identities, caller.principal):
            await caller.act()
    assert sum(caller.seen for caller in callers) > calls


def test_a_row_that_the_store_should_not_have_answered_stops_the_call():
    entity = {
        "tenant_id": "acme", "subject_id": "ana", "text": "t", "doc_id": "", "doc_version": 0,
        "char_start": 0, "char_end": 0, "heading": "", "content_hash": "",
    }  # fmt: skip
    raw = {"pk": "p", "distance": 0.5, "entity": entity}
    assert _hit(raw, Among("acme", "ana")).text == "t"
    for among in (Among("globex", "ana"), Among("acme", "bob"), Among("globex", documents=True)):
        with pytest.raises(Internal):
            _hit(raw, among)
