"""How the events of a log are laid out into writes."""

from bulkhead.orchestrator.v1.orchestrator_pb2 import Event

from services.gateway.ports import Subject
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.events import CHUNK_BYTES, _frames


class Batches:
    """A follower that has these batches."""

    def __init__(self, *batches):
        self._batches = batches

    async def batches(self, subject, after, *, types=()):
        for batch in self._batches:
            yield batch


class Threads:
    """No snapshots: none is needed of a run."""

    GetThreadSnapshot = None


def events(first, count, size):
    return [Event(seq=n, run_id="r", type="message_delta", data_json=b'{"text":"%s"}' % (b"x" * size)) for n in range(first, first + count)]


async def test_a_small_batch_is_one_write():
    batches = events(1, 3, 10), events(4, 1, 10)
    written = [frame async for frame in _frames(Batches(*batches), Subject(run_id="r"), 0, Threads())]
    assert written == [b"".join(map(shapes.frame, batch)) for batch in batches]


async def test_a_large_batch_is_written_in_pieces_of_whole_events():
    batch = events(1, 100, 10_000)
    written = [frame async for frame in _frames(Batches(batch), Subject(run_id="r"), 0, Threads())]
    assert b"".join(written) == b"".join(map(shapes.frame, batch))
    assert max(map(len, written)) < CHUNK_BYTES + 11_000
    assert all(frame.endswith(b"\n\n") for frame in written)
