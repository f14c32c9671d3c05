"""What memory answers while its state store is there and takes no write: too few replicas, or it is no primary any more."""

import pytest
from bulkhead.memory.v1 import memory_pb2

from services.common import testing
from services.common.errors import Overloaded
from services.common.valkey import connect
from services.memory import fakes
from tests.integration.test_memory_failures import add, ingest, store_some


@pytest.mark.parametrize("refusal", ["NOREPLICAS", "READONLY"])
async def test_every_write_answers_overloaded_and_is_taken_when_the_store_takes_it(identities, milvus_uri, refusal):
    with testing.valkey_server() as (url, _):
        client = connect(url, timeout_s=testing.PATIENCE_S)
        async with fakes.fake_llm(identities) as (_, address), fakes.memory_service(identities, url, milvus_uri, address) as memory:
            with testing.calling(identities, timeout_s=60):
                await store_some(memory)
                turn = memory_pb2.Turn(run_id="q", user_text="a", assistant_text="b")
                writes = (
                    (memory.sessions.AppendTurns, memory_pb2.AppendTurnsRequest(session_id="s", turns=[turn])),
                    (memory.memories.AddMemories, add("x")),
                    (memory.documents.IngestDocument, ingest("x", "y")),
                    (memory.documents.DeleteDocument, memory_pb2.DeleteDocumentRequest(document_id="guide")),
                )
                if refusal == "NOREPLICAS":
                    await client.config_set("min-replicas-to-write", 1)
                else:
                    await client.execute_command("REPLICAOF", "127.0.0.1", testing.free_port())
                for call, request in writes:
                    with pytest.raises(Overloaded) as caught:
                        await call(request)
                    assert caught.value.reason == "STORE_UNAVAILABLE"
                if refusal == "NOREPLICAS":
                    await client.config_set("min-replicas-to-write", 0)
                else:
                    await client.execute_command("REPLICAOF", "NO", "ONE")
                for call, request in writes:
                    await call(request)
        await client.aclose()
