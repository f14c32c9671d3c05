"""Longer faults of the stores and of memory under work: nothing that was acknowledged is lost, and all comes back by itself."""

import asyncio
import os
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx2 as httpx
import pytest

from services.common.rpc.probe import HealthProbe
from services.common.testing import eventually, eventually_async
from tests.e2e.api import TERMINAL, Api, answer_of, events_of

# A whole recovery: restart with backoff, reading the log, leases, reconnects.
pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

GRPC_OFFSET = {"orchestrator": 2, "llm_gateway": 3, "tool_executor": 4, "memory": 5}
ENDS_WITHIN_S = 90
FROZEN_S = 3.0


@pytest.fixture(scope="module")
def own(start_own):
    platform = start_own("--replicas", "orchestrator=2")
    with Api(platform.url, platform.key) as api:
        text = "# Harbour rules\n\nThe harbour master opens the lock gate at 06:40 every morning.\n"
        api.post("/v1/documents", {"title": "harbour.md", "content_type": "text/markdown", "text": text})
    return platform


@pytest.fixture(autouse=True)
def well(own):
    """Every test begins and ends with everything ready."""
    all_ready(own)
    yield
    httpx.delete(f"{own.simulator}/sim/faults").raise_for_status()
    all_ready(own)


def all_ready(own) -> None:
    eventually(lambda: httpx.get(f"{own.url}/ready").status_code == 200, "the gateway is ready", timeout_s=60)
    for service in GRPC_OFFSET:
        eventually(lambda s=service: asyncio.run(health(own, s, "readiness")), f"{service} is ready", timeout_s=60)


async def health(own, service: str, name: str) -> bool | None:
    """One look at a service; None when it does not answer."""
    if service == "gateway":
        async with httpx.AsyncClient(timeout=2.0) as client:
            answer = await client.get(f"{own.url}/{'health' if name == 'liveness' else 'ready'}")
            return answer.status_code == 200
    probe = HealthProbe(f"127.0.0.1:{own.base + GRPC_OFFSET[service]}")
    try:
        return await probe.serving(name, 2.0)
    finally:
        await probe.close()


@contextmanager
def frozen(own, process: str):
    """The process does not move inside; it goes on afterwards unless it was killed meanwhile."""
    pid = own.pid(process)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def slow(own, marker: str, tokens_per_s: float) -> None:
    fault = {"match": {"contains": marker}, "fault": {"tokens_per_s": tokens_per_s}}
    httpx.post(f"{own.simulator}/sim/faults", json=fault).raise_for_status()


def follow(api: Api, run_id: str, known: list[dict], until=TERMINAL) -> list[dict]:
    """Goes on from `known` to the first event of a type in `until`, reconnecting with the cursor as a client would."""
    found = list(known)

    def ended() -> bool:
        path = f"/v1/runs/{run_id}/events" + (f"?after={found[-1]['seq']}" if found else "")
        try:
            with api.http.stream("GET", path, headers={"accept": "text/event-stream"}) as answer:
                if answer.status_code != 200:
                    return False
                for event in events_of(answer.iter_lines()):
                    if "seq" not in event:
                        return False
                    found.append(event)
                    if event["type"] in until:
                        return True
        except httpx.HTTPError:
            pass
        return False

    eventually(ended, f"{run_id} came to {sorted(until)}", timeout_s=ENDS_WITHIN_S, every_s=0.1)
    return found


def whole(events: list[dict]) -> str:
    """The answer; the log has no gap, nothing twice, and one end."""
    seqs = [event["seq"] for event in events]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    assert sum(event["type"] in TERMINAL for event in events) == 1
    return answer_of(events)


class Writer:
    """Starts runs one after the other, through outages too, and keeps which were acknowledged and how others were refused."""

    def __init__(self, own, marker: str) -> None:
        self.acknowledged: dict[str, str] = {}
        self.refused: list[int] = []
        self._own, self._marker = own, marker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        with Api(self._own.url, self._own.key) as api:
            while not self._stop.wait(0.05):
                thread = f"{self._marker}-{uuid.uuid4().hex[:8]}"
                try:
                    answer = api.http.post(f"/v1/threads/{thread}/runs", json={"input": "What is 17 * 23?", "agent": "bench"})
                except httpx.HTTPError:
                    self.refused.append(0)
                    continue
                if answer.status_code < 300:
                    body = answer.json()
                    self.acknowledged[body.get("run_id") or body["run"]["run_id"]] = thread
                else:
                    self.refused.append(answer.status_code)


def test_the_state_store_is_killed_during_runs(own):
    marker = f"reef{uuid.uuid4().hex[:6]}"
    slow(own, marker, 12)
    with Api(own.url, own.key) as api, ThreadPoolExecutor(6) as pool, Writer(own, marker) as writer:
        runs = [
            api.post(f"/v1/threads/{marker}-{n}/runs", {"input": f"Write 60 words about {marker}.", "agent": "plain"}) for n in range(6)
        ]
        ids = [run.get("run_id") or run["run"]["run_id"] for run in runs]
        before = list(pool.map(lambda run_id: follow(api, run_id, [], {"message_delta"}), ids))
        eventually(lambda: len(writer.acknowledged) >= 3, "runs are accepted before the kill")
        victim = own.pid("valkey_state")
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: restarted(own, "valkey_state", victim), "the store is started again", timeout_s=30)
        accepted = set(writer.acknowledged)
        eventually(lambda: len(set(writer.acknowledged) - accepted) >= 3, "runs are accepted again", timeout_s=60)
        httpx.delete(f"{own.simulator}/sim/faults").raise_for_status()
        after = list(pool.map(lambda pair: follow(api, *pair), zip(ids, before, strict=True)))
        answers = {whole(events) for events in after}
        assert len(answers) == 1, "the same words for the same request"
        assert len(answers.pop().split()) == 60
    # What was refused was refused for the load or the outage, never with a 500.
    assert set(writer.refused) <= {429, 503, 504}, writer.refused
    with Api(own.url, own.key) as api:
        for run_id in writer.acknowledged:
            assert "391" in whole(follow(api, run_id, []))


def restarted(own, process: str, old: int) -> bool:
    try:
        return own.pid(process) != old
    except (FileNotFoundError, ValueError):
        return False


async def test_a_frozen_state_store_takes_readiness_and_not_liveness(own):
    services = ["gateway", *GRPC_OFFSET]
    told, begun = len(own.process.output()), time.monotonic()
    with frozen(own, "valkey_state"):
        for service in services:

            async def away(service=service) -> bool:
                assert await health(own, service, "liveness"), f"{service} stays alive"
                return await health(own, service, "readiness") is False

            await eventually_async(away, f"{service} is not ready", timeout_s=30)

        async def long_enough() -> bool:
            for service in services:
                assert await health(own, service, "liveness"), f"{service} stays alive"
                assert await health(own, service, "readiness") is False, f"{service} is not ready as long as the store is frozen"
            return time.monotonic() - begun >= FROZEN_S

        await eventually_async(long_enough, "the store was frozen for the whole time", timeout_s=30)
    for service in services:
        await eventually_async(
            lambda service=service: health(own, service, "readiness"), f"{service} is ready again by itself", timeout_s=30
        )
    assert " ended" not in own.process.output()[told:], "no process was given up"
    with Api(own.url, own.key) as api:
        assert "391" in whole(await asyncio.to_thread(api.turn, f"thawed-{uuid.uuid4().hex[:6]}", "What is 17 * 23?", agent="bench"))


def test_a_run_goes_on_after_the_state_store_was_frozen_under_it(own):
    marker = f"kelp{uuid.uuid4().hex[:6]}"
    slow(own, marker, 12)
    with Api(own.url, own.key) as api:
        started = api.post(f"/v1/threads/{marker}/runs", {"input": f"Write 60 words about {marker}.", "agent": "plain"})
        run_id = started.get("run_id") or started["run"]["run_id"]
        before = follow(api, run_id, [], {"message_delta"})
        begun = time.monotonic()
        with frozen(own, "valkey_state"):
            # Longer than a lease.
            eventually(lambda: time.monotonic() - begun >= FROZEN_S + 1, "the store was frozen", timeout_s=30)
        httpx.delete(f"{own.simulator}/sim/faults").raise_for_status()
        assert len(whole(follow(api, run_id, before)).split()) == 60


@pytest.mark.parametrize(("process", "codes"), [("memory", {"memory_unavailable"}), ("milvus", {"memory_store_unavailable"})])
def test_a_turn_ends_with_a_warning_when_memory_dies_under_it(own, process, codes):
    question = "When does the harbour master open the lock gate? Also what is 17 * 23?"
    with Api(own.url, own.key) as api:
        thread = f"{process}-{uuid.uuid4().hex[:6]}"
        with frozen(own, process) as victim:
            # Frozen first, so that the recall of this turn is surely at it when it dies.
            started = api.post(f"/v1/threads/{thread}/runs", {"input": question, "agent": "assistant"})
            run_id = started.get("run_id") or started["run"]["run_id"]
            before = follow(api, run_id, [], {"run_started"})
            os.kill(victim, signal.SIGKILL)
        events = follow(api, run_id, before)
        assert "391" in whole(events)
        warnings = {event["data"]["code"]: event["data"] for event in events if event["type"] == "warning"}
        assert codes <= set(warnings), [event["type"] for event in events]
        assert all(warnings[code]["user_message"] and warnings[code]["capability_lost"] for code in codes)
        eventually(lambda: restarted(own, process, victim), f"{process} is started again", timeout_s=30)
        all_ready(own)

        def cited() -> bool:
            again = api.turn(f"{thread}-{uuid.uuid4().hex[:6]}", question, agent="assistant")
            types = [event["type"] for event in again]
            return "06:40" in answer_of(again) and "citation" in types and "warning" not in types

        eventually(cited, "documents are found again, without a warning", timeout_s=60, every_s=0.2)
