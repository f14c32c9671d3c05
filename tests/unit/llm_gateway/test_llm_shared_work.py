"""Fan-out: whoever reads, at whatever speed, from whatever time, gets the whole stream or an honest error."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import BulkheadError, Overloaded, UpstreamFailed
from services.common.testing import eventually_async
from services.llm_gateway.chat import Chunk
from services.llm_gateway.results import Notice
from services.llm_gateway.shared_work import SharedAnswer, SharedStream


def chunk(number, size=20):
    raw = str(number).rjust(size, ".").encode()
    return [Chunk(raw, {})]


class Source:
    """Yields `count` chunks, one when `step` is called or all at once; then ends, or raises."""

    def __init__(self, count, *, size=20, error=None, stepped=False):
        self.count, self.size, self.error = count, size, error
        self.sent = 0
        self.closed = False
        self.gate = asyncio.Semaphore(0) if stepped else None

    async def events(self):
        try:
            for number in range(self.count):
                if self.gate is not None:
                    await self.gate.acquire()
                else:
                    await asyncio.sleep(0)
                self.sent += 1
                yield chunk(number, self.size)
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def ignored(_):
    return None


async def read(stream, reader, *, pauses=(), stop_after=None):
    found = []
    try:
        while (event := await stream.next(reader)) is not None:
            found.append(event[0].raw)
            if stop_after is not None and len(found) >= stop_after:
                break
            for _ in range(pauses[len(found) % len(pauses)] if pauses else 0):
                await asyncio.sleep(0)
    finally:
        await stream.leave(reader)
    return found


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(0, 40),
    readers=st.lists(
        st.tuples(st.integers(0, 30), st.lists(st.integers(0, 4), max_size=5), st.none() | st.integers(1, 40)), min_size=1, max_size=6
    ),
    fails=st.booleans(),
)
def test_every_reader_gets_every_event_in_order(count, readers, fails):
    async def run():
        ended = []
        source = Source(count, error=UpstreamFailed("x") if fails else None)
        stream = SharedStream(source.events(), ended=ended.append)

        async def one(joins_after, pauses, stop_after):
            for _ in range(joins_after):
                await asyncio.sleep(0)
            if ended:
                return None
            reader = stream.join()
            try:
                return await read(stream, reader, pauses=pauses, stop_after=stop_after)
            except UpstreamFailed:
                return "failed"

        results = await asyncio.gather(*(one(*reader) for reader in readers))
        return source, ended, results

    source, ended, results = asyncio.run(run())
    whole = [chunk(number)[0].raw for number in range(count)]
    # Everybody may have come too late, or have come and gone before the end; then nothing is left running.
    if any(result is not None for result in results):
        assert len(ended) == 1
        assert source.closed or not source.sent
    for (_, _, stop_after), result in zip(readers, results, strict=True):
        if result is None:
            continue
        if result == "failed":
            assert fails
        elif stop_after is not None and stop_after <= count:
            assert result == whole[:stop_after]
        else:
            assert not fails
            assert result == whole


async def test_the_last_reader_ends_the_work_and_not_the_first():
    source = Source(10, stepped=True)
    stream = SharedStream(source.events(), ended=ignored)
    first, second = stream.join(), stream.join()
    source.gate.release()
    assert await stream.next(first) == await stream.next(second)
    await stream.leave(first)
    assert not source.closed
    source.gate.release()
    assert (await stream.next(second))[0].raw.endswith(b"1")
    await stream.leave(second)
    assert source.closed


async def test_a_sole_slow_reader_holds_the_provider_back():
    source = Source(1_000, size=1_000)
    stream = SharedStream(source.events(), ended=ignored, kept_bytes=20_000, window_bytes=5_000)
    reader = stream.join()
    await stream.next(reader)
    for _ in range(500):
        await asyncio.sleep(0)
    assert source.sent < 12
    assert len(await read(stream, reader)) == 999


async def test_a_slow_reader_is_cut_off_and_the_fast_one_is_not_held_up():
    source = Source(200, size=1_000)
    stream = SharedStream(source.events(), ended=ignored, kept_bytes=20_000, window_bytes=5_000)
    slow, fast = stream.join(), stream.join()
    assert await stream.next(slow) is not None
    assert len(await read(stream, fast)) == 200
    assert len(stream._log) * 1_000 <= 30_000
    with pytest.raises(Overloaded) as caught:
        await read(stream, slow)
    assert caught.value.reason == "READER_TOO_SLOW"


async def test_one_huge_event_cuts_nobody_off():
    source = Source(3, size=100_000)
    stream = SharedStream(source.events(), ended=ignored, kept_bytes=20_000, window_bytes=5_000)
    readers = [stream.join() for _ in range(3)]
    results = await asyncio.gather(*(read(stream, reader) for reader in readers))
    assert [len(result) for result in results] == [3, 3, 3]


async def test_nobody_can_join_a_stream_whose_beginning_is_gone():
    ended = []
    source = Source(100, size=1_000)
    stream = SharedStream(source.events(), ended=ended.append, kept_bytes=10_000, window_bytes=5_000)
    reader = stream.join()
    before = 0
    while not ended:
        assert await stream.next(reader) is not None
        before += 1
    assert source.sent < 100
    assert before + len(await read(stream, reader)) == 100


async def test_detached_work_goes_on_without_readers():
    source = Source(10, stepped=True)
    ended = []
    stream = SharedStream(source.events(), ended=ended.append, detached=True)
    reader = stream.join()
    source.gate.release()
    await stream.next(reader)
    await stream.leave(reader)
    for _ in range(9):
        source.gate.release()
    await eventually_async(lambda: source.closed and ended, "the work is done")
    assert source.sent == 10


async def test_each_reader_gets_an_error_of_its_own():
    stream = SharedStream(Source(0, error=UpstreamFailed("x", metadata={"a": "b"})).events(), ended=ignored)
    errors = []
    for reader in [stream.join(), stream.join()]:
        with pytest.raises(UpstreamFailed) as caught:
            await read(stream, reader)
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert errors[0].metadata == errors[1].metadata == {"a": "b"}
    assert errors[0].reason == "UPSTREAM_FAILED"


async def test_notices_are_shared_too():
    async def events():
        yield Notice("model_retry", "x")
        yield chunk(1)

    stream = SharedStream(events(), ended=ignored)
    one, two = stream.join(), stream.join()
    for reader in (one, two):
        assert (await stream.next(reader)).code == "model_retry"
        assert isinstance(await stream.next(reader), list)
        assert await stream.next(reader) is None
        await stream.leave(reader)


async def test_an_answer_survives_the_reader_that_began_it():
    release, cancelled = asyncio.Event(), []

    async def work():
        try:
            await release.wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return "answer"

    ended = []
    shared = SharedAnswer(work(), ended=ended.append)
    first, second = asyncio.create_task(shared.result()), asyncio.create_task(shared.result())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not cancelled
    release.set()
    assert await second == "answer"
    assert ended == [shared]


async def test_an_answer_nobody_waits_for_is_cancelled():
    cancelled = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cancelled.append(True)

    ended = []
    shared = SharedAnswer(work(), ended=ended.append)
    readers = [asyncio.create_task(shared.result()) for _ in range(3)]
    await asyncio.sleep(0)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    assert cancelled == [True]
    assert ended == [shared]


async def test_a_reader_with_less_time_leaves_alone():
    release = asyncio.Event()

    async def work():
        await release.wait()
        return 1

    shared = SharedAnswer(work(), ended=ignored)
    patient = asyncio.create_task(shared.result())
    with pytest.raises(BulkheadError) as caught:
        await shared.result(0.01)
    assert caught.value.default_reason == "DEADLINE_EXCEEDED"
    release.set()
    assert await patient == 1
