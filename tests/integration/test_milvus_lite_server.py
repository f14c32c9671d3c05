"""Milvus Lite behind our server: concurrent first calls, writers who take no turns, and kills lose nothing that was answered."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest
from milvus_lite.schema.types import CollectionSchema, DataType, FieldSchema
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from services.common import embedded, testing
from services.common.milvus_lite_server import Database, OneWriter
from services.memory.adapters.milvus_index import _create, _fields
from services.memory.ports import Row

DIMENSION = 8
QUERY = [1.0] * DIMENSION


@pytest.fixture
def lite(tmp_path):
    """The server as a process; `start` again after `kill` is on the same folder and port."""

    class Lite:
        port = testing.free_port()

        def start(self):
            self.process = testing.Process(embedded.milvus_command(self.port, tmp_path / "data"), log=tmp_path / "lite.log")
            testing.wait_for_port(self.port, self.process)

        def kill(self):
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()

        def client(self):
            def connected():
                try:
                    return MilvusClient(uri=f"http://127.0.0.1:{self.port}", timeout=20, dedicated=True)
                except MilvusException:
                    return None  # gRPC waits a moment before it dials an address again that refused

            return testing.eventually(connected, "a connection to Milvus Lite")

    lite = Lite()
    lite.start()
    yield lite
    lite.process.stop()


def rows(writer, first, count):
    return [
        _fields(
            Row(pk=f"{writer}.{n}", tenant="t", subject="", kind="document", text="x", terms=f"n{n}", dense=QUERY, document_id=f"{writer}")
        )
        for n in range(first, first + count)
    ]


def stored(client, writer):
    return {row["pk"] for row in client.query("c", filter=f'doc_id == "{writer}"', output_fields=["pk"], limit=10_000)}


def test_a_collection_is_opened_once_however_many_ask(tmp_path):
    fields = [FieldSchema("pk", DataType.VARCHAR, is_primary=True), FieldSchema("dense", DataType.FLOAT_VECTOR, dim=2)]
    first = Database(str(tmp_path))
    first.create_collection("c", CollectionSchema(fields)).insert([{"pk": f"p{n}", "dense": [0.0, 1.0]} for n in range(500)])
    first.close()
    database, together = Database(str(tmp_path)), threading.Barrier(8)

    def ask(_):
        together.wait()
        return database.get_collection("c")

    try:
        with ThreadPoolExecutor(8) as pool:
            assert len({id(collection) for collection in pool.map(ask, range(8))}) == 1
    finally:
        database.close()


def test_calls_that_write_go_one_at_a_time_and_reads_beside_them():
    """All of four calls can only meet if none of them is made to wait."""

    def met(method, patience_s):
        together = threading.Barrier(4)

        def answer(_request, _context):
            try:
                together.wait(patience_s)
            except threading.BrokenBarrierError:
                return False
            return True

        details = SimpleNamespace(method=f"/milvus.proto.milvus.MilvusService/{method}")
        handler = one_writer.intercept_service(lambda _: grpc.unary_unary_rpc_method_handler(answer), details)
        with ThreadPoolExecutor(4) as pool:
            return all(pool.map(lambda _: handler.unary_unary(None, None), range(4)))

    one_writer = OneWriter()
    assert met("Search", testing.PATIENCE_S)
    assert met("GetVersion", testing.PATIENCE_S)
    for method in ("Insert", "Upsert", "Delete", "Flush", "LoadCollection", "CreateCollection"):
        assert not met(method, 0.1), method


def test_writers_who_take_no_turns_lose_nothing_to_a_kill(lite):
    _create(lite.client(), "c", DIMENSION, "Session")
    for start in range(0, 60, 30):
        clients = [lite.client() for _ in range(4)]
        together = threading.Barrier(4)

        def write(writer, start=start, clients=clients, together=together):
            together.wait()
            for first in range(start, start + 30, 3):
                clients[writer].insert("c", rows(writer, first, 3))

        def look(clients=clients, together=together):
            together.wait()
            for _ in range(5):
                clients[3].load_collection("c")
                clients[3].search("c", [QUERY], anns_field="dense", limit=1, search_params={"metric_type": "COSINE"})
                clients[3].flush("c")

        with ThreadPoolExecutor(4) as pool:
            for done in [*(pool.submit(write, writer) for writer in range(3)), pool.submit(look)]:
                done.result()
        lite.kill()
        lite.start()
        # The writers of the next round are the first to call what was restarted just now.
    client = lite.client()
    client.load_collection("c")
    for writer in range(3):
        assert stored(client, writer) == {f"{writer}.{n}" for n in range(60)}


def test_a_collection_whose_maker_died_gets_its_indexes(lite):
    client = lite.client()
    assert _create(client, "c", DIMENSION, "Session")
    client.release_collection("c")
    while names := client.list_indexes("c"):
        client.drop_index("c", names[0])
    assert not _create(client, "c", DIMENSION, "Session")
    assert sorted(client.list_indexes("c")) == ["dense", "sparse"]
    client.insert("c", rows("w", 0, 1))
    (found,) = client.search("c", ["n0"], anns_field="sparse", limit=1, search_params={"metric_type": "BM25"})
    assert [hit["pk"] for hit in found] == ["w.0"]


def test_sigterm_writes_what_is_in_the_log_and_ends_with_zero(lite, tmp_path):
    client = lite.client()
    _create(client, "c", DIMENSION, "Session")
    client.insert("c", rows("w", 0, 5))
    assert not list((tmp_path / "data").rglob("*.parquet"))
    lite.process.signal(signal.SIGTERM)
    assert lite.process.wait() == 0
    assert list((tmp_path / "data").rglob("*.parquet"))
    lite.start()
    client = lite.client()
    client.load_collection("c")
    assert len(stored(client, "w")) == 5
