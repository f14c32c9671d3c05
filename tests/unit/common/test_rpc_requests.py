"""Methods that take a stream of requests, and the few that need no principal, over real gRPC."""

import asyncio
from functools import partial

import grpc
import pytest
from bulkhead.orchestrator.v1 import blobs_pb2 as pb
from bulkhead.orchestrator.v1 import blobs_pb2_grpc as rpc

from services.common import edges, testing
from services.common.errors import BulkheadError, InvalidInput, NotFound, Unauthenticated
from services.common.rpc import context as call_context
from services.common.rpc.server import Service
from services.common.settings import ServiceSettings

PIECE = b"x" * 1024 * 1024


class Counting(rpc.BlobServiceServicer):
    """Counts the bytes that come; refuses at the name `refused` before it has read anything else."""

    def __init__(self):
        self.ended = asyncio.Event()
        self.seen = 0

    async def PutBlob(self, request_iterator, context):
        tenant = call_context.principal().tenant
        try:
            async for request in request_iterator:
                if request.start.name == "refused":
                    raise InvalidInput.field("name", "is refused")
                self.seen += len(request.chunk)
        finally:
            self.ended.set()
        return pb.PutBlobResponse(blob=pb.Blob(size=self.seen, name=tenant))

    async def GetBlob(self, request, context):
        return pb.GetBlobResponse()

    async def ReadSignedBlob(self, request, context):
        call = call_context.current()
        if request.token == "asks":
            call_context.principal()
        yield pb.ReadSignedBlobResponse(chunk=b"" if call.principal is None else call.principal.tenant.encode())


@pytest.fixture
async def served(identities):
    servicer, port = Counting(), testing.free_port()

    def build(_):
        return Service("orchestrator", [partial(rpc.add_BlobServiceServicer_to_server, servicer)], verifier=identities.verifier)

    addresses = {"orchestrator": f"127.0.0.1:{port}"}
    async with testing.running(ServiceSettings(grpc_port=port, drain_grace_s=0.5), build), testing.dialer("gateway", addresses) as dialer:
        yield rpc.BlobServiceStub(dialer.channel("orchestrator")), servicer, addresses["orchestrator"]


async def pieces(name, count, error=None, sent=None):
    yield pb.PutBlobRequest(start=pb.BlobStart(name=name))
    for _ in range(count):
        if sent is not None:
            sent.append(1)
        yield pb.PutBlobRequest(chunk=PIECE)
    if error is not None:
        raise error


async def test_a_stream_of_requests_arrives_whole_and_with_its_caller(served, identities):
    stub, *_ = served
    with testing.calling(identities, testing.principal_of("globex")):
        answer = await stub.PutBlob(pieces("a", 12))
    assert (answer.blob.size, answer.blob.name) == (12 * len(PIECE), "globex")


async def test_what_the_senders_own_stream_raises_is_raised_and_ends_the_call(served, identities):
    stub, servicer, _ = served
    # No deadline ends it in the test's time.
    with testing.calling(identities, timeout_s=600), pytest.raises(NotFound, match="of my own"):
        await stub.PutBlob(pieces("a", 1, NotFound("of my own")))
    async with asyncio.timeout(testing.PATIENCE_S):
        await servicer.ended.wait()


async def test_a_refusal_before_the_end_of_the_stream_is_told_as_it_is(served, identities):
    stub, *_ = served
    for _ in range(3):
        with testing.calling(identities), pytest.raises(InvalidInput, match="is refused"):
            await stub.PutBlob(pieces("refused", 25))
        with pytest.raises(Unauthenticated):
            await stub.PutBlob(pieces("a", 25))


async def test_a_stream_that_is_refused_and_does_not_end_is_cut_off(served, identities):
    stub, *_ = served
    sent = []
    with testing.calling(identities), pytest.raises(BulkheadError):
        await stub.PutBlob(pieces("refused", 5_000, sent=sent))
    assert len(sent) < 100


async def test_a_method_that_needs_no_principal_is_served_without_one_and_any_other_is_not(served, identities):
    _, servicer, address = served
    async with grpc.aio.insecure_channel(address) as raw:
        bare = rpc.BlobServiceStub(raw)
        assert [item.chunk async for item in bare.ReadSignedBlob(pb.ReadSignedBlobRequest(), timeout=5)] == [b""]
        for call in (
            bare.GetBlob(pb.GetBlobRequest(), timeout=5),
            bare.PutBlob(pieces("a", 1), timeout=5),
            bare.ReadSignedBlob(pb.ReadSignedBlobRequest(token="asks"), timeout=5).read(),
            # Who shows a token must be who it says.
            bare.ReadSignedBlob(pb.ReadSignedBlobRequest(), timeout=5, metadata=[("authorization", "Bearer x.y.z")]).read(),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                await call
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as refused:
            await bare.ReadSignedBlob(pb.ReadSignedBlobRequest()).read()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, "it has no deadline"
    assert servicer.seen == 0


async def test_a_token_that_comes_all_the_same_says_who_calls(served, identities):
    stub, *_ = served
    with testing.calling(identities, testing.principal_of("globex")):
        assert [item.chunk async for item in stub.ReadSignedBlob(pb.ReadSignedBlobRequest())] == [b"globex"]
    with pytest.raises(Unauthenticated):
        await stub.GetBlob(pb.GetBlobRequest(), timeout=5)


def test_two_methods_need_no_principal_and_no_third_does():
    assert {
        "/bulkhead.orchestrator.v1.BlobService/ReadSignedBlob",
        "/bulkhead.orchestrator.v1.HookService/AcceptHook",
    } == edges.NO_PRINCIPAL_NEEDED
