"""What memory answers while a part of it is away, and that nothing acknowledged is lost when processes are killed."""

import asyncio
import json
import os
import random
import shutil
import signal

import grpc
import pytest
from bulkhead.memory.v1 import memory_pb2, memory_pb2_grpc
from grpc_health.v1 import health_pb2
from pymilvus import MilvusClient

from services.common import embedded, testing
from services.common.errors import BulkheadError, Overloaded
from services.common.valkey import connect
from services.memory import fakes, upkeep

pytestmark = pytest.mark.system
LIVE, NOT_LIVE = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def milvus(tmp_path):
    """A Milvus Lite server of this test's own, that can be killed and started again on the same folder."""

    class Milvus:
        port = testing.free_port()
        uri = f"http://127.0.0.1:{port}"

        def start(self):
            self.process = testing.Process(embedded.milvus_command(self.port, tmp_path / "milvus"), log=tmp_path / "milvus.log")
            testing.wait_for_port(self.port, self.process)

        def wipe(self):
            shutil.rmtree(tmp_path / "milvus")

        def kill(self):
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()

    milvus = Milvus()
    milvus.start()
    yield milvus
    milvus.process.stop()


@pytest.fixture
async def llm(identities):
    async with fakes.fake_llm(identities) as (fake, address):
        fake.address = address
        yield fake


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Upkeep looks often, and soon again at what could not be done."""
    monkeypatch.setattr(upkeep, "EVERY_S", 0.1)
    monkeypatch.setattr(upkeep, "AGAIN_S", 0.3)


async def status(address, name):
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return (await check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status


def recall(query):
    return memory_pb2.RecallRequest(session_id="s", query=query, include_documents=True, include_memories=True)


def add(*texts, key=""):
    return memory_pb2.AddMemoriesRequest(memories=[memory_pb2.NewMemory(text=text) for text in texts], idempotency_key=key)


def ingest(document_id, text):
    return memory_pb2.IngestDocumentRequest(
        document_id=document_id, title=document_id, content_type="text/plain", text=text, idempotency_key=f"key of {document_id}"
    )


async def store_some(memory):
    await memory.documents.IngestDocument(ingest("guide", "The lighthouse keeper polishes brass."))
    await memory.memories.AddMemories(add("The user keeps a lighthouse"))
    turn = memory_pb2.Turn(run_id="r", user_text="hello", assistant_text="hi")
    await memory.sessions.AppendTurns(memory_pb2.AppendTurnsRequest(session_id="s", turns=[turn]))


def codes(answer):
    return {(warning.code, warning.capability_lost) for warning in answer.warnings}


def kinds(answer):
    return [part.kind for part in answer.parts]


TURN, MEMORY, DOCUMENT = memory_pb2.RECALL_KIND_RECENT_TURN, memory_pb2.RECALL_KIND_MEMORY, memory_pb2.RECALL_KIND_DOCUMENT


async def test_without_embeddings_recall_goes_by_keyword_and_says_so(identities, state_url, milvus_uri, llm, valkey):
    async with fakes.memory_service(identities, state_url, milvus_uri, llm.address) as memory:
        with testing.calling(identities, testing.principal_of("no-embeddings"), timeout_s=60):
            await store_some(memory)

            async def idle():
                return not await valkey.zcard("memory:work")

            await testing.eventually_async(idle, "upkeep has nothing left to do")
            llm.down = True
            found = await memory.sessions.Recall(recall("lighthouse brass"))
            assert sorted(kinds(found)) == [TURN, MEMORY, DOCUMENT]
            assert codes(found) == {("embeddings_unavailable", "semantic_search")}
            assert all(warning.user_message for warning in found.warnings)
            with pytest.raises(Overloaded):
                await memory.documents.IngestDocument(ingest("other", "text"))
            # A memory is kept nevertheless, and indexed when embeddings are back.
            kept = (await memory.memories.AddMemories(add("The user owns a telescope"))).memories[0]
            search = memory_pb2.SearchMemoriesRequest(query="telescope")
            assert not (await memory.memories.SearchMemories(search)).memories
            llm.down = False

            async def indexed():
                return [m.memory_id for m in (await memory.memories.SearchMemories(search)).memories][:1] == [kept.memory_id]

            await testing.eventually_async(indexed, "upkeep indexes the memory", 20)
            call = llm.seen[-1][1]
            assert (call.principal.tenant, call.principal.user) == ("no-embeddings", "ana")


async def test_without_milvus_recall_still_answers_and_comes_back_by_itself(identities, state_url, milvus, llm):
    async with fakes.memory_service(identities, state_url, milvus.uri, llm.address) as memory:
        await testing.wait_ready(memory.address)
        with testing.calling(identities, testing.principal_of("no-milvus"), timeout_s=120):
            await store_some(memory)
            milvus.kill()
            found = await memory.sessions.Recall(recall("lighthouse brass"))
            # Memories come from their records, by keyword; documents cannot.
            assert kinds(found) == [TURN, MEMORY]
            assert codes(found) == {("memory_store_unavailable", "long_term_memory"), ("memory_store_unavailable", "documents")}
            with pytest.raises(Overloaded):
                await memory.documents.IngestDocument(ingest("other", "Seagulls steal sandwiches."))
            later = (await memory.memories.AddMemories(add("The user fears seagulls"))).memories[0]
            assert await status(memory.address, "liveness") == LIVE

            async def not_ready():
                return await status(memory.address, "readiness") == NOT_LIVE

            await testing.eventually_async(not_ready, "readiness follows milvus")
            milvus.start()
            await testing.wait_ready(memory.address)

            async def whole():
                found = await memory.sessions.Recall(recall("lighthouse brass"))
                return not found.warnings and sorted(kinds(found)) == [TURN, MEMORY, DOCUMENT]

            await testing.eventually_async(whole, "recall is whole again")

            async def indexed():
                hits = (await memory.memories.SearchMemories(memory_pb2.SearchMemoriesRequest(query="seagulls"))).memories
                return [m.memory_id for m in hits][:1] == [later.memory_id]

            await testing.eventually_async(indexed, "upkeep indexes the memory")
            retried = await memory.documents.IngestDocument(ingest("other", "Seagulls steal sandwiches."))
            assert retried.changed


async def test_without_the_state_store_every_method_answers_overloaded(identities, milvus_uri, llm):
    with testing.valkey_server() as (url, process):
        async with fakes.memory_service(identities, url, milvus_uri, llm.address) as memory:
            with testing.calling(identities, timeout_s=60):
                await store_some(memory)
                process.stop()
                for call, request in (
                    (memory.sessions.Recall, recall("x")),
                    (memory.sessions.AppendTurns, memory_pb2.AppendTurnsRequest(session_id="s", turns=[memory_pb2.Turn(run_id="q")])),
                    (memory.memories.AddMemories, add("x")),
                    (memory.memories.SearchMemories, memory_pb2.SearchMemoriesRequest(query="lighthouse")),
                    (memory.memories.ListMemories, memory_pb2.ListMemoriesRequest()),
                    (memory.documents.IngestDocument, ingest("x", "y")),
                    (memory.documents.SearchDocuments, memory_pb2.SearchDocumentsRequest(query="lighthouse")),
                    (memory.documents.DeleteDocument, memory_pb2.DeleteDocumentRequest(document_id="guide")),
                ):
                    with pytest.raises(Overloaded) as caught:
                        await call(request)
                    assert caught.value.reason == "STORE_UNAVAILABLE"
                assert await status(memory.address, "liveness") == LIVE


async def test_work_of_a_process_that_died_is_finished_by_another(identities, state_url, milvus_uri, llm, valkey):
    """Rows of a version that never became live, and rows that a deletion left, are removed by upkeep."""
    from services.memory.adapters.valkey_work import ValkeyWork

    async with fakes.memory_service(identities, state_url, milvus_uri, llm.address) as memory:
        with testing.calling(identities, testing.principal_of("orphans"), timeout_s=60):
            added = (await memory.memories.AddMemories(add("The user writes orphans' tales"))).memories[0]
            # As if the process had died between the record and its row: an intent is all that is left.
            await ValkeyWork(valkey).intend(
                {"kind": "memory", "principal": testing.principal_of("orphans").as_dict(), "memory_id": "mem_never"}, 0
            )
            await ValkeyWork(valkey).intend({"kind": "document", "tenant": "orphans", "document_id": "gone", "version": 3}, 0)
            await ValkeyWork(valkey).intend({"kind": "document", "broken": True}, 0)

            async def left():
                return await valkey.zcard("memory:work") == 1  # the broken one stays and disturbs nobody

            await testing.eventually_async(left, "upkeep does what is due")
            assert (await memory.memories.GetMemory(memory_pb2.GetMemoryRequest(memory_id=added.memory_id))).memory == added


async def test_sigterm_during_an_ingest_lets_it_finish_and_exits_with_zero(identities, state_url, milvus_uri, llm, tmp_path):
    port = testing.free_port()
    environment = {
        "BULKHEAD_GRPC_PORT": str(port),
        "BULKHEAD_METRICS_PORT": "0",
        "BULKHEAD_STATE_URL": state_url,
        "BULKHEAD_MILVUS_URI": milvus_uri,
        "BULKHEAD_LLM_GATEWAY_ADDRESS": llm.address,
        "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file),
        "BULKHEAD_IDENTITY_SIGNING_KEY_FILE": str(identities.signing_key("memory")),
        "BULKHEAD_DRAIN_GRACE_S": "20",
    }
    process = testing.Process(testing.python("-m", "services.memory"), env=environment, log=tmp_path / "memory.log")
    try:
        await testing.wait_ready(f"127.0.0.1:{port}")
        async with testing.dialer("gateway", {"memory": f"127.0.0.1:{port}"}) as gateway:
            documents = memory_pb2_grpc.DocumentServiceStub(gateway.channel("memory"))
            with testing.calling(identities, testing.principal_of("sigterm"), timeout_s=60):
                text = "\n\n".join(f"Paragraph {n} of a long book. " * 30 for n in range(400))
                ingesting = asyncio.create_task(documents.IngestDocument(ingest("book", text)))
                await testing.eventually_async(lambda: llm.seen, "the ingest is at work")
                process.signal(signal.SIGTERM)
                assert (await ingesting).document.chunk_count >= 400
        assert await asyncio.to_thread(process.wait) == 0
        assert "Traceback" not in process.output()
    finally:
        process.stop()


async def test_memories_outlive_an_emptied_milvus_and_a_change_of_the_embedding_model(identities, state_url, milvus, llm):
    async with fakes.memory_service(identities, state_url, milvus.uri, llm.address) as memory:
        with testing.calling(identities, testing.principal_of("reindex")):
            await memory.memories.AddMemories(add("The user keeps bees", "The user bakes bread"))
            await memory.documents.IngestDocument(ingest("guide", "Bees make honey."))
    llm.dimension = 32
    async with fakes.memory_service(identities, state_url, milvus.uri, llm.address, embedding_model="other") as memory:
        with testing.calling(identities, testing.principal_of("reindex"), timeout_s=60):
            await memory.memories.AddMemories(add("The user likes tea"))

            async def all_found():
                found = await memory.memories.SearchMemories(memory_pb2.SearchMemoriesRequest(query="user bees bread tea"))
                return {m.text for m in found.memories} >= {"The user keeps bees", "The user bakes bread", "The user likes tea"}

            await testing.eventually_async(all_found, "memories are indexed with the other model")
            again = memory_pb2.IngestDocumentRequest(document_id="guide", title="guide", content_type="text/plain", text="Bees make honey.")
            assert (await memory.documents.IngestDocument(again)).changed
            assert (await memory.documents.SearchDocuments(memory_pb2.SearchDocumentsRequest(query="honey"))).passages[0].keyword_rank == 1
            milvus.kill()
            milvus.wipe()
            milvus.start()
            await testing.wait_ready(memory.address)
            await memory.memories.AddMemories(add("The user grows roses"))
            await testing.eventually_async(all_found, "memories are indexed in the new store")


async def test_memories_are_indexed_where_the_maker_of_a_new_collection_died_at_once(identities, state_url, valkey, milvus, llm):
    async with fakes.memory_service(identities, state_url, milvus.uri, llm.address) as memory:
        with testing.calling(identities, testing.principal_of("half-made")):
            await memory.memories.AddMemories(add("The user keeps bees"))
    # What is left when a process dies right after it made the collection of a store that is new: its name stands nowhere yet.
    (model,) = [key for key in await valkey.hkeys("memory:collections") if not key.startswith(b"collection:")]
    name = json.loads(await valkey.hget("memory:collections", model))["name"]
    await valkey.delete("memory:collections", "memory:work")
    client = MilvusClient(uri=milvus.uri, dedicated=True)
    client.delete(name, filter='tenant_id != ""')
    client.close()
    async with fakes.memory_service(identities, state_url, milvus.uri, llm.address) as memory:
        with testing.calling(identities, testing.principal_of("half-made"), timeout_s=60):
            await memory.memories.AddMemories(add("The user likes tea"))

            async def both_found():
                found = await memory.memories.SearchMemories(memory_pb2.SearchMemoriesRequest(query="user bees tea"))
                return len(found.memories) == 2

            await testing.eventually_async(both_found, "the memory of before is indexed")


@pytest.mark.parametrize(
    "parts", [["memory"], pytest.param(["memory", "milvus", "state"], marks=pytest.mark.system)], ids=["memory", "everything"]
)
async def test_nothing_acknowledged_is_lost_over_kills_of_memory_and_its_stores(identities, tmp_path, milvus, llm, parts):
    """Writers go on while memory, or memory, Milvus and Valkey, are killed in turn; each retries its call under the same key."""
    rng = random.Random(7)
    principal = testing.principal_of("kills")
    ports = {"grpc": testing.free_port(), "state": testing.free_port()}
    folder = tmp_path / "state"
    folder.mkdir()
    environment = {
        "BULKHEAD_GRPC_PORT": str(ports["grpc"]),
        "BULKHEAD_METRICS_PORT": "0",
        "BULKHEAD_STATE_URL": f"redis://127.0.0.1:{ports['state']}/0",
        "BULKHEAD_MILVUS_URI": milvus.uri,
        "BULKHEAD_LLM_GATEWAY_ADDRESS": llm.address,
        "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file),
        "BULKHEAD_IDENTITY_SIGNING_KEY_FILE": str(identities.signing_key("memory")),
    }

    def start_state():
        started = testing.Process(embedded.valkey_state_command(ports["state"], folder), log=tmp_path / "state.log")
        testing.wait_for_port(ports["state"], started)
        return started

    def start_memory():
        return testing.Process(testing.python("-m", "services.memory"), env=environment, log=tmp_path / "memory.log")

    processes = {"state": start_state(), "memory": start_memory()}
    address = f"127.0.0.1:{ports['grpc']}"
    memories, documents, over = {}, {}, asyncio.Event()

    async def until_acknowledged(call, request):
        while True:
            try:
                return await call(request, timeout=5)
            except BulkheadError as error:
                if not error.retryable and error.reason not in ("IDEMPOTENCY_IN_FLIGHT", "DOCUMENT_SUPERSEDED", "CANCELLED"):
                    raise
                await asyncio.sleep(0.05)

    async def write(writer, gateway):
        stub = memory_pb2_grpc.MemoryServiceStub(gateway.channel("memory"))
        files = memory_pb2_grpc.DocumentServiceStub(gateway.channel("memory"))
        number = 0
        while not over.is_set():
            name = f"w{writer}n{number}"
            text = f"fact {name} about {rng.randrange(10**9)}"
            if number % 4:
                stored = (await until_acknowledged(stub.AddMemories, add(text, key=name))).memories[0]
                memories[stored.memory_id] = text
            else:
                await until_acknowledged(files.IngestDocument, ingest(f"doc-{name}", text))
                documents[f"doc-{name}"] = text
            number += 1

    async def restart(part):
        if part == "milvus":
            await asyncio.to_thread(milvus.kill)
            await asyncio.to_thread(milvus.start)
            return
        os.kill(processes[part].pid, signal.SIGKILL)
        await asyncio.to_thread(processes[part].wait)
        processes[part] = await asyncio.to_thread(start_state if part == "state" else start_memory)

    try:
        async with testing.dialer("gateway", {"memory": address}) as gateway:
            with testing.calling(identities, principal, timeout_s=170):
                await testing.wait_ready(address)
                writers = [asyncio.create_task(write(number, gateway)) for number in range(3)]
                for part in parts:
                    before = len(memories) + len(documents)
                    await testing.eventually_async(lambda before=before: len(memories) + len(documents) > before + 4, "writes go on")
                    await restart(part)
                    await testing.wait_ready(address)
                over.set()
                await asyncio.gather(*writers)
                stub = memory_pb2_grpc.MemoryServiceStub(gateway.channel("memory"))
                files = memory_pb2_grpc.DocumentServiceStub(gateway.channel("memory"))
                listed = (await stub.ListMemories(memory_pb2.ListMemoriesRequest(page_size=1_000))).memories
                assert {m.memory_id: m.text for m in listed}.items() >= memories.items()

                async def found(call, request, read, wanted):
                    return wanted in [read(entry) for entry in await call(request)]

                async def find_memories(request):
                    return (await stub.SearchMemories(request)).memories

                async def find_passages(request):
                    return (await files.SearchDocuments(request)).passages

                for memory_id, text in memories.items():
                    request = memory_pb2.SearchMemoriesRequest(query=text)
                    await testing.eventually_async(
                        lambda r=request, w=memory_id: found(find_memories, r, lambda m: m.memory_id, w), f"{text} is found"
                    )
                for document_id, text in documents.items():
                    request = memory_pb2.SearchDocumentsRequest(query=text)
                    await testing.eventually_async(
                        lambda r=request, w=document_id: found(find_passages, r, lambda p: p.citation.document_id, w), f"{text} is found"
                    )
                state = connect(environment["BULKHEAD_STATE_URL"])
                assert await state.ping()
                await state.aclose()
    finally:
        over.set()
        for process in processes.values():
            process.stop()
