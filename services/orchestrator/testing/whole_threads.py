"""Calls that fork, roll back and delete threads, and what is seen of them."""

from collections.abc import Sequence
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.orchestrator.testing.fakes import Fakes
from services.orchestrator.testing.harness import Client


async def said(client: Client, text: str, thread_id: str, agent: str = "helper") -> pb.Run:
    """A run of one message, ended."""
    return await client.wait((await client.start(text, thread_id=thread_id, agent=agent)).run_id)


async def fork(client: Client, thread_id: str, at: pb.Checkpoint | None = None, **fields: Any) -> pb.ForkThreadResponse:
    """Forks a thread."""
    with client.calling():
        return await client.threads.ForkThread(pb.ForkThreadRequest(thread_id=thread_id, at=at, **fields))


async def roll_back(client: Client, thread_id: str, to: pb.Checkpoint | None = None, **fields: Any) -> pb.RollbackThreadResponse:
    """Rolls a thread back."""
    with client.calling():
        return await client.threads.RollbackThread(pb.RollbackThreadRequest(thread_id=thread_id, to=to, **fields))


async def delete(client: Client, thread_id: str) -> bool:
    """Deletes a thread; whether nothing is left."""
    with client.calling():
        return (await client.threads.DeleteThread(pb.DeleteThreadRequest(thread_id=thread_id))).completed


async def thread(client: Client, thread_id: str) -> pb.Thread:
    """A thread."""
    with client.calling():
        return (await client.threads.GetThread(pb.GetThreadRequest(thread_id=thread_id))).thread


def shown(events: Sequence[pb.Event]) -> list[tuple]:
    """What of events does not depend on their thread."""
    return [(e.seq, e.run_id, e.type, e.data_json, e.occurred_at.ToMilliseconds(), e.attempt) for e in events]


async def remembered(behind: Fakes, run: pb.Run) -> None:
    """Waits until the turn of a run has reached memory."""
    sessions = behind.sessions.turns
    await testing.eventually_async(lambda: run.run_id in sessions["acme", run.thread_id], "the turn is remembered")


async def keys_of(valkey: Any, thread_id: str) -> list[str]:
    """Keys of the store that bear a thread's name."""
    return sorted(key.decode() for key in await valkey.keys("*") if thread_id in key.decode())
