"""What an ended run costs in the state store before and after its log moved to a segment, and what reading it back costs.

    python scripts/measure_segments.py [--runs 2000] [--of-thread 1]

Five-step runs against a Valkey of its own and a folder that is removed afterwards; prints a table.
"""

import argparse
import asyncio
import tempfile
import time
import uuid
from pathlib import Path

import orjson

from services.common import testing
from services.common.valkey import connect
from services.orchestrator.adapters.blob_folder import FolderBlobs
from services.orchestrator.adapters.segment_files import SegmentFiles
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import Draft, Limits, RunRef, RunSpec, Terminal
from services.orchestrator.segments_moving import SegmentMover

STEPS = 5
DELTAS = 20
WORDS = "The quick brown fox jumps over the lazy dog and then, of all things, writes a report of it. "
QUESTION = [{"role": "user", "text": WORDS * 4}]
PARALLEL = 32


def drafts(step: int) -> list[Draft]:
    """The events of one step: text in pieces, a tool call, its end."""
    text = [Draft("message_delta", orjson.dumps({"text": f"{WORDS[i:]} {step}", "message_id": f"m/{step}"}), True) for i in range(DELTAS)]
    call = {"call_id": f"c{step}", "tool": "calculator", "version": "1", "arguments": {"expression": f"{step}*17+4"}}
    ended = [Draft("tool_call_started", orjson.dumps(call)), Draft("tool_call_completed", orjson.dumps({**call, "output": {"v": step}}))]
    return [*text, *ended, Draft("step_completed", orjson.dumps({"step": step, "usage": {"steps": step, "input_tokens": 812}}))]


async def one_run(store: Store, ref: RunRef) -> None:
    """A run from its acceptance to its end."""
    spec = RunSpec(ref.thread_id, "helper", "1", "d" * 64, QUESTION, Limits(), {"tenant": ref.tenant, "user": "ana", "tier": "pro"})
    reservation = await store.reserve(ref, "ana", 0, "", "")
    queued = orjson.dumps({"agent": "helper", "agent_version": "1", "input": QUESTION})
    await store.accept(ref, "ana", spec, "stable", reservation, "0" * 32, (queued, b"{}"), 60.0)
    for step in range(1, STEPS + 1):
        state = orjson.dumps({"step": step, "usage": {"steps": step}, "tool_log": [{"tool": "calculator"}] * step})
        await store.write(ref, 1, step, "0" * 32, drafts(step), mode="c", state=state, messages=[state])
    result = orjson.dumps({"output_text": WORDS * 3, "finish_reason": "stop", "usage": {"steps": STEPS, "input_tokens": 4000}})
    await store.write(ref, 1, STEPS + 1, "0" * 32, [], mode="f", terminal=Terminal("succeeded", result, "run_finished", result))
    await store.settle(ref)


async def measure(url: str, folder: Path, runs: int, of_thread: int) -> None:
    """Prints the table."""
    client = connect(url)
    store = Store(client, "measuring")
    store.segments = SegmentFiles(FolderBlobs(folder))

    async def used() -> int:
        found = await client.info("memory")
        # Connections and the buffer of the append-only file grow with the load and not with the runs.
        return int(found["used_memory"]) - int(found["mem_clients_normal"]) - int(found["mem_aof_buffer"])

    async def read_all(refs: list[RunRef]) -> float:
        began = time.perf_counter()
        for ref in refs:
            seen = 0
            while events := (await store.read(ref, seen, 512, False))[3]:
                seen = events[-1].seq
        return (time.perf_counter() - began) / len(refs)

    threads = [RunRef("acme", uuid.uuid4().hex, "-") for _ in range(runs // of_thread)]
    await store.load()
    places = asyncio.Semaphore(PARALLEL)
    made: list[RunRef] = []
    deleting = SegmentMover(store, store.segments, 0.0, lambda tier: 0.0)

    async def fill(thread: RunRef) -> None:
        async with places:
            for _ in range(of_thread):
                made.append(thread._replace(run_id=uuid.uuid4().hex))
                await one_run(store, made[-1])

    async def delete() -> None:
        while made:
            await deleting.look(made.pop())

    # What the store sets up once is no cost of a run.
    await asyncio.gather(*(fill(RunRef("acme", f"warm-{i}", "-")) for i in range(PARALLEL)))
    await delete()
    empty = await used()
    await asyncio.gather(*map(fill, threads))
    total = len(threads) * of_thread
    sample = threads[:50]
    ended, from_log = await used(), await read_all(sample)
    mover = SegmentMover(store, store.segments, 0.0, lambda tier: None)
    began = time.perf_counter()
    while await mover.turn():
        continue
    took = time.perf_counter() - began
    moved, from_segments = await used(), await read_all(sample)
    on_disk = await asyncio.to_thread(lambda: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    events = (await store.read(threads[0], 0, 1, False))[0] // of_thread
    await delete()
    gone = await used()
    await client.aclose()
    print(f"{total} runs of {STEPS} steps and {events} events, {of_thread} a thread")
    print(f"state store, log in it          {(ended - empty) / total:10,.0f} B a run")
    print(f"state store, log in segments    {(moved - empty) / total:10,.0f} B a run")
    print(f"state store, retention over     {(gone - empty) / total:10,.0f} B a run")
    print(f"segments on disk                {on_disk / total:10,.0f} B a run")
    print(f"moving                          {total / took:10,.0f} runs/s")
    print(f"reading a thread, from the log  {from_log * 1000:10.2f} ms")
    print(f"reading a thread, from segments {from_segments * 1000:10.2f} ms")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="how many (default: %(default)s)")
    parser.add_argument("--of-thread", type=int, default=1, help="runs of each thread (default: %(default)s)")
    options = parser.parse_args()
    with testing.valkey_server("state") as (url, _), tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(url, Path(folder), options.runs, options.of_thread))


if __name__ == "__main__":
    main()
