"""What durability itself costs: the writes of a step, and a long log read back, against a Valkey of its own that syncs each write.

Records are encrypted, as they are by default.
"""

import statistics
import tempfile
import time
import uuid
from contextlib import aclosing
from pathlib import Path

import orjson
import uvloop
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from scripts.bench.machine import Figure, percentile
from services.common import testing
from services.common.envelope import opened_envelope
from services.common.valkey import connect
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import Draft, Limits, RunRef, RunSpec, Terminal
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import root_keys, served, settings_for, write_config

STEPS = 400
EVENTS = 3_000
REPLAYS = 15
TRACE = "0" * 32


async def _accepted(store: Store, ref: RunRef) -> None:
    principal = testing.principal_of()
    spec = RunSpec(ref.thread_id, "quick", "1", "d", [{"role": "user", "text": "go"}], Limits(), principal.as_dict())
    reservation = await store.reserve(ref, principal.user, 0, "", "")
    await store.accept(ref, principal.user, spec, "stable", reservation, TRACE, (b'{"input":[]}', b"{}"), 600.0)


async def _steps(store: Store, ref: RunRef) -> list[float]:
    """Seconds of the durable writes of a step: the model's answer with its tool call, then the tool's result."""
    await _accepted(store, ref)
    state = orjson.dumps({"v": 1, "usage": {"model_calls": 1}, "phase": "tools", "pending": [["c", "calculator", "1", "{}"]]})
    message = orjson.dumps({"role": "assistant", "tool_calls": [{"id": "c", "name": "calculator", "arguments": '{"expression":"1+1"}'}]})
    times = []
    for step in range(STEPS):
        began = time.perf_counter()
        for half, kinds in enumerate((("usage", "tool_call_started"), ("tool_call_completed", "step_completed", "step_started"))):
            drafts = [Draft(kind, state) for kind in kinds]
            await store.write(ref, 1, 2 * step + half + 1, TRACE, drafts, mode="c", state=state, messages=[message])
        times.append(time.perf_counter() - began)
    return times


async def _replays(store: Store, state_url: str, keys: Path, folder: Path) -> list[float]:
    """Seconds to read a run of 3,000 events over gRPC."""
    identities = testing.Identities(folder)
    principal = testing.principal_of()
    ref = RunRef(principal.tenant, uuid.uuid4().hex, uuid.uuid4().hex)
    await _accepted(store, ref)
    text = Draft("message_delta", orjson.dumps({"text": "a few words of an answer ", "message_id": "m/1"}), provisional=True)
    number, left = 0, EVENTS - 3
    while left:
        number, some = number + 1, min(100, left)
        await store.write(ref, 1, number, TRACE, [text] * some)
        left -= some
    end = Terminal("succeeded", b'{"output_text":"x"}', "run_finished", b'{"output_text":"x"}')
    await store.write(ref, 1, number + 1, TRACE, [], mode="f", terminal=end)
    times = []
    async with fakes(identities) as behind, served(
        settings_for(identities, behind, state_url, write_config(folder / "config"), envelope_keys_file=keys), identities, principal
    ) as client:  # fmt: skip
        for _ in range(REPLAYS):
            began, seen = time.perf_counter(), 0
            with client.calling():
                stream = client.runs.StreamEvents(pb.StreamEventsRequest(thread_id=ref.thread_id, replay_only=True))
                async with aclosing(stream):
                    async for item in stream:
                        seen += len(item.batch.events)
            if seen < EVENTS - 1:
                raise RuntimeError(f"{seen} events came, {EVENTS} are there")
            times.append(time.perf_counter() - began)
    return times


async def _measure(state_url: str, folder: Path) -> list[Figure]:
    client, keys = connect(state_url), root_keys(folder)
    store = Store(client, "measuring", envelope=opened_envelope(client, keys))
    await store.load()
    try:
        steps = await _steps(store, RunRef("acme", uuid.uuid4().hex, uuid.uuid4().hex))
        replays = await _replays(store, state_url, keys, folder)
    finally:
        await client.aclose()
    return [
        Figure("durable step overhead p50 (two checkpoints, each synced)", statistics.median(steps) * 1000, "ms", 1.5),
        Figure("durable step overhead p99", percentile(steps, 0.99) * 1000, "ms"),
        Figure(f"replay of {EVENTS:,} events p50", statistics.median(replays) * 1000, "ms", 50.0),
    ]


def run() -> list[Figure]:
    """Measures against a Valkey that syncs every write, as `make run` has it."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-") as folder, testing.valkey_server(folder=Path(folder)) as (url, _):
        return uvloop.run(_measure(url, Path(folder)))
